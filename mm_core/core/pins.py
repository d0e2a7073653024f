"""The records of `inputs.json` and `snapshot.json`: what a cycle starts from, and what its snapshot froze."""

from __future__ import annotations

import json
from typing import Any, Final, Literal, TypedDict

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout

Role = Literal["champion", "anchor"]
ROLES: Final[tuple[Role, Role]] = ("champion", "anchor")


class ModelPin(TypedDict):
    """A registered model."""

    version: str
    digest: str
    """sha256 of the weights, which are a blob of the store."""
    files: dict[str, str]
    """Name of each int8 file that shipped, and its blob's digest."""


class PinnedInputs(TypedDict):
    """What the next cycle starts from."""

    catalog: dict[str, int]
    """Version of each table."""
    champion: ModelPin | None
    anchor: ModelPin | None


class SnapshotFacts(PinnedInputs):
    """What `snapshot.json` says of the frames beside it."""

    digest: str
    """Of all frames."""
    eval_digest: str
    """Of the eval frame's photos, categories and mattes."""
    params: dict[str, Any]
    """The section `snapshot` of the parameters."""
    counts: dict[str, dict[str, int]]
    """Photos by pool and category."""
    dropped_for_leakage: dict[str, int]
    """Photos that are in no pool, by reason."""


def has_snapshot(layout: Layout) -> bool:
    """Return whether a snapshot was frozen."""
    return (layout.snapshot / "snapshot.json").is_file()


def read_snapshot(layout: Layout) -> SnapshotFacts:
    """Read the facts of the snapshot of the cycle in work.

    Raises:
        InputError: There is no snapshot, or its file is damaged.
    """
    path = layout.snapshot / "snapshot.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: run `mm ingest`, then `mm snapshot`")
    try:
        facts = json.loads(path.read_bytes())
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or "digest" not in facts:
        raise InputError(f"{path} is damaged: run `mm snapshot` again")
    return facts  # pyright: ignore[reportReturnType]
