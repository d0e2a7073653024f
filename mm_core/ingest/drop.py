"""Package folders of photos as drops.

The manifest is written last. A drop with a manifest is ready for ingest.
"""

from __future__ import annotations

import csv
import filecmp
import os
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypedDict

from mm_core.core.errors import InputError
from mm_core.core.folders import require_folder
from mm_core.core.outputs import MAX_NAME, check_outputs
from mm_core.core.records import KINDS, sha256_file, write_bytes
from mm_core.core.spellings import NO_PHOTOS, PHOTOS, is_hidden, name_forms
from mm_core.ingest.batch_names import name_fault
from mm_core.ingest.csv_text import csv_bytes, csv_lines, read_text, unescaped
from mm_core.ingest.matte_pairs import MatteFinder, category_in

MANIFEST_COLUMNS = ("image", "alpha", "caption", "category", "group", "role", "sha256", "source", "license", "taken_at")


class LeftOut(TypedDict):
    """A file of the folder that is not in the drop."""

    file: str
    reason: str


class DropSummary(TypedDict):
    """The contents of a drop, and what of its source folder is not in it."""

    drop: str
    """Path of the drop."""
    photos: int
    categories: dict[str, dict[str, int]]
    """Category, or `(none)` → `photos`, `mattes`."""
    left_out: list[LeftOut]
    other_folders: list[str]
    """Sub-folders with a name that is not a category."""


@dataclass(frozen=True)
class Packaged:
    """A drop that was made from a folder."""

    path: Path
    """Folder of the batch."""
    photos: int
    categories: Mapping[str, int]
    """Category → number of photos; the empty name counts photos without a category."""
    unknown_folders: Mapping[str, int]
    """Folder name that is not a category → number of its photos without a category."""
    hidden: int
    """Number of files that were left out as hidden or system files or in such folders."""
    other_files: Mapping[str, int]
    """Suffix of files that are neither photo nor matte nor caption → number of files left out."""

    def facts(self) -> dict[str, object]:
        """Return the facts for the report of `mm drop`."""
        return {
            "drop": str(self.path),
            "photos": self.photos,
            "categories": dict(self.categories),
            "unknown_folders": dict(self.unknown_folders),
            "left_out": {"hidden or system files": self.hidden, **self.other_files},
        }


def write_manifest(batch_dir: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """Write manifest.csv in one atomic step.

    Args:
        batch_dir: Folder of the drop.
        rows: Column → text, one mapping per photo. Columns without any text are not written.

    Returns:
        The path of the manifest, UTF-8.

    Raises:
        InputError: `rows` is empty, or a column is unknown.
    """
    if not rows:
        raise InputError(f"{batch_dir}: there is nothing to put in the manifest; add photos to the batch")
    # Reading ignores unknown columns, so a misspelled name would lose its values.
    if unknown := sorted({name for row in rows for name in row} - set(MANIFEST_COLUMNS)):
        raise InputError(f"{batch_dir}: manifest column {unknown[0]!r} is unknown; use {', '.join(MANIFEST_COLUMNS)}")
    used = [name for name in MANIFEST_COLUMNS if any(row.get(name) for row in rows)]
    path = batch_dir / "manifest.csv"
    write_bytes(path, csv_bytes([used, *([row.get(name, "") for name in used] for row in rows)]))
    return path


def package_folder(folder: Path, inbox: Path, kind: str, batch: str) -> Packaged:
    """Copy a folder of photos into `<inbox>/<kind>/<batch>` as a drop.

    pixel_labeled: the matte of `name.jpg` is `alphas/name.png`, `mask/name.png` for `image/name.jpg`, or
    `name_alpha.png` beside the photo, in any picture format (`matte_pairs`). text_image: the caption is in `name.txt`,
    or in a captions.csv (image,caption) in the folder. The category is the name of a sub-folder or of the folder
    (`spellings`). Hidden and system files are left out.

    Args:
        folder: Folder with photos.
        inbox: Root of the inbox.
        kind: One of KINDS.
        batch: Name of the new drop.

    Returns:
        Counts of the packaged and the omitted files.

    Raises:
        InputError: An argument is invalid, the drop exists, or a matte or caption is missing.
    """
    if kind not in KINDS:
        raise InputError(f"--kind {kind!r} is unknown; use one of {', '.join(KINDS)}")
    if fault := name_fault(batch):
        raise InputError(f"--batch: {fault}")
    require_folder(folder)
    target = inbox / kind / batch
    # A drop inside its own source would be packaged again on the next call.
    if target.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(target.resolve()):
        raise InputError(f"{folder} and the drop {target} lie in one another: name another folder, batch or --inbox")
    if any((target / f"manifest.{suffix}").exists() for suffix in ("csv", "parquet")):
        raise InputError(f"{target}: --batch {batch!r} already exists; choose another batch name")
    # Sorted files give the same manifest on every run.
    everything = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in everything if not is_hidden(path.relative_to(folder))]
    finder = MatteFinder(folder)
    photos = [p for p in files if p.suffix.lower() in PHOTOS and not finder.is_matte(p)]
    if not photos:
        raise InputError(f"{folder}: {NO_PHOTOS}")
    alphas = {p: _alpha_of(finder, p) for p in photos} if kind == "pixel_labeled" else {}
    captions = _captions(photos, folder) if kind == "text_image" else {}

    rows, copies = [], {}
    for photo in photos:
        inside = photo.relative_to(folder)
        _check_name(inside, folder)
        # Keep the sub-folders, so that photos with equal names do not collide.
        row = {"image": f"images/{inside.as_posix()}", "sha256": sha256_file(photo), "source": folder.name}
        row["category"] = category_in(inside, folder)
        row["caption"] = captions.get(photo, "")
        copies[target / row["image"]] = photo
        if photo in alphas:
            row["alpha"] = f"alphas/{matte_place(inside, alphas[photo].suffix.lower(), row['sha256'])}"
            copies[target / row["alpha"]] = alphas[photo]
        rows.append(row)
    # Files from a killed run are identical to the source. Any other file belongs to another writer of this drop.
    is_copied = lambda path: path.is_file() and filecmp.cmp(path, copies[path], shallow=False)  # noqa: E731
    check_outputs(list(copies), copies.values(), is_ours=is_copied, remedy="choose another --batch")
    for path, source in copies.items():
        copy_file(source, path)
    # The manifest makes the drop ready, so it is written after all files.
    write_manifest(target, rows)
    unknown = [p.parent.relative_to(folder).as_posix() for p, row in zip(photos, rows, strict=True)]
    unknown = [name for name, row in zip(unknown, rows, strict=True) if name != "." and not row["category"]]
    others = [p for p in files if p.suffix.lower() not in PHOTOS and not _is_caption(p, kind)]
    return Packaged(
        target,
        len(photos),
        Counter(row["category"] for row in rows),
        Counter(unknown),
        len(everything) - len(files),
        Counter(path.suffix.lower() or path.name for path in others),
    )


def matte_place(inside: PurePath, suffix: str, digest: str) -> str:
    """Return the path of a photo's matte below `alphas/`.

    Args:
        inside: Path of the photo below `images/`.
        suffix: Suffix of the matte, with its dot.
        digest: sha256 of the photo; it names the matte if the photo's name leaves no room for a second suffix.
    """
    name = f"{inside.name}{suffix}"
    return inside.with_name(name if len(os.fsencode(name)) <= MAX_NAME else f"{digest}{suffix}").as_posix()


def _check_name(inside: PurePath, folder: Path) -> None:
    """Raise InputError for a photo whose name no manifest can hold as it is."""
    text = str(inside)
    if not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        raise InputError(f"{folder}: the name {ascii(text)} is not UTF-8: rename the file or its folder")
    # Manifests of other systems separate folders by backslashes, and spaces at the ends of a cell are no part of it.
    if "\\" in text or text != text.strip():
        raise InputError(f"{folder}: the name {ascii(text)} holds a backslash or ends in a space: rename it")


def _is_caption(path: Path, kind: str) -> bool:
    return kind == "text_image" and (path.suffix.lower() == ".txt" or path.name == "captions.csv")


def summarize_drop(folder: Path, target: Path) -> DropSummary:
    """Return the contents of a drop and the files of its source folder that are not in it.

    Args:
        folder: The folder that `package_folder` packaged.
        target: The drop's directory, which it returned.

    """
    kind = target.parent.name
    with (target / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    categories: dict[str, dict[str, int]] = {}
    # Sort by category, photos without one last.
    for row in sorted(rows, key=lambda row: (not row.get("category"), row.get("category"))):
        counts = categories.setdefault(row.get("category") or "(none)", {"photos": 0, "mattes": 0})
        counts["photos"] += 1
        counts["mattes"] += bool(row.get("alpha"))
    photos = [folder / row["image"].removeprefix("images/") for row in rows]
    # The mattes and captions of the photos are used, too. All other files were left out.
    used = set(photos)
    if kind == "pixel_labeled":
        finder = MatteFinder(folder)
        used |= {_alpha_of(finder, photo) for photo in photos}
    if kind == "text_image":
        notes = (photo.with_suffix(".txt") for photo in photos)
        used |= {folder / "captions.csv", *(note.with_name(name) for note in notes for name in name_forms(note.name))}
    left_out: list[LeftOut] = [
        {"file": path.relative_to(folder).as_posix(), "reason": _why_left_out(path, folder, kind)}
        for path in sorted(folder.rglob("*"))
        if path not in used and (path.is_symlink() or not path.is_dir())
    ]
    if kind == "text_image":
        left_out += _captions_without_photo(folder, photos)
    bare = [photo.relative_to(folder) for photo, row in zip(photos, rows, strict=True) if not row.get("category")]
    return {
        "drop": str(target),
        "photos": len(rows),
        "categories": categories,
        "left_out": left_out,
        "other_folders": sorted({inside.parts[0] for inside in bare if len(inside.parts) > 1}),
    }


def _why_left_out(path: Path, folder: Path, kind: str) -> str:
    if is_hidden(path.relative_to(folder)):
        return "hidden or system files"
    if not path.is_file():
        return "link to a folder" if path.is_dir() else "link to nothing" if path.is_symlink() else "not a file"
    if path.suffix.lower() not in PHOTOS:
        return f"not a photo ({path.suffix or 'no suffix'})"
    return "matte without a photo" if kind == "pixel_labeled" else f"matte (a drop of kind {kind} takes none)"


def _alpha_of(finder: MatteFinder, photo: Path) -> Path:
    if alpha := finder.matte_of(photo):
        return alpha
    inside = photo.relative_to(finder.folder).with_suffix(".png")
    raise InputError(
        f"{photo}: alpha is missing; add {finder.folder / 'alphas' / inside} or {photo.stem}_alpha.png beside the "
        "photo, or use --kind unlabeled"
    )


def _captions(photos: Sequence[Path], folder: Path) -> dict[Path, str]:
    table = folder / "captions.csv"
    known = _caption_table(table) if table.is_file() else {}
    named = Counter(_composed(photo.name) for photo in photos)
    found = {}
    for photo in photos:
        note = photo.with_suffix(".txt")
        there = next((path for path in map(note.with_name, name_forms(note.name)) if path.is_file()), None)
        # The table may name a path or a bare file name.
        path, name = _composed(photo.relative_to(folder).as_posix()), _composed(photo.name)
        text, listed = read_text(there).strip() if there else "", known.get(path) or known.get(name, "")
        if listed and not known.get(path) and named[name] > 1:
            raise InputError(f"{table}: {name!r} names {named[name]} photos: write their paths, such as {path}")
        if text and listed and text != listed:
            raise InputError(f"{photo}: {note.name} and {table.name} give two captions: keep one")
        if not (text or listed):
            raise InputError(f"{photo}: caption is missing; write it to {note.name} or to a line of {table}")
        found[photo] = text or listed
    return found


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _captions_without_photo(folder: Path, photos: Sequence[Path]) -> Iterator[LeftOut]:
    """Yield the names in captions.csv that belong to no photo of the drop."""
    table = folder / "captions.csv"
    names = {_composed(name) for photo in photos for name in (photo.relative_to(folder).as_posix(), photo.name)}
    for name in sorted(set(_caption_table(table)) - names) if table.is_file() else ():
        yield {"file": name, "reason": "caption without a photo"}


def _caption_table(path: Path) -> dict[str, str]:
    """Return photo name → caption; the header's order, case and spacing are free.

    Raises:
        InputError: A column is missing, a line has too many fields, or two lines of one photo differ.
    """
    lines = (line for line in csv_lines(path) if any(field.strip() for field in line))
    names = [name.strip().lower() for name in next(lines, [])]
    if missing := {"image", "caption"} - set(names):
        raise InputError(f"{path}: column {sorted(missing)[0]!r} is missing; the first line must be image,caption")
    image, caption = names.index("image"), names.index("caption")
    found: dict[str, str] = {}
    for line in lines:
        # A comma in a caption without quotes would cut the caption.
        if any(field.strip() for field in line[len(names) :]):
            raise InputError(f"{path}: the line of {line[image].strip()!r} has too many fields: quote its caption")
        # Pad short lines, so that a missing caption reads as an empty one.
        cells = [*line, *[""] * len(names)]
        photo, text = _composed(cells[image].strip().replace("\\", "/")), unescaped(cells[caption].strip())
        if found.setdefault(photo, text) != text:
            raise InputError(f"{path}: {photo!r} has two captions: keep one of its lines")
    return found


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; the folder of the target is made if it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
