"""Names and records that all rooms share: kinds, metrics, reports, verdicts."""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, JsonValue

from mm_core.core.categories import ALL_CATEGORIES as ALL_CATEGORIES
from mm_core.core.categories import CATEGORIES as CATEGORIES
from mm_core.core.categories import DECODER_OF as DECODER_OF
from mm_core.core.categories import DECODERS as DECODERS
from mm_core.core.categories import KINDS as KINDS
from mm_core.core.categories import decoder_of as decoder_of
from mm_core.core.energy import joules, watts
from mm_core.core.errors import InputError

METRICS = ("mse", "maxf", "biou", "conn", "sad", "grad")
HIGHER_IS_BETTER = frozenset({"maxf", "biou"})
OWN_DIGEST = "this file"
"""Key of the digest over all other entries of a JSON file: a flipped bit in one of them is no other value."""


Fact = TypeVar("Fact", str, int, list, dict)
Record = TypeVar("Record")
Table = Sequence[Mapping[str, object]]
"""Rows of a table: column → JSON value."""


@dataclass
class Report:
    """The result of a stage in one object; the JSON file, MLflow metrics and Dagster metadata are views of it."""

    stage: str
    metrics: dict[str, float] = field(default_factory=dict)
    """Flat numbers, with the names that MLflow shows (`multimodal/portrait/mse`)."""
    facts: dict[str, object] = field(default_factory=dict)
    """Identifiers, digests, counts, short texts; JSON values."""
    tables: dict[str, Table] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    """Title → path of a picture."""
    seconds: float = 0.0
    cost: dict[str, float] = field(default_factory=dict)
    """`cpu_seconds` of this process and its ended children; `watts` of all processors of the machine, if readable."""

    def rows(self, name: str) -> list[Any]:
        """Return a table, for a caller that declares the type of its rows; empty if the report lacks it."""
        return list(self.tables.get(name, ()))

    def fact(self, name: str, kind: type[Fact]) -> Fact:
        """Return a fact; raise InputError if it is missing or of another type."""
        value = self.facts.get(name)
        if not isinstance(value, kind):
            raise InputError(f"the report of {self.stage} has no {name!r} ({kind.__name__}): run the stage again")
        return value

    def write(self, path: Path) -> Report:
        """Write the JSON view to `path`; return the report."""
        write_json(path, asdict(self))
        return self

    @staticmethod
    def read(path: Path) -> Report:
        """Read a report that `write` wrote; raise InputError if the file is damaged."""
        try:
            report = Report(**json.loads(path.read_bytes()))
            parts = (report.metrics, report.facts, report.tables, report.pictures, report.cost)
            if not all(isinstance(part, dict) for part in parts):
                raise TypeError(path)
            # A value that is not a number raises TypeError here.
            float(sum([report.seconds, *report.metrics.values()]))
        except (ValueError, TypeError, RecursionError):
            raise InputError(f"{path} is damaged: delete it and run its stage again") from None
        return report


@contextmanager
def timed(report: Report, path: Path | None = None) -> Iterator[Report]:
    """Fill `report.seconds` and `report.cost` with the body's time and cost, and write the report to `path`.

    An exception in the body writes no report.
    """
    # os.times: user and system time of this process and of its ended children; the fifth value is the wall clock.
    start, cpu, drawn = time.perf_counter(), sum(os.times()[:4]), joules()
    yield report
    seconds = time.perf_counter() - start
    report.seconds = round(seconds, 3)
    report.cost["cpu_seconds"] = round(sum(os.times()[:4]) - cpu, 2)
    if (power := watts(drawn, seconds)) is not None:
        report.cost["watts"] = round(power, 1)
    if path is not None:
        report.write(path)


Decision = Literal["PROMOTE", "REJECT", "INCONCLUSIVE"]


class Cell(BaseModel):
    """One category × metric of a verdict."""

    model_config = ConfigDict(extra="forbid")

    category: str
    """A category, or `all` for the mean over the six."""
    metric: str
    against: str
    """`champion`, `anchor` (the best so far), `floor`, `blind`, or `float` (the int8 file against the float model)."""
    role: Literal["gain", "macro", "superior", "non_inferior", "guard", "floor"]
    """`gain`: the gain itself must be above the margin, without confidence. `macro`: the mean over the categories must
    be better with confidence. `guard`: a large loss of the plain mean is excluded, independent of single photos."""
    reference: float | None
    # The compared values and the confidence interval of their difference.
    candidate: float
    gain: float
    """Mean paired difference, positive = candidate better."""
    bound: float
    """One-sided lower confidence bound of the gain."""
    upper: float | None = None
    """One-sided upper confidence bound of the gain; None in verdicts of earlier versions."""
    margin: float
    """The bound must be above this; for `gain` the gain itself."""
    images: int
    groups: int
    result: Literal["pass", "fail", "unclear"]
    """`fail`: a loss is proven, beyond the margin if there is one; `unclear`: neither gain nor loss is proven."""
    pooled: bool = False
    """True if the photos of all six categories together gave `pass`; those of this category alone did not suffice."""


class Verdict(BaseModel):
    """The gate's recorded decision about one model (design.md, "Verdict")."""

    model_config = ConfigDict(extra="forbid")

    # The outcome and its reasons.
    decision: Decision
    basis: Literal["paired", "bootstrap"]
    """`bootstrap`: there was no champion, so absolute floors decided."""
    reasons: list[str]
    candidate: str
    """Digest of the candidate's weights."""
    champion: str | None
    anchor: str | None
    # The data that the verdict is based on.
    snapshot: str
    eval_digest: str
    left_out: dict[str, str] = {}
    """Excluded evaluation photos: sample id → the judged model that was trained on them or on their scene."""
    cells: list[Cell]
    created_at: str


def sha256_bytes(data: bytes) -> str:
    """Return the sha256 of bytes as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's content as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of(value: object) -> str:
    """Return the digest of any JSON value, independent of key order."""
    # `default=str` covers paths and dates.
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically: a killed process leaves the old file or the new one."""
    # Sorted keys: equal values give equal bytes, and DVC compares bytes.
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, default=str) + "\n").encode())


def write_sealed_json(path: Path, record: Mapping[str, object]) -> None:
    """Write a JSON object with a digest over its entries, which `unseal` compares."""
    write_json(path, {**record, OWN_DIGEST: digest_of(record)})


def unseal(record: Mapping[str, object]) -> dict[str, object] | None:
    """Return the entries of a sealed JSON object; None if they differ from its digest.

    Earlier versions wrote no digest: their entries are returned as they are.
    """
    entries = {name: value for name, value in record.items() if name != OWN_DIGEST}
    return entries if record.get(OWN_DIGEST, digest_of(entries)) == digest_of(entries) else None


def parse_finite_json(data: bytes | str) -> JsonValue:
    """Return the content of a JSON text from elsewhere; raises ValueError also for NaN, Infinity and 1e999."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name[:20]} is no finite number")

    def parse_float(text: str) -> float:
        if not math.isfinite(number := float(text)):
            refuse(text)
        return number

    # json accepts NaN and Infinity as constants, and reads 1e999 as infinity.
    return json.loads(data, parse_constant=refuse, parse_float=parse_float)


def parse_record(
    data: bytes | str, kind: type[Record], where: object, remedy: str, fields: Collection[str] = ()
) -> Record:
    """Return the JSON object of a record that this engine wrote.

    Args:
        data: The content of the file.
        kind: Type of the record; only `fields` are checked.
        where: Path or address, for the message.
        remedy: The action for the user.
        fields: Names that the object must have.

    Raises:
        InputError: The content is not a JSON object with these fields.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    # A flipped bit may leave valid JSON of another shape.
    if not isinstance(content, dict) or not set(fields) <= content.keys():
        raise InputError(f"{where} is damaged: {remedy}")
    return cast(Record, content)


def read_verdict(path: Path) -> Verdict:
    """Read a recorded verdict; raise InputError if the file is damaged."""
    try:
        return Verdict.model_validate_json(path.read_bytes())
    except ValueError:
        raise InputError(f"{path} is damaged: run `mm gate` again") from None


def read_keyed(path: Path, key: str) -> object | None:
    """Return the JSON object at `path` if its `key` matches; None if it is absent, broken or has another key."""
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and record.get("key") == key else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: temporary file in the same folder, fsync, rename; a raised OSError names `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Process and thread id keep two writers of one file apart. The name is cut, because a name has at most 255 bytes.
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            # Without fsync a power failure could leave an empty file under the final name.
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        error.filename = str(path)  # the error of a full disk names no file
        raise
