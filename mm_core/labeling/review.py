"""Send labels to people for review and apply their finished reviews.

| queue     | question for the person                    | effect of the answer                                      |
|-----------|--------------------------------------------|-----------------------------------------------------------|
| `train`   | paint the matte                            | a label version; the photo gets the chosen category       |
| `suspect` | correct or confirm a drop's matte that     | the row leaves quarantine (`settle_suspects`), and the    |
|           | validation quarantined                     | person's matte is the newest version                      |
| `eval`    | check a label with which every model       | a label version; category and membership stay (ADR 0012)  |
|           | disagrees                                  |                                                           |

All state is in the catalog, so the next run completes a killed one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.params import RouteParams
from mm_core.core.pins import has_snapshot, read_snapshot
from mm_core.imaging.images import load_alpha, read_header
from mm_core.ingest.expectations import SUSPECT
from mm_core.ingest.inbox import kept_matte
from mm_core.ingest.placement import newest_labels
from mm_core.ingest.quarantine import accept
from mm_core.ingest.snapshot import read_pool
from mm_core.labeling.outbox import ROUTED, Outgoing
from mm_core.storage.catalog import Catalog, Filter
from mm_core.storage.rows import SampleRow
from mm_core.storage.run import StorageRun
from mm_core.storage.seals import read_sealed_table
from mm_core.storage.store import Store, fetch_blob, put_blob

LEAST_MODELS = 3
"""Minimum number of models that must disagree with a label to make it doubtful."""


@dataclass(frozen=True)
class Sent:
    """A photo that was sent to people, as recorded by its newest task."""

    sample_id: str
    queue: str
    reject: str
    """For a suspect matte: key of its row of `rejects`."""
    alpha: str
    """For an eval photo: digest of the doubted label."""
    model: str
    """Version of the model, or name of the label, that provided the task's initial matte."""


def sent(catalog: Catalog, ids: Collection[str] | None = None) -> dict[str, Sent]:
    """Return the photos sent for review or labelling by id; all of them, or those in `ids`."""
    filters: list[Filter] = [("extractor", "=", ROUTED)]
    if ids is not None:
        filters.append(("sample_id", "in", sorted(ids)))
    rows = catalog.read("features", columns=["sample_id", "version", "texts", "computed_at"], filters=filters)
    photos = {}
    # Later rows replace earlier ones, so the newest task of a photo remains.
    for row in rows.sort_values(["computed_at", "version"]).to_dict("records"):
        texts = dict(row["texts"])
        # Rows of earlier versions have no queue; they were training labels.
        kind = texts.get("queue", "train"), *(texts.get(name, "") for name in ("reject", "alpha", "model"))
        photos[row["sample_id"]] = Sent(row["sample_id"], *kind)
    return photos


# ── reviews to send ──────────────────────────────────────────────────────────────────────────────


def suspect_reviews(run: StorageRun) -> list[Outgoing]:
    """Return reviews of suspect mattes in quarantine that were not sent before, oldest first, with the drop's matte."""
    rejects = run.catalog.read("rejects", filters=[("verdict", "=", "quarantine")])
    quarantined = rejects.loc[rejects["reason"].fillna("").str.startswith(SUSPECT) & rejects["where"].notna()]
    quarantined = quarantined.assign(sample_id=[str(where).rpartition("/")[2] for where in quarantined["where"]])
    # A photo that was sent before is not sent again, even if several rows refer to it.
    already_sent = sent(run.catalog, list(quarantined["sample_id"]))
    new = quarantined.loc[~quarantined["sample_id"].isin(list(already_sent))]
    new = new.sort_values(["rejected_at", "key"]).drop_duplicates("sample_id")
    return [
        Outgoing(
            row["sample_id"],
            "suspect",
            run.store.fetch(row["where"]),
            f"The matte that came with {row['batch']} is in quarantine, {row['reason']} ({row['detail']}): "
            "correct it, or submit it unchanged.",
            score=1.0,
            tags=[row["reason"]],
            start=_matte(run.store.fetch(kept_matte(row["key"]))),
            start_version=f"drop {row['batch']}",
            texts={"reject": row["key"]},
        )
        for row in new.head(run.params.route.suspects).to_dict("records")
    ]


def eval_reviews(run: StorageRun) -> list[Outgoing]:
    """Return reviews of eval photos with doubtful labels, the most doubtful first, with the label as initial matte."""
    doubted = doubted_labels(run.params.route, run.layout)
    if doubted.empty:
        return []
    ids = sorted(doubted["sample_id"])
    already_sent = sent(run.catalog, ids)
    current = newest_labels(run.catalog.read("labels", filters=[("sample_id", "in", ids)])).set_index("sample_id")
    reviews = []
    for row in doubted.to_dict("records"):
        sample, alpha = row["sample_id"], row["alpha_sha256"]
        before = already_sent.get(sample)
        # Only the label that was evaluated is doubtful.
        if sample not in current.index or current.loc[sample, "alpha_sha256"] != alpha:
            continue  # the label was corrected after the evaluation
        if before and before.alpha == alpha:
            continue  # this label was sent before
        reviews.append(
            Outgoing(
                sample,
                "eval",
                fetch_blob(run.store, sample),
                f"This photo evaluates models, and each of them has at least {row['doubt']:.1f} times its median error "
                f"for {row['category']} on it: is the matte right?",
                score=float(row["doubt"]),
                category=row["category"],
                start=_matte(fetch_blob(run.store, alpha)),
                start_version=f"label {alpha[:12]}",
                numbers={"doubt": float(row["doubt"])},
                texts={"alpha": alpha},
            )
        )
    return reviews[: run.params.route.eval_reviews]


def doubted_labels(params: RouteParams, layout: Layout) -> pd.DataFrame:
    """Return eval photos of the last evaluation with `doubt` >= `route.eval_doubt`, highest first.

    The doubt of a photo is the minimum over all models (each stage, champion, anchor) of its MSE divided by the model's
    median MSE in the category. A hard photo is hard for some models only; a wrong label has a high error with all of
    them.

    Returns:
        Columns sample_id, category, alpha_sha256 and doubt (float). Empty if the scores belong to another eval set or
        to too few models.
    """
    none = pd.DataFrame(columns=["sample_id", "category", "alpha_sha256", "doubt"])
    if not (has_file(layout.per_image) and has_snapshot(layout)):
        return none
    columns = ["model", "precision", "sample_id", "category", "mse"]
    table = read_sealed_table(layout.per_image, "run `mm evaluate` again", columns)
    metadata = json.loads((table.schema.metadata or {}).get(b"mm", b"{}"))
    if metadata.get("eval_digest") != read_snapshot(layout)["eval_digest"]:
        return none
    # The blind predictor sees no photo, so its errors carry no evidence about a label.
    scores: pd.DataFrame = table.to_pandas().query("precision == 'float' and model != 'blind'")
    if len(set(scores["model"])) < LEAST_MODELS:
        return none
    median = scores.groupby(["model", "category"])["mse"].transform("median").clip(lower=1e-6)
    ratio = pd.DataFrame({"sample_id": scores["sample_id"], "doubt": scores["mse"] / median})
    doubt = ratio.sort_values("doubt").drop_duplicates("sample_id")
    frame = read_pool(layout.snapshot, "eval")[["sample_id", "category", "alpha_sha256"]]
    doubted: pd.DataFrame = frame.merge(doubt, on="sample_id")
    doubted = doubted.loc[doubted["doubt"] >= params.eval_doubt].sort_values(
        ["doubt", "sample_id"], ascending=[False, True]
    )
    return doubted.reset_index(drop=True)


def _matte(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rgb: np.rint(load_alpha(path) * 255).astype(np.uint8)


# ── finished reviews ─────────────────────────────────────────────────────────────────────────────


def suspect_photos(store: Store, asked: Mapping[str, Sent]) -> list[SampleRow]:
    """Return rows like those of `samples` (id, width, height, category None) for photos sent from quarantine.

    The catalog has no such rows before `settle_suspects`, but the answers must be checked and stored. The photos'
    blobs are copied to the store.
    """
    rows: list[SampleRow] = []
    for photo in asked.values():
        if photo.queue == "suspect":
            path = store.fetch(f"quarantine/{photo.sample_id}")
            put_blob(store, path)
            header = read_header(path)
            rows.append({"id": photo.sample_id, "width": header.width, "height": header.height, "category": None})
    return rows


def category_stays(asked: Sent) -> bool:
    """Return whether an answer leaves the photo's category unchanged.

    This holds for eval photos, whose category decides membership, and for photos in quarantine, whose category is in
    the manifest.
    """
    return asked.queue != "train"


def settle_suspects(run: StorageRun) -> dict[str, list[str]]:
    """Move suspect photos with a finished review out of quarantine, with the person's matte as the newest version.

    Runs after answers became label versions; repeating it changes nothing. The review is recorded first
    (`quarantine.accept`). A photo whose drop has left the inbox is ingested when the drop arrives again.

    Returns:
        The ids `settled` and `waiting`.
    """
    catalog = run.catalog
    suspects = {i: photo for i, photo in sent(catalog).items() if photo.queue == "suspect"}
    if not suspects:
        return {"settled": [], "waiting": []}
    of_these: list[Filter] = [("sample_id", "in", sorted(suspects))]
    labels = catalog.read("labels", filters=of_these)
    answers = newest_labels(labels.loc[labels["origin"] == "label_studio"]).set_index("sample_id")
    present = set(catalog.read("samples", columns=["id"], filters=[("id", "in", sorted(answers.index))])["id"])
    reviewed = set(catalog.read("reviews", columns=["sample_id"], filters=of_these)["sample_id"])
    rejects = set(catalog.read("rejects", columns=["key"], filters=[("verdict", "=", "quarantine")])["key"])
    # Accept what is answered, not yet reviewed and still in quarantine; one call per annotator.
    todo = [i for i in sorted(answers.index) if i not in reviewed and suspects[i].reject in rejects]
    for annotator in sorted({str(answers.loc[i, "annotator"]) for i in todo}):
        keys = [suspects[i].reject for i in todo if str(answers.loc[i, "annotator"]) == annotator]
        why = "reviewed in Label Studio; the matte submitted there is the newer version"
        accept(run, keys, reviewer=annotator, why=why)
    # Accepting adds the drop's matte, which must not outrank the person's.
    _put_first(catalog, of_these)
    entered = set(catalog.read("samples", columns=["id"], filters=[("id", "in", sorted(answers.index))])["id"])
    return {"settled": sorted(entered - present), "waiting": sorted(set(answers.index) - entered)}


def _put_first(catalog: Catalog, of_these: list[Filter]) -> None:
    """Give a person's matte a higher version than the drop's matte, which was ingested after it."""
    labels = catalog.read("labels", filters=of_these)
    newest = newest_labels(labels).set_index("sample_id")
    answers = newest_labels(labels.loc[labels["origin"] == "label_studio"])
    reviews = catalog.read("reviews", columns=["sample_id", "alpha_sha256"], filters=of_these)
    accepted = set(zip(reviews["sample_id"], reviews["alpha_sha256"], strict=True))
    rows = []
    for answer in answers.astype(object).where(answers.notna(), None).to_dict("records"):
        # Raise the version only where the drop's accepted matte is newest.
        top = newest.loc[answer["sample_id"]]
        if top["origin"] != "label_studio" and (answer["sample_id"], top["alpha_sha256"]) in accepted:
            rows.append({**answer, "version": int(top["version"]) + 1})
    catalog.upsert("labels", rows)
