"""A person's browser on the real server: sees photo and matte, paints, submits; the rest of the matte is unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from label_house import LabelHouse, server_of
from playwright.sync_api import Browser, TimeoutError

from mm_core.labeling.label_studio_client import Server
from mm_core.labeling.label_studio_format import read_annotation
from mm_core.labeling.label_studio_local import LocalServer, read_account

FOREGROUND, UNKNOWN = ((0.35, 0.25), (0.38, 0.45)), ((0.58, 0.23), (0.605, 0.38))
"""Ends of the two strokes, as shares of the photo's width and height."""
PICTURE = os.environ.get("MM_SCREENSHOT")
"""Where to put the picture that docs/labelling.png is made of."""


@pytest.fixture
def page(label_studio: LocalServer, browser: Browser) -> Iterator[object]:
    """A signed-in page."""
    account = read_account(label_studio.folder)
    page = browser.new_page(viewport={"width": 1360, "height": 1160})
    page.set_default_timeout(90_000)
    page.goto(f"{label_studio.url}/user/login/")
    page.fill("input[name=email]", account["email"])
    page.fill("input[name=password]", account["password"])
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "login" not in url)
    yield page
    page.close()


def champion_like(alpha: np.ndarray) -> np.ndarray:
    """A matte that is nearly right: soft, and a part at the top is missing."""
    soft = cv2.GaussianBlur(alpha.astype(np.float32), (0, 0), max(alpha.shape) / 160)
    soft[: int(alpha.shape[0] * 0.55), : int(alpha.shape[1] * 0.42)] *= 0.15
    return np.rint(255 * soft).astype(np.uint8)


def open_task(page: Any, address: str, aspect: float, version: str) -> dict[str, float]:
    """The box of the photo (width / height = aspect) on the screen, once the matte of this model version is there."""
    canvas = page.locator(".konvajs-content canvas").first
    for _ in range(3):
        page.goto(address)
        canvas.wait_for()
        page.get_by_text("Foreground").first.wait_for()
        # If its request for the task failed, the page shows an empty canvas, and a person loads it again.
        with suppress(TimeoutError):
            page.get_by_text(version).first.wait_for(timeout=20_000)
            break
    page.wait_for_timeout(1500)  # the matte is decoded and drawn after its region is listed
    box = canvas.bounding_box()  # the canvas may be wider than the photo
    return {**box, "width": box["height"] * aspect}


def stroke(page: Any, box: dict[str, float], start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one point to another, as shares of the photo's box."""
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=12)
    page.mouse.up()


def near(ends: tuple, alpha: np.ndarray) -> np.ndarray:
    """bool (H, W): where a stroke of some width between these ends may have left paint."""
    y, x = np.mgrid[: alpha.shape[0], : alpha.shape[1]]
    (x0, y0), (x1, y1) = ends
    across, down = x / alpha.shape[1], y / alpha.shape[0]
    return (across > x0 - 0.05) & (across < x1 + 0.05) & (down > y0 - 0.05) & (down < y1 + 0.05)


def submit(page: Any, server: Server, task: int) -> list[dict]:
    """Presses the button; returns the annotation's regions once the server has them."""
    page.get_by_role("button", name="Submit").click()
    for _ in range(100):
        if found := server.annotations(task):
            return found[0]["result"]
        page.wait_for_timeout(200)
    raise AssertionError(page.inner_text("body")[:2000])


def test_a_person_paints_and_submits(tmp_path: Path, label_studio: LocalServer, title: str, page: Any) -> None:
    house = LabelHouse(tmp_path, 3, size=600, seed=11, stated=True)
    house.route(3)
    house.predict(champion_like, "3:abcdef")
    server = server_of(label_studio, title)
    house.push(server)
    key = next(k for k, truth in house.truth.items() if truth.category == "pets")
    tasks = {key: found[0]["id"] for key, found in server.tasks_of(house.truth).items()}
    sent = champion_like(house.truth[key].alpha)
    height, width = sent.shape

    box = open_task(page, server.link(tasks[key]), width / height, "3:abcdef")
    # The reason stands above the photo, the chooser beside it.
    why = page.get_by_text(server.tasks_of([key])[key][0]["data"]["why"]).first.bounding_box()
    chooser = page.get_by_text("What is it?").first.bounding_box()
    assert why["y"] < box["y"] and chooser["x"] > box["x"] + box["width"]
    assert chooser["y"] < box["y"] + box["height"]
    page.get_by_text("Foreground", exact=True).first.click()
    page.get_by_label("brush-tool").click()
    stroke(page, box, *FOREGROUND)
    page.wait_for_timeout(500)
    page.keyboard.press("u")  # lets go of the new region
    page.wait_for_timeout(500)
    page.get_by_text("Unknown", exact=True).first.click()
    stroke(page, box, *UNKNOWN)
    # The category is known, so it is chosen already.
    page.screenshot(path=PICTURE or str(tmp_path / "seen.png"))
    result = submit(page, server, tasks[key])

    read = read_annotation({"result": result, "updated_at": "2026-01-01"}, width, height)
    assert read.category == "pets" and read.alpha is not None and read.unknown is not None
    painted = read.alpha != sent
    assert painted.any() and not (painted & ~near(FOREGROUND, sent)).any()  # bit for bit outside the stroke
    assert read.alpha[int(0.35 * height), int(0.365 * width)] == 255
    assert read.unknown.any() and not (read.unknown & ~near(UNKNOWN, sent)).any()
    taken = house.pull(server)
    assert taken.counts["new_labels"] == taken.counts["solved"] == 1
    got = house.matte(key)
    assert np.array_equal(got[~read.unknown], read.alpha[~read.unknown])

    # A photo that nobody should paint: a reason is enough.
    other = next(k for k in tasks if k != key)
    open_task(page, server.link(tasks[other]), 1, "3:abcdef")
    page.get_by_text("private", exact=False).first.click()
    submit(page, server, tasks[other])
    assert [row["reason"] for row in house.pull(server).photos_refused] == ["private"]
