"""Rebuild a registered model from the registry's records, and compare the weights."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from safetensors.torch import load_file

from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.params import Params
from mm_core.core.records import Report, sha256_file
from mm_core.core.revision import code_revision
from mm_core.export.lineage import provenance_of
from mm_core.export.provenance import Provenance, versions
from mm_core.storage.run import StorageRun
from mm_core.storage.store import fetch_blob
from mm_core.training.scratch import scratch_layout, train_all


def reproduce(run: StorageRun, version: str, report: Report) -> Report:
    """Train a version again with its recorded snapshot, split, params, seeds and start weights.

    After a kill, the next call continues.

    Args:
        run: Params, workspace, storage and progress.
        version: A version number or an alias.
        report: Receives `bit_equal`, the table `stages` with digests per stage, and `differs`: differences of code,
            libraries and threads. Weights are bit-equal only without any of them. For unequal weights also
            `largest_difference` and `rebuilt_at`.

    Returns:
        The report.

    Raises:
        InputError: The version does not exist.
    """
    provenance = provenance_of(run.layout.settings, run.store, version)
    # The rebuild has a layout of its own, so that it leaves the current cycle alone.
    rebuild = scratch_layout(run.layout, f"reproduce-{provenance['model'][:12]}")
    for folder, files in ((rebuild.snapshot, provenance["snapshot_files"]), (rebuild.split, provenance["split_files"])):
        folder.mkdir(parents=True, exist_ok=True)
        for name, digest in files.items():
            shutil.copyfile(fetch_blob(run.store, digest), folder / name)
    # Training runs through the same code as in the cycle.
    params = params_of(provenance)
    start = fetch_blob(run.store, provenance["start"]) if provenance["start"] else None
    train_all(run.with_layout(rebuild, params), start)
    rows = []
    # Compare stage by stage: the first unequal one shows the origin of a difference.
    for stage in TRAIN_STAGES:
        recorded, now = provenance["stages"][stage]["digest"], sha256_file(rebuild.model(stage))
        rows.append({"stage": stage, "recorded": recorded, "rebuilt": now, "equal": recorded == now})
    differs = differences(provenance, code_revision(), versions())
    report.tables["stages"] = rows
    report.facts |= {"model": provenance["model"], "bit_equal": rows[-1]["equal"], "differs": differs}
    if not rows[-1]["equal"]:
        report.facts["largest_difference"] = largest_difference(
            fetch_blob(run.store, provenance["model"]), rebuild.model(TRAIN_STAGES[-1])
        )
        report.facts["rebuilt_at"] = str(rebuild.model(TRAIN_STAGES[-1]))
    else:
        shutil.rmtree(rebuild.root)
    return report


def params_of(made: Provenance) -> Params:
    """Return the params of the recorded cycle; each stage uses those in its model file, which may differ."""
    # Start from the cycle's params, then apply each stage's own ones.
    whole, train = dict(made["params"]), _section(made["params"])
    for stage in TRAIN_STAGES:
        stage_params = made["stages"][stage]["params"]
        whole |= {name: value for name, value in stage_params.items() if name != "train"}
        train |= _section(stage_params)
    return Params.model_validate(whole | {"train": train})


def _section(params: Mapping[str, object]) -> dict[str, object]:
    return dict(cast("Mapping[str, object]", params["train"]))


def differences(recorded: Provenance, code: str, now: dict[str, str]) -> list[str]:
    """Return texts about differences of code, libraries and threads since the model was made."""
    texts = []
    if recorded["code_revision"] != code:
        texts.append(f"code {recorded['code_revision']} then, {code} now")
    then = recorded["versions"]
    for name in sorted(set(then) | set(now)):
        if then.get(name) != now.get(name):
            texts.append(f"{name} {then.get(name)} then, {now.get(name)} now")
    return texts


def largest_difference(one: Path, other: Path) -> float | None:
    """Return the largest absolute difference of two files' weights; None for different tensor shapes or names."""
    # The comparison is made in float64, so that it adds no rounding.
    a, b = load_file(one), load_file(other)
    if {name: t.shape for name, t in a.items()} != {name: t.shape for name, t in b.items()}:
        return None
    return max((float((a[n].double() - b[n].double()).abs().max()) for n in a if a[n].numel()), default=0.0)
