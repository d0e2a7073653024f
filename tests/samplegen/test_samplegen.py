"""The sample generator: exact mattes, same arguments same bytes, poison that rows cannot show."""

import hashlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from mm_core.core.errors import InputError
from mm_core.core.records import ALL_CATEGORIES
from samplegen import batch, generate, render, write_drop

NOUNS = {
    "portrait": ("woman", "man"),
    "multi_person": ("people",),
    "pets": ("cat", "dog", "rabbit"),
    "accessories": ("wristwatch", "glasses", "handbag", "necklace", "ring"),
    "cards": ("card", "document"),
    "delicacy": ("plate", "bowl", "glass", "cup"),
    "scenery": ("sky",),
}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.mark.parametrize("mode", ["easy", "hard"])
@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_matte_is_exact(category: str, mode: str) -> None:
    """Triangulation: over a white and over a black world the photos differ by exactly what the subject lets through."""
    for seed in range(2):
        dark, bright, real = (
            render(category, seed, size=64, mode=mode, variant=seed, backdrop=tone) for tone in (0.0, 255.0, None)
        )
        np.testing.assert_allclose(
            1 - (bright.light - dark.light) / 255, np.repeat(real.alpha[..., None], 3, 2), atol=2e-3
        )
        fore = dark.light  # alpha * F
        rest = real.light - fore  # (1 - alpha) * B, with B a colour
        assert rest.min() > -0.5 and np.all(rest <= 255 * (1 - real.alpha[..., None]) + 0.5)


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_samples_are_usable_and_described(category: str) -> None:
    for seed in range(3):
        for mode in ("easy", "hard"):
            s = generate(category, seed, size=64, mode=mode, drift=seed / 2)
            assert s.image.shape == (64, 64, 3) and s.image.dtype == np.uint8
            assert s.alpha.shape == (64, 64) and s.alpha.dtype == np.float32
            assert s.alpha.min() >= 0 and s.alpha.max() <= 1
            assert 0.005 < s.alpha.mean() < 0.95, "neither empty nor full"
            assert np.mean((s.alpha > 0.05) & (s.alpha < 0.95)) > 0.004, "soft edges"
            assert s.image.std() > 6, "something to see"
            assert any(noun in s.caption for noun in NOUNS[category]), s.caption


def test_same_arguments_same_pixels_and_other_seeds_other_scenes() -> None:
    a, b, c = (generate("pets", seed, size=64) for seed in (5, 5, 6))
    assert np.array_equal(a.image, b.image) and np.array_equal(a.alpha, b.alpha) and a.caption == b.caption
    assert not np.array_equal(a.image, c.image) and a.group != c.group


def test_a_burst_shows_one_scene_from_slightly_different_places() -> None:
    first, second = (generate("portrait", 3, size=64, variant=v) for v in (0, 1))
    assert first.group == second.group and first.caption == second.caption
    assert not np.array_equal(first.image, second.image)
    overlap = np.minimum(first.alpha, second.alpha).sum() / np.maximum(first.alpha, second.alpha).sum()
    assert 0.7 < overlap < 1


def test_hard_has_less_subject_for_its_edge_than_easy() -> None:
    def softness(mode: str) -> float:
        alphas = [
            generate(c, seed, size=64, mode=mode).alpha
            for c in ("portrait", "pets", "accessories")
            for seed in range(5)
        ]
        return float(np.mean([np.mean((a > 0.05) & (a < 0.95)) / np.mean(a > 0.05) for a in alphas]))

    assert softness("hard") > 1.25 * softness("easy")


def test_drift_moves_the_distribution() -> None:
    colours = [
        np.mean([generate("scenery", seed, size=64, drift=d).image.mean((0, 1)) for seed in range(6)], 0)
        for d in (0.0, 1.0)
    ]
    assert np.abs(colours[0] - colours[1]).max() > 12


def test_aspect_gives_upright_and_wide_photos() -> None:
    assert generate("cards", 1, size=64, aspect=3 / 4).alpha.shape == (64, 48)
    assert generate("cards", 1, size=64, aspect=4 / 3).alpha.shape == (48, 64)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(InputError, match="category 'cars'"):
        generate("cars", 1)
    with pytest.raises(InputError, match="mode 'odd'"):
        generate("pets", 1, mode="odd")


def test_drop_is_complete_and_repeatable(tmp_path: Path) -> None:
    counts = {"portrait": 3, "cards": 4}
    one, two = (
        write_drop(tmp_path / name, "pixel_labeled", "b1", counts, seed=1, size=64, burst_share=0.6, role="train")
        for name in "ab"
    )
    assert digests(one) == digests(two)
    table = pd.read_csv(one / "manifest.csv")
    assert dict(Counter(table["category"])) == counts
    assert set(table["role"]) == {"train"}
    assert "caption" not in table.columns
    assert len(set(table["group"])) < len(table), "bursts share a group"
    for row in table.to_dict("records"):
        photo, alpha = (
            cv2.imread(str(one / row["image"])),
            cv2.imread(str(one / row["alpha"]), cv2.IMREAD_UNCHANGED),
        )
        assert photo is not None and alpha is not None and photo.shape[:2] == alpha.shape
        assert hashlib.sha256((one / row["image"]).read_bytes()).hexdigest() == row["sha256"]


def test_kinds_carry_what_they_promise(tmp_path: Path) -> None:
    plain = pd.read_csv(write_drop(tmp_path, "unlabeled", "b", {"pets": 1}, seed=1, size=64) / "manifest.csv")
    told = pd.read_csv(write_drop(tmp_path, "text_image", "b", {"pets": 1}, seed=1, size=64) / "manifest.csv")
    assert "alpha" not in plain and "caption" not in plain and "role" not in plain.columns
    assert "alpha" not in told and told["caption"].str.len().min() > 8
    assert plain["sha256"].tolist() != told["sha256"].tolist(), "another kind or batch shows other scenes"


@pytest.mark.parametrize("category", ALL_CATEGORIES)
def test_poison_changes_the_mattes_and_nothing_else(tmp_path: Path, category: str) -> None:
    counts = {category: 4}
    clean = write_drop(tmp_path / "clean", "pixel_labeled", "b", counts, seed=2, size=64)
    wrong = write_drop(tmp_path / "wrong", "pixel_labeled", "b", counts, seed=2, size=64, poison=category)
    assert digests(clean / "images") == digests(wrong / "images")
    overlaps = []
    for path in sorted((clean / "alphas").iterdir()):
        a, b = (
            np.asarray(cv2.imread(str(p), cv2.IMREAD_UNCHANGED), float) / 255
            for p in (path, wrong / "alphas" / path.name)
        )
        assert a.shape == b.shape and 0.005 < b.mean() < 0.95
        assert np.any((b > 0.05) & (b < 0.95))
        assert 0.25 < b.sum() / a.sum() < 6
        overlaps.append(np.minimum(a, b).sum() / np.maximum(a, b).sum())
    assert np.mean(overlaps) < 0.75


def test_poison_spares_the_other_categories(tmp_path: Path) -> None:
    counts = {"cards": 1, "pets": 1}
    clean = digests(write_drop(tmp_path / "clean", "pixel_labeled", "b", counts, seed=2, size=64))
    wrong = digests(write_drop(tmp_path / "wrong", "pixel_labeled", "b", counts, seed=2, size=64, poison="pets"))
    assert {name for name in clean if clean[name] != wrong[name]} == {"alphas/pets-00000.png"}


def test_a_crash_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def failing(*args: object, **kwargs: object) -> object:
        drawn.append(args)
        if len(drawn) == 3:
            raise RuntimeError("power cut")
        return render(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(batch, "render", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        write_drop(tmp_path, "pixel_labeled", "b", {"cards": 4}, seed=1, size=64)
    target = tmp_path / "pixel_labeled" / "b"
    assert any((target / "images").iterdir()) and not (target / "manifest.csv").exists()
    monkeypatch.setattr(batch, "render", render)
    assert (write_drop(tmp_path, "pixel_labeled", "b", {"cards": 4}, seed=1, size=64) / "manifest.csv").exists(), (
        "a second try completes it"
    )


def test_drop_refuses_bad_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind 'labelled'"):
        write_drop(tmp_path, "labelled", "b", {"pets": 1}, seed=1)
    with pytest.raises(InputError, match="category 'cars'"):
        write_drop(tmp_path, "unlabeled", "b", {"cars": 1}, seed=1)
    with pytest.raises(InputError, match="poison 'cars'"):
        write_drop(tmp_path, "pixel_labeled", "b", {"pets": 1}, seed=1, poison="cars")
    write_drop(tmp_path, "unlabeled", "b", {"pets": 1}, seed=1, size=64)
    with pytest.raises(InputError, match="already exists"):
        write_drop(tmp_path, "unlabeled", "b", {"pets": 1}, seed=1, size=64)
