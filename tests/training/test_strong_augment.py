"""Altered photos: what changes, what must not, and that the random numbers are torch's."""

from __future__ import annotations

import torch

from mm_core.training import strong_augment
from mm_core.training.strong_augment import altered, mixed

DECODERS = ["saliency", "portrait", "saliency", "scenery"]


def numbered(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Photo k is k everywhere, its matte k / 10."""
    rows = torch.arange(4.0).view(4, 1, 1, 1)
    return rows.expand(4, 3, size, size).clone(), (rows / 10).expand(4, 1, size, size).clone()


def test_a_rectangle_comes_from_a_photo_of_the_same_decoder_with_its_matte() -> None:
    torch.manual_seed(0)
    images, target = numbered()
    for _ in range(20):
        photos, mattes = mixed(images, target, DECODERS, 1.0)
        assert torch.equal(photos[:, :1] / 10, mattes)
        for row, other in ((0, 2), (2, 0)):
            share = float((photos[row, 0] == other).float().mean())
            assert 0.05 < share < 0.5
            assert set(photos[row].unique().tolist()) == {row, other}
        # Alone with their decoders.
        assert torch.equal(photos[[1, 3]], images[[1, 3]])
    assert torch.equal(images, numbered()[0])


def test_without_mixing_the_target_stays_and_the_photo_does_not() -> None:
    torch.manual_seed(0)
    images, target = torch.rand(8, 3, 32, 32), torch.rand(8, 1, 32, 32)
    photos, mattes = altered(images, target, ["saliency"] * 8, 0.0)
    assert torch.equal(mattes, target)
    changed = (photos - images).abs().mean((1, 2, 3))
    assert (changed > 0.01).sum() >= 6
    # Still the same photos: each is nearer to itself than to any other.
    apart = torch.cdist(photos.flatten(1), images.flatten(1))
    assert torch.equal(apart.argmin(1), torch.arange(8))


def test_alteration_is_float32_within_autocast_and_repeats_with_the_seed() -> None:
    images, target = torch.rand(4, 3, 32, 32), torch.rand(4, 1, 32, 32)
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(altered(images, target, DECODERS, 0.5))
    assert found[0][0].dtype == torch.float32
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_partners_go_round_within_a_decoder() -> None:
    assert strong_augment._partners(["a", "b", "a", "c", "a"]) == [2, 1, 4, 3, 0]
