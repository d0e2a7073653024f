"""Erasing: what is put over a known background must come off again."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mm_core.core.errors import InputError
from mm_core.effects.eraser import Fill, erase, grown, learned
from samplegen import generate


def passer_by(photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The photo with a soft magenta figure over it, and the figure's matte."""
    height, width = photo.shape[:2]
    alpha = np.zeros((height, width), np.float32)
    cv2.ellipse(alpha, (width // 2, height // 2), (width // 12, height // 5), 0, 0, 360, 1.0, -1)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 1.5)
    mixed = photo * (1 - alpha[..., None]) + np.float32([220, 30, 200]) * alpha[..., None]
    return np.rint(mixed).astype(np.uint8), alpha


def opencv(method: int) -> Fill:
    return lambda photo, hole, avoid: cv2.inpaint(photo, hole, 5, method)


FILLS: dict[str, Fill | None] = {
    "blend": None,
    "telea": opencv(cv2.INPAINT_TELEA),
    "ns": opencv(cv2.INPAINT_NS),
}
"""The default and OpenCV's two methods."""


def psnr(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a[where].astype(float) - b[where]) ** 2)))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    kinds = ("scenery", "pets", "delicacy", "cards", "portrait", "accessories")
    return [generate(kind, seed, size=256).image for kind in kinds for seed in (1, 2)]


def texture(picture: np.ndarray, where: np.ndarray) -> float:
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))[where].mean())


def test_the_default_keeps_texture_and_is_nearer_to_the_hidden_pixels(pictures: list[np.ndarray]) -> None:
    """Beside OpenCV's methods, whose fills are smooth: what is smooth is never far off, and always seen."""
    near, kept = {}, {}
    for method, fill in FILLS.items():
        done = [(photo, alpha > 0.5, erase(seen, alpha, fill=fill)) for photo, seen, alpha in
                ((photo, *passer_by(photo)) for photo in pictures)]  # fmt: skip
        near[method] = np.mean([psnr(filled, photo, hole) for photo, hole, filled in done])
        kept[method] = np.mean([texture(filled, hole) / texture(photo, hole) for photo, hole, filled in done])
    assert abs(np.log(kept["blend"])) < 0.85 * abs(np.log(max(kept["telea"], kept["ns"])))
    assert near["blend"] > max(near["telea"], near["ns"])


def test_a_regular_pattern_goes_on() -> None:
    """Bricks: the hidden pixels are known from the rest of the wall."""
    wall = np.full((160, 240, 3), (150, 70, 50), np.uint8)
    wall[::16] = wall[1::16] = (220, 215, 205)
    for row in range(0, 160, 16):
        for column in range(16 * (row // 16 % 2), 240, 32):
            wall[row : row + 16, column : column + 2] = (220, 215, 205)
    seen, alpha = passer_by(wall)
    hole = alpha > 0.5
    assert psnr(erase(seen, alpha), wall, hole) > psnr(erase(seen, alpha, fill=FILLS["telea"]), wall, hole) + 2


def test_no_colour_of_what_went_is_left_and_the_rest_is_untouched(pictures: list[np.ndarray]) -> None:
    photo = pictures[0]
    seen, alpha = passer_by(photo)
    done = erase(seen, alpha)
    magenta = (done[..., 0].astype(int) - done[..., 1] > 90) & (done[..., 2].astype(int) - done[..., 1] > 70)
    was = (photo[..., 0].astype(int) - photo[..., 1] > 90) & (photo[..., 2].astype(int) - photo[..., 1] > 70)
    assert magenta.sum() <= was.sum()
    far = cv2.dilate((alpha > 0).astype(np.uint8), np.ones((25, 25))) == 0
    assert np.array_equal(done[far], seen[far])


def test_on_a_plain_wall_nothing_is_seen() -> None:
    wall = np.full((96, 128, 3), (120, 140, 160), np.uint8)
    seen, alpha = passer_by(wall)
    assert np.abs(erase(seen, alpha).astype(int) - wall).max() <= 3


def test_a_subject_that_the_frame_cuts_off_leaves_nothing_either() -> None:
    wall = np.full((96, 128, 3), (120, 140, 160), np.uint8)
    alpha = np.zeros((96, 128), np.float32)
    alpha[40:, 50:80] = 1
    seen = wall.copy()
    seen[alpha > 0] = (250, 20, 20)
    assert np.abs(erase(seen, alpha).astype(int) - wall).max() <= 3


def test_nothing_is_copied_from_who_stays() -> None:
    """The only place that looks like the hole's surroundings is the one to keep."""
    rng = np.random.default_rng(1)
    photo = rng.integers(90, 110, (96, 192, 3)).astype(np.uint8)
    stays = np.zeros((96, 192), np.float32)
    stays[30:70, 130:170] = 1
    photo[stays > 0] = (255, 255, 0)
    goes = np.zeros_like(stays)
    goes[30:70, 30:70] = 1
    done = erase(photo, goes, keep=stays)
    assert (done[goes > 0][:, 0] < 200).all()


def test_the_matte_is_grown_by_its_own_soft_band() -> None:
    y, x = np.mgrid[:200, :200]
    distance = np.hypot(x - 100, y - 100)
    sharp, soft = (np.clip((50 - distance) / width + 0.5, 0, 1).astype(np.float32) for width in (1, 16))
    reach = [np.sqrt(grown(matte).sum() / np.pi) - 50 for matte in (sharp, soft)]
    assert reach[0] < 4 and reach[1] > 8 + 2


def test_an_empty_matte_and_a_full_one_do_no_harm() -> None:
    photo = generate("pets", 5, size=64).image
    assert np.array_equal(erase(photo, np.zeros((64, 64), np.float32)), photo)
    assert erase(photo, np.ones((64, 64), np.float32)).shape == photo.shape


def test_a_learned_method_runs_from_its_file(tmp_path: Path) -> None:
    import torch

    class Mean(torch.nn.Module):
        """Fills with the mean of what is known: of LaMa's form."""

        def forward(self, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            known = 1 - mask
            mean = (image * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True)
            return image * known + mean * mask

    path = tmp_path / "mean.pt"
    torch.jit.script(Mean()).save(str(path))
    wall = np.full((61, 75, 3), (120, 140, 160), np.uint8)
    seen, alpha = passer_by(wall)
    assert np.abs(erase(seen, alpha, fill=learned(path)).astype(int) - wall).max() <= 12


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    photo, alpha = passer_by(np.full((32, 32, 3), 99, np.uint8))
    (tmp_path / "x.pt").write_bytes(b"no model")
    with pytest.raises(InputError, match="x.pt"):
        erase(photo, alpha, fill=learned(tmp_path / "x.pt"))
