"""A CLIP of open_clip's own class, trained on drawn pairs, saved, and loaded like any other file."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image

from mm_core.core.errors import InputError, NothingToTrainOn
from mm_core.core.params import ClipParams
from mm_core.model.clip import cached_embeddings, load_clip, train_local_clip

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230), "yellow": (230, 210, 40)}
SHAPES = ("disc", "square", "bar")


def draw(colour: str, shape: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    photo = rng.integers(90, 130, (72, 80, 3)).astype(np.uint8)
    x, y = (int(v) for v in rng.integers(26, 46, 2))
    if shape == "disc":
        cv2.circle(photo, (x, y), 16, COLOURS[colour], -1)
    else:
        w, h = (15, 15) if shape == "square" else (24, 5)
        cv2.rectangle(photo, (x - w, y - h), (x + w, y + h), COLOURS[colour], -1)
    return photo


def pairs_of(seeds) -> list[tuple[np.ndarray, str]]:
    return [(draw(c, s, seed), f"a {c} {s} on grey") for seed in seeds for c in COLOURS for s in SHAPES]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    return path, train_local_clip(pairs_of(range(10)), 100, 0, path)


def test_it_learns_which_words_belong_to_which_picture(trained):
    path, outcome = trained
    assert outcome.last_loss < 0.5 * outcome.first_loss
    clip = load_clip(ClipParams(), path)
    assert clip.digest == outcome.digest
    unseen = pairs_of([99])
    images, texts = clip.encode_image([p for p, _ in unseen]), clip.encode_text([t for _, t in unseen])
    assert images.shape == texts.shape == (12, clip.dim) and images.dtype == texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    right = (images @ texts.T).argmax(1) == np.arange(12)
    assert right.mean() >= 0.5, "chance is 1 in 12"


def test_the_same_seed_gives_the_same_file_from_paths_or_arrays(tmp_path):
    pairs = pairs_of([0])[:6]
    files = []
    for number, (photo, caption) in enumerate(pairs):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
        files.append((tmp_path / f"{number}.png", caption))
    first = train_local_clip(pairs, 2, 3, tmp_path / "a.safetensors")
    assert train_local_clip(files, 2, 3, tmp_path / "b.safetensors").digest == first.digest
    assert train_local_clip(pairs, 2, 4, tmp_path / "c.safetensors").digest != first.digest
    assert first.held_out == 0


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 14])
def test_any_number_of_steps_trains(tmp_path, steps):
    assert np.isfinite(train_local_clip(pairs_of([0])[:6], steps, 3, tmp_path / "a.safetensors").last_loss)


def test_text_features_take_no_gradient_and_odd_photos_are_fine(trained):
    clip = load_clip(ClipParams(), trained[0])
    assert clip.encode_image([np.zeros((1, 300, 3), np.uint8), np.zeros((31, 7, 3), np.uint8)]).shape == (2, clip.dim)
    assert clip.encode_text([]).shape == clip.encode_image([]).shape == (0, clip.dim)
    assert clip.encode_text(["word " * 200]).shape == (1, clip.dim)


def test_embeddings_are_computed_once_per_key_and_weights(trained, tmp_path):
    clip = load_clip(ClipParams(), trained[0])
    photos = {f"id{n}": draw("red", "disc", n) for n in range(5)}
    asked: list[str] = []

    def load(key):
        asked.append(key)
        return photos[key]

    keys = ["id3", "id0", "id3"]
    first = cached_embeddings(clip, tmp_path, "image", keys, load)
    np.testing.assert_allclose(first, clip.encode_image([photos[k] for k in keys]), atol=1e-5)
    assert asked == ["id3", "id0"]
    again = cached_embeddings(clip, tmp_path, "image", ["id0", "id4"], load)
    assert asked == ["id3", "id0", "id4"] and np.array_equal(again[0], first[1])
    # Killed while it wrote a key: that row is computed again, the others stay.
    (index,) = tmp_path.glob("*-image.index")
    index.write_bytes(index.read_bytes()[:-30])
    np.testing.assert_allclose(cached_embeddings(clip, tmp_path, "image", ["id4", "id0"], load), again[::-1], atol=1e-5)
    assert asked == ["id3", "id0", "id4", "id4"]
    captions = cached_embeddings(clip, tmp_path, "text", ["a red disc"], lambda caption: caption)
    np.testing.assert_allclose(captions, clip.encode_text(["a red disc"]), atol=1e-5)


def test_a_real_architecture_with_a_local_file_goes_the_same_way(tmp_path):
    """`mm-local-clip` by name stands for any open_clip architecture with a file of its weights."""
    outcome = train_local_clip(pairs_of([0])[:4], 1, 0, tmp_path / "weights.safetensors")
    clip = load_clip(ClipParams(model="mm-local-clip", pretrained=str(tmp_path / "weights.safetensors")))
    assert clip.digest == outcome.digest
    with pytest.raises(InputError, match=r"clip\.pretrained.*cannot be loaded as RN50"):
        load_clip(ClipParams(model="RN50", pretrained=str(tmp_path / "weights.safetensors")))


def test_what_cannot_be_had_names_the_field(tmp_path):
    with pytest.raises(InputError, match=r"clip\.model.*'ViT-B-33'.*ViT-B"):
        load_clip(ClipParams(model="ViT-B-33", pretrained="openai"))
    with pytest.raises(InputError, match=r"clip\.pretrained: 'mine' is neither a file nor a tag of RN50 \(openai"):
        load_clip(ClipParams(model="RN50", pretrained="mine"))
    with pytest.raises(InputError, match="no local CLIP yet"):
        load_clip(ClipParams(), tmp_path / "absent.safetensors")
    with pytest.raises(NothingToTrainOn, match="two different captions"):
        train_local_clip(pairs_of([0])[:1] * 3, 1, 0, tmp_path / "x.safetensors")
