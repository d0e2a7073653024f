"""Run one training stage of the cycle, from the snapshot's frames to a model file (called by `stages.py`).

The content key of a stage is a digest of the stage, its params, data, start weights and code. The checkpoint of an
unfinished run and the model of a finished one are stored under that key, outside the cycle's folder. A killed stage
therefore resumes from its checkpoint, and a stage with a finished model under its key is not trained again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from torch import nn

from mm_core.core.code_digest import code_digest
from mm_core.core.errors import InputError, NothingToTrainOn
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.locks import exclusive
from mm_core.core.params import CommonTrainParams, Params, StageParams
from mm_core.core.pins import read_snapshot
from mm_core.core.records import Report, digest_of, sha256_file, write_bytes, write_json
from mm_core.imaging.pixel_cache import UNKNOWN, PixelCache, Pool
from mm_core.model.files import load_model, save_model
from mm_core.model.network import MattingNet, build_model
from mm_core.storage.store import Store
from mm_core.training import process_group
from mm_core.training.checkpoint import Errors
from mm_core.training.multimodal import Multimodal, embed, with_captions
from mm_core.training.semi import Semi
from mm_core.training.supervised import Supervised
from mm_core.training.tracking import Tracker
from mm_core.training.trainer import Result, Sample, fit, pick_device, to_device

_FRAME_COLUMNS = ["sample_id", "category", "decoder", "caption", "alpha_sha256", "label_binary"]


@dataclass(frozen=True)
class Data:
    """Frames that a stage trains and validates on, one row per photo."""

    labeled: pd.DataFrame
    replay: pd.DataFrame | None
    """The simple set in the hard stage; None in the others."""
    unlabeled: pd.DataFrame
    text_image: pd.DataFrame
    validation: pd.DataFrame

    def used(self) -> list[pd.DataFrame]:
        """Return the frames that are present."""
        every = (self.labeled, self.replay, self.unlabeled, self.text_image, self.validation)
        return [frame for frame in every if frame is not None]

    def digest(self) -> str:
        """Return a digest of the rows and their labels; it does not depend on how the files were written."""
        # Missing values become None: NaN has several encodings and would change the digest.
        rows = [frame[_FRAME_COLUMNS].astype(object) for frame in self.used()]
        return digest_of([frame.where(frame.notna(), None).to_numpy().tolist() for frame in rows])


@runtime_checkable
class Listener(Protocol):
    """Progress callback that also receives the numbers of training."""

    def numbers(self, values: Mapping[str, float]) -> None:
        """Receive losses, learning rate or validation errors by name.

        Args:
            values: Values by name; `epoch` is the number of passes over the labelled photos so far.
        """
        ...


def train_stage(
    stage: str,
    params: Params,
    layout: Layout,
    store: Store,
    report: Report,
    *,
    start: Path | None,
    progress: Callable[[str, int, int], None],
) -> Report:
    """Train `stage` and write `layout.model(stage)`.

    A stage whose own pool (hard, unlabelled, text) is empty passes its start weights on and reports so in the facts.

    Args:
        stage: Name of the stage.
        params: The cycle's params.
        layout: The workspace.
        store: Store of the photos and mattes.
        report: Report that is filled and returned.
        start: Model file to start from; None starts from scratch.
        progress: Called with a label, the steps done and the total.

    Raises:
        NothingToTrainOn: The labelled pool is empty.
        InputError: Snapshot, split or start weights are missing or do not match the params.
    """
    data = read_data(stage, layout)
    snapshot = read_snapshot(layout)["digest"]
    # Everything that the weights depend on; its digest is the content key.
    recipe = {
        "stage": stage,
        "params": _relevant(stage, params),
        "snapshot": snapshot,
        "data": data.digest(),
        "start": sha256_file(start) if start else None,
        "code": code_digest(__name__),
    }
    folder = layout.checkpoints / digest_of(recipe)
    report.facts |= {"key": folder.name, "start": recipe["start"], "snapshot": snapshot, "data": recipe["data"]}
    device = pick_device(layout.settings.device)
    # Only process 0 locks, writes and logs; `agreed` sends its values to the others.
    with process_group.joined(device):
        first = process_group.rank() == 0
        waiting = partial(progress, f"train {stage}: another process trains the same", 0, 1)
        with exclusive(folder / "lock", waiting) if first else nullcontext():
            reused = process_group.agreed((folder / "done.json").is_file())
            if not reused:
                process_group.check_batch(params.train.common.batch, process_group.world())
                own = process_group.own_device(device)
                _train(stage, params, layout, store, folder, recipe, data, start, own, progress)
            done = process_group.agreed(_read_done(folder) if first else {})
            if first:
                write_bytes(layout.model(stage), (folder / "model.safetensors").read_bytes())
    report.metrics |= done["metrics"]
    report.facts |= done["facts"]
    tracked = folder / "tracked"
    # The process that trained the model may have been killed before it logged the report.
    if first and not tracked.is_file():
        Tracker(layout.settings).log_report(layout, report)
        tracked.touch()
    if reused:
        report.facts["reused"] = "trained before from the same params, data and start"
    steps = _stage_params(stage, params).steps
    progress(f"train {stage}", steps, steps)
    return report


def _read_done(folder: Path) -> dict[str, Any]:
    """Return metrics and facts of a finished training; raise InputError if its model file does not match its digest."""
    try:
        done = json.loads((folder / "done.json").read_bytes())
        good = sha256_file(folder / "model.safetensors") == done["facts"]["digest"] and "metrics" in done
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        done, good = {}, False
    if not good:
        raise InputError(f"{folder} is damaged: `mm check --repair` removes it, then the stage trains again")
    return done


def read_data(stage: str, layout: Layout) -> Data:
    """Read the frames of a stage.

    Raises:
        InputError: The snapshot or the split is missing.
        NothingToTrainOn: The snapshot has no labelled sample.
    """

    def frame(path: Path) -> pd.DataFrame:
        if not path.is_file():
            raise InputError(f"{path} is missing: run `mm {path.parent.name}` before `mm train-{stage}`")
        return pd.read_parquet(path)

    snapshot, split = layout.snapshot, layout.split
    validation = frame(snapshot / "validation.parquet")
    none = validation.iloc[:0]
    # The first two stages learn from the split's halves, the later ones from the whole labelled pool.
    unlabeled, text_image, replay = none, none, None
    if stage in ("simple", "hard"):
        labeled = frame(split / f"{stage}.parquet")
        replay = frame(split / "simple.parquet") if stage == "hard" else None
    else:
        labeled = frame(snapshot / "train_labeled.parquet")
        unlabeled = frame(snapshot / "train_unlabeled.parquet")
        text_image = frame(snapshot / "train_text_image.parquet") if stage == "multimodal" else none
    if labeled.empty and (replay is None or replay.empty):
        raise NothingToTrainOn(
            f"train-{stage}: the snapshot holds no labelled training sample: drop photos with mattes as kind "
            "pixel_labeled, then run ingest, snapshot and split"
        )
    # A photo without a caption teaches nothing in the text pool.
    text_image = text_image.loc[text_image["caption"].fillna("").str.strip() != "", :]
    return Data(labeled, replay, unlabeled, text_image, validation)


def _train(
    stage: str,
    params: Params,
    layout: Layout,
    store: Store,
    folder: Path,
    recipe: Mapping[str, Any],
    data: Data,
    start: Path | None,
    device: torch.device,
    progress: Callable[[str, int, int], None],
) -> None:
    """Train or pass the start weights on; write model.safetensors and, last, done.json to `folder`."""
    settings, first = _stage_params(stage, params), process_group.rank() == 0
    net, facts, fresh = _begin(stage, params, start)
    idle = _why_idle(stage, settings, data)
    metrics: dict[str, float] = {}
    if idle:
        facts |= {"steps": 0, "passed_through": idle}
    else:
        # Decode all photos once to the model's size.
        cache = PixelCache(layout.cache, params.model.size)
        for frame in data.used():
            cache.fill(store, frame, progress)
        check = _Validation(Pool(data.validation, cache, params.seed, "validation"), params.train.common.batch, device)
        strategy = _strategy(stage, params, layout, data, cache, net, device, progress, fresh=fresh)
        tags = {k: str(recipe[k]) for k in ("data", "snapshot", "start")}
        tracker = Tracker(layout.settings)
        with tracker.stage_run(layout, f"train-{stage}", recipe["params"], tags) if first else nullcontext() as run:

            def log(step: int, values: dict[str, float]) -> None:
                if run is not None:
                    run.log(step, {f"{stage}/{name}": value for name, value in values.items()})
                if isinstance(progress, Listener):
                    progress.numbers({"epoch": epochs(params.train.common, data, step), **values})

            result = fit(
                strategy,
                settings,
                params.train.common,
                seed=params.seed + TRAIN_STAGES.index(stage) * 10_007,
                validate=check,
                checkpoint=folder / "state.pt",
                device=device,
                progress=lambda done, total: progress(f"train {stage}", done, total),
                log=log,
            )
        # `net` continues as the kept weights, no longer the last ones.
        net.load_state_dict(result.weights)
        metrics = _metrics(stage, result) | {f"{stage}/epochs": epochs(params.train.common, data, settings.steps)}
        if first:
            metrics |= {f"{stage}/val/choice": share for share in check.rightly_chosen(net)}
        facts |= {"steps": settings.steps, "kept_step": result.kept_step, "resumed_from": result.resumed_from}
        facts |= {"checkpoint": result.kept_because, "precision": result.precision}
    if not first:
        return
    net.to("cpu")
    facts["digest"] = save_model(folder / "model.safetensors", net, {**recipe, "key": folder.name})
    facts |= {"labeled": len(data.labeled), "unlabeled": len(data.unlabeled), "text_image": len(data.text_image)}
    # done.json marks the folder as finished, so the checkpoint is deleted only after it.
    write_json(folder / "done.json", {"metrics": metrics, "facts": facts})
    (folder / "state.pt").unlink(missing_ok=True)


def _begin(stage: str, params: Params, start: Path | None) -> tuple[MattingNet, dict[str, Any], bool]:
    """Return the net to train, the facts about its start weights, and whether its decoders are fresh.

    The net always has the shape of `params.model`.
    """
    facts: dict[str, Any] = {}
    if start is not None:
        before, meta = load_model(start)
        if (before.config.encoder, before.config.width) == (params.model.encoder, params.model.width):
            # The encoder and the width match. The input size may differ, because the net is convolutional.
            before.config = params.model
            facts["started_from"] = meta.get("stage", "a model file")
            return before, facts, False
        if stage != TRAIN_STAGES[0]:
            previous = TRAIN_STAGES[TRAIN_STAGES.index(stage) - 1]
            raise InputError(f"{start} has other model params than params.yaml: run `mm train-{previous}` again")
        # A champion of another shape cannot be the start: the first stage starts from scratch instead.
        facts["warm_start"] = f"not possible: the champion is {before.config.encoder} of width {before.config.width}"
    facts["started_from"] = "pretrained encoder" if params.model.pretrained else "scratch"
    return build_model(params.model, params.seed), facts, True


def _why_idle(stage: str, settings: StageParams, data: Data) -> str | None:
    """Return why a stage has nothing to train, or None if it has."""
    if settings.steps == 0:
        return f"train.{stage}.steps is 0"
    if stage == "hard" and data.labeled.empty:
        return "the split has no hard samples, or too few for a stage of their own (split.min_hard)"
    if stage == "semi" and data.unlabeled.empty:
        return "the snapshot holds no unlabelled photo: drop some as kind unlabeled"
    if stage == "multimodal" and len(set(data.text_image["caption"])) < 2:
        return "the snapshot holds no two different captions: drop captioned photos as kind text_image"
    return None


def _strategy(
    stage: str,
    params: Params,
    layout: Layout,
    data: Data,
    cache: PixelCache,
    net: MattingNet,
    device: torch.device,
    progress: Callable[[str, int, int], None],
    *,
    fresh: bool,
) -> Supervised:
    """Build the strategy of a stage with its pools; `fresh` is true if the decoders start from random weights."""
    train, batch = params.train, params.train.common.batch

    def pool(frame: pd.DataFrame, name: str, whole: bool = False) -> Pool:
        return Pool(frame, cache, params.seed, f"{stage}/{name}", whole=whole)

    labeled, towers = data.labeled, None
    if stage == "multimodal":
        if process_group.rank() != 0:
            process_group.agreed(None)  # process 0 trains and embeds; the others then read its cache
        towers = embed(params, layout, cache, data.text_image, [data.labeled, data.unlabeled], progress)
        if process_group.rank() == 0:
            process_group.agreed(None)
        labeled = with_captions(data.labeled, data.text_image, towers)
    # Replay: a share of each labelled batch comes from the simple set.
    pools: dict[str, list[tuple[Pool, int]]] = {"labeled": [(pool(labeled, "labeled"), batch)]}
    if data.replay is not None and not data.replay.empty:
        again = round(batch * train.common.replay_share)
        own, old = pool(labeled, "labeled"), pool(data.replay, "replay")
        pools["labeled"] = [(own, batch - again), (old, again)]
    if not data.unlabeled.empty:
        pools["unlabeled"] = [(pool(data.unlabeled, "unlabeled", whole=True), batch)]
    if not data.text_image.empty:
        pools["text"] = [(pool(data.text_image, "text", whole=True), batch)]
    with torch.random.fork_rng(devices=[]):
        # Seed the start weights of auxiliary decoders and fusion, independent of earlier random draws in this process.
        torch.manual_seed(params.seed + TRAIN_STAGES.index(stage))
        if stage == "semi":
            return Semi(net, pools, train.loss, train.semi)
        if towers is not None:
            return Multimodal(net, pools, train.loss, train.semi, train.multimodal, towers)
        share = train.simple.shared_decoder if fresh and stage == TRAIN_STAGES[0] else 0.0
        return Supervised(net, pools, train.loss, share)


def epochs(common: CommonTrainParams, data: Data, step: int) -> float:
    """Return how often the stage has drawn each of its labelled photos after `step` steps."""
    replayed = 0 if data.replay is None or data.replay.empty else round(common.batch * common.replay_share)
    return step * (common.batch - replayed) / len(data.labeled) if len(data.labeled) else 0.0


class _Validation:
    """Compute the squared error of each validation photo by category, at the model's size, in float32.

    The photos stay in the host's memory as bytes, because thousands of them as floats would fill a GPU.
    """

    def __init__(self, pool: Pool, batch: int, device: torch.device) -> None:
        self._batches, self._device = list(pool.in_order(batch)), device

    def _samples(self) -> Iterator[Sample]:
        return (to_device(batch, self._device) for batch in self._batches)

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> Errors:
        assert isinstance(net, MattingNet)
        errors: Errors = {}
        for sample in self._samples():
            # Mean over the pixels of each photo: (B,).
            alpha = net.route(net.encode(sample.images), sample.decoders)[0].sigmoid()
            squared = ((alpha - sample.alpha) ** 2).mean((1, 2, 3)).tolist()
            for category, error in zip(sample.categories, squared, strict=True):
                errors.setdefault(category, []).append(error)
        return dict(sorted(errors.items()))

    @torch.no_grad()
    def rightly_chosen(self, net: MattingNet) -> list[float]:
        """Return the share of photos for which the net chooses the decoder of their category, as a list of one number.

        Photos of unknown category are left out; the list is empty if no photo remains.
        """
        net.eval()
        right = [
            name == decoder
            for sample in self._samples()
            for name, decoder, category in zip(
                net.chosen(net.encode(sample.images)), sample.decoders, sample.categories, strict=True
            )
            if category != UNKNOWN
        ]
        return [float(np.mean(right))] if right else []


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


def _stage_params(stage: str, params: Params) -> StageParams:
    return getattr(params.train, stage)


def _relevant(stage: str, params: Params) -> dict[str, Any]:
    """Return the params that the weights of a stage depend on, nested as in params.yaml."""
    train = {"common": params.train.common, "loss": params.train.loss, stage: _stage_params(stage, params)}
    whole: dict[str, Any] = {"seed": params.seed, "model": params.model.model_dump(mode="json")}
    if stage == "multimodal":
        # The multimodal stage keeps the semi-supervised terms, and its text vectors depend on CLIP.
        train["semi"] = params.train.semi
        whole["clip"] = params.clip.model_dump(mode="json")
    return whole | {"train": {name: section.model_dump(mode="json") for name, section in train.items()}}
