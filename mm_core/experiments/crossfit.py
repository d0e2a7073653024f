"""Cross-fitting: a provisional verdict on a first model that has too few evaluation photos for the gate.

The labelled photos are dealt into folds by group. For each fold a model is trained on the other folds, and judges
nothing but its own fold: each photo is scored by a model that has not seen its scene (Stone 1974). The pooled scores
answer the gate's questions about a first model. What is judged is the recipe, by models that learnt from less than the
candidate did; the answer lets people try the candidate and never ships it.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.pins import read_snapshot
from mm_core.core.records import CATEGORIES, Report, sha256_file
from mm_core.eval.cells import judge
from mm_core.eval.evidence import FLOAT, INT8, gather
from mm_core.eval.gate import conclude
from mm_core.eval.questions import questions_for
from mm_core.eval.scoring import BLIND, blind_mattes, score_all
from mm_core.ingest.placement import SCHEMA, stable_share
from mm_core.ingest.snapshot import read_pool, write_frames
from mm_core.model.predict import TorchPredictor
from mm_core.storage.run import StorageRun
from mm_core.training.scratch import part_of, scratch_layout
from mm_core.training.stage import train_stage

SUPERVISED = TRAIN_STAGES[0]
NAME = "gate-crossfit"


def report_file(layout: Layout) -> Path:
    """Return where the last provisional verdict of a workspace stands."""
    return layout.root / "reports" / f"{NAME}.json"


def cross_fit(run: StorageRun, report: Report, *, folds: int) -> Report:
    """Judge the recipe of the workspace's candidate by `folds` trainings of the supervised stage.

    Args:
        run: Params, workspace, storage and progress.
        report: Gets the facts `candidate` (digest), `decision`, `usable` and `reasons`, and the table `cells`.
        folds: Trainings, at least 2.

    Raises:
        InputError: Where the gate itself can judge, where a champion has learnt from the photos, or where there is no
            candidate.
    """
    layout = run.layout
    if folds < 2:
        raise InputError(f"--folds {folds}: give 2 or more")
    about = read_snapshot(layout)
    if about["champion"]:
        raise InputError("a champion has learnt from the labelled photos: drop photos with role eval, and `mm gate`")
    weights = layout.model(TRAIN_STAGES[-1])
    if not has_file(weights):
        raise InputError(f"{weights} is missing: run `mm run`")
    # With enough eval photos the gate itself can judge, and cross-fitting would only cost time.
    judging = Counter(read_pool(layout.snapshot, "eval")["category"])
    if all(judging[category] >= run.params.gate.min_images for category in CATEGORIES):
        raise InputError(f"each category has {run.params.gate.min_images} eval photos: `mm gate` judges the candidate")
    frame = labelled_photos(layout)
    fold = deal(frame, folds)
    # The folds train in scratch workspaces, so that the cycle keeps its own files.
    base = scratch_layout(layout, f"crossfit-{about['digest'][:12]}")
    blind, scores = blind_mattes(frame, run.store), []
    for index in range(folds):
        own = part_of(base, str(index))
        # Without validation photos a training keeps its last averaged weights.
        write_frames(own.snapshot, {"validation": frame.head(0)}, SCHEMA, {**about})
        # Train on all other folds, then judge the photos of this one.
        write_frames(own.split, {SUPERVISED: frame.loc[fold != index]}, SCHEMA)
        train_stage(SUPERVISED, run.with_layout(own), Report(str(index)), start=None)
        model = TorchPredictor(own.model(SUPERVISED), layout.settings.device)
        judged = frame.loc[fold == index]
        # The float model is scored as int8, because the gate judges int8 files.
        scores.append(score_all(judged, {INT8: model}, run.store, run.params.evaluate.max_side, run.progress, blind))
    shutil.rmtree(base.root)
    return _verdict(run.params, pd.concat(scores, ignore_index=True), frame, sha256_file(weights), report)


def labelled_photos(layout: Layout) -> pd.DataFrame:
    """Return the labelled photos of the six categories, whatever pool of the snapshot they are in."""
    pools = [read_pool(layout.snapshot, pool) for pool in ("train_labeled", "validation", "eval")]
    frame = pd.concat(pools, ignore_index=True).drop_duplicates("sample_id")
    return frame.loc[frame["category"].isin(CATEGORIES)].sort_values("sample_id", ignore_index=True)


def deal(frame: pd.DataFrame, folds: int) -> np.ndarray:
    """Return the fold of each photo, (photos,) int: groups whole, each category spread over all folds."""
    dealt: dict[str, int] = {}
    for category in CATEGORIES:
        groups = sorted(frame.loc[frame["category"] == category, "group"].unique())
        for turn, group in enumerate(sorted(groups, key=lambda name: stable_share(name, "crossfit"))):
            # A group with photos of several categories has the fold of the first category.
            dealt.setdefault(group, turn % folds)
    return np.array([dealt[group] for group in frame["group"]])


def _verdict(params: Params, scores: pd.DataFrame, frame: pd.DataFrame, candidate: str, report: Report) -> Report:
    # The folds' models have no int8 files.
    asked = [q for q in questions_for(params.gate, champion=False, anchor=False) if q.reference != FLOAT]
    evidence, problems = gather(scores, frame, [INT8, BLIND], sorted({question.metric for question in asked}))
    cells = judge(params.gate, evidence, asked, params.seed) if evidence else []
    decision, reasons = conclude(params.gate, cells, problems, same=False)
    report.facts |= {"candidate": candidate, "decision": decision, "usable": decision == "PROMOTE", "reasons": reasons}
    report.facts["photos"] = {str(name): int(count) for name, count in frame["category"].value_counts().items()}
    report.facts["note"] = "provisional: of models trained on less than the candidate; it never ships by this"
    report.tables["cells"] = [cell.model_dump() for cell in cells]
    return report


def provisional_candidate(layout: Layout) -> tuple[Path, str]:
    """Return the weights of the workspace's candidate where cross-fitting found it usable, and a warning in words.

    Raises:
        InputError: Where it was not cross-fitted, is another one, or was not found usable.
    """
    weights, path = layout.model(TRAIN_STAGES[-1]), report_file(layout)
    judged = Report.read(path) if has_file(path) else Report(NAME)
    if not has_file(weights) or judged.facts.get("candidate") != sha256_file(weights):
        raise InputError("--model candidate: no candidate was judged by cross-fitting; run `mm gate crossfit`")
    if not judged.facts["usable"]:
        reasons = "; ".join(judged.fact("reasons", list)[:2])
        raise InputError(f"--model candidate: cross-fitting says {judged.facts['decision']}: {reasons}")
    return weights, "the candidate is provisional: judged by cross-fitting alone, it is not released"
