"""Read true mattes of a folder with the rules of ingest for manifests, spellings, names and orientations."""

from __future__ import annotations

import posixpath
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_core.core.errors import InputError
from mm_core.core.spellings import name_forms
from mm_core.imaging.images import load_alpha, load_rgb, orient, read_header
from mm_core.imaging.near_duplicates import LOOK_SIDE
from mm_core.ingest.decode_sandbox import safely
from mm_core.ingest.manifest import ManifestRow, read_manifest
from mm_core.ingest.mattes import turned_upright


@dataclass(frozen=True)
class Truth:
    """One row of a manifest of true mattes."""

    where: str
    """Manifest, row and image for messages."""
    image: str
    category: str
    """The category, or "" if the manifest has none."""
    photo: Path | None
    """The photo, or None if its file is missing; the matte is then used without reorientation."""
    alpha: Path

    def load(self) -> np.ndarray:
        """Load the true matte in the upright orientation of its photo.

        Returns:
            The matte, float32 (H, W) in [0, 1].

        Raises:
            UnreadableImage: The matte or the photo cannot be decoded.
        """
        if self.photo is None:
            return safely(load_alpha, self.alpha)
        photo, header = safely(read_header, self.photo), safely(read_header, self.alpha)
        # Without EXIF tags only one orientation is possible.
        if photo.orientation == header.orientation == 1:
            return safely(load_alpha, self.alpha)
        size, stored = (photo.width, photo.height), (photo.raw_width, photo.raw_height)
        if size not in ((header.width, header.height), (header.raw_width, header.raw_height)) and stored != size:
            alpha = safely(load_alpha, self.alpha)
            # The upright size does not fit. If the matte has the stored size of the photo, turn it by the photo's tag.
            return orient(alpha, photo.orientation) if alpha.shape == stored[::-1] else alpha
        return turned_upright(self.alpha, header, photo, safely(load_rgb, self.photo, LOOK_SIDE))[0]


def read_truths(manifest: Path) -> list[Truth]:
    """Read a manifest of true mattes.

    Args:
        manifest: CSV or parquet file with the columns image, alpha and, optionally, category.

    Returns:
        One entry per row.

    Raises:
        InputError: The file or a matte is missing, a row is malformed, or two photos share one prediction.
    """
    if not manifest.is_file():
        raise InputError(f"{manifest}: no such file; give a manifest with the columns image, alpha, category")
    rows = list(read_manifest(manifest))
    if not any(row.alpha for row in rows):
        raise InputError(f"{manifest}: column 'alpha' is missing or empty; name the true matte of each photo there")
    # Predictions are named after the stem of the photo, so stems must be unique.
    for stem, count in Counter(stem_of(row.image) for row in rows).items():
        if count > 1:
            raise InputError(f"{manifest}: {count} rows would be predicted as {stem}.png; rename the images")
    return [_truth(manifest, row) for row in rows]


def stem_of(image: str) -> str:
    """Return the name of a photo's prediction, without suffix."""
    return posixpath.splitext(posixpath.basename(image.replace("\\", "/")))[0]


def _truth(manifest: Path, row: ManifestRow) -> Truth:
    where = f"{manifest}, row {row.row + 1} ({row.image})"
    if row.extra_fields:
        raise InputError(f"{where}: {row.extra_fields} fields too many: quote the field that holds a comma")
    if not row.alpha:
        raise InputError(f"{where}: alpha: empty; name the true matte")
    alpha = _file(manifest.parent, row.alpha)
    if alpha is None:
        raise InputError(f"{where}: alpha: {manifest.parent / row.alpha} is missing")
    return Truth(where, row.image, row.category, _file(manifest.parent, row.image), alpha)


def _file(folder: Path, name: str) -> Path | None:
    """Return the file with this name, or None; slashes, backslashes and both Unicode forms of accents match."""
    forms = (name, *name_forms(name.replace("\\", "/")))
    return next((folder / form for form in forms if form and (folder / form).is_file()), None)
