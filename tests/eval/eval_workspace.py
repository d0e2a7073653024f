"""A small real workspace: generated photos in a store, a snapshot of them, predictors that know the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.records import ALL_CATEGORIES, decoder_of, digest_of, write_json
from mm_core.core.settings import Settings
from mm_core.eval.evidence import Evidence
from mm_core.eval.scoring import BLIND
from mm_core.imaging.images import encode_alpha
from mm_core.ingest.placement import POOLS, SCHEMA
from mm_core.storage.store import LocalStore, put_blob
from samplegen import generate
from tests.tiny import snapshot_facts


class Blurred:
    """A Predictor that errs by a known amount: the true matte of each photo it knows, blurred and faded."""

    def __init__(self, truths: Mapping[bytes, np.ndarray], error: float):
        self.truths, self.error = truths, error

    def predict(self, photos: Sequence[np.ndarray], decoders: Sequence[str]) -> list[np.ndarray]:
        assert len(photos) == len(decoders)
        found = []
        for photo in photos:
            truth = self.truths[photo.tobytes()]
            soft = cv2.GaussianBlur(truth, (0, 0), 0.5 + 6 * self.error)
            found.append(np.clip((1 - self.error) * soft + 0.3 * self.error, 0, 1).astype(np.float32))
        return found


def make(
    root: Path, per_category: int = 3, size: int = 64, categories: Sequence[str] = ALL_CATEGORIES
) -> tuple[Layout, LocalStore, dict[bytes, np.ndarray]]:
    """Layout with snapshot and candidate file, the store, and photo bytes → true matte."""
    layout = Layout(Settings.from_env(root / "data"))
    store = LocalStore(Path(layout.settings.store))
    rows, truths = [], {}
    for category in categories:
        for seed in range(per_category):
            sample = generate(category, seed, size=size)
            png = cv2.imencode(".png", sample.image[..., ::-1])[1].tobytes()
            height, width = sample.alpha.shape
            rows.append(
                {"sample_id": put_blob(store, png), "category": category, "decoder": decoder_of(category)}
                | {"group": sample.group, "caption": sample.caption, "width": width, "height": height}
                | {"alpha_sha256": put_blob(store, encode_alpha(sample.alpha)), "kind": "pixel_labeled"}
                | {"label_version": 1, "label_binary": False, "batch": "b1"}
            )
            truths[sample.image.tobytes()] = np.round(sample.alpha * 255).astype(np.float32) / 255
    write_snapshot(layout, pd.DataFrame(rows))
    model = layout.model(TRAIN_STAGES[-1])
    model.parent.mkdir(parents=True)
    model.write_bytes(b"candidate")
    layout.quantised.mkdir(parents=True)
    (layout.quantised / "saliency.int8.onnx").write_bytes(b"int8")
    return layout, store, truths


def write_snapshot(layout: Layout, evaluation: pd.DataFrame, **pools: pd.DataFrame) -> None:
    layout.snapshot.mkdir(parents=True, exist_ok=True)
    empty = pd.DataFrame(columns=SCHEMA.names)
    for pool in POOLS:
        frame = evaluation if pool == "eval" else pools.get(pool, empty)
        frame.reindex(columns=SCHEMA.names).to_parquet(layout.snapshot / f"{pool}.parquet", schema=SCHEMA)
    digest = digest_of(sorted(evaluation["sample_id"]))
    write_json(layout.snapshot / "snapshot.json", snapshot_facts(f"s{digest}", eval_digest=digest))


KEYS = (("multimodal", "float"), ("multimodal", "int8"), ("champion", "int8"), ("anchor", "int8"))


def simulate(
    seed: int,
    photos: int = 30,
    gains: Mapping[str, float] | float = 0.0,
    *,
    noise: float = 0.15,
    burst: int = 1,
    int8_cost: float = 0.0,
) -> Evidence:
    """Scores as retraining gives them.

    A photo's difficulty is log-normal and shared by the models; each model errs around it by `noise` (log
    scale). The candidate's error is (1 - gain) of the champion's in each category; `burst` photos form a group.
    """
    rng, count = np.random.default_rng(seed), photos * len(ALL_CATEGORIES)
    category = np.repeat(ALL_CATEGORIES, photos)
    gain = np.array([gains if isinstance(gains, float) else gains.get(c, 0.0) for c in category])
    hard = np.exp(rng.normal(-4.0, 0.6, count))
    candidate, champion, anchor = (hard * np.exp(rng.normal(0, noise, count)) for _ in range(3))
    candidate *= 1 - gain
    int8 = candidate * (1 + int8_cost + 0.005 * rng.normal(size=count))
    curve = 1 - 0.3 * (np.linspace(0, 1, 256) - 0.4) ** 2
    values = {
        key: {"mse": mse[:, None], "sad": 40 * mse[:, None], "grad": 10 * mse[:, None], "conn": 1.2 * mse[:, None]}
        | {"biou": np.maximum(0, 1 - 6 * mse)[:, None], "maxf": (1 - np.minimum(0.9, 3 * mse))[:, None] * curve}
        for key, mse in zip(KEYS, (candidate, int8, champion, anchor), strict=True)
    }
    blind = np.exp(rng.normal(np.log(0.2), 0.3, count))
    values[BLIND] = {m: np.full(count, 0.1)[:, None] for m in ("sad", "grad", "conn", "biou")} | {
        "mse": blind[:, None], "maxf": np.full((count, 256), 0.3),
    }  # fmt: skip
    group = np.array([f"{c}-g{i % photos // burst:04d}" for i, c in enumerate(category)])
    sample_id = np.array([f"{c}{i:04d}" for i, c in enumerate(category)])
    return Evidence(category, group, sample_id, values)


def tables(evidence: Evidence) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same as per-image rows and eval frame."""
    frame = pd.DataFrame(
        {"sample_id": evidence.sample_id, "category": evidence.category, "group": evidence.group}
        | {"alpha_sha256": [f"alpha of {name}" for name in evidence.sample_id]}
    )
    parts = [
        frame.drop(columns="alpha_sha256")
        .assign(model=model, precision=precision, decoder="saliency", fcurve=list(values["maxf"]))
        .assign(**{metric: column[:, 0] for metric, column in values.items() if metric != "maxf"})
        .assign(mse_band=3 * values["mse"][:, 0], maxf=values["maxf"].max(axis=1))
        for (model, precision), values in evidence.values.items()
    ]
    return pd.concat(parts, ignore_index=True), frame
