"""Labels that people should look at again, and where a finished look leads.

| queue     | what is asked                             | where the answer leads                                    |
|-----------|-------------------------------------------|-----------------------------------------------------------|
| `train`   | paint the matte                           | a label version; the chosen category is the photo's       |
| `suspect` | a drop's matte that validation held:      | the row leaves quarantine (`settle_suspects`), and the    |
|           | correct it or hand it back as it is       | person's matte is the newest version                      |
| `eval`    | a label that every model contradicts      | a label version; category and membership stay (ADR 0012)  |

All of it follows from what the catalog says, so that a killed run is made good by the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from mm_core.core.layout import Layout
from mm_core.core.params import IngestParams, RouteParams
from mm_core.core.pins import has_snapshot, read_snapshot
from mm_core.imaging.images import load_alpha, read_header
from mm_core.ingest.expectations import SUSPECT
from mm_core.ingest.inbox import kept_matte
from mm_core.ingest.quarantine import accept
from mm_core.ingest.snapshot import newest_labels, read_pool
from mm_core.labeling.outbox import ROUTED, Outgoing
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.store import Store, fetch_blob, put_blob

LEAST_MODELS = 3
"""Fewer models that contradict a label do not make it doubtful."""


@dataclass(frozen=True)
class Sent:
    """A photo that was sent to people, as the newest task about it says."""

    sample_id: str
    queue: str
    reject: str
    """Of a suspect matte: key of its row of `rejects`."""
    alpha: str
    """Of an eval photo: digest of the label that was doubted."""
    model: str
    """Version of the model, or name of the label, that the task began with."""


def sent(catalog: Catalog, ids: Collection[str] | None = None) -> dict[str, Sent]:
    """Photos sent for review or labelling, by id; of all, or of `ids`."""
    filters: list[Filter] = [("extractor", "=", ROUTED)]
    if ids is not None:
        filters.append(("sample_id", "in", sorted(ids)))
    rows = catalog.read("features", columns=["sample_id", "version", "texts", "computed_at"], filters=filters)
    found = {}
    for row in rows.sort_values(["computed_at", "version"]).to_dict("records"):
        texts = dict(row["texts"])
        kind = texts.get("queue", "train"), *(texts.get(name, "") for name in ("reject", "alpha", "model"))
        found[row["sample_id"]] = Sent(row["sample_id"], *kind)
    return found


# ── out ──────────────────────────────────────────────────────────────────────────────────────────


def suspect_reviews(params: RouteParams, catalog: Catalog, store: Store) -> list[Outgoing]:
    """Suspect mattes of the quarantine that nobody was asked about, oldest first, the drop's matte as the start."""
    rejects: Any = catalog.read("rejects", filters=[("verdict", "=", "quarantine")])
    held = rejects[rejects["reason"].fillna("").str.startswith(SUSPECT) & rejects["where"].notna()]
    held = held.assign(sample_id=[str(where).rpartition("/")[2] for where in held["where"]])
    asked = sent(catalog, list(held["sample_id"]))
    held = held[~held["sample_id"].isin(list(asked))].sort_values(["rejected_at", "key"]).drop_duplicates("sample_id")
    return [
        Outgoing(
            row["sample_id"],
            "suspect",
            store.fetch(row["where"]),
            f"The matte that came with {row['batch']} is held, {row['reason']} ({row['detail']}): "
            "correct it, or hand it back as it is.",
            score=1.0,
            tags=[row["reason"]],
            start=_matte(store.fetch(kept_matte(row["key"]))),
            start_version=f"drop {row['batch']}",
            texts={"reject": row["key"]},
        )
        for row in held.head(params.suspects).to_dict("records")
    ]


def eval_reviews(params: RouteParams, catalog: Catalog, store: Store, layout: Layout) -> list[Outgoing]:
    """Eval photos whose label every model contradicts, the least credible first, their label as the start."""
    doubted = doubted_labels(params, layout)
    if doubted.empty:
        return []
    ids = sorted(doubted["sample_id"])
    asked = sent(catalog, ids)
    current = newest_labels(catalog.read("labels", filters=[("sample_id", "in", ids)])).set_index("sample_id")
    found = []
    for row in doubted.to_dict("records"):
        sample, alpha = row["sample_id"], row["alpha_sha256"]
        before = asked.get(sample)
        if sample not in current.index or current.loc[sample, "alpha_sha256"] != alpha:
            continue  # corrected since it was judged
        if before and before.alpha == alpha:
            continue  # asked about this very label before
        found.append(
            Outgoing(
                sample,
                "eval",
                fetch_blob(store, sample),
                f"This photo judges models, and each of them errs at least {row['doubt']:.1f} times as much on it as "
                f"is usual for {row['category']}: is the matte right?",
                score=float(row["doubt"]),
                category=row["category"],
                start=_matte(fetch_blob(store, alpha)),
                start_version=f"label {alpha[:12]}",
                numbers={"doubt": float(row["doubt"])},
                texts={"alpha": alpha},
            )
        )
    return found[: params.eval_reviews]


def doubted_labels(params: RouteParams, layout: Layout) -> pd.DataFrame:
    """Eval photos of the last evaluation with `doubt` >= `route.eval_doubt`, highest first; columns sample_id,
    category, alpha_sha256, doubt.

    `doubt`: the least, over all models (each stage, champion, anchor; float), of the photo's MSE against its label
    divided by the median of that model in the category. A photo that is merely hard is hard in proportion; a wrong
    label contradicts all models alike. Empty where the scores are about another eval set, or of too few models.
    """
    none = pd.DataFrame(columns=["sample_id", "category", "alpha_sha256", "doubt"])
    if not (layout.per_image.is_file() and has_snapshot(layout)):
        return none
    table = pq.read_table(layout.per_image, columns=["model", "precision", "sample_id", "category", "mse"])
    about = json.loads((table.schema.metadata or {}).get(b"mm", b"{}"))
    if about.get("eval_digest") != read_snapshot(layout)["eval_digest"]:
        return none
    scores: Any = table.to_pandas().query("precision == 'float' and model != 'blind'")
    if scores["model"].nunique() < LEAST_MODELS:
        return none
    usual = scores.groupby(["model", "category"])["mse"].transform("median").clip(lower=1e-6)
    doubt = (scores["mse"] / usual).groupby(scores["sample_id"]).min().rename("doubt").reset_index()
    frame = read_pool(layout.snapshot, "eval")[["sample_id", "category", "alpha_sha256"]]
    found: Any = frame.merge(doubt, on="sample_id")
    found = found[found["doubt"] >= params.eval_doubt].sort_values(["doubt", "sample_id"], ascending=[False, True])
    return found.reset_index(drop=True)


def _matte(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rgb: np.rint(load_alpha(path) * 255).astype(np.uint8)


# ── back ─────────────────────────────────────────────────────────────────────────────────────────


def suspect_photos(store: Store, asked: Mapping[str, Sent]) -> list[dict[str, Any]]:
    """Rows as of `samples` (id, width, height, category None) of the photos sent from quarantine: the catalog does not
    hold them until `settle_suspects`, but their answers can be checked and kept. Their blobs are then in the store."""
    found = []
    for one in asked.values():
        if one.queue == "suspect":
            path = store.fetch(f"quarantine/{one.sample_id}")
            put_blob(store, path)
            header = read_header(path)
            found.append({"id": one.sample_id, "width": header.width, "height": header.height, "category": None})
    return found


def category_stays(asked: Sent) -> bool:
    """Whether an answer leaves the photo's category as it is: of an eval photo, whose category decides membership, and
    of one in quarantine, whose manifest says it."""
    return asked.queue != "train"


def settle_suspects(
    params: IngestParams, catalog: Catalog, store: Store, inbox: Store, layout: Layout
) -> dict[str, list[str]]:
    """Takes suspect photos whose look is finished out of quarantine, with the person's matte as the newest version.

    Run after answers became label versions. The review is written down first (`quarantine.accept`); a photo whose drop
    has left the inbox enters when the drop comes again. Returns the ids `settled` and `waiting`. Repeating it changes
    nothing.
    """
    asked = {i: one for i, one in sent(catalog).items() if one.queue == "suspect"}
    if not asked:
        return {"settled": [], "waiting": []}
    of_these: list[Filter] = [("sample_id", "in", sorted(asked))]
    labels: Any = catalog.read("labels", filters=of_these)
    answers = newest_labels(labels[labels["origin"] == "label_studio"]).set_index("sample_id")
    there = set(catalog.read("samples", columns=["id"], filters=[("id", "in", sorted(answers.index))])["id"])
    reviewed = set(catalog.read("reviews", columns=["sample_id"], filters=of_these)["sample_id"])
    rejects = set(catalog.read("rejects", columns=["key"], filters=[("verdict", "=", "quarantine")])["key"])
    todo = [i for i in sorted(answers.index) if i not in reviewed and asked[i].reject in rejects]
    for annotator in sorted({str(answers.loc[i, "annotator"]) for i in todo}):
        keys = [asked[i].reject for i in todo if str(answers.loc[i, "annotator"]) == annotator]
        why = "looked at in Label Studio; the matte handed in there is the newer version"
        accept(params, catalog, store, inbox, keys, layout.data_docs, layout.spool, reviewer=annotator, why=why)
    _put_first(catalog, of_these)
    entered = set(catalog.read("samples", columns=["id"], filters=[("id", "in", sorted(answers.index))])["id"])
    return {"settled": sorted(entered - there), "waiting": sorted(set(answers.index) - entered)}


def _put_first(catalog: Catalog, of_these: list[Filter]) -> None:
    """A drop's matte that came in after the person's would count as newer: the person's gets the higher version."""
    labels: Any = catalog.read("labels", filters=of_these)
    newest: Any = newest_labels(labels).set_index("sample_id")
    answers: Any = newest_labels(labels[labels["origin"] == "label_studio"])
    reviews = catalog.read("reviews", columns=["sample_id", "alpha_sha256"], filters=of_these)
    held = set(zip(reviews["sample_id"], reviews["alpha_sha256"], strict=True))
    rows = []
    for answer in answers.astype(object).where(answers.notna(), None).to_dict("records"):
        top = newest.loc[answer["sample_id"]]
        if top["origin"] != "label_studio" and (answer["sample_id"], top["alpha_sha256"]) in held:
            rows.append({**answer, "version": int(top["version"]) + 1})
    catalog.upsert("labels", rows)
