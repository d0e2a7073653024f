"""Shapes, routing, determinism and learning of the matting network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mm_core.core.errors import InputError
from mm_core.core.params import ModelParams
from mm_core.core.records import DECODERS
from mm_core.model.network import MattingNet, build_model
from mm_core.model.preprocess import prepare


@pytest.mark.parametrize("encoder", ["test_efficientnet", "mobilenetv3_small_050", "test_convnext", "u2netp"])
@pytest.mark.parametrize("size", [64, 96])
def test_every_encoder_gives_a_matte_of_the_inputs_size(encoder, size):
    net = build_model(ModelParams(pretrained="", encoder=encoder, size=64, width=8), seed=0).eval()
    with torch.inference_mode():
        features = net.encode(torch.randn(2, 3, size, size))
        outs = [net.decode(features, name) for name in DECODERS]
    assert [f.shape[1] for f in features] == net.channels
    assert [size // f.shape[-1] for f in features] == net.reductions
    assert net.bottleneck_channels == features[-1].shape[1]
    assert all(logits.shape == (2, 1, size, size) for out in outs for logits in out)
    assert len(outs[0]) == (7 if encoder == "u2netp" else 1)


def test_the_mobile_default_stays_within_its_cost():
    from torch.utils.flop_counter import FlopCounterMode

    net = build_model(ModelParams(), seed=0).eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 288, 288), "saliency")
    assert counter.get_total_flops() / 2 < 1.1e9, "multiply-adds at 288 px"
    served = [*net.encoder.parameters(), *net.decoders["saliency"].parameters()]
    assert sum(p.numel() for p in served) < 3.3e6


@pytest.mark.parametrize("encoder", ["test_efficientnet", "u2netp"])
def test_routing_is_each_rows_own_decoder(encoder):
    net = build_model(ModelParams(pretrained="", encoder=encoder, size=64, width=8), seed=0).eval()
    images = torch.randn(5, 3, 64, 64)
    names = ["scenery", "saliency", "portrait", "saliency", "scenery"]
    with torch.inference_mode():
        routed = net.route(net.encode(images), names)
        for row, name in enumerate(names):
            alone = net.decode(net.encode(images[row : row + 1]), name)
            for one, other in zip(routed, alone, strict=True):
                torch.testing.assert_close(one[row : row + 1], other, rtol=1e-4, atol=1e-4)


def test_routing_sends_gradient_only_to_the_decoders_in_the_batch(net):
    net.train()
    logits = net.route(net.encode(torch.randn(3, 3, 64, 64)), ["portrait", "saliency", "portrait"])[0]
    logits[[0, 2]].sum().backward()
    assert net.decoders["portrait"].head.weight.grad.abs().sum() > 0
    assert not net.decoders["saliency"].head.weight.grad.abs().any()
    assert net.decoders["scenery"].head.weight.grad is None


def test_a_single_row_of_a_decoder_can_train_at_the_smallest_size(net):
    """At 32 px the bottleneck is one pixel; a norm over one value would raise."""
    net.train()
    net.route(net.encode(torch.randn(3, 3, 32, 32)), DECODERS)[0].sum().backward()


def test_routing_refuses_a_wrong_number_of_names(net):
    with pytest.raises(ValueError, match="2 decoder names for a batch of 3"):
        net.route(net.encode(torch.randn(3, 3, 64, 64)), ["saliency", "saliency"])


def test_the_seed_is_the_weights_and_the_global_generator_is_left_alone(tiny):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = build_model(tiny, 1), build_model(tiny, 1), build_model(tiny, 2)
    assert torch.equal(torch.rand(3), expected)
    state = first.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.state_dict().items())
    assert not torch.equal(first.decoders["saliency"].head.weight, other.decoders["saliency"].head.weight)


def test_an_unknown_encoder_names_the_field_and_similar_ones():
    with pytest.raises(InputError, match=r"model\.encoder.*mobilenetv4_tiny.*mobilenetv4"):
        build_model(ModelParams(pretrained="", encoder="mobilenetv4_tiny"), 0)


def test_a_plain_vision_transformer_is_refused():
    with pytest.raises(InputError, match="hierarchical"):
        build_model(ModelParams(pretrained="", encoder="test_vit", size=64), 0)


def test_pretrained_encoder_weights_come_from_a_local_file(tmp_path, tiny):
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(77)
        source = timm.create_model("test_efficientnet")
        strangers = {name: timm.create_model(name).state_dict() for name in ("test_resnet", "test_convnext")}
    torch.save(source.state_dict(), tmp_path / "encoder.pth")
    net = build_model(tiny.model_copy(update={"pretrained": str(tmp_path / "encoder.pth")}), seed=0)
    loaded = net.encoder.body.state_dict()
    assert torch.equal(loaded["conv_stem.weight"], source.state_dict()["conv_stem.weight"])
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in loaded.items())

    for name, state in strangers.items():
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=rf"params\.yaml: model\.(encoder|pretrained).*{name}\.pth"):
            build_model(tiny.model_copy(update={"pretrained": str(tmp_path / f"{name}.pth")}), seed=0)
    with pytest.raises(InputError, match="no file"):
        build_model(tiny.model_copy(update={"pretrained": str(tmp_path / "absent.pth")}), seed=0)


def test_it_learns_a_sharp_matte(net: MattingNet, drawn):
    """A soft disc on noise: after some steps, alpha on unseen ones is right and its edge is a pixel or two wide."""
    samples = [drawn(seed) for seed in range(24)]
    images = torch.from_numpy(np.stack([prepare(photo, 64) for photo, _ in samples]))
    alphas = torch.from_numpy(np.stack([alpha[None] for _, alpha in samples]))
    train, test = slice(0, 12), slice(12, 24)
    optimiser = torch.optim.AdamW(net.parameters(), 4e-3)
    net.train()
    for _ in range(60):
        logits = net(images[train], "saliency")
        loss = (
            F.binary_cross_entropy_with_logits(logits, alphas[train]) + (logits.sigmoid() - alphas[train]).abs().mean()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        matte = net.eval()(images[test], "saliency").sigmoid()
    truth = alphas[test]
    assert (matte - truth).abs().mean() < 0.05
    assert ((matte > 0.1) & (matte < 0.9)).float().mean() < 0.15, "blurred: too many half-transparent pixels"


def test_one_decoder_exports_to_onnx_and_agrees(net, tmp_path):
    import onnxruntime

    class Served(torch.nn.Module):
        def __init__(self, net: MattingNet):
            super().__init__()
            self.net = net

        def forward(self, image):
            return self.net(image, "portrait").sigmoid()

    image = torch.randn(1, 3, 64, 64)
    served = Served(net.eval()).eval()
    path = tmp_path / "portrait.onnx"
    torch.onnx.export(served, (image,), path, dynamo=True, input_names=["image"], output_names=["alpha"], verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (alpha,) = session.run(None, {"image": image.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(alpha, served(image).numpy(), atol=1e-4)
