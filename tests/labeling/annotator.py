"""Simulate an annotator for tests and benchmarks on generated samples: it paints the exact matte with human errors.

Its account is called `simulated-annotator`, and this name is stored in every label that it makes. Its errors are seeded
by photo. The painted edge deviates by 1/400 of the photo's side, thin parts are missed, and strokes are hard (0 or
255). Soft areas are painted as Unknown by a brush of 1/48 of the side, with gaps.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import httpx
import numpy as np

from mm_core.core.records import sha256_bytes
from mm_core.labeling.collect import key_of
from mm_core.labeling.label_studio_client import Server
from mm_core.labeling.label_studio_format import CATEGORY, REJECT, UNKNOWN, brush_region, choice_region

NAME = "simulated-annotator"
SOFT = (0.04, 0.96)
"""Range of alpha that a person perceives as neither inside nor outside."""


@dataclass(frozen=True)
class Truth:
    """Ground truth of a generated photo."""

    alpha: np.ndarray
    """Exact matte, float (H, W) in [0, 1]."""
    category: str


def annotate(server: Server, task: int, result: Sequence[Mapping[str, Any]], **more: Any) -> int:
    """Submit an annotation as the key's owner; return its number. `more`: was_cancelled, lead_time."""
    return int(server.sdk.annotations.create(id=task, result=[dict(region) for region in result], **more).id or 0)


def edit(server: Server, annotation: int, result: Sequence[Mapping[str, Any]]) -> None:
    """Replace the regions of an annotation."""
    server.sdk.annotations.update(id=annotation, result=[dict(region) for region in result])


def add_account(server: Server, email: str, password: str) -> str:
    """Create an account by the organisation's invitation, as a person would; return its token."""
    invitation = server.sdk.organizations.invites.get_invite_link().invite_url or ""
    with httpx.Client(base_url=server.url, timeout=60, follow_redirects=True) as browser:
        # The sign-up form needs the CSRF token of its page.
        page = browser.get(invitation)
        secret = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
        form = {"csrfmiddlewaretoken": secret.group(1) if secret else "", "email": email, "password": password}
        browser.post(str(page.url), data=form, headers={"Referer": str(page.url)})
        answer = browser.get("/api/current-user/token")
        assert answer.is_success, f"no account {email!r}: it may exist already"
        # The cached list of names lacks the new account.
        server.__dict__.pop("_names", None)
        return str(answer.json()["token"])


class SimulatedAnnotator:
    """Annotates a project through the server's API with the account of the server's key."""

    def __init__(self, server: Server, truth: Mapping[str, Truth], *, seed: int = 0, seconds: float = 0.0):
        """Create an annotator.

        Args:
            server: The project.
            truth: Ground truth by sample id.
            seed: Seed of the errors.
            seconds: Pause per photo (people take about 40 s).
        """
        self._server, self._truth, self._seed, self._seconds = server, truth, seed, seconds

    def work(self, keys: Sequence[str]) -> dict[str, int]:
        """Submit an annotation of each photo; return its number by key."""
        tasks = self._server.tasks_of(keys)
        return {key: self._hand_in(tasks[key][0]) for key in keys}

    def skip(self, keys: Sequence[str]) -> None:
        """Skip photos, as the skip button does."""
        for tasks in self._server.tasks_of(keys).values():
            annotate(self._server, tasks[0]["id"], [], was_cancelled=True)

    def refuse(self, key: str, reason: str) -> int:
        """Refuse a photo with a reason; return the annotation's number."""
        task = self._server.tasks_of([key])[key][0]
        return annotate(self._server, task["id"], [choice_region(REJECT, reason)])

    def edit(self, key: str, annotation: int, attempt: int) -> None:
        """Annotate a photo again, with slightly different errors."""
        edit(self._server, annotation, self.answer(key, attempt))

    def answer(self, key: str, attempt: int = 0) -> list[dict[str, Any]]:
        """Return the regions painted for a photo; the same seed and attempt give the same regions."""
        truth = self._truth[key]
        rng = np.random.default_rng(int(sha256_bytes(f"{self._seed}:{attempt}:{key}".encode())[:15], 16))
        painted, unknown = paint(truth.alpha, rng)
        # Unknown is submitted only if the matte has soft areas.
        regions = [brush_region(painted), choice_region(CATEGORY, truth.category)]
        return [*regions, brush_region(unknown, UNKNOWN)] if unknown.any() else regions

    def _hand_in(self, task: Mapping[str, Any]) -> int:
        start = time.monotonic()
        result = self.answer(key_of(task))
        time.sleep(self._seconds)
        return annotate(self._server, task["id"], result, lead_time=round(time.monotonic() - start, 2))


def paint(alpha: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the Foreground and Unknown strokes (uint8, 0 or 255) of a person, given the exact matte (float (H, W))."""
    side = max(alpha.shape)
    hard = (alpha >= 0.5).astype(np.uint8)
    # Opening removes thin parts, unless the whole subject is thin.
    fine, broad = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (max(2, side // share),) * 2) for share in (128, 48))
    without_thin = cv2.morphologyEx(hard, cv2.MORPH_OPEN, fine)
    hard = without_thin if without_thin.any() else hard
    wandering = _wander(hard, max(0.5, side / 400), rng)
    hard = wandering if wandering.any() else hard
    # The band is painted with gaps, placed by smooth noise.
    soft = ((alpha > SOFT[0]) & (alpha < SOFT[1])).astype(np.uint8)
    band = (cv2.dilate(soft, broad) > 0) & (_field(alpha.shape, side / 16, rng) > -1.2)
    return 255 * hard, 255 * band.astype(np.uint8)


def _wander(mask: np.ndarray, pixels: float, rng: np.random.Generator) -> np.ndarray:
    """Return the mask with its edge displaced smoothly, by `pixels` in the root mean square."""
    height, width = mask.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    dx, dy = (pixels * _field(mask.shape, max(mask.shape) / 24, rng) for _ in range(2))
    return cv2.remap(mask, x + dx, y + dy, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)


def _field(shape: tuple[int, ...], smooth: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth noise float32 (H, W) of mean 0 and variance 1."""
    noise = cv2.GaussianBlur(rng.normal(size=shape).astype(np.float32), (0, 0), max(1.0, smooth))
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)
