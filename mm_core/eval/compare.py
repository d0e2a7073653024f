"""One self-contained HTML page with the mattes of two models side by side.

Pictures are embedded, and the page runs no script and loads nothing, so it can be sent by mail or opened offline.
"""

from __future__ import annotations

import base64
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape

from mm_core.core.records import HIGHER_IS_BETTER
from mm_core.eval.examples import small
from mm_core.eval.heat_table import COLUMNS, TITLES, number
from mm_core.eval.metrics import TruthMatte

SIDE = 320
"""Long side of a picture on the page, in pixels."""
PLAIN = (92, 158, 112)
"""Colour of the plain background, sRGB: a green that skin, fur and paper do not have."""
JPEG_QUALITY = 88


Row = dict[str, str | float]
"""One photo: image, category, difference and, with a true matte, `<metric>_a` and `<metric>_b`."""


class MetricSummary(TypedDict):
    """A metric over all photos with a true matte."""

    metric: str
    a: float
    b: float
    photos: int
    better_a: int
    """Number of photos on which model A is better."""
    better_b: int


@dataclass(frozen=True)
class _Example:
    """A photo with pictures on the page."""

    row: Row
    pictures: list[tuple[str, str]]
    """Title and data URL of each picture."""

    @property
    def scores(self) -> list[dict[str, str]]:
        """The metrics as text, with the better model marked; empty without a true matte."""
        if "mse_a" not in self.row:
            return []
        return [_formatted(name, float(self.row[f"{name}_a"]), float(self.row[f"{name}_b"])) for name in COLUMNS]


@dataclass(frozen=True)
class Matted:
    """One photo with the mattes of both models."""

    name: str
    category: str
    """The category, or "" if it is unknown."""
    photo: np.ndarray
    """uint8 (H, W, 3) sRGB."""
    mattes: tuple[np.ndarray, np.ndarray]
    """The mattes of model A and model B, float32 (H, W) in [0, 1]."""
    truth: np.ndarray | None = None
    """The true matte, float32 (H, W) in [0, 1], or None."""


class ComparePage:
    """Collects photos one at a time and keeps the pictures of those on which the models differ most.

    Args:
        models: Names of model A and model B.
        shown: Number of photos with pictures on the page; the numbers cover all photos.
    """

    def __init__(self, models: tuple[str, str], shown: int) -> None:
        self.models, self.shown = models, shown
        self.rows: list[Row] = []
        self._curves: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._pictures: list[tuple[float, int, _Example]] = []
        self._order = count()

    def add(self, matted: Matted) -> None:
        """Add a photo.

        Raises:
            ValueError: A matte or the truth has another size than the photo.
        """
        first, second = matted.mattes
        difference = float(np.abs(first - second).mean())
        row: Row = {"image": matted.name, "category": matted.category, "difference": difference}
        if matted.truth is not None:
            # Both mattes share the work that depends on the truth alone.
            truth = TruthMatte(matted.truth)
            for letter, matte, curves in zip("ab", matted.mattes, self._curves, strict=True):
                scores = truth.score(matte)
                row |= {f"{metric}_{letter}": float(scores[metric]) for metric in COLUMNS}
                curves.append(np.asarray(scores["fcurve"]))
        self.rows.append(row)
        # The heap keeps the largest differences; equal ones keep the order of the photos.
        entry = (difference, -next(self._order), _Example(row, _pictures(matted, self.models)))
        if len(self._pictures) < self.shown:
            heapq.heappush(self._pictures, entry)
        elif self._pictures:
            heapq.heappushpop(self._pictures, entry)

    def summary(self) -> list[MetricSummary]:
        """Return a row per metric over the photos with a true matte; empty without such photos."""
        judged = [row for row in self.rows if "mse_a" in row]
        if not judged:
            return []
        rows: list[MetricSummary] = []
        for metric in COLUMNS:
            a, b = (np.array([float(row[f"{metric}_{letter}"]) for row in judged]) for letter in "ab")
            sign = 1 if metric in HIGHER_IS_BETTER else -1
            # MaxF of a set is the maximum of the mean curve.
            means = [float(np.mean(c, 0).max()) for c in self._curves] if metric == "maxf" else [a.mean(), b.mean()]
            better_a, better_b = (int((sign * gain > 0).sum()) for gain in (a - b, b - a))
            rows.append(
                MetricSummary(
                    metric=metric,
                    a=float(means[0]),
                    b=float(means[1]),
                    photos=len(judged),
                    better_a=better_a,
                    better_b=better_b,
                )
            )
        return rows

    def render(self, unreadable: Sequence[Mapping[str, str]] = ()) -> str:
        """Return the page.

        Args:
            unreadable: Photos that could not be read: `image` and `reason`.
        """
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            trim_blocks=True,
            lstrip_blocks=True,
        )
        # Largest difference first; the second number keeps the order of the photos.
        examples = [entry for *_, entry in sorted(self._pictures, key=lambda entry: entry[:2], reverse=True)]
        return environment.get_template("compare.html.j2").render(
            models=self.models,
            photos=len(self.rows),
            difference=number(float(np.mean([float(row["difference"]) for row in self.rows]))) if self.rows else "–",
            summary=[{**row, **_formatted(row["metric"], row["a"], row["b"])} for row in self.summary()],
            judged=sum("mse_a" in row for row in self.rows),
            examples=examples,
            unreadable=unreadable,
        )


def signed_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return a picture of `first - second`: white where equal, red where only A sees the subject, blue where only B.

    Args:
        first: Matte of model A, float (H, W) in [0, 1].
        second: Matte of model B, float (H, W) in [0, 1].

    Returns:
        uint8 (H, W, 3) sRGB.
    """
    difference = np.clip(first - second, -1, 1)
    # Red, green, blue: red fades if B is larger, blue if A is larger, green in both cases.
    channels = (1 - np.maximum(-difference, 0), 1 - np.abs(difference), 1 - np.maximum(difference, 0))
    return np.rint(255 * np.dstack(channels)).astype(np.uint8)


def over_plain(photo: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return the photo's subject over the plain background, uint8 (H, W, 3), which shows errors of a matte best."""
    weight = np.clip(alpha, 0, 1)[..., None]
    return np.rint(photo * weight + np.array(PLAIN) * (1 - weight)).astype(np.uint8)


def _pictures(matted: Matted, models: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the pictures of a photo with their titles: photo, both models, difference and, if it is known, truth."""
    photo = small(matted.photo, SIDE)
    size = (photo.shape[1], photo.shape[0])
    # Area means keep fine structures visible in the small pictures.
    mattes = [cv2.resize(matte, size, interpolation=cv2.INTER_AREA) for matte in matted.mattes]
    pictures = [("photo", photo)]
    # A folder or file is named by its last part; the head of the page has the whole path.
    names = [Path(name).name for name in models]
    pictures += [
        (f"{letter}: {name}", over_plain(photo, m)) for letter, name, m in zip("AB", names, mattes, strict=True)
    ]
    pictures.append(("difference", signed_difference(*mattes)))
    if matted.truth is not None:
        truth = cv2.resize(matted.truth, size, interpolation=cv2.INTER_AREA)
        pictures.append(("truth", over_plain(photo, truth)))
    return [(title, _embedded(picture)) for title, picture in pictures]


def _embedded(picture: np.ndarray) -> str:
    encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def _formatted(metric: str, a: float, b: float) -> dict[str, str]:
    gain = a - b if metric in HIGHER_IS_BETTER else b - a
    better = "a" if gain > 0 else "b" if gain < 0 else ""
    return {"metric": metric, "title": TITLES[metric], "a": number(a), "b": number(b), "better": better}
