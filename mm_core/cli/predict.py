"""`mm predict`: mattes and cut-outs of any photo from a registered model or a weights file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.outputs import check_outputs
from mm_core.core.records import ALL_CATEGORIES, Report, timed, write_bytes
from mm_core.ingest.spellings import PHOTOS, is_hidden
from mm_core.stages import Progress, quiet, store_of
from mm_core.storage.store import fetch_blob

_MARK = b"Software\0mm predict"
"""Text chunk of every file that this command writes; a later run replaces such files and no others."""
_AFTER_HEADER = 33
"""Bytes of a PNG's signature and header chunk."""


@dataclass(frozen=True)
class Job:
    """One photo and the files that are made of it."""

    photo: Path
    matte: Path
    cutout: Path


def model_file(layout: Layout, model: str) -> tuple[Path, str]:
    """Return the weights behind `champion`, another alias, a registry version, or a .safetensors file, and a warning.

    `candidate`, before any model was promoted, is the workspace's own where cross-fitting found it usable.
    """
    from mm_core.experiments.crossfit import provisional_candidate
    from mm_core.export.registry import Registry

    if model.endswith(".safetensors"):
        if not Path(model).is_file():
            raise InputError(f"--model {model}: no such file")
        return Path(model), ""
    pin = Registry(layout.settings).pin(model)
    if pin is None and model == "candidate":
        return provisional_candidate(layout)
    if pin is None:
        raise InputError(f"--model {model}: the registry has no such version or alias; run a cycle first (`mm run`)")
    return fetch_blob(store_of(layout), pin["digest"]), ""


def predict_files(
    layout: Layout,
    images: Sequence[Path],
    out: Path,
    *,
    model: str = "champion",
    category: str = "",
    cutout: bool = False,
    progress: Progress = quiet,
) -> Report:
    """Write `<stem>.png` (8-bit matte, the photo's own size) per photo, and `<stem>.cutout.png` (RGBA) on request.

    Mattes are brought to the photo's size along its edges (`mm_core.model.upsample`). Cut-outs carry estimated
    foreground colours, so that no halo of the old background shows on a new one.

    Args:
        layout: The workspace whose registry and store hold the model.
        images: Photos, and folders of photos; sub-folders keep their names below `out`.
        out: The folder to write to. All its files are checked first: no photo and no foreign file is replaced.
        model: `champion`, another alias, a registry version, or a .safetensors file.
        category: Chooses the decoder; without it the model chooses one for each photo.
        cutout: Whether cut-outs are written as well.
        progress: Called after each photo.

    Returns:
        The report. Table `mattes` has a row per matte with the decoder that made it; table `unreadable` has a row per
        photo that could not be read, with the reason; the others are done all the same.

    Raises:
        InputError: There is no such photo, folder, category or model; an output collides; or no photo can be read.
    """
    from mm_core.effects.foreground import foreground
    from mm_core.imaging.images import UnreadableImage, load_rgb
    from mm_core.model.predict import TorchPredictor, decoders_for

    if category and category not in ALL_CATEGORIES:
        raise InputError(f"--category {category}: unknown; one of {', '.join(ALL_CATEGORIES)}")
    jobs = plan_jobs(images, out)
    outputs = [path for job in jobs for path in ((job.matte, job.cutout) if cutout else (job.matte,))]
    check_outputs(outputs, [job.photo for job in jobs], is_ours=is_own_matte)
    weights, warning = model_file(layout, model)
    predictor = TorchPredictor(weights, layout.settings.device, guided=True)
    mattes, unreadable = [], []
    with timed(Report("predict")) as report:
        if warning:
            report.facts["warning"] = warning
        for index, job in enumerate(jobs):
            progress("predict", index + 1, len(jobs))
            try:
                rgb = load_rgb(job.photo)
            except UnreadableImage as error:
                unreadable.append({"image": str(job.photo), "reason": str(error)})
                continue
            decoder = decoders_for(predictor, [rgb], [category])[0]
            alpha = predictor.predict([rgb], [decoder])[0]
            _write_png(job.matte, np.round(alpha * 255).astype(np.uint8))
            mattes.append(
                {"image": str(job.photo), "matte": str(job.matte), "foreground": float(alpha.mean())}
                | {"decoder": decoder}
            )
            if cutout:
                rgba = np.dstack([foreground(rgb, alpha), np.rint(alpha.clip(0, 1) * 255).astype(np.uint8)])
                _write_png(job.cutout, rgba)
        report.tables["mattes"] = mattes
        report.tables["unreadable"] = unreadable
        report.metrics |= {"predict/mattes": len(mattes), "predict/unreadable": len(unreadable)}
    if not mattes:
        raise InputError(f"no photo could be read: {unreadable[0]['reason']}")
    return report


def plan_jobs(images: Sequence[Path], out: Path) -> list[Job]:
    """Return what is read and written for these photos and folders, in order.

    Of a folder every photo below it counts, but hidden files, mattes of earlier runs, and what lies in `out`.

    Raises:
        InputError: A photo or folder is not there, or a folder holds no photo.
    """
    jobs = []
    for image in images:
        if not image.exists():
            raise InputError(f"{image}: no such file or folder; name photos, or folders of photos")
        if not image.is_dir():
            jobs.append(_job(image, out, Path()))
            continue
        photos = [path for path in sorted(image.rglob("*")) if _is_photo_of(path, image, out)]
        if not photos:
            raise InputError(f"{image}: no photos found; put {', '.join(sorted(PHOTOS))} files there")
        jobs += [_job(path, out, path.relative_to(image).parent) for path in photos]
    return jobs


def is_own_matte(path: Path) -> bool:
    """Whether an earlier `mm predict` wrote this file."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return _MARK in stream.read(2 * _AFTER_HEADER + len(_MARK))


def _job(photo: Path, out: Path, below: Path) -> Job:
    return Job(photo, out / below / f"{photo.stem}.png", out / below / f"{photo.stem}.cutout.png")


def _is_photo_of(path: Path, folder: Path, out: Path) -> bool:
    inside = path.relative_to(folder)
    if not path.is_file() or path.suffix.lower() not in PHOTOS or is_hidden(inside):
        return False
    in_out = path.resolve().is_relative_to(out.resolve()) and out.resolve() != folder.resolve()
    return not in_out and not is_own_matte(path)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    order = cv2.COLOR_RGBA2BGRA if pixels.ndim == 3 else None
    ok, encoded = cv2.imencode(".png", pixels if order is None else cv2.cvtColor(pixels, order))
    assert ok
    data, text = encoded.tobytes(), b"tEXt" + _MARK
    chunk = struct.pack(">I", len(_MARK)) + text + struct.pack(">I", zlib.crc32(text))
    write_bytes(path, data[:_AFTER_HEADER] + chunk + data[_AFTER_HEADER:])
