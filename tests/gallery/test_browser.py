"""The page in headless Chromium, at phone and desktop size: the browser's mattes agree with the server's."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mm_core.core import headless
from mm_core.core.layout import Layout
from mm_core.core.records import decoder_of
from mm_core.core.settings import Settings
from mm_core.effects.eraser import erase, grown
from mm_core.effects.fullsize import harmonic
from mm_core.effects.sky import replaced
from mm_core.effects.subjects import Subjects
from mm_core.gallery.application import application
from mm_core.gallery.library import Library
from mm_core.imaging.images import load_rgb
from mm_core.storage.run import catalog_of

RUNTIME = Settings.from_env(Path("unused")).onnxruntime_web
pytestmark = pytest.mark.skipif(not RUNTIME.is_dir(), reason="onnxruntime-web is missing: run `make gallery`")
SIZES = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1280, "height": 900}}
PATIENCE = 90_000


@pytest.fixture(scope="module")
def served(made, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Library, Layout]]:
    layout = Layout(Settings.from_env(tmp_path_factory.mktemp("served") / "workspace"))
    library = Library(made.gallery, made.moments, bundle, layout.root / "uploads", 12_000_000)
    app = application(library, catalog_of(layout), Path(layout.settings.inbox), RUNTIME)
    with headless.served(app) as address:
        yield address, library, layout


@pytest.fixture(params=sorted(SIZES))
def page(request: pytest.FixtureRequest, browser, served) -> Iterator:
    touch = request.param == "phone"
    context = browser.new_context(viewport=SIZES[request.param], has_touch=touch, is_mobile=touch)
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda m: faults.append(m.text) if m.type == "error" and "422" not in m.text else None)
    opened.goto(served[0])
    opened.locator("#engine[data-where]").wait_for()
    yield opened
    context.close()
    assert not faults, "no script failed and the policy blocked nothing that the page needs"


def open_photo(page, id: str):
    from playwright.sync_api import expect

    page.locator(f"#moments [data-photo='{id}']").click()
    said = page.locator("#said")
    expect(said).to_contain_text("Tap a subject", timeout=PATIENCE)
    return said


def test_open_tap_lift_drag_download(page, served, made) -> None:
    """What a person does, and the matte in the browser against the server's of the same photo."""
    from playwright.sync_api import expect

    _, library, _ = served
    assert "runs on this device: golden pairs checked" in page.inner_text("#engine")
    photo, target = made.told[0]["photos"][0], made.told[1]["photos"][0]
    said = open_photo(page, photo["id"])
    box = page.locator("#canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(said).to_contain_text("Lifted", timeout=PATIENCE)

    decoder = page.evaluate("() => moments.state().alphaOf")
    here = np.array(page.evaluate("() => Array.from(moments.state().alpha)"), np.float32)
    rgb = np.asarray(Image.open(BytesIO(library.rendition(photo["id"], 2048))))
    (there,) = library.predictor.predict([rgb], [decoder])
    difference = here.reshape(there.shape) - there
    tolerance = library.manifest["golden"]["tolerance"]
    assert there.std() > 0.1, "a flat matte would prove nothing"
    assert np.mean(difference**2) < tolerance["mse"] and np.abs(difference).max() < tolerance["max"]
    assert decoder == (decoder_of(photo["category"]) if photo["category"] else library.predictor.choose([rgb])[0])

    lifted = page.locator("#lifted").bounding_box()
    tile = page.locator(f"#targets [data-photo='{target['id']}']")
    tile.scroll_into_view_if_needed()
    lifted, goal = page.locator("#lifted").bounding_box(), tile.bounding_box()
    page.mouse.move(lifted["x"] + lifted["width"] / 2, lifted["y"] + lifted["height"] / 2)
    page.mouse.down()
    page.mouse.move(goal["x"] + goal["width"] / 2, goal["y"] + goal["height"] / 2, steps=5)
    page.mouse.up()
    expect(said).to_contain_text("Placed", timeout=PATIENCE)
    with page.expect_download() as download:
        page.click("[data-do=download]")
    picture = np.asarray(Image.open(download.value.path()).convert("RGB"), float)
    background = load_rgb(made.gallery / target["name"]).astype(float)
    assert picture.shape == background.shape
    changed = np.abs(picture - background).mean(2) > 25
    assert 0.01 < changed.mean() < 0.8, "the subject lies on the other photo, which is still there"


def test_by_keyboard_alone(page, made) -> None:
    from playwright.sync_api import expect

    said = open_photo(page, made.told[0]["photos"][0]["id"])
    page.locator("#stage").focus()
    page.keyboard.press("Enter")
    expect(said).to_contain_text("Lifted", timeout=PATIENCE)
    page.locator("#targets .tile").first.focus()
    page.keyboard.press("Enter")
    expect(said).to_contain_text("Placed", timeout=PATIENCE)
    before = page.evaluate("() => ({...moments.state().placed, back: null})")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("+")
    after = page.evaluate("() => ({...moments.state().placed, back: null})")
    assert after["x"] < before["x"] and after["size"] > before["size"]


def test_splash_blur_and_the_slider(page, made) -> None:
    from playwright.sync_api import expect

    said = open_photo(page, made.told[0]["photos"][0]["id"])
    for name, words in (("splash", "Colour splash"), ("blur", "Background blur")):
        page.click(f"[data-do={name}]")
        expect(said).to_contain_text(words, timeout=PATIENCE)
        page.locator("#slider").fill("0")
        plain = page.evaluate("() => moments.state().image.data.join() === document.getElementById('canvas')"
                              ".getContext('2d').getImageData(0, 0, 256, 192).data.join()")  # fmt: skip
        assert plain, "at the left end the slider shows the photo itself"


def canvas_of(page, name: str) -> np.ndarray:
    """ImageData of the editor's state as (H, W, 3)."""
    data = page.evaluate(f"() => [moments.state().{name}.width, Array.from(moments.state().{name}.data)]")
    return np.array(data[1], np.uint8).reshape(-1, data[0], 4)[..., :3]


def matte_of(page) -> np.ndarray:
    width = page.evaluate("() => moments.state().image.width")
    return np.array(page.evaluate("() => Array.from(moments.state().alpha)"), np.float32).reshape(-1, width)


def test_a_new_sky_on_the_device_is_the_servers(page, served, made) -> None:
    """The same matte and the same picture of a sky, blended by both."""
    from playwright.sync_api import expect

    _, library, _ = served
    said = open_photo(page, made.told[1]["photos"][0]["id"])
    page.click("[data-do=sky]")
    expect(said).to_contain_text("New sky", timeout=PATIENCE)
    assert "on this device" in said.inner_text()
    name = page.evaluate("() => moments.about.skies[moments.state().sky]")
    photo, sky = canvas_of(page, "image"), matte_of(page)
    picture = np.asarray(Image.open(BytesIO(library.sky(name))))
    wanted, photo_f = replaced(photo, sky, picture).astype(float), photo.astype(float)
    off = np.abs(canvas_of(page, "after") - wanted)
    assert np.abs(wanted - photo_f).mean() > 10, "an unchanged photo would prove nothing"
    soft = (sky > 0.02) & (sky < 0.98)
    assert off[~soft].max() <= 4, "where the matte is firm both are one formula"
    assert off[soft].mean() < 3, "in the soft band the land's own colours are estimated in two ways"


def test_what_the_device_erases_goes_on_from_the_rim(page, made) -> None:
    """Beside the server's harmonic fill: equal but for the texture that the device adds; the rest is untouched."""
    from playwright.sync_api import expect

    said = open_photo(page, made.told[0]["photos"][0]["id"])
    page.click("[data-do=eraser]")
    expect(said).to_contain_text("Erased, made on this device", timeout=PATIENCE)
    photo, alpha, done = canvas_of(page, "image"), matte_of(page), canvas_of(page, "after")
    gone = Subjects(alpha).of(Subjects(alpha).all[0])
    hole = grown(gone)
    far = cv2.dilate(hole, np.ones((7, 7), np.uint8)) == 0
    assert far.any() and np.array_equal(done[far], photo[far])
    smooth = erase(photo, gone, fill=lambda photo, hole, avoid: harmonic(photo, hole))
    wanted = cv2.GaussianBlur(smooth.astype(np.float32), (0, 0), 8)
    inner = cv2.erode(hole, np.ones((9, 9), np.uint8)) > 0
    off = np.abs(cv2.GaussianBlur(done.astype(np.float32), (0, 0), 8) - wanted)[inner]
    assert off.mean() < 6 < np.abs(photo.astype(float) - wanted)[inner].mean()


def test_a_corrected_matte_and_a_bad_cut_become_drops(page, served, made) -> None:
    from playwright.sync_api import expect

    _, _, layout = served
    photo = made.told[1]["photos"][1]
    said = open_photo(page, photo["id"])
    page.click("[data-do=feedback]")
    page.locator("input[value=corrected]").check()
    expect(said).to_contain_text("Paint", timeout=PATIENCE)
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + 10, steps=4)
    page.mouse.up()
    page.locator("button[type=submit]").click()
    expect(said).not_to_contain_text("Thank you")
    assert page.locator("#feedback").is_visible(), "without the consent tick the form is not sent"
    page.locator("input[name=consent]").check()
    page.locator("button[type=submit]").click()
    expect(said).to_contain_text("Thank you", timeout=PATIENCE)
    (drop,) = {p.parent for p in Path(layout.settings.inbox).rglob("manifest.csv") if photo["id"] in p.read_text()}
    from mm_core.imaging.images import load_alpha

    matte = load_alpha(next((drop / "alphas").iterdir()))
    assert matte.shape == (192, 256) and matte[8:12, 14:80].mean() > 0.5, "what was painted is in the matte"
    shutil.rmtree(drop)


def test_nothing_scrolls_sideways_and_all_controls_are_large_enough(page, made) -> None:
    open_photo(page, made.told[0]["photos"][0]["id"])
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
    buttons = "() => [...document.querySelectorAll('.tools button, #close')].map(b => b.getBoundingClientRect())"
    sizes = page.evaluate(f"{buttons}.map(r => [r.width, r.height])")
    assert all(width >= 44 and height >= 44 for width, height in sizes)
    controls = "() => [...document.querySelectorAll('button, input, [tabindex]')]"
    unnamed = page.evaluate(
        f"{controls}.filter(e => !(e.ariaLabel || e.textContent.trim() || e.closest('label'))).length"
    )
    assert unnamed == 0


def test_where_the_browser_cannot_the_server_does(browser, served, made) -> None:
    from playwright.sync_api import expect

    context = browser.new_context(viewport=SIZES["phone"])
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.route("**/ort/*.wasm", lambda route: route.abort())
    page.goto(served[0])
    page.locator("#engine[data-where=server]").wait_for()
    said = open_photo(page, made.told[0]["photos"][0]["id"])
    page.click("[data-do=lift]")
    expect(said).to_contain_text("on the server", timeout=PATIENCE)
    context.close()
