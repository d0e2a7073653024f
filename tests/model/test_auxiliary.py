"""Cross-consistency decoders: each known trap of the method has its test."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mm_core.core.params import SemiParams
from mm_core.model import auxiliary
from mm_core.model.auxiliary import PERTURBATIONS, AuxiliaryDecoders, bernoulli_kl

NAMES = list(PERTURBATIONS)


@pytest.fixture
def features(net):
    torch.manual_seed(0)
    net.eval()
    return [f.detach().requires_grad_() for f in net.encode(torch.randn(3, 3, 64, 64))]


@pytest.fixture
def alpha():
    """The object fills a square of sample 0, the whole of sample 1, nothing of sample 2."""
    alpha = torch.zeros(3, 1, 64, 64)
    alpha[0, :, 16:48, 8:40] = 0.9
    alpha[1] = 1
    alpha[2] = 0.4
    return alpha


def perturb(name, features, alpha, decoder=None):
    return PERTURBATIONS[name](features, alpha, decoder or torch.nn.Identity())


def test_there_is_a_decoder_for_every_perturbation_the_params_allow(net, features, alpha):
    assert set(NAMES) == set(SemiParams().perturbations)
    aux = AuxiliaryDecoders(net, NAMES)
    logits = aux(features, alpha)
    assert list(logits) == NAMES
    assert all(out.shape == (3, 1, 64, 64) for out in logits.values())
    assert list(AuxiliaryDecoders(net, ["dropout"])(features, alpha)) == ["dropout"]
    with pytest.raises(ValueError, match="unknown perturbation 'blur'"):
        AuxiliaryDecoders(net, ["blur"])


@pytest.mark.parametrize("name", NAMES)
def test_every_level_is_perturbed_not_the_bottleneck_alone(net, features, name):
    """With a clean skip the auxiliary decoder could ignore the perturbation."""
    alpha = torch.zeros(3, 1, 64, 64)
    alpha[:, :, 4:28, 4:28] = 0.9  # within one of the bottleneck's four places
    aux = AuxiliaryDecoders(net, [name])
    seen = features[aux.first :]
    torch.manual_seed(1)
    changed = perturb(name, seen, alpha, aux.decoders[name])
    assert len(changed) == len(seen)
    for before, after in zip(seen, changed, strict=True):
        assert after.shape == before.shape and torch.isfinite(after).all()
        assert not torch.allclose(after[0], before[0])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_encoder_and_own_decoder_only(net, name, alpha):
    net.train()
    aux = AuxiliaryDecoders(net, [name])
    features = net.encode(torch.randn(3, 3, 64, 64))
    guide = alpha.clone().requires_grad_()
    aux(features, guide)[name].square().mean().backward()
    assert net.encoder.body.conv_stem.weight.grad.abs().sum() > 0
    assert aux.decoders[name].head.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.decoders.parameters())
    assert guide.grad is None


def test_one_channel_divergence_is_bernoulli():
    """A softmax over one channel is constant, so that its divergence is zero whatever the logits."""
    target, other = torch.tensor([[[[0.3]]]]), torch.tensor([[[[-1.2]]]])
    assert F.kl_div(F.log_softmax(other, 1), F.softmax(target, 1), reduction="sum") == 0
    expected = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=target), torch.distributions.Bernoulli(logits=other)
    )
    torch.testing.assert_close(bernoulli_kl(target, other), expected.mean())
    assert bernoulli_kl(target, target) == 0
    huge = torch.tensor([[[[80.0]]]])
    assert torch.isfinite(bernoulli_kl(huge, -huge))


def test_vat_leaves_no_gradient_behind(net, features, alpha):
    aux = AuxiliaryDecoders(net, ["vat"])
    perturb("vat", features[aux.first :], alpha, aux.decoders["vat"])
    assert all(p.grad is None for p in aux.parameters())
    assert all(f.grad is None for f in features)


@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "bf16 autocast"])
def test_vat_finds_a_direction_worse_than_chance(net, features, alpha, mixed):
    """With a first step below the rounding of the features, its direction would be noise."""
    aux = AuxiliaryDecoders(net, ["vat"]).eval()
    decoder = aux.decoders["vat"]
    seen = [f.detach() for f in features[aux.first :]]
    if mixed:
        seen = [f.bfloat16() for f in seen]
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), torch.no_grad():
        adversarial = perturb("vat", seen, alpha, decoder)
    with torch.no_grad():
        plain = [f.float() for f in seen]
        steps = [after.float() - before for after, before in zip(adversarial, plain, strict=True)]
        for step in steps:
            if not mixed:
                torch.testing.assert_close(auxiliary._norm(step).flatten(), torch.full((3,), 2.0), rtol=1e-3, atol=0)
        target = decoder(plain)[0]
        worst = bernoulli_kl(target, decoder([f + s for f, s in zip(plain, steps, strict=True)])[0])
        random = []
        for _ in range(5):
            noise = [torch.randn_like(s) for s in steps]
            noise = [n / auxiliary._norm(n) * auxiliary._norm(s) for n, s in zip(noise, steps, strict=True)]
            random.append(bernoulli_kl(target, decoder([f + n for f, n in zip(plain, noise, strict=True)])[0]))
    assert worst > 3 * max(random)


def test_masks_follow_alpha_above_half_and_cut_the_same_place_at_every_level(features, alpha):
    ones = [torch.ones_like(f) for f in features]
    for name, erased in (("object_mask", True), ("context_mask", False)):
        for out in perturb(name, ones, alpha):
            scale = 64 // out.shape[-1]
            inside = (alpha[0, 0] > 0.5).float()
            if scale <= 8:  # the square's sides lie on multiples of 8
                inside = F.max_pool2d(inside[None], scale)[0]
                assert torch.equal(out[0, 0], 1 - inside if erased else inside)


def test_a_mask_that_would_erase_everything_erases_nothing(features, alpha):
    ones = [torch.ones_like(f) for f in features]
    assert all((out[1] == 1).all() and (out[2] == 1).all() for out in perturb("object_mask", ones, alpha))
    assert all((out[2] == 1).all() for out in perturb("context_mask", ones, alpha))


def test_a_small_cut_does_not_vanish_at_the_bottleneck(alpha):
    small = torch.zeros(1, 1, 64, 64)
    small[:, :, 34:44, 34:44] = 1
    levels = perturb("guided_cutout", [torch.ones(1, 1, side, side) for side in (32, 8, 2)], small)
    assert all((level == 0).any() for level in levels)


def test_feature_drop_works_on_signed_features(alpha):
    bottleneck = -torch.rand(1, 4, 8, 8) * 0.5
    bottleneck[:, :, 2, 2] = -1
    (out,) = perturb("feature_drop", [bottleneck], alpha)
    assert (out[:, :, 2, 2] == 0).all() and (out != 0).float().mean() > 0.9


def test_cutout_lies_in_the_objects_box_and_has_its_share(features, alpha):
    full = [torch.ones(3, 1, 64, 64)]
    for seed in range(5):
        torch.manual_seed(seed)
        cut = 1 - perturb("guided_cutout", full, alpha)[0]
        assert int(cut[0].sum()) == 13 * 13, "0.4 of 32 in each direction"
        assert not (cut[0] * (alpha[0] <= 0.5)).any()
        assert int(cut[1].sum()) == 26 * 26


def test_feature_drop_erases_the_most_active_places_everywhere(alpha):
    bottleneck = torch.rand(2, 4, 8, 8) * 0.5
    bottleneck[:, :, 3, 5] = 1
    skip = torch.ones(2, 2, 16, 16)
    out_skip, out = perturb("feature_drop", [skip, bottleneck], alpha)
    assert (out[:, :, 3, 5] == 0).all() and (out_skip[:, :, 6:8, 10:12] == 0).all()
    assert out_skip.mean() > 0.9


def test_noise_stays_within_thirty_percent(features, alpha):
    ratio = torch.cat(
        [(o / f)[f.abs() > 1e-3] for o, f in zip(perturb("feature_noise", features, alpha), features, strict=True)]
    )
    assert 0.699 < ratio.min() < 0.72 and 1.28 < ratio.max() < 1.301


def test_dropout_takes_whole_channels(alpha):
    torch.manual_seed(0)
    (out,) = perturb("dropout", [torch.ones(2, 200, 4, 4)], alpha)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(out.amax((2, 3)), out.amin((2, 3)))
