"""Builds a registered model again from what the registry recorded of it, and compares the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.records import Report, sha256_file
from mm_core.export.lineage import provenance_of
from mm_core.export.provenance import Provenance, code_revision, versions
from mm_core.storage.store import Store, fetch_blob
from mm_core.training.scratch import scratch_layout, train_all


def reproduce(
    layout: Layout, store: Store, version: str, report: Report, *, progress: Callable[[str, int, int], None]
) -> Report:
    """Trains version `version` (number or alias) anew: its snapshot, split, params, seeds and start weights.

    Facts: `bit_equal`, per stage in table `stages` the digests and the largest difference of a weight, and `differs`:
    what of code, libraries and threads is not as it was (bit-equal weights are only promised where nothing is).
    Killed, the next call goes on. Raises InputError where there is no such version.
    """
    made = provenance_of(layout.settings, store, version)
    own = scratch_layout(layout, f"reproduce-{made['model'][:12]}")
    for folder, files in ((own.snapshot, made["snapshot_files"]), (own.split, made["split_files"])):
        folder.mkdir(parents=True, exist_ok=True)
        for name, digest in files.items():
            shutil.copyfile(fetch_blob(store, digest), folder / name)
    params = params_of(made)
    start = fetch_blob(store, made["start"]) if made["start"] else None
    train_all(params, own, store, start, progress)
    rows = []
    for stage in TRAIN_STAGES:
        recorded, now = made["stages"][stage]["digest"], sha256_file(own.model(stage))
        rows.append({"stage": stage, "recorded": recorded, "rebuilt": now, "equal": recorded == now})
    differs = differences(made, code_revision(), versions())
    report.tables["stages"] = rows
    report.facts |= {"model": made["model"], "bit_equal": rows[-1]["equal"], "differs": differs}
    if not rows[-1]["equal"]:
        report.facts["largest_difference"] = largest_difference(
            fetch_blob(store, made["model"]), own.model(TRAIN_STAGES[-1])
        )
        report.facts["rebuilt_at"] = str(own.model(TRAIN_STAGES[-1]))
    else:
        shutil.rmtree(own.root)
    return report


def params_of(made: Provenance) -> Params:
    """The params of that cycle; each stage's as its own file names them (params.yaml may have changed in between)."""
    whole = dict(made["params"])
    for stage in TRAIN_STAGES:
        own = made["stages"][stage]["params"]
        whole |= {name: value for name, value in own.items() if name != "train"}
        whole["train"] = whole["train"] | own["train"]
    return Params.model_validate(whole)


def differences(recorded: Provenance, code: str, now: dict[str, str]) -> list[str]:
    """In words, what is not as it was when the model was made."""
    found = []
    if recorded["code_revision"] != code:
        found.append(f"code {recorded['code_revision']} then, {code} now")
    then = recorded["versions"]
    for name in sorted(set(then) | set(now)):
        if then.get(name) != now.get(name):
            found.append(f"{name} {then.get(name)} then, {now.get(name)} now")
    return found


def largest_difference(one: Path, other: Path) -> float | None:
    """Largest absolute difference of two files' weights; None where their tensors do not match."""
    a, b = load_file(one), load_file(other)
    if {name: t.shape for name, t in a.items()} != {name: t.shape for name, t in b.items()}:
        return None
    return max((float((a[n].double() - b[n].double()).abs().max()) for n in a if a[n].numel()), default=0.0)
