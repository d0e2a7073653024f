"""The mobile bundle: int8 files, manifest, golden pairs, self-check and model card, moved into place atomically.

Folder: `bundle/<first 12 hex digits of the candidate's digest>/`. The registry's version number exists only after
promotion; the version's tag `bundle` names the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import onnx

from mm_core.core.errors import InputError, MattingError, ReleaseRefused
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.locks import exclusive
from mm_core.core.pins import SnapshotFacts, read_snapshot
from mm_core.core.records import (
    ALL_CATEGORIES,
    DECODERS,
    Record,
    Report,
    Verdict,
    digest_of,
    parse_record,
    sha256_file,
    write_json,
)
from mm_core.core.revision import code_revision
from mm_core.eval.blind import NAME as BLIND
from mm_core.export.bundle_costs import FileRun, decoder_entry, run_all, torch_latencies
from mm_core.export.bundle_manifest import (
    BundleManifest,
    DataSource,
    FileEntry,
    Requests,
    VerdictHead,
    by_file,
    checked_manifest,
    load_golden,
    read_manifest,
)
from mm_core.export.card import model_card
from mm_core.export.formats.convert import Converted, convert
from mm_core.export.limits import require_within
from mm_core.export.quantise import QuantisedRecord
from mm_core.export.runtime import CHOICE, SUFFIX, input_size, open_session
from mm_core.export.signature import UNSIGNED, sign_file
from mm_core.ingest.placement import TRAINING
from mm_core.ingest.snapshot import read_pool
from mm_core.model.preprocess import prepare, resize
from mm_core.storage.catalog import Catalog
from mm_core.storage.retry import disk_faults_of
from mm_core.storage.run import StorageRun
from mm_core.storage.seals import read_sealed_table, require_sealed
from mm_core.storage.store import Store
from samplegen import generate

VERIFY_SECONDS = 300
"""Longest time of the self-check; a foreign network may loop without an end."""
SCHEMA_VERSION = 2
SELFCHECK = Path(__file__).with_name("selfcheck.py")
"""Copied into each bundle. Not imported here: it needs onnxruntime, which takes time to load."""
GOLDEN = {"saliency": "pets", "portrait": "portrait", "scenery": "scenery"}
"""Category of the generated photo that checks each decoder; a generated photo has neither an owner nor a licence."""
TOLERANCE = {"mse": 1e-4, "max": 0.1}
"""Allowed difference on another machine: ARM differed from x86 by up to 3e-6 and 0.055 (notes on mobile export)."""


Scores = dict[str, dict[str, float]]
"""Category → metric → mean."""


class BundleFacts(TypedDict):
    """The facts of earlier stages that a bundle records."""

    key: str
    """Digest of everything else."""
    verdict: VerdictHead
    cells: str
    """Digest of the verdict's cells."""
    metrics: dict[str, Scores]
    """Category → `float` or `int8` → metric."""
    quantised: QuantisedRecord


def write_bundle(run: StorageRun, verdict: Verdict, report: Report) -> Report:
    """Write `layout.bundles/<digest12>/` for the candidate of a PROMOTE verdict, and `export.json` of the cycle.

    A fresh process with only numpy and onnxruntime checks the bundle before it is moved into place. A finished bundle
    of the same model, files, scores and verdict is kept.

    Raises:
        ReleaseRefused: The int8 files differ from the judged ones, or one exceeds `export.limits`.
        InputError: A previous stage is missing, or the tools of a format in `export.formats` are.
    """
    layout = run.layout
    # Twelve hex digits identify a model and are short enough for a folder name.
    version = verdict.candidate[:12]
    target = layout.bundles / version
    facts = _about(layout, verdict)
    with exclusive(layout.bundles / ".lock"):
        formats = convert(run, layout.model(TRAIN_STAGES[-1]), facts["quantised"])
        # The request is a part of the manifest; a bundle made for another request is made again.
        request: Requests = {
            "limits": run.params.export.limits.model_dump(mode="json"),
            "formats": {name: {d: row["sha256"] for d, row in rows.items()} for name, rows in formats.items()},
        }
        if not _is_finished(target, facts["key"], request):
            # Half-made folders of killed processes; the lock excludes a running one.
            for leftover in layout.bundles.glob(".*.tmp"):
                shutil.rmtree(leftover)
            fresh = layout.bundles / f".{version}.{os.getpid()}.tmp"
            with disk_faults_of(fresh):
                _assemble(fresh, layout, run.store, facts, request, formats)
            manifest = read_manifest(fresh)
            # Limits and golden mattes are checked before the folder becomes visible.
            sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
            require_within(run.params.export.limits, by_file(manifest), sizes)
            verify(fresh)
            _move_in(fresh, target)
        # The key may have changed since the bundle was written, so it is signed in any case.
        signer = sign_file(target / "manifest.json")
    manifest = read_manifest(target)
    report.facts |= {"bundle": str(target), "model": verdict.candidate, "opset": manifest["opset"]}
    report.facts["signature"] = f"Ed25519, key {signer}" if signer else UNSIGNED
    report.metrics["export/bytes"] = float(sum(file["bytes"] for file in manifest["files"].values()))
    # The report shows size, latency and difference of every file.
    report.tables["bundle"] = [
        {"file": file, "bytes": manifest["files"][file]["bytes"], "in_float": len(row["float_convolutions"])}
        | {f"ms_{t}_threads": row["latency_ms"][t] for t in row["latency_ms"]}
        | {f"speedup_{t}_threads": row["speedup"][t] for t in row["speedup"]}
        | {"peak_mb": row["peak_mb"], "diff_mse": row["int8_against_float"]["mse"]}
        for file, row in by_file(manifest).items()
    ]
    report.facts["limits"] = manifest["asked"]["limits"]
    for decoder, row in manifest["decoders"].items():
        report.metrics |= {f"export/{decoder}/ms_{t}": value for t, value in row["latency_ms"].items()}
        report.metrics |= {f"export/{decoder}/speedup_{t}": value for t, value in row["speedup"].items()}
    write_json(
        layout.cycle_bundle / "export.json",
        {"exported": True, "bundle": version, "model": verdict.candidate, "verdict": verdict.decision},
    )
    return report


def exported_bundle(layout: Layout, verdict: Verdict) -> Path:
    """Return the bundle of exactly the judged candidate; raise InputError if it has not been exported."""
    bundle = layout.bundles / verdict.candidate[:12]
    if read_manifest(bundle).get("key") != _about(layout, verdict)["key"]:
        raise InputError(f"{bundle} is about another verdict or other files: run `mm export` again")
    return bundle


def verify(bundle: Path) -> dict[str, object]:
    """Run the self-check in a fresh, isolated process and return its result; raise MattingError if it fails."""
    # Run our own copy of the program: the copy inside the bundle is not trusted.
    command = [sys.executable, "-I", str(SELFCHECK), str(bundle)]
    # The program runs anywhere, without our code, so it cannot make these checks itself.
    manifest = checked_manifest(bundle)
    load_golden(bundle, manifest)
    for entry in manifest["decoders"].values():
        open_session(bundle / entry["file"])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=VERIFY_SECONDS)
    except subprocess.TimeoutExpired:
        raise MattingError(f"{bundle}: its networks gave no matte in {VERIFY_SECONDS} s: do not use it") from None
    if done.returncode:
        # The numbers, or the last line of a traceback.
        output = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
        raise MattingError(
            f"{bundle}: the files do not give the golden mattes in a fresh process: {''.join(output)[-400:]}"
        )
    return json.loads(done.stdout)


def _is_finished(bundle: Path, key: str, request: Requests) -> bool:
    """Return whether an intact bundle of this key and request is there."""
    try:
        manifest = checked_manifest(bundle)
    except InputError:  # absent or damaged: it is made again
        return False
    return manifest.get("key") == key and manifest.get("asked") == request


def _about(layout: Layout, verdict: Verdict) -> BundleFacts:
    """Return the facts for the bundle from earlier stages (verdict, scores, quantisation), and the bundle's key."""
    quantised = _evaluated(
        layout.quantised / "quantised.json", layout.evaluation, QuantisedRecord, ("decoders", "model")
    )
    files = {f"{d}{SUFFIX}": layout.quantised / f"{d}{SUFFIX}" for d in quantised["decoders"]}
    digests = {name: sha256_file(path) for name, path in files.items()}
    # The gate's scores and these files must belong together.
    judged = judged_files(layout)
    if quantised["model"] != verdict.candidate:
        raise ReleaseRefused(f"{layout.quantised} holds another model's int8 files: run `mm evaluate` and `mm gate`")
    if digests != judged:
        changed = sorted(name for name in {*digests, *judged} if digests.get(name) != judged.get(name))
        raise ReleaseRefused(
            f"{', '.join(changed)} in {layout.quantised} is not the file that the gate judged: run `mm evaluate`"
        )
    candidate = TRAIN_STAGES[-1]
    scores = _evaluated(layout.evaluation / "metrics.json", layout.evaluation, dict[str, Scores], (candidate,))
    facts: BundleFacts = {
        "key": "",
        "verdict": cast(VerdictHead, verdict.model_dump(mode="json", exclude={"cells"})),
        "cells": digest_of([cell.model_dump(mode="json") for cell in verdict.cells]),
        "metrics": {
            category: {
                precision: scores[name][category]
                for precision, name in (("float", candidate), ("int8", f"{candidate}.int8"), (BLIND, BLIND))
                if category in scores.get(name, {})
            }
            for category in ALL_CATEGORIES
            if category in scores[candidate]
        },
        "quantised": quantised,
    }
    # The time of the verdict does not change the bundle, so it is not in the key.
    timeless = {name: value for name, value in facts["verdict"].items() if name != "created_at"}
    stable = {name: value for name, value in facts.items() if name != "key"} | {"verdict": timeless, "files": digests}
    return {**facts, "key": digest_of({"schema": SCHEMA_VERSION, **stable})}


def judged_files(layout: Layout) -> dict[str, str]:
    """Return the digests of the int8 files that the recorded scores belong to: file name → sha256."""
    if not has_file(layout.per_image):
        raise InputError(f"{layout.per_image} is missing: run `mm evaluate` first")
    metadata = read_sealed_table(layout.per_image, "run `mm evaluate` again", ["model"]).schema.metadata or {}
    return json.loads(metadata.get(b"mm", b"{}")).get("quantised", {})


def _assemble(folder: Path, layout: Layout, store: Store, facts: BundleFacts, asked: Requests, made: Converted) -> None:
    # The files: ONNX, the further formats, and the self-check program.
    folder.mkdir()
    quantised = facts["quantised"]["decoders"]
    for decoder in quantised:
        shutil.copyfile(layout.quantised / f"{decoder}{SUFFIX}", folder / f"{decoder}{SUFFIX}")
        for rows in made.values():
            shutil.copyfile(layout.formats / rows[decoder]["file"], folder / rows[decoder]["file"])
    shutil.copyfile(SELFCHECK, folder / "selfcheck.py")
    # Golden pairs: generated photos with the mattes of each format on this machine.
    size = input_size(open_session(folder / f"{DECODERS[0]}{SUFFIX}"))
    golden = {d: resize(generate(c, i, size=size).image, size, size) for i, (d, c) in enumerate(GOLDEN.items())}
    runs = run_all(folder, layout, store, golden, made, facts["quantised"]["calibration"])
    _write_golden(folder, golden, runs)
    # The manifest names data, code and verdict, and describes input and output for an application.
    snapshot = read_snapshot(layout)
    torch_ms = torch_latencies(layout.model(TRAIN_STAGES[-1]))
    manifest: BundleManifest = {
        "schema_version": SCHEMA_VERSION,
        "key": facts["key"],
        "version": facts["verdict"]["candidate"][:12],
        "model": facts["verdict"]["candidate"],
        "snapshot": snapshot["digest"],
        "eval_digest": snapshot["eval_digest"],
        "code_revision": code_revision(),
        "verdict": facts["verdict"],
        "metrics": facts["metrics"],
        "asked": asked,
        "decoders": {d: decoder_entry(d, row, made, runs[d], torch_ms[d]) for d, row in quantised.items()},
        "input": {
            "name": "image",
            "dtype": "float32",
            "shape": [1, 3, size, size],
            "colour": "sRGB, upright, channels red, green, blue",
            "resize": "to S × S, aspect ratio not kept; axes that shrink by area means, axes that grow bilinearly",
            "scale": "value / 255, then (value - mean) / std per channel; the file normalises for its encoder itself",
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
        },
        "output": {
            "name": "alpha",
            "dtype": "float32",
            "shape": [1, 1, size, size],
            "range": [0.0, 1.0],
            "resize": "to the photo's height and width as the input, then clipped to the range",
        },
        "choice": {
            "name": CHOICE,
            "dtype": "float32",
            "shape": [1, len(DECODERS)],
            "decoders": list(DECODERS),
            "use": "of a photo of unknown category the largest value names the decoder to ask; in ONNX files only",
        },
        "golden": {"file": "golden.npz", "tolerance": TOLERANCE},
        "data": {"counts": snapshot.get("counts", {}), "sources": _sources(layout, snapshot)},
        "opset": _opset(folder / f"{DECODERS[0]}{SUFFIX}"),
        "versions": facts["quantised"]["versions"],
        "files": {path.name: _file_entry(path) for path in sorted(folder.iterdir())},
    }
    (folder / "MODEL_CARD.md").write_text(model_card(manifest))
    # The card itself is a file of the bundle.
    card = folder / "MODEL_CARD.md"
    manifest["files"][card.name] = _file_entry(card)
    write_json(folder / "manifest.json", manifest)


def _file_entry(path: Path) -> FileEntry:
    return {"sha256": sha256_file(path), "bytes": path.stat().st_size}


def _write_golden(folder: Path, golden: dict[str, np.ndarray], runs: dict[str, dict[str, FileRun]]) -> None:
    """Write golden.npz: per decoder a generated photo and its mattes.

    Arrays: `<decoder>_image` uint8 (S, S, 3); `<decoder>_alpha` of ONNX and `<decoder>_<format>_alpha` of the other
    formats, float32 (S, S); `<decoder>_choice` of ONNX, float32 (3,).
    """
    pairs: dict[str, np.ndarray] = {}
    for decoder, photo in golden.items():
        pairs[f"{decoder}_image"] = photo
        session = open_session(folder / f"{decoder}{SUFFIX}")
        (choice,) = session.run([CHOICE], {"image": prepare(photo, photo.shape[0])[None]})
        pairs[f"{decoder}_choice"] = np.asarray(choice)[0]
        for name, run in runs[decoder].items():
            pairs[f"{decoder}_alpha" if name == "onnx" else f"{decoder}_{name}_alpha"] = run.golden
    np.savez_compressed(folder / "golden.npz", **pairs)  # pyright: ignore[reportArgumentType]


def _sources(layout: Layout, snapshot: SnapshotFacts) -> list[DataSource]:
    """Return the numbers of training photos per pool, source and licence."""
    samples = Catalog(layout.settings.store).read(
        "samples", version=snapshot["catalog"]["samples"], columns=["id", "source", "license"]
    )
    # A missing source or licence is shown as such instead of being dropped.
    samples = samples.fillna("").replace("", "not stated").set_index("id")
    rows: list[DataSource] = []
    for pool in TRAINING:
        rows_of_pool = samples.reindex(read_pool(layout.snapshot, pool)["sample_id"]).fillna("not stated")
        pairs = Counter(zip(rows_of_pool["source"], rows_of_pool["license"], strict=True))
        of_pool: list[DataSource] = [
            {"pool": pool, "source": s, "license": license_name, "photos": n}
            for (s, license_name), n in sorted(pairs.items())
        ]
        rows += of_pool
    return rows


def _opset(file: Path) -> int:
    model = onnx.load(file, load_external_data=False)
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _move_in(fresh: Path, target: Path) -> None:
    """Replace the old bundle: readers see the old one, briefly none, then the new one, but never a partial one."""
    if target.exists():
        old = target.with_name(f".{target.name}.{os.getpid()}.old.tmp")
        target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old)
    else:
        fresh.rename(target)


def _evaluated(path: Path, sealed: Path, kind: type[Record], fields: Collection[str]) -> Record:
    """Return a record of `mm evaluate`, covered by the seal of a folder; raise InputError if missing or damaged."""
    if not has_file(path):
        raise InputError(f"{path} is missing: run `mm evaluate` first")
    require_sealed(path, "run `mm evaluate` again", sealed)
    return parse_record(path.read_bytes(), kind, path, "run `mm evaluate` again", fields)
