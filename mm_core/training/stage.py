"""Run one training stage of the cycle, from the snapshot's frames to a model file (called by `stages.py`).

The file reads in the order of the work: `train_stage` looks for a finished result, `_train` makes the model, `_begin`
builds the net, `_why_idle` decides whether there is anything to train, `_fit` trains, and `_strategy` says by what.

The content key of a stage is a digest of the stage, its params, data, start weights and code. The checkpoint of an
unfinished run and the model of a finished one are stored under that key, outside the cycle's folder. A killed stage
therefore resumes from its checkpoint, and a stage with a finished model under its key is not trained again.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import pandas as pd
import torch

from mm_core.core.code_digest import code_digest
from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import TRAIN_STAGES
from mm_core.core.locks import exclusive
from mm_core.core.params import Params, SimpleParams, StageParams
from mm_core.core.pins import read_snapshot
from mm_core.core.progress import Listener
from mm_core.core.records import Report, digest_of, sha256_file, write_bytes, write_json
from mm_core.imaging.pixel_cache import PixelCache, Pool
from mm_core.ingest.subset import is_within_limit
from mm_core.model.files import load_model, save_model
from mm_core.model.network import MattingNet, build_model
from mm_core.training import process_group
from mm_core.training.checkpoint import mean_errors
from mm_core.training.multimodal import Multimodal, embed, with_captions
from mm_core.training.pseudo_labels import predict_missing, pseudo_labeled, teacher_digest
from mm_core.training.semi import Semi
from mm_core.training.stage_data import Data, epochs, read_data
from mm_core.training.supervised import Supervised
from mm_core.training.tracking import Tracker
from mm_core.training.trainer import Result, Setup, fit, pick_device
from mm_core.training.validation import Validation

if TYPE_CHECKING:
    # For type checkers alone, so that the code of the catalog is no part of a model's content key.
    from mm_core.storage.run import StorageRun


class _Done(TypedDict):
    """The content of `done.json`, which marks a finished training."""

    metrics: dict[str, float]
    facts: dict[str, object]


class Recipe(TypedDict):
    """Everything that the weights of a stage depend on."""

    stage: str
    params: dict[str, object]
    snapshot: str
    data: str
    start: str | None
    code: str


@dataclass(frozen=True)
class _Job:
    """One training: what it learns from, and where its result is kept."""

    stage: str
    run: StorageRun
    data: Data
    start: Path | None
    """The weights to start from; None starts from scratch."""
    recipe: Recipe
    """What the weights depend on, as the model file records it."""
    teacher: str | None
    """Digest of the teacher's file and input. The recipe has only the name of the file, whose content may change."""

    @property
    def params(self) -> Params:
        return self.run.params

    @property
    def settings(self) -> StageParams:
        """The stage's params; their steps are those for the number of its photos."""
        stage = _stage_params(self.stage, self.params)
        return stage.with_steps_for(len(self.data.labeled)) if isinstance(stage, SimpleParams) else stage

    @property
    def folder(self) -> Path:
        """Folder of the checkpoint and of the finished model, named by the content key."""
        return self.run.layout.checkpoints / digest_of([self.recipe, self.teacher] if self.teacher else self.recipe)


def train_stage(stage: str, run: StorageRun, report: Report, *, start: Path | None) -> Report:
    """Train `stage` and write `layout.model(stage)`, or reuse the finished model of the same content key.

    A stage whose own pool (hard, unlabelled, text) is empty passes its start weights on and reports so in the facts.

    Args:
        stage: Name of the stage.
        run: Params, workspace, storage and progress.
        report: Report that is filled and returned.
        start: Model file to start from; None starts from scratch.

    Raises:
        NothingToTrainOn: The labelled pool is empty.
        InputError: Snapshot, split or start weights are missing or do not match the params.
    """
    data = read_data(stage, run.layout)
    recipe: Recipe = {
        "stage": stage,
        "params": _relevant(stage, run.params),
        "snapshot": read_snapshot(run.layout)["digest"],
        "data": data.digest(),
        "start": sha256_file(start) if start else None,
        "code": code_digest(__name__),
    }
    teacher = teacher_digest(run.params.train.semi) if stage in ("semi", "multimodal") else None
    job = _Job(stage, run, data, start, recipe, teacher)
    folder = job.folder
    report.facts |= {"key": folder.name, **{name: recipe[name] for name in ("start", "snapshot", "data")}}
    device = pick_device(run.layout.settings.device)
    # Only process 0 locks, writes and logs; `agreed` sends its values to the others.
    with process_group.joined(device):
        first = process_group.rank() == 0
        waiting = partial(run.progress, f"train {stage}: another process trains the same", 0, 1)
        with exclusive(folder / "lock", waiting) if first else nullcontext():
            reused = process_group.agreed(has_file(folder / "done.json"))
            if not reused:
                process_group.check_batch(run.params.train.common.batch, process_group.world())
                _train(job, process_group.own_device(device))
            done = process_group.agreed(_read_done(folder) if first else _Done(metrics={}, facts={}))
            if first:
                write_bytes(run.layout.model(stage), (folder / "model.safetensors").read_bytes())
    report.metrics |= done["metrics"]
    report.facts |= done["facts"]
    # The process that trained the model may have been killed before it logged the report.
    tracked = folder / "tracked"
    if first and not has_file(tracked):
        Tracker(run.layout.settings).log_report(run.layout, report)
        tracked.touch()
    if reused:
        report.facts["reused"] = "trained before from the same params, data and start"
    run.progress(f"train {stage}", job.settings.steps, job.settings.steps)
    return report


def _stage_params(stage: str, params: Params) -> StageParams:
    return getattr(params.train, stage)


def _relevant(stage: str, params: Params) -> dict[str, object]:
    """Return the params that the weights of a stage depend on, nested as in params.yaml."""
    train = {"common": params.train.common, "loss": params.train.loss, stage: _stage_params(stage, params)}
    whole: dict[str, object] = {"seed": params.seed, "model": params.model.model_dump(mode="json")}
    if stage == "multimodal":
        # The multimodal stage keeps the semi-supervised terms, and its text vectors depend on CLIP.
        train["semi"] = params.train.semi
        whole["clip"] = params.clip.model_dump(mode="json")
    return whole | {"train": {name: section.model_dump(mode="json") for name, section in train.items()}}


def _train(job: _Job, device: torch.device) -> None:
    """Train or pass the start weights on; write model.safetensors and, last, done.json to the job's folder."""
    net, facts, fresh = _begin(job)
    metrics: dict[str, float] = {}
    if idle := _why_idle(job):
        facts |= {"steps": 0, "passed_through": idle}
    else:
        result, metrics = _fit(job, net, device, fresh=fresh)
        facts |= {"steps": job.settings.steps, "kept_step": result.kept_step, "resumed_from": result.resumed_from}
        facts |= {"checkpoint": result.kept_because, "precision": result.precision}
        facts["foreground_scale"] = net.foreground_scale
    if process_group.rank() != 0:
        return
    net.to("cpu")
    folder, data = job.folder, job.data
    facts["digest"] = save_model(folder / "model.safetensors", net, {**job.recipe, "key": folder.name})
    facts |= {"labeled": len(data.labeled), "unlabeled": len(data.unlabeled), "text_image": len(data.text_image)}
    # done.json marks the folder as finished, so the checkpoint is deleted only after it.
    write_json(folder / "done.json", {"metrics": metrics, "facts": facts})
    (folder / "state.pt").unlink(missing_ok=True)


def _begin(job: _Job) -> tuple[MattingNet, dict[str, object], bool]:
    """Return the net to train, the facts about its start weights, and whether its decoders are fresh.

    The net always has the shape of `params.model`.
    """
    params, start = job.params, job.start
    facts: dict[str, object] = {}
    if start is not None:
        before, meta = load_model(start)
        if (before.config.encoder, before.config.width) == (params.model.encoder, params.model.width):
            # The encoder and the width match. The input size may differ, because the net is convolutional.
            before.config = params.model
            facts["started_from"] = meta.get("stage", "a model file")
            return before, facts, False
        if job.stage != TRAIN_STAGES[0]:
            previous = TRAIN_STAGES[TRAIN_STAGES.index(job.stage) - 1]
            raise InputError(f"{start} has other model params than params.yaml: run `mm train-{previous}` again")
        # A champion of another shape cannot be the start: the first stage starts from scratch instead.
        facts["warm_start"] = f"not possible: the champion is {before.config.encoder} of width {before.config.width}"
    facts["started_from"] = "pretrained encoder" if params.model.pretrained else "scratch"
    return build_model(params.model, params.seed), facts, True


def _why_idle(job: _Job) -> str | None:
    """Return why a stage has nothing to train, or None if it has."""
    stage, data = job.stage, job.data
    if job.settings.steps == 0:
        return f"train.{stage}.steps is 0"
    if stage == "hard" and data.labeled.empty:
        return "the split has no hard samples, or too few for a stage of their own (split.min_hard)"
    if stage == "semi" and data.unlabeled.empty:
        return "the snapshot holds no unlabelled photo: drop some as kind unlabeled"
    text = job.params.train.multimodal
    if stage == "multimodal" and not (text.consistency or text.contrastive or text.captioned):
        return "the weights of all terms on text are 0 (train.multimodal)"
    if stage == "multimodal" and len(set(data.text_image["caption"])) < 2:
        return "the snapshot holds no two different captions: drop captioned photos as kind text_image"
    return None


def _fit(job: _Job, net: MattingNet, device: torch.device, *, fresh: bool) -> tuple[Result, dict[str, float]]:
    """Train `net`, which ends with the kept weights; return the result and its metrics."""
    stage, run, data, common = job.stage, job.run, job.data, job.params.train.common
    cache = PixelCache(run.layout.cache, job.params.model.size, run.layout.settings.pixel_cache_gb * 1e9)
    if stage == "multimodal":
        # CLIP embeds all of these before the first step.
        cache.fill(run.store, pd.concat([data.labeled, data.text_image]), run.progress)
    # The losses and the choice of a checkpoint compare unscaled mattes; the scale is set again at the end.
    net.foreground_scale = 1.0
    strategy = _strategy(job, net, cache, fresh=fresh)
    held_out = data.validation.loc[is_within_limit(data.validation, common.validation_photos, "validation")]
    # Decode each photo that the steps draw once, to the model's size.
    cache.fill(run.store, pd.concat([held_out, *strategy.drawn(job.settings.steps)]), run.progress)
    validation = Validation(Pool(held_out, cache, job.params.seed, "validation"), common.batch, device)
    tags = {k: str(job.recipe[k]) for k in ("data", "snapshot", "start")}
    first = process_group.rank() == 0
    tracked = Tracker(run.layout.settings).stage_run(run.layout, f"train-{stage}", job.recipe["params"], tags)
    with tracked if first else nullcontext() as curves:

        def log(step: int, values: dict[str, float]) -> None:
            if curves is not None:
                curves.log(step, {f"{stage}/{name}": value for name, value in values.items()})
            if isinstance(run.progress, Listener):
                run.progress.numbers({"epoch": epochs(common, data, step), **values})

        result = fit(
            strategy,
            Setup(
                job.settings,
                common,
                seed=job.params.seed + TRAIN_STAGES.index(stage) * 10_007,
                checkpoint=job.folder / "state.pt",
                device=device,
            ),
            validation,
            progress=lambda done, total: run.progress(f"train {stage}", done, total),
            log=log,
        )
    # `net` continues as the kept weights, no longer the last ones.
    net.load_state_dict(result.weights)
    if first:
        net.foreground_scale, errors = validation.choose_scale(net)
        result.validation = mean_errors(errors)
    metrics = _metrics(stage, result) | {f"{stage}/epochs": epochs(common, data, job.settings.steps)}
    if first:
        metrics |= {f"{stage}/val/choice": share for share in validation.rightly_chosen(net)}
    return result, metrics


def _strategy(job: _Job, net: MattingNet, cache: PixelCache, *, fresh: bool) -> Supervised:
    """Build the strategy of a stage with its pools; `fresh` is true if the decoders start from random weights."""
    stage, data, train = job.stage, job.data, job.params.train
    batch = train.common.batch

    def pool(frame: pd.DataFrame, name: str, whole: bool = False) -> Pool:
        return Pool(frame, cache, job.params.seed, f"{stage}/{name}", whole=whole)

    labeled, towers = data.labeled, None
    if stage == "multimodal":
        if process_group.rank() != 0:
            process_group.agreed(None)  # process 0 trains and embeds; the others then read its cache
        towers = embed(job.run, cache, data.text_image, data.labeled)
        if process_group.rank() == 0:
            process_group.agreed(None)
        labeled = with_captions(data.labeled, data.text_image, towers)
    # Replay: a share of each labelled batch comes from the simple set.
    pools: dict[str, list[tuple[Pool, int]]] = {"labeled": [(pool(labeled, "labeled"), batch)]}
    if data.replay is not None and not data.replay.empty:
        again = round(batch * train.common.replay_share)
        own, old = pool(labeled, "labeled"), pool(data.replay, "replay")
        pools["labeled"] = [(own, batch - again), (old, again)]
    # Whole unlabelled photos cost a third of a step, and only cross-consistency learns from them.
    consistency = train.multimodal.semi if stage == "multimodal" else train.semi.weight
    if consistency and train.semi.perturbations and not data.unlabeled.empty:
        pools["unlabeled"] = [(pool(data.unlabeled, "unlabeled", whole=True), batch)]
    if job.teacher and not (taught := pseudo_labeled(data.unlabeled, train.semi, job.teacher)).empty:
        source = pool(taught, "pseudo_labeled")
        _predict_pseudo_labels(job, cache, source)
        pools["pseudo_labeled"] = [(source, batch)]
    if not data.text_image.empty:
        pools["text"] = [(pool(data.text_image, "text", whole=True), batch)]
    with torch.random.fork_rng(devices=[]):
        # Seed the start weights of auxiliary decoders and fusion, independent of earlier random draws in this process.
        torch.manual_seed(job.params.seed + TRAIN_STAGES.index(stage))
        if stage == "semi":
            return Semi(net, pools, train.loss, train.semi)
        if towers is not None:
            return Multimodal(net, pools, train.loss, train.semi, train.multimodal, towers)
        share = train.simple.shared_decoder if fresh and stage == TRAIN_STAGES[0] else 0.0
        return Supervised(net, pools, train.loss, share)


def _predict_pseudo_labels(job: _Job, cache: PixelCache, pool: Pool) -> None:
    """Let the teacher predict the mattes that the steps draw and the cache lacks; process 0 does it for all."""
    if process_group.rank() == 0:
        drawn = pool.drawn(job.settings.steps, job.params.train.common.batch)
        predict_missing(drawn, cache, job.run)
    # The others wait here; they read the mattes when the cache is filled.
    process_group.agreed(None)


def _metrics(stage: str, result: Result) -> dict[str, float]:
    """Return the metrics of a finished training, prefixed with the stage's name."""
    metrics = {f"{stage}/loss/{name}": value for name, value in result.losses.items()}
    metrics |= {f"{stage}/val/{category}/mse": value for category, value in result.validation.items()}
    if result.validation:
        metrics[f"{stage}/val_mse"] = sum(result.validation.values()) / len(result.validation)
    if result.seconds:
        metrics[f"{stage}/images_per_s"] = result.images / result.seconds
        metrics[f"{stage}/data_wait_share"] = result.wait_seconds / result.seconds
    return metrics | {f"{stage}/train_seconds": result.seconds}


def _read_done(folder: Path) -> _Done:
    """Return metrics and facts of a finished training; raise InputError if its model file does not match its digest."""
    try:
        done = json.loads((folder / "done.json").read_bytes())
        good = sha256_file(folder / "model.safetensors") == done["facts"]["digest"] and "metrics" in done
    except (ValueError, KeyError, TypeError, FileNotFoundError, RecursionError):
        done, good = _Done(metrics={}, facts={}), False
    if not good:
        raise InputError(f"{folder} is damaged: `mm check --repair` removes it, then the stage trains again")
    return done
