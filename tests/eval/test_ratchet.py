"""The anchor ratchets to the best so far, so that no metric erodes step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from eval_workspace import simulate, tables
from test_gate import FIRST, PARAMS, workspace

from mm_core.core.layout import Layout
from mm_core.core.records import Verdict, sha256_file
from mm_core.eval import evaluate
from mm_core.eval.evidence import ANCHOR, INT8, gather
from mm_core.eval.gate import History, decide
from mm_core.eval.ratchet import Ratchet, read_best, update_best, with_best
from mm_core.storage.store import LocalStore

STEP = {"mse": 0.9, "conn": 1.03}
"""One week: MSE falls by 10 %, Conn rises by 3 %, within its margin of 5 %."""


def named(scores: pd.DataFrame, model: str) -> pd.DataFrame:
    """The candidate's int8 scores as those of champion or anchor."""
    ours = scores[(scores["model"] == "multimodal") & (scores["precision"] == "int8")]
    return ours.assign(model=model)


def week(
    root: Path, store: LocalStore, scores: pd.DataFrame, frame: pd.DataFrame, inputs: dict, name: str
) -> tuple[Verdict, Layout]:
    layout = workspace(root, scores, frame, inputs)
    layout.model("multimodal").write_bytes(name.encode())
    evaluate._write_parquet(layout.per_image, scores, evaluate.identity(layout, inputs))
    anchor = (inputs["anchor"] or {}).get("digest")
    return decide(PARAMS, layout, inputs, History(Ratchet(store, anchor))), layout


LARGE = {"mse": 0.9, "conn": 1.08, "biou": -0.02, "maxf": -0.015}
"""What was promoted twelve times in a row by the rule before 0025."""


@pytest.mark.parametrize("step", [STEP, LARGE], ids=["small", "large"])
def test_no_metric_erodes_week_by_week(tmp_path: Path, step: dict[str, float]) -> None:
    """Twelve candidates, each worse in Conn than the champion of its week: at most one of them passes."""
    store = LocalStore(tmp_path / "store")
    scores, frame = tables(simulate(1, photos=60))
    verdict, layout = week(tmp_path, store, scores, frame, FIRST, "first")
    assert verdict.decision == "PROMOTE"
    first = sha256_file(layout.model("multimodal"))
    update_best(PARAMS, layout, Ratchet(store, first), first)
    champion, held, passed = first, named(scores, "champion"), 0
    anchor = held.assign(model="anchor")
    others = scores[scores["model"].isin(["multimodal", "blind"])]
    for number in range(12):
        before, others = others, others.copy()
        ours = (others["model"] == "multimodal") & (others["category"] != "scenery")
        others.loc[ours, "mse"] *= step["mse"]
        others.loc[ours, "conn"] *= step["conn"]
        others.loc[ours, "biou"] += step.get("biou", 0.0)
        lost = step.get("maxf", 0.0) * ours
        others["fcurve"] = [curve + by for curve, by in zip(others["fcurve"], lost, strict=True)]
        inputs = {"champion": {"digest": champion}, "anchor": {"digest": first}}
        everyone = pd.concat([others, held, anchor], ignore_index=True)
        verdict, layout = week(tmp_path, store, everyone, frame, inputs, f"week {number}")
        if verdict.decision == "PROMOTE":
            passed += 1
            champion, held = verdict.candidate, named(others, "champion")
            update_best(PARAMS, layout, Ratchet(store, first), champion)
        else:
            others = before
    assert passed == (1 if step is STEP else 0)
    assert verdict.decision == "REJECT"
    if step is STEP:
        assert any(": conn" in reason and "the best so far" in reason for reason in verdict.reasons)


def test_a_place_moves_only_with_confidence_and_a_better_model_holds_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    scores, frame = tables(simulate(2, photos=60))
    layout = workspace(tmp_path, scores, frame, FIRST)
    assert set(update_best(PARAMS, layout, Ratchet(store, "anchor"), "one")) == {*frame["category"]}
    assert update_best(PARAMS, layout, Ratchet(store, "anchor"), "one") == {}, "repeating it changes nothing"
    again, _ = tables(simulate(3, photos=60))
    workspace(tmp_path, again, frame, FIRST)
    lucky = update_best(PARAMS, layout, Ratchet(store, "anchor"), "two")
    assert sum(len(metrics) for metrics in lucky.values()) <= 6, "another seed is no better model"
    better, _ = tables(simulate(2, photos=60, gains=0.4))
    workspace(tmp_path, better, frame, FIRST)
    won = update_best(PARAMS, layout, Ratchet(store, "anchor"), "three")
    assert all("mse" in won[category] and "conn" in won[category] for category in won) and len(won) == 7
    assert read_best(Ratchet(store, "anchor"))["pets"]["mse"] == "three"
    assert read_best(Ratchet(store, "another anchor")) == {} == read_best(Ratchet(store, None))
    fallen = Ratchet(store, "anchor", {"three"})
    assert read_best(fallen)["pets"]["mse"] in ("one", "two"), "the holder before it holds the place again"
    assert "mse" in update_best(PARAMS, layout, fallen, "four")["pets"], "what fell bars nobody"


def test_photos_that_did_not_judge_are_no_reference_later(tmp_path: Path) -> None:
    """The promoted model was trained on half of the cards, and its scores there are too good to be true."""
    store = LocalStore(tmp_path / "store")
    scores, frame = tables(simulate(4, photos=60))
    learnt = frame.loc[frame["category"] == "cards", "sample_id"].iloc[:30].tolist()
    scores.loc[scores["sample_id"].isin(learnt) & (scores["model"] == "multimodal"), "mse"] *= 0.01
    layout = workspace(tmp_path, scores, frame, FIRST)
    ratchet = Ratchet(store, "anchor")
    assert "cards" in update_best(PARAMS, layout, ratchet, "one", learnt)
    evidence, _ = gather(scores, frame, [INT8], [])
    assert evidence is not None
    best = with_best(evidence, frame, store, read_best(ratchet), None).values[ANCHOR]["mse"][:, 0]
    assert np.isnan(best[np.isin(evidence.sample_id, learnt)]).all()
    assert np.isfinite(best[~np.isin(evidence.sample_id, learnt)]).all()


def test_scenery_does_not_erode_by_losses_of_which_none_is_certain(tmp_path: Path) -> None:
    """Each week the six gain 10 %, and scenery loses 3 % within the noise of its photos."""
    store, rng = LocalStore(tmp_path / "store"), np.random.default_rng(5)
    scores, frame = tables(simulate(6, photos=60))
    _, layout = week(tmp_path, store, scores, frame, FIRST, "first")
    first = sha256_file(layout.model("multimodal"))
    update_best(PARAMS, layout, Ratchet(store, first), first)
    champion, held, reasons = first, named(scores, "champion"), []
    anchor = held.assign(model="anchor")
    others = scores[scores["model"].isin(["multimodal", "blind"])].copy()
    for number in range(12):
        before, others = others, others.copy()
        ours = others["model"] == "multimodal"
        scenery = ours & (others["category"] == "scenery")
        noise = np.exp(rng.normal(0.03, 0.12, 60))
        for metric in ("mse", "conn"):
            others.loc[ours & ~scenery, metric] *= 0.9
            others.loc[scenery, metric] *= np.tile(noise, scenery.sum() // 60)
        inputs = {"champion": {"digest": champion}, "anchor": {"digest": first}}
        everyone = pd.concat([others, held, anchor], ignore_index=True)
        verdict, layout = week(tmp_path, store, everyone, frame, inputs, f"week {number}")
        if verdict.decision == "PROMOTE":
            champion, held = verdict.candidate, named(others, "champion")
            update_best(PARAMS, layout, Ratchet(store, first), champion)
        else:
            reasons += verdict.reasons
            others = before
    assert any(reason.startswith("scenery: ") and "the best so far" in reason for reason in reasons), reasons
