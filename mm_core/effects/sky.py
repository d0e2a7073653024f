"""Sky matting: a new sky, with haze at the horizon and matching light on the land.

Sky statistics are partly transferred to the land in CIELAB, as in Reinhard et al. 2001 ("Color transfer between
images").
"""

from __future__ import annotations

import cv2
import numpy as np

from mm_core.core.errors import InputError
from mm_core.effects.foreground import layers, strips
from mm_core.effects.fullsize import check_pair, shrunk
from mm_core.effects.haze import haze
from mm_core.model.preprocess import resize
from samplegen.canvas import fractal

FEATHER = 0.12
"""Height above the horizon, as a share of the sky's height, in which the new sky fades into haze."""
COLOUR_SHARE, LIGHT_SHARE = 0.3, 0.55
"""Share of the sky's change of colour, and of lightness, that the land follows."""

SKIES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int], float]] = {
    "clear": ((52, 110, 190), (178, 210, 236), (255, 255, 255), 0.0),
    "clouds": ((60, 118, 194), (186, 214, 236), (252, 252, 254), 0.75),
    "sunset": ((70, 74, 138), (252, 164, 88), (255, 190, 140), 0.6),
    "evening": ((96, 92, 160), (240, 176, 178), (250, 206, 204), 0.5),
    "night": ((8, 14, 40), (40, 52, 96), (60, 66, 104), 0.25),
}
"""Name → colour at the top, at the horizon, and of the clouds; and the clouds' share of the sky."""


def painted_sky(name: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Paint one of `SKIES`, uint8 (height, width, 3), horizon at the lower edge; raise InputError if unknown."""
    if name not in SKIES:
        raise InputError(f"sky {name!r}: one of {', '.join(SKIES)}, or a photo of a sky")
    high, low, light, cover = SKIES[name]
    rng = np.random.default_rng(seed)
    # Painted small and enlarged, because a sky has no finer detail.
    scale = min(1.0, 1024 / max(height, width))
    rows, columns = max(8, round(height * scale)), max(8, round(width * scale))
    # Vertical colour gradient from the top to the horizon.
    fall = (np.linspace(0, 1, rows, dtype=np.float32) ** 1.4)[:, None, None]
    sky = np.repeat(np.array(high, np.float32) * (1 - fall) + np.array(low, np.float32) * fall, columns, 1)
    if cover:
        # Clouds flatten towards the horizon: rows are compressed there, like a plane seen from below.
        noise = fractal(rng, 2 * rows, columns, 3, 5)
        seen = (1 - (1 - np.linspace(0, 0.96, rows)) ** 0.6) * (2 * rows - 1)
        across, down = np.meshgrid(np.arange(columns, dtype=np.float32), seen.astype(np.float32))
        flat = cv2.remap(noise, across, down, cv2.INTER_LINEAR)
        density = np.clip((flat + cover - 0.45) * 1.5, 0, 1)[..., None] ** 1.3 * np.float32(0.9)
        shaded = np.array(light, np.float32) * (1 - 0.22 * np.clip(density - 0.5, 0, 1))
        sky = sky * (1 - density) + shaded * density
    # Stars: blurred bright points in the upper part.
    if name == "night":
        stars = np.zeros((rows, columns), np.float32)
        y, x = rng.integers(0, max(1, int(0.8 * rows)), 160), rng.integers(0, columns, 160)
        stars[y, x] = rng.uniform(150, 700, 160)
        sky += cv2.GaussianBlur(stars, (0, 0), 0.7)[..., None]
    full = resize(sky, height, width)
    grain = rng.standard_normal((min(height, 512), min(width, 512), 1), np.float32)  # against banding
    tiled = np.tile(grain, (-(-height // grain.shape[0]), -(-width // grain.shape[1]), 1))[:height, :width]
    for strip in strips(full):
        full[strip] += 0.8 * tiled[strip]
    return np.clip(full, 0, 255).astype(np.uint8)


def replaced(photo: np.ndarray, sky: np.ndarray, new: np.ndarray | str) -> np.ndarray:
    """Replace the sky of a photo.

    The new sky's lower edge is on the horizon and fades into as much haze as the land has. The land follows part of the
    sky's change of colour and light. At its edge it has its own colours instead of the old sky's.

    Args:
        photo: uint8 (H, W, 3).
        sky: Sky matte, float (H, W) in [0, 1].
        new: A picture of a sky, uint8 (h, w, 3), or a name of `SKIES`.

    Returns:
        uint8 (H, W, 3); the photo itself if it has no sky.
    """
    check_pair(photo, sky)
    rows = np.flatnonzero((sky > 0.5).mean(1) > 0.02)
    if not len(rows):
        return photo.copy()
    horizon = int(rows[-1]) + 1
    mist = haze(photo, sky)
    drawn = painted_sky(new, horizon, photo.shape[1]) if isinstance(new, str) else _fitted(new, horizon, photo)
    # Below the horizon the sky's last row is repeated, for soft pixels of the matte there.
    whole = np.concatenate([drawn, np.repeat(drawn[-1:], photo.shape[0] - horizon, 0)])
    land_layer = layers(photo, 1 - sky.astype(np.float32))[0]
    old_mean = _mean_lab(shrunk(photo), shrunk(sky.astype(np.float32)))
    new_mean = _mean_lab(shrunk(whole), shrunk(sky.astype(np.float32)))
    edge = _height_of_land(sky)
    veil = np.array(_veil(mist.light, whole[horizon - 1].reshape(-1, 3).mean(0)), np.float32)
    result = np.empty_like(photo)
    for strip in strips(photo):
        # Per pixel: fade of the sky into haze, then land over sky.
        y = np.arange(strip.start, strip.stop, dtype=np.float32)[:, None]
        above = np.clip((edge[None] - y) / max(1.0, FEATHER * horizon), 0, 1)[..., None]
        fade = np.float32(min(0.85, 0.25 + mist.share)) * (1 - above) ** 2
        air = whole[strip] * (1 - fade) + veil * fade
        land = _relit(land_layer[strip], old_mean, new_mean)
        a = np.clip(sky[strip, :, None], 0, 1).astype(np.float32)
        result[strip] = np.rint(np.clip(a * air + (1 - a) * land, 0, 255))
    return result


def _fitted(picture: np.ndarray, height: int, photo: np.ndarray) -> np.ndarray:
    """Fit a picture of a sky to (height, photo's width): one scale factor, cropped at the top and the sides."""
    width = photo.shape[1]
    scale = max(height / picture.shape[0], width / picture.shape[1])
    grown = resize(picture, max(height, round(picture.shape[0] * scale)), max(width, round(picture.shape[1] * scale)))
    left = (grown.shape[1] - width) // 2
    return grown[grown.shape[0] - height :, left : left + width]


def _height_of_land(sky: np.ndarray) -> np.ndarray:
    """Return each column's first row of land from above, smoothed along the columns: float32 (W,)."""
    is_land = sky < 0.5
    # A column without land gets the full height.
    first = np.where(is_land.any(0), is_land.argmax(0), sky.shape[0]).astype(np.float32)
    return cv2.GaussianBlur(first[None], (0, 0), max(1.0, 0.02 * sky.shape[1]))[0]


def _mean_lab(picture: np.ndarray, weight: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray((lab * weight[..., None]).sum((0, 1)) / max(float(weight.sum()), 1e-6), np.float32)


def _relit(land: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Relight land, uint8 (h, w, 3), for a sky with a mean CIELAB changed from `old` to `new`; float32 in 0..255."""
    lab = cv2.cvtColor(land.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    # The ratio of lightness is damped and limited, so that the land stays recognisable.
    light = float(np.clip((new[0] / max(float(old[0]), 5.0)) ** LIGHT_SHARE, 0.35, 1.25))
    lab *= np.array([light, min(1.0, light), min(1.0, light)], np.float32)  # darkness also reduces the chroma
    lab[..., 0] = np.clip(lab[..., 0], 0, 100)
    lab[..., 1:] += COLOUR_SHARE * (new[1:] - old[1:])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255


def _veil(light: tuple[float, float, float], horizon: np.ndarray) -> np.ndarray:
    """Return the haze's colour under the new sky: the brightness of its horizon, a third of the old airlight's hue."""
    old = np.array(light, np.float32)
    return np.clip(0.67 * horizon + 0.33 * old * (horizon.mean() / max(float(old.mean()), 1.0)), 0, 255)
