"""The records of `inputs.json` and `snapshot.json`: the pinned start of a cycle, and its frozen snapshot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal, NotRequired, TypedDict, TypeGuard

from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.records import unseal

Role = Literal["champion", "anchor"]
PINNED_TABLES: Final = ("samples", "labels", "features")
"""The catalog's tables in each record; those of newer versions also have `corrections`."""
LEARNT_TABLE: Final = "learnt"
"""The table to which a cycle itself adds rows. `snapshot.json` has its version, `inputs.json` does not: a snapshot
always excludes all that was learnt before it was frozen, also with pins of before."""
NO_PHOTOS: Final = (
    "has no photos yet: `mm drop FOLDER --kind pixel_labeled --batch NAME` brings some, then `mm run` ingests them and "
    "trains; `mm demo` shows it with generated photos"
)
"""Second half of the message about a workspace without photos; its path comes first."""
ROLES: Final[tuple[Role, Role]] = ("champion", "anchor")


class ModelPin(TypedDict):
    """A registered model."""

    version: str
    digest: str
    """sha256 of the weights, which are a blob of the store."""
    files: dict[str, str]
    """Name of each released int8 file → digest of its blob."""


class StartPin(TypedDict):
    """A candidate of an earlier cycle that the next one starts from while there is no champion."""

    digest: str
    """sha256 of the weights, which are a blob of the store."""
    provenance: str
    """Digest of the blob with its provenance."""
    catalog: dict[str, int]
    """Version of each table that its cycle was pinned to."""
    snapshot: str
    """Digest of the snapshot that it was trained on."""
    when: str
    """ISO 8601, UTC."""
    before: StartPin | None
    """What its own cycle started from; `before` of that record is None."""


class PinnedInputs(TypedDict):
    """The pinned start of the next cycle."""

    catalog: dict[str, int]
    """Version of each table."""
    champion: ModelPin | None
    anchor: ModelPin | None
    start: NotRequired[StartPin]
    """Only while there is no champion and an earlier cycle left a candidate."""


def news_of(catalog: Mapping[str, int]) -> dict[str, int]:
    """Return the versions whose change is a reason for a new cycle: those of all tables but LEARNT_TABLE."""
    return {table: version for table, version in catalog.items() if table != LEARNT_TABLE}


def start_for(pinned: PinnedInputs, snapshot: str) -> StartPin | None:
    """Return the start of a cycle on a snapshot with this digest.

    A candidate that was trained on the same snapshot is no start: the cycle is repeated, so it begins where that
    candidate began. The catalog may have changed in other tables, for example by new features.
    """
    start = pinned.get("start")
    return start["before"] if start and start["snapshot"] == snapshot else start


def start_digest(pinned: PinnedInputs) -> str | None:
    """Return the digest of the weights that the cycle's first stage starts from; None: no model lies there yet."""
    # The champion takes precedence: a start is used only until the first promotion.
    model = pinned.get("champion") or pinned.get("start")
    return model["digest"] if model else None


class SnapshotFacts(PinnedInputs):
    """The content of `snapshot.json`: facts about the frames in the same folder."""

    digest: str
    """Digest of all frames."""
    eval_digest: str
    """Digest of the photos, categories and mattes in the eval frame."""
    params: dict[str, object]
    """The section `snapshot` of the parameters."""
    counts: dict[str, dict[str, int]]
    """Photos by pool and category."""
    dropped_for_leakage: dict[str, int]
    """Photos outside of all pools, by reason."""


def are_pins(value: object) -> TypeGuard[PinnedInputs]:
    """Return whether a JSON value has all fields of `PinnedInputs`, with versions and models in them."""
    if not isinstance(value, dict) or not {"catalog", *ROLES} <= set(value):
        return False
    catalog, pins = value["catalog"], [value[role] for role in ROLES if value[role] is not None]
    # `start` is optional; the default passes the checks below.
    start = value.get("start", {"digest": "", "provenance": "", "snapshot": "", "before": None})
    return (
        isinstance(catalog, dict)
        and set(PINNED_TABLES) <= set(catalog)
        and all(isinstance(version, int) for version in catalog.values())
        and isinstance(start, dict)
        and {"digest", "provenance", "snapshot", "before"} <= set(start)
        and all(isinstance(pin, dict) and {"version", "digest", "files"} <= set(pin) for pin in pins)
        and all(isinstance(pin["files"], dict) for pin in pins)
    )


def parse_inputs(data: bytes) -> PinnedInputs | None:
    """Return the content of `inputs.json`; None if it is damaged."""
    try:
        inputs = json.loads(data)
    except (ValueError, RecursionError):
        return None
    # A flipped bit in a version or in a file's name leaves valid pins, which the digest over all of them shows.
    inputs = unseal(inputs) if isinstance(inputs, dict) else None
    return inputs if are_pins(inputs) and not set(inputs) - set(PinnedInputs.__annotations__) else None


def has_snapshot(layout: Layout) -> bool:
    """Return whether a snapshot was frozen."""
    return has_file(layout.snapshot / "snapshot.json")


def missing(layout: Layout, path: Path, remedy: str) -> InputError:
    """Return the error for a missing file of the cycle; in a workspace without photos its remedy is to bring some.

    Args:
        layout: The workspace.
        path: The missing file.
        remedy: What to run where the workspace has photos: "run `mm gate` first".
    """
    inputs = parse_inputs(layout.inputs.read_bytes()) if has_file(layout.inputs) else None
    # Version 0 of a table is the one without rows. A clone after `dvc pull` has a snapshot and no pins.
    if has_snapshot(layout) or (inputs and inputs["catalog"]["samples"] > 0):
        return InputError(f"{path} is missing: {remedy}")
    return InputError(f"{layout.root} {NO_PHOTOS}")


def read_snapshot(layout: Layout) -> SnapshotFacts:
    """Read the facts of the present cycle's snapshot.

    Raises:
        InputError: The snapshot is missing or damaged.
    """
    path = layout.snapshot / "snapshot.json"
    if not has_file(path):
        raise missing(layout, path, "run `mm snapshot`, or `mm run` for a whole cycle")
    try:
        facts = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        facts = None
    if not are_pins(facts) or not {"digest", "eval_digest"} <= set(facts):
        raise InputError(f"{path} is damaged: run `mm snapshot` again")
    return facts  # pyright: ignore[reportReturnType]
