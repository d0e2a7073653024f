"""Text fusion starts as identity and can learn."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mm_core.model.fusion import PROJECTION, TextFusion


def test_untrained_it_changes_nothing_and_has_a_gradient(net):
    features = net.encode(torch.randn(2, 3, 64, 64))
    text = F.normalize(torch.randn(2, 16), dim=1)
    fusion = TextFusion(net.bottleneck_channels, 16)
    fused = fusion(features, text)
    assert all(torch.equal(after, before) for after, before in zip(fused, features, strict=True))
    net.decode(fused, "saliency")[0].square().mean().backward()
    assert fusion.out.weight.grad.abs().sum() > 0


def test_it_learns_to_tell_texts_apart():
    """The same picture feature, two texts, two targets: only the text can decide."""
    torch.manual_seed(0)
    fusion = TextFusion(6, 8)
    bottleneck = torch.rand(1, 6, 3, 3).expand(2, -1, -1, -1)
    text = F.normalize(torch.randn(2, 8), dim=1)
    target = torch.stack([bottleneck[0] + 1, bottleneck[0] - 1])
    optimiser = torch.optim.Adam(fusion.parameters(), 0.02)
    for _ in range(150):
        loss = (fusion([bottleneck], text)[-1] - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05


def test_projections_are_float32_unit_vectors():
    fusion = TextFusion(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = fusion.project(torch.rand(3, 6, 2, 2).bfloat16())
    assert vectors.shape == (3, PROJECTION) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
