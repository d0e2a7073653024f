"""What a cycle stands on: the store, the inputs that were pinned, the verdict on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from mm_core.catalog import Catalog
from mm_core.errors import InputError, ReleaseRefused
from mm_core.layout import TRAIN_STAGES, Layout
from mm_core.params import Params
from mm_core.records import Report, Verdict, digest_of, write_json
from mm_core.store import Store, open_store

Progress = Callable[[str, int, int], None]
"""Called as (what, done, total): the CLI draws bars, Dagster logs observations."""


def quiet(what: str, done: int, total: int) -> None:
    """The Progress of someone who does not look."""


def store_of(layout: Layout) -> Store:
    return open_store(layout.settings.store, layout.cache)


def inbox_of(layout: Layout) -> Store:
    return open_store(layout.settings.inbox, layout.cache / "inbox")


def catalog_of(layout: Layout) -> Catalog:
    return Catalog(layout.settings.store)


def pin(params: Params, layout: Layout, *, again: bool = False) -> dict:
    """The facts of `stages.pin_inputs`: writes what the next cycle starts from, if it is not pinned already."""
    inputs = inputs_now(layout)
    if not again and _is_done(params, layout, inputs):
        inputs = read_inputs(layout)
        return inputs | {"nothing_new": f"the last cycle saw all of it: {recorded_verdict(layout).decision}"}
    if not layout.inputs.exists() or read_inputs(layout) != inputs:
        write_json(layout.inputs, inputs)
    return inputs


def inputs_now(layout: Layout) -> dict:
    """Catalog versions, champion and anchor of this moment, as `read_inputs` returns them."""
    from mm_core.export.registry import Registry

    registry, catalog = Registry(layout.settings), catalog_of(layout)
    return {
        "catalog": {table: catalog.version(table) for table in ("samples", "labels", "features")},
        "champion": registry.pin("champion"),
        "anchor": registry.pin("anchor"),
    }


def read_inputs(layout: Layout) -> dict:
    """The pinned inputs: `{"catalog": {table: version}, "champion": pin | None, "anchor": pin | None}`.

    A pin is `{"version": str, "digest": str, "files": {file name: blob digest}}`; the weights are the
    blob of that digest, `files` are the int8 files that shipped.
    """
    if not layout.inputs.exists():
        raise InputError(f"{layout.inputs} is missing: run `mm ingest` first, so that there is a catalog to learn from")
    try:
        inputs = json.loads(layout.inputs.read_bytes())
        pins = [inputs[role] for role in ("champion", "anchor") if inputs.get(role)]
        good = all({"version", "digest", "files"} <= set(pin) for pin in pins)
        good = good and all(isinstance(version, int) for version in inputs["catalog"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise InputError(f"{layout.inputs} is damaged: delete it, then `mm ingest` pins anew")
    return inputs


def _is_done(params: Params, layout: Layout, inputs: dict) -> bool:
    """Whether the last cycle came to its end with these params, this catalog, and this champion or one of its own."""
    judged = layout.stage_report("gate")
    if not (layout.inputs.is_file() and layout.verdict.is_file() and judged.is_file()):
        return False
    pinned, verdict = read_inputs(layout), recorded_verdict(layout)
    about = {"inputs": digest_of(pinned), "params": params.cycle_digest()}
    facts = Report.read(judged).facts
    if {name: facts.get(name) for name in about} != about or pinned["catalog"] != inputs["catalog"]:
        return False
    if verdict.decision == "PROMOTE" and not layout.stage_report("promote").is_file():
        return False
    if (inputs["champion"] or {}).get("digest") == verdict.candidate:
        # The first champion ever is the anchor too.
        return inputs["anchor"] == (pinned["anchor"] or inputs["champion"])
    return all(inputs[role] == pinned[role] for role in ("champion", "anchor"))


def warm_start(params: Params, layout: Layout, inputs: dict) -> Path | None:
    """The weights that the first stage starts from; None: from scratch."""
    from mm_core.store import fetch_blob

    champion = inputs["champion"]
    if params.train.common.warm_start != "champion" or not champion:
        return None
    return fetch_blob(store_of(layout), champion["digest"])


def recorded_verdict(layout: Layout) -> Verdict:
    """The verdict on record; raises InputError where the gate has not spoken."""
    if not layout.verdict.is_file():
        raise InputError(f"{layout.verdict} is missing: run `mm gate` first")
    try:
        return Verdict.model_validate_json(layout.verdict.read_bytes())
    except ValueError:
        raise InputError(f"{layout.verdict} is damaged: run `mm gate` again") from None


def require_promote(layout: Layout) -> tuple[Verdict, dict | None]:
    """The recorded PROMOTE (or a standing override) for exactly the workspace's candidate; else ReleaseRefused."""
    from mm_core.records import sha256_file

    verdict = recorded_verdict(layout)
    candidate = sha256_file(layout.model(TRAIN_STAGES[-1]))
    if verdict.candidate != candidate:
        raise ReleaseRefused(
            f"the recorded verdict is about {verdict.candidate[:12]}, the candidate is {candidate[:12]}: run `mm gate`"
        )
    if verdict.decision == "PROMOTE":
        return verdict, None
    override = standing_override(layout, verdict)
    if override is None:
        raise ReleaseRefused(f"the gate said {verdict.decision}: " + "; ".join(verdict.reasons[:3]))
    return verdict, override


def standing_override(layout: Layout, verdict: Verdict) -> dict | None:
    """A person's signed word that the judged candidate may leave all the same, where it stands and has not expired."""
    from mm_core.export.override import valid_override

    return valid_override(store_of(layout), verdict.candidate)
