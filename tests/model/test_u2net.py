"""U2-Net against what is known of the public release: sizes, names, strict loading, numerics of the split network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mm_core.core.errors import InputError
from mm_core.core.params import ModelParams
from mm_core.core.records import DECODERS
from mm_core.model.network import build_model
from mm_core.model.u2net import RSU, U2Decoder, U2Encoder, resize_like


@pytest.mark.parametrize(("name", "parameters"), [("u2net", 44_009_869), ("u2netp", 1_131_181)])
def test_parameter_counts_are_the_papers(name, parameters):
    with torch.device("meta"):
        parts = [U2Encoder(name), U2Decoder(name)]
    assert sum(p.numel() for part in parts for p in part.parameters()) == parameters


def test_names_are_the_public_ones():
    with torch.device("meta"):
        names = {**U2Encoder("u2net").state_dict(), **U2Decoder("u2net").state_dict()}
    for name, shape in {
        "stage1.rebnconvin.conv_s1.weight": (64, 3, 3, 3),
        "stage1.rebnconv7.conv_s1.weight": (32, 32, 3, 3),
        "stage1.rebnconv1d.bn_s1.running_var": (64,),
        "stage4.rebnconv3d.conv_s1.weight": (128, 256, 3, 3),
        "stage6.rebnconv4.conv_s1.bias": (256,),
        "stage5d.rebnconvin.conv_s1.weight": (512, 1024, 3, 3),
        "stage1d.rebnconv6d.conv_s1.weight": (16, 32, 3, 3),
        "side6.weight": (1, 512, 3, 3),
        "outconv.weight": (1, 6, 1, 1),
    }.items():
        assert names[name].shape == shape
    convolutions = 60 + 52
    assert len(names) == convolutions * 7 + 7 * 2


def test_dilation_is_two_at_the_bottom_of_a_block_only():
    block = RSU(5, 8, 4, 8)
    dilations = {name: m.dilation[0] for name, m in block.named_modules() if isinstance(m, torch.nn.Conv2d)}
    assert {name for name, dilation in dilations.items() if dilation == 2} == {"rebnconv5.conv_s1"}


@pytest.mark.parametrize("counters", [True, False], ids=["whole", "without batch counters"])
def test_a_checkpoint_of_one_network_loads_into_all_three_decoders(tmp_path, counters):
    donor = build_model(ModelParams(pretrained="", encoder="u2netp", size=64), seed=7).eval()
    whole = donor.encoder.state_dict() | donor.decoders["saliency"].state_dict()
    if not counters:
        whole = {name: value for name, value in whole.items() if not name.endswith("num_batches_tracked")}
    path = tmp_path / "u2netp.pth"
    torch.save(whole, path)
    net = build_model(ModelParams(encoder="u2netp", size=64, pretrained=str(path)), seed=0).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = donor(image, "saliency")
        for name in DECODERS:
            assert torch.equal(net(image, name), expected)


@pytest.mark.parametrize("damage", ["missing", "extra"])
def test_loading_is_strict(tmp_path, damage):
    donor = build_model(ModelParams(pretrained="", encoder="u2netp", size=64), seed=7)
    whole = donor.encoder.state_dict() | donor.decoders["saliency"].state_dict()
    if damage == "missing":
        del whole["stage3.rebnconv1.conv_s1.weight"]
    else:
        whole["stage9.weight"] = torch.zeros(1)
    torch.save(whole, tmp_path / "bad.pth")
    with pytest.raises(InputError, match=r"bad\.pth is no checkpoint of u2netp"):
        build_model(ModelParams(encoder="u2netp", size=64, pretrained=str(tmp_path / "bad.pth")), seed=0)


def test_too_small_an_input_is_refused():
    with pytest.raises(InputError, match=r"model\.size: u2netp needs at least 64"):
        build_model(ModelParams(pretrained="", encoder="u2netp", size=32), seed=0)


def test_a_single_row_of_a_decoder_can_train_at_the_smallest_size():
    net = build_model(ModelParams(pretrained="", encoder="u2netp", size=64), seed=0).train()
    net.route(net.encode(torch.randn(3, 3, 64, 64)), DECODERS)[0].sum().backward()


def test_the_hub_has_no_u2net():
    with pytest.raises(InputError, match=r"model\.pretrained"):
        build_model(ModelParams(encoder="u2netp", pretrained="timm"), seed=0)


def test_odd_sizes_follow_ceil_mode():
    """70 px: the pools round up (35, 18, 9, 5, 3) and the outputs come back to 70."""
    net = build_model(ModelParams(pretrained="", encoder="u2netp", size=64), seed=0).eval()
    with torch.inference_mode():
        features = net.encode(torch.randn(1, 3, 70, 70))
        assert [f.shape[-1] for f in features] == [70, 35, 18, 9, 5, 3]
        assert all(out.shape[-1] == 70 for out in net.decode(features, "saliency"))


def test_the_resize_of_a_concatenation_keeps_channels_last_on_its_way_back():
    """Torch's backward of a resize takes eight times as long for the slice that a concatenation hands back."""
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    last = x.to(memory_format=torch.channels_last)
    skip = torch.randn(2, 5, 16, 16).to(memory_format=torch.channels_last)
    seen = []
    torch.cat((resize_like(last, skip), skip), 1).square().sum().backward()
    ours, x.grad = x.grad, None
    larger = F.interpolate(last, (16, 16), mode="bilinear", align_corners=False)
    larger.register_hook(lambda g: seen.append(g.is_contiguous(memory_format=torch.channels_last)))
    torch.cat((larger, skip), 1).square().sum().backward()
    assert seen == [False]  # what the hook is for: gone once torch hands back whole gradients
    torch.testing.assert_close(ours, x.grad)
    known = []
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    larger = resize_like(last, skip)
    larger.register_hook(lambda g: known.append(g.is_contiguous(memory_format=torch.channels_last)))
    torch.cat((larger, skip), 1).square().sum().backward()
    assert known == [True]
