"""Sky matting: a new or recoloured sky behind the land, with the haze at the horizon and the light on the land.

Sky statistics go over to the land as in Reinhard et al. 2001 ("Color transfer between images"), in CIELAB, by a part.
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
"""Height above the horizon, as a share of the sky's, over which the new sky fades into the haze."""
COLOUR_SHARE, LIGHT_SHARE = 0.3, 0.55
"""How much of the sky's change of colour and of lightness the land follows."""

SKIES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int], float]] = {
    "clear": ((52, 110, 190), (178, 210, 236), (255, 255, 255), 0.0),
    "clouds": ((60, 118, 194), (186, 214, 236), (252, 252, 254), 0.75),
    "sunset": ((70, 74, 138), (252, 164, 88), (255, 190, 140), 0.6),
    "evening": ((96, 92, 160), (240, 176, 178), (250, 206, 204), 0.5),
    "night": ((8, 14, 40), (40, 52, 96), (60, 66, 104), 0.25),
}
"""Name → colour at the top, at the horizon, of the clouds; how much of the sky they cover."""


def painted_sky(name: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A sky uint8 (height, width, 3) of one of `SKIES`, its horizon at the lower edge. Raises InputError."""
    if name not in SKIES:
        raise InputError(f"sky {name!r}: one of {', '.join(SKIES)}, or a photo of a sky")
    high, low, light, cover = SKIES[name]
    rng = np.random.default_rng(seed)
    # Drawn small and enlarged: a sky has no detail finer than this.
    scale = min(1.0, 1024 / max(height, width))
    rows, columns = max(8, round(height * scale)), max(8, round(width * scale))
    fall = (np.linspace(0, 1, rows, dtype=np.float32) ** 1.4)[:, None, None]
    sky = np.repeat(np.array(high, np.float32) * (1 - fall) + np.array(low, np.float32) * fall, columns, 1)
    if cover:
        # Clouds flatten towards the horizon: rows are squeezed there as a plane seen from below.
        noise = fractal(rng, 2 * rows, columns, 3, 5)
        seen = (1 - (1 - np.linspace(0, 0.96, rows)) ** 0.6) * (2 * rows - 1)
        across, down = np.meshgrid(np.arange(columns, dtype=np.float32), seen.astype(np.float32))
        flat = cv2.remap(noise, across, down, cv2.INTER_LINEAR)
        density = np.clip((flat + cover - 0.45) * 1.5, 0, 1)[..., None] ** 1.3 * np.float32(0.9)
        shaded = np.array(light, np.float32) * (1 - 0.22 * np.clip(density - 0.5, 0, 1))
        sky = sky * (1 - density) + shaded * density
    if name == "night":
        stars = np.zeros((rows, columns), np.float32)
        y, x = rng.integers(0, max(1, int(0.8 * rows)), 160), rng.integers(0, columns, 160)
        stars[y, x] = rng.uniform(150, 700, 160)
        sky += cv2.GaussianBlur(stars, (0, 0), 0.7)[..., None]
    full = resize(sky, height, width)
    grain = rng.standard_normal((min(height, 512), min(width, 512), 1), np.float32)  # against banding
    tiled = np.tile(grain, (-(-height // grain.shape[0]), -(-width // grain.shape[1]), 1))[:height, :width]
    for part in strips(full):
        full[part] += 0.8 * tiled[part]
    return np.clip(full, 0, 255).astype(np.uint8)


def replaced(photo: np.ndarray, sky: np.ndarray, new: np.ndarray | str, seed: int = 0) -> np.ndarray:
    """The photo uint8 (H, W, 3) under a new sky: a picture uint8 (h, w, 3) of one, or a name of `SKIES`.

    `sky`: its sky matte float (H, W) in [0, 1]. The new sky's lower edge comes to lie on the horizon and fades into as
    much haze as lies over the land; the land takes a part of the sky's change of colour and light; at its edge it has
    its own colours, not the old sky's. A photo without sky is returned as it is.
    """
    check_pair(photo, sky)
    rows = np.flatnonzero((sky > 0.5).mean(1) > 0.02)
    if not len(rows):
        return photo.copy()
    horizon = int(rows[-1]) + 1
    said = haze(photo, sky)
    drawn = painted_sky(new, horizon, photo.shape[1], seed) if isinstance(new, str) else _fitted(new, horizon, photo)
    whole = np.concatenate([drawn, np.repeat(drawn[-1:], photo.shape[0] - horizon, 0)])
    land_layer = layers(photo, 1 - sky.astype(np.float32))[0]
    old_mean = _mean_lab(shrunk(photo), shrunk(sky.astype(np.float32)))
    new_mean = _mean_lab(shrunk(whole), shrunk(sky.astype(np.float32)))
    edge = _height_of_land(sky)
    veil = np.array(_veil(said.light, whole[horizon - 1].reshape(-1, 3).mean(0)), np.float32)
    result = np.empty_like(photo)
    for part in strips(photo):
        y = np.arange(part.start, part.stop, dtype=np.float32)[:, None]
        above = np.clip((edge[None] - y) / max(1.0, FEATHER * horizon), 0, 1)[..., None]
        fade = np.float32(min(0.85, 0.25 + said.share)) * (1 - above) ** 2
        air = whole[part] * (1 - fade) + veil * fade
        land = _relit(land_layer[part], old_mean, new_mean)
        a = np.clip(sky[part, :, None], 0, 1).astype(np.float32)
        result[part] = np.rint(np.clip(a * air + (1 - a) * land, 0, 255))
    return result


def _fitted(picture: np.ndarray, height: int, photo: np.ndarray) -> np.ndarray:
    """A picture of a sky, covering (height, photo's width): scaled by one factor, cut at the top and the sides."""
    width = photo.shape[1]
    scale = max(height / picture.shape[0], width / picture.shape[1])
    grown = resize(picture, max(height, round(picture.shape[0] * scale)), max(width, round(picture.shape[1] * scale)))
    left = (grown.shape[1] - width) // 2
    return grown[grown.shape[0] - height :, left : left + width]


def _height_of_land(sky: np.ndarray) -> np.ndarray:
    """Per column the first row, from above, where land begins, smoothed along the columns: float32 (W,)."""
    is_land = sky < 0.5
    first = np.where(is_land.any(0), is_land.argmax(0), sky.shape[0]).astype(np.float32)
    return cv2.GaussianBlur(first[None], (0, 0), max(1.0, 0.02 * sky.shape[1]))[0]


def _mean_lab(picture: np.ndarray, weight: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.asarray((lab * weight[..., None]).sum((0, 1)) / max(float(weight.sum()), 1e-6), np.float32)


def _relit(land: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Land uint8 (h, w, 3) under a sky whose mean CIELAB went from `old` to `new`; float32 in 0..255."""
    lab = cv2.cvtColor(land.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    light = float(np.clip((new[0] / max(float(old[0]), 5.0)) ** LIGHT_SHARE, 0.35, 1.25))
    lab *= np.array([light, min(1.0, light), min(1.0, light)], np.float32)  # in the dark colours fade too
    lab[..., 0] = np.clip(lab[..., 0], 0, 100)
    lab[..., 1:] += COLOUR_SHARE * (new[1:] - old[1:])
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) * 255


def _veil(light: tuple[float, float, float], horizon: np.ndarray) -> np.ndarray:
    """The haze's colour under the new sky: as bright as its horizon, a third of the old airlight's hue."""
    old = np.array(light, np.float32)
    return np.clip(0.67 * horizon + 0.33 * old * (horizon.mean() / max(float(old.mean()), 1.0)), 0, 255)
