"""`mm predict`: mattes and cut-outs of photos, from a registered model or a weights file."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.outputs import check_outputs
from mm_core.core.records import ALL_CATEGORIES, Report, timed, write_bytes
from mm_core.core.spellings import NO_PHOTOS, PHOTOS, is_hidden
from mm_core.pinned_inputs import Run
from mm_core.storage.store import fetch_blob

_MARK = b"Software\0mm predict"
"""Text chunk in every file of this command; a later run replaces only files with this chunk."""
_AFTER_HEADER = 33
"""Length in bytes of a PNG's signature and header chunk."""


@dataclass(frozen=True)
class Job:
    """One photo and its output files."""

    photo: Path
    matte: Path
    cutout: Path


def model_file(run: Run, model: str) -> tuple[Path, str]:
    """Return the weights file of a model, and a warning (empty if there is nothing to warn of).

    Args:
        run: The workspace with registry and store.
        model: `champion`, another alias, a registry version, or a .safetensors file. `candidate`, before the first
            promotion, is the workspace's candidate if cross-fitting found it usable.

    Raises:
        InputError: The model does not exist.
    """
    from mm_core.experiments.crossfit import provisional_candidate

    if model.endswith(".safetensors"):
        if not Path(model).is_file():
            raise InputError(f"--model {model}: no such file")
        return Path(model), ""
    pin = run.registry.pin(model)
    # A candidate before the gate is no version of the registry yet.
    if pin is None and model == "candidate":
        return provisional_candidate(run.layout)
    if pin is None:
        raise InputError(f"--model {model}: no such version or alias: {run.registry.describe_versions()}")
    return fetch_blob(run.store, pin["digest"]), ""


def predict_files(
    run: Run,
    images: Sequence[Path],
    out: Path,
    *,
    model: str = "champion",
    category: str = "",
    cutout: bool = False,
) -> Report:
    """Write `<stem>.png` (8-bit matte, the photo's own size) per photo, and `<stem>.cutout.png` (RGBA) on request.

    Mattes are upsampled to the photo's size along its edges (`mm_core.model.upsample`). Cut-outs use estimated
    foreground colours, which avoids a halo of the old background.

    Args:
        run: The workspace with registry and store; its progress is called after each photo.
        images: Photos, and folders of photos; sub-folders keep their names below `out`.
        out: The output folder. It is checked before any prediction; photos and foreign files are never replaced.
        model: `champion`, another alias, a registry version, or a .safetensors file.
        category: Selects the decoder; without it the model selects one for each photo.
        cutout: True to write cut-outs as well.

    Returns:
        The report. Table `mattes` has a row per matte with its decoder. Table `unreadable` has a row per unreadable
        photo with the reason; such photos do not stop the others.

    Raises:
        InputError: A photo, folder, category or model does not exist; an output collides; or no photo is readable.
    """
    from mm_core.effects.foreground import foreground
    from mm_core.imaging.images import UnreadableImage, load_rgb
    from mm_core.model.predict import TorchPredictor, decoders_for

    if category and category not in ALL_CATEGORIES:
        raise InputError(f"--category {category}: unknown; one of {', '.join(ALL_CATEGORIES)}")
    run.layout.require_free(out)
    jobs = plan_jobs(images, out)
    outputs = [path for job in jobs for path in ((job.matte, job.cutout) if cutout else (job.matte,))]
    # Check all outputs before the first prediction, so that a collision costs no work.
    check_outputs(outputs, [job.photo for job in jobs], is_ours=is_own_matte)
    weights, warning = model_file(run, model)
    predictor = TorchPredictor(weights, run.layout.settings.device, guided=True)
    mattes, unreadable = [], []
    with timed(Report("predict")) as report:
        if warning:
            report.facts["warning"] = warning
        for index, job in enumerate(jobs):
            run.progress("predict", index + 1, len(jobs))
            try:
                rgb = load_rgb(job.photo)
            # One bad photo must not stop a folder of many.
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
                # The colour of a mixed pixel contains background, so it is replaced by an estimate.
                rgba = np.dstack([foreground(rgb, alpha), np.rint(alpha.clip(0, 1) * 255).astype(np.uint8)])
                _write_png(job.cutout, rgba)
        report.tables["mattes"] = mattes
        report.tables["unreadable"] = unreadable
        report.metrics |= {"predict/mattes": len(mattes), "predict/unreadable": len(unreadable)}
    if not mattes:
        raise InputError(f"no photo could be read: {unreadable[0]['reason']}")
    return report


def plan_jobs(images: Sequence[Path], out: Path) -> list[Job]:
    """Return the inputs and outputs for these photos and folders, in order.

    A folder is searched recursively. Hidden files, mattes of earlier runs and files in an `out` below it are skipped.

    Raises:
        InputError: A photo or folder is missing, or a folder contains no photo.
    """
    jobs = []
    for image in images:
        # Reading a pipe would wait for its writer. Unlike `Path.is_file`, these are False for a path that is too long.
        if not os.path.isfile(image) and not os.path.isdir(image):
            raise InputError(f"{image}: no such file or folder; name photos, or folders of photos")
        if not image.is_dir():
            jobs.append(_job(image, out, Path()))
            continue
        # Sorted, so that repeated runs process the photos in the same order.
        photos = [path for path in sorted(image.rglob("*")) if _is_photo_of(path, image, out)]
        if not photos:
            raise InputError(f"{image}: {NO_PHOTOS}")
        jobs += [_job(path, out, path.relative_to(image).parent) for path in photos]
    return jobs


def is_own_matte(path: Path) -> bool:
    """Return whether an earlier `mm predict` wrote this file."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        # The text chunk follows the header, so a short prefix of the file is enough.
        return _MARK in stream.read(2 * _AFTER_HEADER + len(_MARK))


def _job(photo: Path, out: Path, below: Path) -> Job:
    return Job(photo, out / below / f"{photo.stem}.png", out / below / f"{photo.stem}.cutout.png")


def _is_photo_of(path: Path, folder: Path, out: Path) -> bool:
    inside = path.relative_to(folder)
    if not path.is_file() or path.suffix.lower() not in PHOTOS or is_hidden(inside):
        return False
    # Where `out` is the input folder or above it, only the mark separates mattes from photos.
    below = not folder.resolve().is_relative_to(out.resolve())
    in_out = below and path.resolve().is_relative_to(out.resolve())
    return not in_out and not is_own_matte(path)


def _write_png(path: Path, pixels: np.ndarray) -> None:
    # OpenCV writes BGRA; a matte has one channel and needs no conversion.
    order = cv2.COLOR_RGBA2BGRA if pixels.ndim == 3 else None
    ok, encoded = cv2.imencode(".png", pixels if order is None else cv2.cvtColor(pixels, order))
    assert ok
    # Insert the text chunk (length, type and data, CRC) directly after the header chunk.
    data, text = encoded.tobytes(), b"tEXt" + _MARK
    chunk = struct.pack(">I", len(_MARK)) + text + struct.pack(">I", zlib.crc32(text))
    write_bytes(path, data[:_AFTER_HEADER] + chunk + data[_AFTER_HEADER:])
