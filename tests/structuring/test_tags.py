"""A CLIP of open_clip's own class, made on the spot, whose last layer is solved so that a colour means a class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mm_core.core.errors import InputError
from mm_core.core.params import ClipParams, StructureParams
from mm_core.model.clip import LOCAL_NAME, _open_clip, clip_digest, load_clip
from mm_core.structuring import tags
from mm_core.structuring.category_guess import SENTENCES, ClipGuesser
from mm_core.structuring.imagenet import class_names
from mm_core.structuring.rows import Photo
from mm_core.structuring.tags import ClipTags, class_vectors, read_head

MEANT = {"strawberry": (215, 30, 40), "broccoli": (40, 150, 50), "lakeshore": (40, 90, 200), "banana": (240, 220, 60)}


def photo(colour, number=0) -> Photo:
    rgb = np.full((40, 50, 3), colour, np.uint8)
    return Photo(f"s{number}", None, Path("unused"), rgb, rgb)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[ClipParams, Path]:
    """A random CLIP whose image tower's last layer maps each colour of MEANT to its class's vector; and its cache."""
    open_clip, folder = _open_clip(), tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(LOCAL_NAME, image_resize_mode="squash")
    model.eval()
    params = ClipParams(model=LOCAL_NAME, pretrained=str(folder / "tiny.safetensors"))

    def saved() -> str:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, params.pretrained)
        return clip_digest(params)[:16]

    before = saved()
    wanted = class_vectors(load_clip(params), "simple", folder)[[class_names().index(name) for name in MEANT]]
    last = model.visual.attnpool.c_proj
    with torch.no_grad():
        given = model.encode_image(torch.stack([transform(Image.fromarray(photo(c).rgb)) for c in MEANT.values()]))
        change = torch.linalg.lstsq(given, torch.from_numpy(wanted)).solution.T
        last.weight.copy_(change @ last.weight)
        last.bias.copy_(change @ last.bias)
        model.logit_scale.fill_(np.log(100))
    # The text tower is the same: what it said need not be computed again for the new file.
    (folder / f"{before}-imagenet-simple.npz").rename(folder / f"{saved()}-imagenet-simple.npz")
    return params, folder


@pytest.fixture
def clip(made) -> ClipParams:
    return made[0]


def test_each_colour_gets_the_class_it_means(made):
    tagger = ClipTags(made[0], StructureParams(tags=3), made[1], "cpu")
    found = tagger.run([photo(colour, i) for i, colour in enumerate(MEANT.values())])
    for one, name in zip(found, MEANT, strict=True):
        assert one.texts["tags"].split("; ")[0] == name
        chances = list(one.numbers.values())
        assert list(one.numbers)[0] == f"tag/{name}" and len(chances) == 3
        assert sorted(chances, reverse=True) == chances and 0 < sum(chances) <= 1
        assert np.linalg.norm(one.vector) == pytest.approx(1, abs=1e-5)
    assert len(class_names()) == len(set(class_names())) == 1000


def test_class_vectors_are_made_once_and_a_killed_run_goes_on(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(_open_clip(), "IMAGENET_CLASSNAMES", _open_clip().IMAGENET_CLASSNAMES[:100])
    loaded = load_clip(clip)
    whole = class_vectors(loaded, "simple", tmp_path / "whole")
    encode, calls = loaded.encode_text, []

    def dying(texts):
        calls.append(len(texts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(texts)

    monkeypatch.setattr(loaded, "encode_text", dying)
    with pytest.raises(KeyboardInterrupt):
        class_vectors(loaded, "simple", tmp_path)
    resumed = class_vectors(loaded, "simple", tmp_path)
    np.testing.assert_allclose(resumed, whole, atol=1e-6)
    assert sum(calls) == 7 * (100 + tags.SAVE_EVERY)
    class_vectors(loaded, "simple", tmp_path)
    assert sum(calls) == 7 * (100 + tags.SAVE_EVERY)


def test_other_weights_templates_or_heads_are_another_version(clip, tmp_path):
    def version(**values):
        return ClipTags(clip, StructureParams(**values), tmp_path, "cpu").version

    head = tmp_path / "head.safetensors"
    dim = load_clip(clip).dim
    save_file({"weight": torch.ones(1, dim), "bias": torch.tensor([2.0])}, head)
    versions = {version(), version(tags=7), version(tag_templates="openai"), version(aesthetic_head=str(head))}
    assert len(versions) == 4 and version() in versions


def test_the_aesthetic_head_reads_the_vector(made, tmp_path):
    clip, cache = made
    dim, head = load_clip(clip).dim, tmp_path / "head.pth"
    torch.save({"weight": torch.arange(dim).float()[None], "bias": torch.tensor([2.0])}, head)
    tagger = ClipTags(clip, StructureParams(aesthetic_head=str(head)), cache, "cpu")
    (one,) = tagger.run([photo((200, 10, 10))])
    assert one.numbers["laion_aesthetic"] == pytest.approx(float(np.arange(dim) @ one.vector) + 2, abs=1e-3)
    with pytest.raises(InputError, match="aesthetic_head.*needs vectors of"):
        read_head(head, dim + 1)
    head.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a linear head"):
        read_head(head, dim)
    with pytest.raises(InputError, match="no such file"):
        ClipTags(clip, StructureParams(aesthetic_head="nowhere.pth"), tmp_path, "cpu")


def test_the_zero_shot_guess_is_the_category_whose_sentences_are_nearest(clip, tmp_path):
    tagger = ClipTags(clip, StructureParams(), tmp_path, "cpu")
    vectors = np.stack([tagger.clip.encode_text(SENTENCES[c]).mean(0) for c in ("pets", "cards")])
    first, second = ClipGuesser(tagger).guess(vectors)
    assert (first.category, second.category) == ("pets", "cards")
    assert 1 / 7 < first.confidence <= 1
