"""The choice itself, on tables: known answers."""

import numpy as np
import pandas as pd
import pytest

from mm_core.labeling.selection import FEEDBACK, FLOOR, Looked, Spread, apportion, choose, nearest, ranked, spread_out
from mm_core.labeling.signals import band_entropy, look, relit


def table(count, category="pets", **columns):
    ids = [f"{n:03}" for n in range(count)]
    base = {"sample_id": ids, "category": category, "group": ids, "seen": False, "feedback": False}
    return pd.DataFrame(base | columns)


def level(count):
    return {"uncertainty": pd.DataFrame({"entropy": np.ones(count)})}


def apart(count, dim=40):
    """Photos that are all equally unlike."""
    return np.eye(count, max(count, dim), dtype=np.float32) * 10


def ids(found):
    return list(found["sample_id"])


def test_a_burst_takes_one_place():
    vectors = np.concatenate([apart(6, 7), np.repeat(apart(7)[6:, :7], 20, 0)])
    vectors[6:] += np.random.default_rng(0).normal(0, 1e-3, (20, 7))
    signals = {"uncertainty": pd.DataFrame({"entropy": [0.1] * 6 + [0.9] * 20})}
    found = choose(Looked(table(26), vectors, vectors[:0]), signals, {}, budget=7)
    assert sum(int(i) >= 6 for i in ids(found)) == 1
    alone = choose(Looked(table(26), vectors * np.nan, vectors[:0]), signals, {}, budget=7)
    assert all(int(i) >= 6 for i in ids(alone)), "without vectors, the most uncertain would all be of the burst"


def test_what_is_labelled_is_not_asked_for_again():
    vectors = apart(4)
    found = choose(Looked(table(4), vectors, vectors[[0, 2]] + 0.01), level(4), {}, budget=2)
    assert set(ids(found)) == {"001", "003"}
    assert (found["diversity"] >= 0.5).all()


def test_a_rare_category_gets_the_share_of_its_need():
    category = ["portrait"] * 90 + ["cards"] * 10
    rng = np.random.default_rng(1)
    signals = {"uncertainty": pd.DataFrame({"entropy": rng.random(100)})}
    even = choose(Looked(table(100, category), apart(100), apart(0)), signals, {"portrait": 1, "cards": 1}, budget=12)
    assert even["category"].value_counts()["cards"] in (5, 6), "one in ten photos, one of two categories"
    weak = choose(Looked(table(100, category), apart(100), apart(0)), signals, {"portrait": 1, "cards": 2}, budget=12)
    assert weak["category"].value_counts()["cards"] in (7, 8, 9)


def test_ranks_are_of_the_photos_own_category():
    """A decoder that sounds surer of everything does not lose its category."""
    category = ["portrait", "portrait", "pets", "pets"]
    signals = {"uncertainty": pd.DataFrame({"entropy": [0.9, 0.8, 0.01, 0.02]})}
    assert set(ids(choose(Looked(table(4, category), apart(4), apart(0)), signals, {}, budget=2))) == {"000", "003"}
    shares = ranked(signals["uncertainty"], np.array(category))
    assert shares == pytest.approx([1, 0.5 * (1 + FLOOR), 0.5 * (1 + FLOOR), 1])


def test_the_score_is_the_product_of_the_parts():
    rng = np.random.default_rng(2)
    signals = {
        "uncertainty": pd.DataFrame({"entropy": rng.random(9), "tta_variance": rng.random(9)}),
        "difficulty": pd.DataFrame({"matte_difficulty": rng.random(9)}),
    }
    found = choose(
        Looked(table(9, feedback=[True] + 8 * [False]), apart(9), apart(0)),
        signals,
        {"pets": 1.5},
        budget=5,
        caps={"pets": 4},
    )
    parts = found[["uncertainty", "difficulty", "diversity", "need", "feedback"]]
    assert found["score"].to_numpy() == pytest.approx(parts.prod(axis=1).to_numpy())
    assert len(found) == 4, "the cap of the category"
    assert found["need"].tolist() == pytest.approx([1.5, 1.5 / 3, 1.5 / 5, 1.5 / 7])
    assert ids(found)[0] == "000" and found["feedback"].iloc[0] == FEEDBACK
    assert found["tta_variance"].iloc[0] == signals["uncertainty"]["tta_variance"].iloc[0]


def test_one_of_a_group_and_unseen_groups_first():
    groups = ["a", "a", "b", "c"]
    found = choose(
        Looked(table(4, group=groups, seen=[False, False, True, False]), apart(4), apart(0)), level(4), {}, budget=9
    )
    assert len(found) == 3
    assert found["group"].tolist()[-1] == "b"


def test_the_order_of_the_rows_means_nothing_and_the_seed_settles_ties():
    rng = np.random.default_rng(3)
    looked, vectors = table(30), np.repeat(apart(15), 2, 0)
    signals = {"uncertainty": pd.DataFrame({"entropy": rng.integers(0, 3, 30).astype(float)})}
    first = choose(Looked(looked, vectors, apart(0)), signals, {}, budget=9)
    turned = rng.permutation(30)
    moved = {name: part.iloc[turned] for name, part in signals.items()}
    again = choose(Looked(looked.iloc[turned], vectors[turned], apart(0)), moved, {}, budget=9)
    pd.testing.assert_frame_equal(first, again)
    assert ids(choose(Looked(looked, vectors, apart(0)), signals, {}, budget=9, seed=1)) != ids(first)
    none = [None] * 30
    here = spread_out(ids(looked), none, vectors, {}, 9, 0)
    there = spread_out(ids(looked.iloc[turned]), none, vectors[turned], {}, 9, 0)
    assert {ids(looked)[n] for n in here} == {ids(looked.iloc[turned])[n] for n in there}


def test_the_look_is_spread_over_what_there_is():
    """Nine in ten photos show one scene; of ten that are looked at, one does."""
    vectors = np.concatenate([np.zeros((90, 20)), apart(10, 20)]).astype(np.float32)
    vectors[95:97] = np.nan
    rows = spread_out([f"{n:03}" for n in range(100)], [None] * 100, vectors, {}, 9, 0)
    assert sum(n < 90 for n in rows) == 1
    assert not {95, 96} & set(rows), "photos without a vector come last"
    assert list(spread_out(["b", "a"], [None, None], vectors[:2], {}, 5, 0)) == [0, 1]
    category = ["pets"] * 95 + ["cards"] * 5
    rows = spread_out([f"{n:03}" for n in range(100)], category, vectors, {"pets": 1, "cards": 1}, 9, 0)
    assert sum(n >= 95 for n in rows) in (4, 5), "a rare category is looked at too"


def test_places_follow_need_up_to_what_there_is():
    assert apportion({"pets": 90, "cards": 3}, {"pets": 1, "cards": 3}, 8) == {"pets": 5, "cards": 3}
    assert apportion({"pets": 90, "cards": 90}, {"pets": 1, "cards": 3}, 8) == {"pets": 2, "cards": 6}
    assert apportion({"pets": 1}, {}, 8) == {"pets": 1}


def test_distances_are_those_of_scipy():
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(4)
    here, there = rng.random((50, 8)).astype(np.float32), rng.random((3000, 8)).astype(np.float32)
    assert nearest(here, there) == pytest.approx(cdist(here, there).min(1), abs=1e-6)
    spread = Spread(here, there)
    spread.add(7)
    expected = np.minimum(cdist(here, there).min(1), cdist(here, here[7:8])[:, 0])
    assert spread.distance == pytest.approx(expected, abs=1e-6)
    assert np.median(spread.share) == pytest.approx(0.5, abs=0.05)


def test_nothing_to_choose_from():
    nobody = np.zeros((0, 0))
    assert choose(Looked(table(0), nobody, nobody), {"quality": pd.DataFrame({"light": []})}, {}, budget=3).empty
    assert choose(Looked(table(3), apart(3), apart(0)), level(3), {}, budget=0).empty


# ── what the model says ──────────────────────────────────────────────────────────────────────────


class Painter:
    """A model whose matte is the photo's red channel: mirrored photos give mirrored mattes."""

    def predict(self, photos, decoders):
        return [p[..., 0].astype(np.float32) / 255 for p in photos]


class Lefty:
    """A model that always sees the subject on the left."""

    def predict(self, photos, decoders):
        return [np.where(np.arange(p.shape[1]) < p.shape[1] // 2, 1.0, 0.0) * np.ones(p.shape[:2]) for p in photos]


def test_a_model_that_changes_its_mind_is_unsure():
    rgb = np.full((8, 10, 3), 128, np.uint8)
    rgb[:, :5] = 255
    (same,) = look([rgb], ["saliency"], Painter())
    # One of four views is contradicted everywhere: variance 3/16.
    (turned,) = look([rgb], ["saliency"], Lefty())
    assert turned["tta_variance"] == pytest.approx(3 / 16)
    assert turned["entropy"] == 0 < same["entropy"]
    soft = np.array([128, relit(rgb, 1.6)[0, 9, 0], relit(rgb, 0.625)[0, 9, 0], 128]) / 255
    assert same["tta_variance"] == pytest.approx(np.var(soft) / 2, rel=1e-4)


def test_relit_photos_are_darker_and_lighter():
    rgb = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    assert (relit(rgb, 1.6) <= rgb).all() and (relit(rgb, 0.625) >= rgb).all()
    assert relit(rgb, 1.6)[0, 0, 0] == 0 and relit(rgb, 0.625)[15, 15, 0] == 255


def test_entropy_counts_the_soft_band_only():
    alpha = np.zeros((10, 10), np.float32)
    assert band_entropy(alpha) == band_entropy(alpha + 1) == 0
    alpha[:5] = 0.5
    assert band_entropy(alpha) == pytest.approx(0.5)
    alpha[5:] = 0.04
    assert band_entropy(alpha) == pytest.approx(0.5)
