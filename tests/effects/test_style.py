"""Backgrounds that change while the subject stays."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from mm_core.core.errors import InputError
from mm_core.effects.style import STYLES, background_blur, colour_splash, stylised, transport
from samplegen import render


def scene(category: str = "portrait", seed: int = 8, size: int = 160) -> tuple[np.ndarray, np.ndarray]:
    r = render(category, seed, size=size)
    return np.clip(r.light, 0, 255).round().astype(np.uint8), r.alpha


CHANGES = {
    "splash": colour_splash,
    "blur": background_blur,
    "film": lambda photo, alpha: stylised(photo, alpha, "film"),
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_the_subject_stays_and_the_background_changes(name: str) -> None:
    photo, alpha = scene()
    done = CHANGES[name](photo, alpha)
    firm, back = alpha > 0.999, alpha < 0.001
    assert np.abs(done[firm].astype(int) - photo[firm]).max() <= 2
    assert np.abs(done[back].astype(int) - photo[back]).mean() > 2


def test_splash_keeps_the_lightness_of_the_background() -> None:
    photo, alpha = scene()
    back = alpha == 0
    done = colour_splash(photo, alpha)
    assert (done[back].max(1) == done[back].min(1)).all()
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    assert np.abs(done[back][:, 0].astype(int) - grey[back]).max() <= 1


def test_the_subject_does_not_bleed_into_the_blur() -> None:
    """A red subject before a grey wall: not a pixel of the blurred wall may turn red."""
    alpha = np.zeros((120, 160), np.float32)
    cv2.circle(alpha, (80, 60), 25, 1.0, -1)
    photo = np.where(alpha[..., None] > 0, np.uint8([230, 20, 20]), np.uint8([120, 120, 120])).astype(np.uint8)
    done = background_blur(photo, alpha)
    assert np.abs(done[alpha == 0].astype(int) - 120).max() <= 2


def test_what_lies_farther_behind_is_blurrier() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (200, 200, 3)).astype(np.uint8)
    alpha = np.zeros((200, 200), np.float32)
    alpha[90:150, 90:110] = 1
    done = background_blur(photo, alpha)
    far, near = done[5:40, :60].std(), done[140:149, :60].std()
    assert far < 0.5 * near


def test_without_a_subject_all_is_background() -> None:
    photo, alpha = scene(size=64)
    assert background_blur(photo, np.zeros_like(alpha)).std() <= photo.std()


def test_colours_of_another_photo_come_over() -> None:
    photo, alpha = scene()
    other, _ = scene("scenery", 6)
    done = stylised(photo, alpha, other)
    back = alpha == 0

    def lab(p: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(p.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)

    goal = lab(other).reshape(-1, 3).mean(0)
    assert np.linalg.norm(lab(done)[back].mean(0) - goal) < 0.35 * np.linalg.norm(lab(photo)[back].mean(0) - goal)


def test_transport_is_symmetric_and_gives_the_goals_covariance() -> None:
    rng = np.random.default_rng(3)
    a, b = (m @ m.T for m in rng.normal(size=(2, 3, 3)))
    t = transport(a, b)
    assert np.allclose(t, t.T)
    assert np.allclose(t @ a @ t.T, b, atol=0.05 * np.abs(b).max())
    assert np.allclose(transport(b, b), np.eye(3), atol=0.02)


def test_unknown_styles_are_named() -> None:
    photo, alpha = scene(size=64)
    with pytest.raises(InputError, match=next(iter(STYLES))):
        stylised(photo, alpha, "cubist")
