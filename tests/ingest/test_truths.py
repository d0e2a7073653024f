"""`mm evaluate --truth` reads rows, names, spellings and orientations as ingest does."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import samplegen
from mm_core.core.errors import InputError
from mm_core.eval.evaluate import evaluate_folder
from mm_core.imaging.images import INVERSE, orient


def stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    return np.ascontiguousarray(orient(pixels, INVERSE.get(orientation, orientation)))


def written(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG" if path.suffix == ".jpg" else "PNG", **options)
    path.write_bytes(stream.getvalue())


@pytest.mark.parametrize("aspect", [1.0, 4 / 3])
@pytest.mark.parametrize("matte", ["stored", "upright"])
def test_a_perfect_matte_of_a_turned_photo_has_no_error(tmp_path: Path, matte: str, aspect: float) -> None:
    """All eight orientations, the truth as the camera stored it or upright; predictions are upright."""
    rows = ["image,alpha,category"]
    for orientation in range(1, 9):
        made = samplegen.generate("pets", 20 + orientation, size=192, aspect=aspect)
        alpha = np.rint(made.alpha * 255).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        written(tmp_path / f"{orientation}.jpg", stored(made.image, orientation), quality=95, exif=exif)
        written(tmp_path / "alphas" / f"{orientation}.png", stored(alpha, orientation) if matte == "stored" else alpha)
        written(tmp_path / "predicted" / f"{orientation}.png", alpha)
        rows.append(f"{orientation}.jpg,alphas/{orientation}.png,pets")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    report = evaluate_folder(tmp_path / "manifest.csv", tmp_path / "predicted")
    assert report.metrics["pets/mse"] == 0 and report.facts["images"] == 8


def test_headers_spellings_and_blank_rows_as_ingest_reads_them(tmp_path: Path) -> None:
    spelled = ["Portrait", "multi-person", "PETS", "Accessory", " cards ", "delicacies"]
    lines = ["\ufeffnotes, Category , IMAGE,Alpha "]
    for number, category in enumerate(spelled):
        alpha = np.zeros((40, 60), np.uint8)
        alpha[5 : 20 + number, 10:40] = 255
        written(tmp_path / "a" / f"{number}.png", alpha)
        written(tmp_path / "predicted" / f"{number}.png", alpha)
        lines.append(f"x,{category},photos\\{number}.jpg,a\\{number}.png")
    (tmp_path / "manifest.csv").write_text("\r\n".join([*lines, ",,,", "", " , , , ", ""]), encoding="utf-8")
    report = evaluate_folder(tmp_path / "manifest.csv", tmp_path / "predicted")
    assert report.facts["images"] == 6
    assert {row["category"] for row in report.tables["per_category"]} >= {
        "portrait", "multi_person", "pets", "accessories", "cards", "delicacy", "macro",
    }  # fmt: skip
    assert report.metrics["macro/mse"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image\na.jpg\n", "column 'alpha' is missing"),
        ("alpha\na.png\n", "no column `image`"),
        ("image,alpha\n", "lists no images"),
        ("image,alpha\na.jpg,no.png\n", r"row 1 \(a.jpg\): alpha: .*no.png is missing"),
        ("image,alpha\na.jpg,a.png\nb/a.jpg,a.png\n", "2 rows would be predicted as a.png"),
        ("image,alpha\na.jpg,a.png,x\n", r"row 1 \(a.jpg\): 1 fields too many"),
        ("image,alpha\na.jpg,colour.png\n", "a matte cannot have colours"),
    ],
)
def test_what_cannot_be_judged_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    written(tmp_path / "a.png", np.zeros((9, 9), np.uint8))
    written(tmp_path / "colour.png", np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8))
    written(tmp_path / "predicted" / "a.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(InputError, match=message):
        evaluate_folder(tmp_path / "manifest.csv", tmp_path / "predicted")


def test_a_prediction_is_found_in_either_form_of_an_accent(tmp_path: Path) -> None:
    one, other = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    alpha = np.zeros((40, 60), np.uint8)
    alpha[5:20, 10:40] = 255
    written(tmp_path / f"{one}.png", alpha)
    written(tmp_path / "predicted" / f"{other}.png", alpha)
    (tmp_path / "manifest.csv").write_text(f"image,alpha\n{one}.jpg,{one}.png\n", encoding="utf-8")
    assert evaluate_folder(tmp_path / "manifest.csv", tmp_path / "predicted").facts["images"] == 1
