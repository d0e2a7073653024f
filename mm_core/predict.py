"""`mm predict`: mattes and cut-outs of any photo from a registered model or a weights file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mm_core.errors import InputError
from mm_core.layout import Layout
from mm_core.records import ALL_CATEGORIES, Report, timed, write_bytes
from mm_core.stages import Progress, quiet, store_of
from mm_core.store import fetch_blob


def model_file(layout: Layout, model: str) -> Path:
    """Path of the weights behind `champion`, another alias, a registry version, or a .safetensors file."""
    from mm_core.export.registry import Registry

    if model.endswith(".safetensors"):
        if not Path(model).is_file():
            raise InputError(f"--model {model}: no such file")
        return Path(model)
    pin = Registry(layout.settings).pin(model)
    if pin is None:
        raise InputError(f"--model {model}: the registry has no such version or alias; run a cycle first (`mm run`)")
    return fetch_blob(store_of(layout), pin["digest"])


def predict_files(
    layout: Layout,
    images: list[Path],
    out: Path,
    *,
    model: str = "champion",
    category: str = "",
    cutout: bool = False,
    progress: Progress = quiet,
) -> Report:
    """Writes `<stem>.png` (8-bit matte, the photo's own size) per photo, and `<stem>.cutout.png` (RGBA) on request.

    Without a `category` the model chooses the decoder of each photo; the table `mattes` names it.

    Mattes are brought to the photo's size along its edges (`mm_core.model.upsample`). Cut-outs carry estimated
    foreground colours, so that no halo of the old background shows on a new one.
    """
    from mm_core.aigc.foreground import foreground
    from mm_core.data.images import load_rgb
    from mm_core.model.predict import TorchPredictor, decoders_for

    if category and category not in ALL_CATEGORIES:
        raise InputError(f"--category {category}: unknown; one of {', '.join(ALL_CATEGORIES)}")
    stems = [path.stem for path in images]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise InputError(f"two photos are called {twice[0]!r} and would write the same matte: predict them apart")
    predictor = TorchPredictor(model_file(layout, model), layout.settings.device, guided=True)
    written = []
    with timed(Report("predict")) as report:
        for index, path in enumerate(images):
            rgb = load_rgb(path)
            decoder = decoders_for(predictor, [rgb], [category])[0]
            alpha = predictor.predict([rgb], [decoder])[0]
            _write_png(out / f"{path.stem}.png", np.round(alpha * 255).astype(np.uint8))
            written.append(
                {"image": str(path), "matte": str(out / f"{path.stem}.png"), "foreground": float(alpha.mean())}
                | {"decoder": decoder}
            )
            if cutout:
                rgba = np.dstack([foreground(rgb, alpha), np.rint(alpha.clip(0, 1) * 255).astype(np.uint8)])
                _write_png(out / f"{path.stem}.cutout.png", rgba)
            progress("predict", index + 1, len(images))
        report.tables["mattes"] = written
    return report


def _write_png(path: Path, pixels: np.ndarray) -> None:
    import cv2

    order = cv2.COLOR_RGBA2BGRA if pixels.ndim == 3 else None
    ok, data = cv2.imencode(".png", pixels if order is None else cv2.cvtColor(pixels, order))
    assert ok
    write_bytes(path, data.tobytes())
