"""The `Run` that every stage takes, and a cycle's inputs: its pins, the pins that the snapshot froze, the verdict.

`inputs.json` contains the pins of the *next* cycle. The snapshot copies them into `snapshot.json`. Every later stage
reads that copy (`frozen_inputs`), so that changes outside the cycle do not affect its evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Concatenate, NotRequired, ParamSpec, TypedDict, TypeVar, cast

from mm_core.core.errors import InputError, ReleaseRefused
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.locks import cycle_holder, cycle_lock, try_cycle_lock
from mm_core.core.pins import (
    NO_PHOTOS,
    PINNED_TABLES,
    ROLES,
    PinnedInputs,
    are_pins,
    missing,
    news_of,
    parse_inputs,
    read_snapshot,
    start_digest,
)
from mm_core.core.records import Report, Verdict, digest_of, read_verdict, sha256_file, write_sealed_json
from mm_core.export.override import Override, valid_override
from mm_core.export.registry import Registry
from mm_core.export.start_weights import newest_start
from mm_core.ingest.placement import POOLS
from mm_core.ingest.snapshot import read_pool
from mm_core.storage.run import StorageRun, catalog_of, store_of
from mm_core.storage.seals import require_unbroken, seal_databases
from mm_core.storage.store import fetch_blob
from mm_core.training.record import find_mismatches
from mm_core.training.tracked_stages import tracked
from mm_core.training.tracking import Tracker


@dataclass(frozen=True)
class Run(StorageRun):
    """What each stage and operation takes: params, workspace, progress, and the services behind them, opened once.

    `Run(params, layout)` makes no progress calls; `Run(params, layout, progress)` does.
    """

    @cached_property
    def tracker(self) -> Tracker:
        """The MLflow run history."""
        return Tracker(self.layout.settings)

    @cached_property
    def registry(self) -> Registry:
        """The MLflow model registry."""
        return Registry(self.layout.settings)


P = ParamSpec("P")
R = TypeVar("R")
Stage = Callable[Concatenate[Run, P], R]


def in_the_cycle(stage: Stage[P, R]) -> Stage[P, R]:
    """Decorate a stage so that it holds the cycle lock; other callers wait.

    MLflow follows the stages of a cycle. When the outermost stage ends, it writes the pins that `pin_when_idle`
    postponed and seals the databases.
    """

    @wraps(stage)
    def locked(run: Run, *args: P.args, **options: P.kwargs) -> R:
        verb = stage.__name__.strip("_").replace("_", "-")
        with cycle_lock(run.layout, verb, started_by=run.started_by) as outermost:
            with tracked(run.params, run.layout, verb, outermost=outermost) as log:
                result = stage(run, *args, **options)
                log(result)
            # Only the outermost stage writes postponed pins, when the whole cycle is finished.
            if outermost and _late(run.layout).exists():
                pin(run)
            if outermost:
                seal_databases(run.layout.root, run.layout.cache)
            return result

    return locked


class Pinned(PinnedInputs):
    """The pins of the next cycle, as a fact of a report."""

    nothing_new: NotRequired[str]
    """Why the pins of the last cycle stay."""


class Postponed(TypedDict):
    """The answer while a running cycle postpones the pins."""

    pins: str
    """The reason."""


def pin_when_idle(run: Run) -> Pinned | Postponed:
    """Pin the inputs of the next cycle now, or at the end of the running cycle.

    Returns:
        The pins, or the reason if a running cycle postpones them.
    """
    for seconds in (0.0, 0.5):
        with try_cycle_lock(run.layout, "pin-inputs", seconds) as free:
            # The lock is free: no cycle is running, so pin now.
            if free:
                return pin(run)
        # The lock's holder checks for this file at its end. The second attempt covers a holder that has just checked.
        _late(run.layout).touch()
    return {"pins": f"stay as they are until {cycle_holder(run.layout) or 'the cycle'} ends"}


def settle_late_pins(run: Run) -> None:
    """Write pins that `pin_when_idle` postponed to an interrupted process; the caller holds the cycle lock."""
    if _late(run.layout).exists():
        pin(run)


def _late(layout: Layout) -> Path:
    """Return the marker file of postponed pins; it exists while `inputs.json` lacks the newest arrivals."""
    return layout.locks / "pins.late"


def pin(run: Run, *, again: bool = False) -> Pinned:
    """Write the pins of the next cycle if they changed; the caller holds the cycle lock.

    If the last cycle used all present inputs, its pins stay and the facts contain `nothing_new`.

    Args:
        run: Params, workspace, storage and progress.
        again: True to pin even without new inputs.

    Returns:
        The facts of `stages.pin_inputs`.
    """
    layout = run.layout
    _late(layout).unlink(missing_ok=True)  # before reading the catalog: a later arrival sets it again
    inputs = inputs_now(layout)
    facts: dict[str, str] = {}
    if not again and _is_done(run, inputs):
        inputs = frozen_inputs(layout)
        facts["nothing_new"] = f"the last cycle saw all of it: {recorded_verdict(layout).decision}"
    # Unchanged pins are not rewritten, which keeps the file's modification time.
    if not has_file(layout.inputs) or read_inputs(layout) != inputs:
        write_sealed_json(layout.inputs, inputs)
    return cast(Pinned, {**inputs, **facts})


def inputs_now(layout: Layout) -> PinnedInputs:
    """Return the present catalog versions and models, in the format of `read_inputs`."""
    registry, catalog = Registry(layout.settings), catalog_of(layout)
    inputs: PinnedInputs = {
        "catalog": {table: catalog.version(table) for table in (*PINNED_TABLES, "corrections")},
        "champion": registry.pin("champion"),
        "anchor": registry.pin("anchor"),
    }
    if not inputs["champion"] and (start := newest_start(store_of(layout), inputs["catalog"])):
        inputs["start"] = start
    return inputs


def require_photos(layout: Layout) -> None:
    """Raise InputError if the catalog holds no photo yet."""
    if catalog_of(layout).version("samples") < 1:  # version 0 of a table is the one without rows
        raise InputError(f"{layout.root} {NO_PHOTOS}; `dvc pull` fetches a cycle from a DVC remote")


def read_inputs(layout: Layout) -> PinnedInputs:
    """Read `inputs.json`.

    Raises:
        InputError: The file is missing or damaged.
    """
    if not has_file(layout.inputs):
        raise missing(layout, layout.inputs, "run `mm ingest` first")
    inputs = parse_inputs(layout.inputs.read_bytes())
    if inputs is None:
        raise InputError(f"{layout.inputs} is damaged: delete it, then `mm ingest` pins anew")
    return inputs


def frozen_inputs(layout: Layout) -> PinnedInputs:
    """Return the pins that the snapshot of the present cycle froze.

    Raises:
        InputError: The snapshot is missing, or one of its files is damaged.
    """
    frozen = read_snapshot(layout)
    require_unbroken(layout.snapshot, "run `mm snapshot` again")
    # A flipped bit in a field's name leaves valid JSON.
    if not are_pins(frozen):
        raise InputError(f"{layout.snapshot / 'snapshot.json'} is damaged: run `mm snapshot` again")
    pinned: PinnedInputs = {
        # The table of learnt photos is frozen with the snapshot, and is no input of a next cycle.
        "catalog": news_of(frozen["catalog"]),
        "champion": frozen["champion"],
        "anchor": frozen["anchor"],
    }
    if "start" in frozen:
        pinned["start"] = frozen["start"]
    return pinned


def _is_done(run: Run, inputs: PinnedInputs) -> bool:
    """Return whether the last cycle finished with these params and inputs, or promoted the present champion."""
    layout = run.layout
    judged, candidate = layout.stage_report("gate"), layout.model(TRAIN_STAGES[-1])
    # All files of a finished cycle must exist.
    needed = (layout.snapshot / "snapshot.json", layout.verdict, judged, candidate)
    if not all(has_file(path) for path in needed):
        return False
    try:
        pinned, verdict, facts = frozen_inputs(layout), recorded_verdict(layout), Report.read(judged).facts
    except InputError:  # damaged, or of an older version: the next cycle writes these files again
        return False
    # The gate recorded which pins and params it judged.
    about = {"inputs": digest_of(pinned), "params": run.params.cycle_digest()}
    if {name: facts.get(name) for name in about} != about or pinned["catalog"] != inputs["catalog"]:
        return False
    if verdict.candidate != sha256_file(candidate) or _is_mixed(layout):  # another cycle has started since
        return False
    # A promoted candidate without a promotion report is unfinished work.
    if verdict.decision == "PROMOTE" and not has_file(layout.stage_report("promote")):
        return False
    if (inputs["champion"] or {}).get("digest") == verdict.candidate:
        # The first champion ever is the anchor too.
        return inputs["anchor"] == (pinned["anchor"] or inputs["champion"])
    return all(inputs[role] == pinned[role] for role in ROLES)


def _is_mixed(layout: Layout) -> bool:
    """Return whether a model in the workspace was trained on another snapshot or split."""
    try:
        return bool(find_mismatches(layout))
    except InputError:  # a file of the cycle is missing
        return True


def warm_start(run: Run, pinned: PinnedInputs) -> Path | None:
    """Return the weights that the first stage starts from; None for the pretrained encoder or scratch.

    They are those of the pinned champion or, before the first promotion, of the newest kept candidate.
    """
    digest = start_digest(pinned)
    if run.params.train.common.warm_start != "champion" or not digest:
        return None
    return fetch_blob(run.store, digest)


def recorded_verdict(layout: Layout) -> Verdict:
    """Return the recorded verdict.

    Raises:
        InputError: The verdict is missing or damaged.
    """
    if not has_file(layout.verdict):
        raise missing(layout, layout.verdict, "run `mm gate`, or `mm run` for a whole cycle")
    return read_verdict(layout.verdict)


def require_one_cycle(layout: Layout) -> None:
    """Check that snapshot, split and models in `cycle/` match, and that no photo of them was forgotten.

    Raises:
        InputError: A model was trained on other data or from other weights, or a photo was forgotten since.
    """
    frozen_inputs(layout)
    if mismatches := find_mismatches(layout):
        more = f" (and {len(mismatches) - 1} more)" if len(mismatches) > 1 else ""
        raise InputError(f"{mismatches[0]}{more}: run `mm run`, which trains what is missing of the present cycle")
    if gone := forgotten_in_cycle(layout):
        raise InputError(
            f"{layout.snapshot} holds {len(gone)} photos that were forgotten since, {gone[0][:12]} among them: "
            "run `mm run`, which trains without them"
        )


def forgotten_in_cycle(layout: Layout) -> list[str]:
    """Return the sorted ids of forgotten photos that are in a pool of the cycle's snapshot."""
    # The newest catalog version counts, because photos can be forgotten after the snapshot.
    forgotten = set(catalog_of(layout).read("forgotten", columns=["id"])["id"])
    return sorted(forgotten & {i for pool in POOLS for i in read_pool(layout.snapshot, pool)["sample_id"]})


def require_promote(layout: Layout) -> tuple[Verdict, Override | None]:
    """Return the recorded verdict PROMOTE, or a valid override, for the workspace's candidate.

    Raises:
        InputError: The verdict is missing or damaged, or the files of the cycle do not match.
        ReleaseRefused: The verdict is not PROMOTE, or it is about another candidate or snapshot.
    """
    verdict = recorded_verdict(layout)
    model = layout.model(TRAIN_STAGES[-1])
    candidate = sha256_file(model)
    # The verdict must be about this candidate, this snapshot and these models.
    if verdict.candidate != candidate:
        report = layout.stage_report(f"train-{TRAIN_STAGES[-1]}")
        # The judged model was trained here, so the file has changed since.
        if has_file(report) and Report.read(report).facts.get("digest") == verdict.candidate:
            what = "its bytes differ from those that training wrote"
            raise InputError(f"{model} is damaged, {what}: run `mm train-{TRAIN_STAGES[-1]}`")
        raise ReleaseRefused(
            f"the recorded verdict is about {verdict.candidate[:12]}, the candidate is {candidate[:12]}: run `mm gate`"
        )
    frozen = read_snapshot(layout)
    if verdict.snapshot != frozen["digest"]:
        raise ReleaseRefused(
            f"the recorded verdict is about snapshot {verdict.snapshot[:12]}, {frozen['digest'][:12]} lies there: "
            "run `mm run`"
        )
    require_one_cycle(layout)
    if verdict.decision == "PROMOTE":
        return verdict, None
    # Without PROMOTE, only a signed override permits the release.
    override = standing_override(layout, verdict)
    if override is None:
        raise ReleaseRefused(f"the gate said {verdict.decision}: " + "; ".join(verdict.reasons[:3]))
    return verdict, override


def standing_override(layout: Layout, verdict: Verdict) -> Override | None:
    """Return the signed override for the judged candidate if it is valid and not expired, otherwise None."""
    return valid_override(store_of(layout), verdict.candidate)
