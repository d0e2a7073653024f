"""Read and validate moments.json; the folder may come from another machine."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import NotRequired, TypedDict, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mm_core.core.errors import InputError
from mm_core.core.records import parse_finite_json

MOST_BYTES = 64 << 20
"""Largest size of a moments.json."""


class _Part(BaseModel):
    """Base of the models: fields that pages use are typed, others are kept unchecked."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Photo(_Part):
    id: str = Field(pattern=r"^[0-9a-f]{64}$")
    name: str
    category: str | None


class _Best(_Part):
    name: str


class _Piece(_Part):
    file: str
    function: str
    why: str

    @field_validator("file")
    @classmethod
    def _lies_in_the_folder(cls, value: str) -> str:
        path = PurePosixPath(value)
        # Plain relative paths only.
        if path.is_absolute() or ".." in path.parts or not path.parts or not value.isprintable():
            raise ValueError("names no file of the folder")
        return value


class _Moment(_Part):
    title: str
    tone: str
    tone_why: str
    photos: list[_Photo]
    best: list[_Best]
    pieces: list[_Piece]


class _Moments(_Part):
    moments: list[_Moment]


class PhotoEntry(TypedDict):
    """A photo of a moment."""

    name: str
    id: str
    category: str | None
    taken_at: NotRequired[str | None]


class BestEntry(TypedDict):
    """A chosen photo of a moment."""

    name: str
    why: NotRequired[str]
    offers: NotRequired[list[dict[str, object]]]
    """Effects that fit the photo, best first."""


class PieceEntry(TypedDict):
    """A picture that was made for a moment."""

    function: str
    choice: NotRequired[str]
    photos: NotRequired[list[str]]
    why: str
    file: NotRequired[str]


# `from` is a keyword, so the fields cannot be written as a class.
MomentEntry = TypedDict(
    "MomentEntry",
    {
        "id": NotRequired[str],
        "title": str,
        "tone": str,
        "tone_why": str,
        "from": NotRequired[str | None],
        "to": NotRequired[str | None],
        "photos": list[PhotoEntry],
        "repeated": NotRequired[int],
        "best": list[BestEntry],
        "pieces": list[PieceEntry],
    },
)
"""One moment of moments.json. Files of other programs may lack the `NotRequired` fields."""


class MomentsRecord(TypedDict):
    """The content of a moments.json."""

    moments: list[MomentEntry]


def read_moments(path: Path) -> MomentsRecord:
    """Return the content of a moments.json.

    Raises:
        InputError: The file differs from the output of `mm moments` (the text names the field), is larger than
            MOST_BYTES, holds NaN, or names a piece outside of its folder.
    """
    remedy = "run `mm moments` again"
    # The size is checked before the file is read into memory.
    if (size := path.stat().st_size) > MOST_BYTES:
        raise InputError(f"{path}: {size} bytes, at most {MOST_BYTES} are read: {remedy}")
    try:
        content = parse_finite_json(path.read_bytes())
        checked = _Moments.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))[:200]
        raise InputError(f"{path}: {field!r}: {first['msg']}: {remedy}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON of moments: {remedy}") from None
    # Links are resolved too: a piece may be a link that leads out of the folder.
    folder = path.parent.resolve()
    for piece in (piece for moment in checked.moments for piece in moment.pieces):
        if not (folder / piece.file).resolve().is_relative_to(folder):
            raise InputError(f"{path}: {piece.file!r} leads out of the folder: {remedy}")
    # Validation showed that the JSON value is of this type.
    return cast("MomentsRecord", content)
