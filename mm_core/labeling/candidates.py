"""Which photos may be sent for a training label, and which few of them the champion looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from mm_core.core.params import RouteParams, SnapshotParams
from mm_core.ingest.snapshot import place, stable_share
from mm_core.labeling.need import Need
from mm_core.labeling.outbox import ROUTED
from mm_core.labeling.selection import UNKNOWN, mean_need, spread_out
from mm_core.storage.catalog import Catalog, Filter
from mm_core.structuring import category_guess
from mm_core.structuring.rows import VECTORS

FIRST_PASS = 4
"""The first pass reads the features of this many times `route.look` photos."""
KNOWN = 4000
"""Photos labelled or sent before that new ones are compared with, at most."""
FEEDBACK = "feedback"
"""Extractor of rows that say that users complained of a photo's cut."""


def candidates(catalog: Catalog, params: SnapshotParams) -> Any:
    """DataFrame of the photos that may be sent for a training label, with sample_id, category (None: unknown), group
    and `seen`: whether one of the group is labelled or was sent. In order of sample ids."""
    columns = ["sample_id", "category", "group", "seen"]
    needed = ["id", "kind", "category", "caption", "group", "role", "phash", "near", "accepted_at"]
    samples = catalog.read("samples", columns=needed)
    if samples.empty:
        return pd.DataFrame(columns=columns)
    labels = catalog.read("labels")
    table: Any = place(params, samples, labels)
    sent = table["sample_id"].isin(_sent(catalog)["sample_id"])
    labelled = table["sample_id"].isin(labels["sample_id"])
    table["seen"] = (sent | labelled).groupby(table["group"]).transform("any")
    free = (table["train_unlabeled"] | table["train_text_image"]) & ~labelled & ~sent
    return table.loc[free, columns].reset_index(drop=True)


def sent_today(catalog: Catalog, now: datetime) -> Counter[str]:
    """Photos sent for a training label since midnight UTC, by the category, stated or guessed, that they were
    chosen for (`unknown` where there was none)."""
    rows = _sent(catalog, since=f"{now.astimezone(UTC):%Y-%m-%d}")
    texts = [dict(t) for t in rows["texts"]]
    return Counter(t.get("chosen_as") or UNKNOWN for t in texts if t.get("queue", "train") == "train")


def _sent(catalog: Catalog, since: str = "") -> pd.DataFrame:
    filters: list[Filter] = [("extractor", "=", ROUTED)]
    if since:
        filters.append(("computed_at", ">=", since))
    return catalog.read("features", columns=["sample_id", "texts"] if since else ["sample_id"], filters=filters)


# ── the first pass ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Looked:
    """The photos that the champion looks at."""

    table: Any
    """As `candidates`, the category guessed where none is known; `stated`, the known one; and bool `feedback`."""
    vectors: np.ndarray
    """float32 (N, D), NaN where there is none."""
    known: np.ndarray
    """float32 (M, D): of photos that are labelled or were sent."""


def first_pass(params: RouteParams, catalog: Catalog, found: Any, need: Mapping[str, Need]) -> Looked:
    """At most `route.look` candidates, categories by need, far apart within each.

    Reads features of the drawn photos alone, so that what a run costs hardly grows with the catalog. Photos with
    feedback are always looked at. Repeatable by `route.seed` on the same catalog.
    """
    if found.empty:
        return nothing()
    said = catalog.read("features", columns=["sample_id"], filters=[("extractor", "=", FEEDBACK)])
    complained = set(said["sample_id"])
    sent = set(_sent(catalog)["sample_id"])
    weights = {category: one.weight for category, one in need.items()}
    # Each run draws anew: a draw that lost once would otherwise be the only one ever looked at.
    drawn = _draw(found, FIRST_PASS * params.look, weights, complained, f"draw/{params.seed}/{len(sent)}")
    labelled = set(catalog.read("labels", columns=["sample_id"])["sample_id"])
    known = sorted(sent | labelled, key=lambda i: stable_share(i, f"known/{params.seed}"))[:KNOWN]
    ids = drawn["sample_id"].to_numpy(dtype=object)
    vectors, earlier = _vectors(catalog, list(ids), known)
    bad = drawn["feedback"].to_numpy(bool)
    told, others = np.flatnonzero(bad)[: params.look], np.flatnonzero(~bad)
    drawn["stated"] = drawn["category"]
    drawn["category"] = _guessed(catalog, drawn)
    of_others = drawn["category"].iloc[others].tolist()
    far = others[spread_out(ids[others], of_others, vectors[others], weights, params.look - len(told), params.seed)]
    rows = np.sort(np.concatenate([told, far]))
    return Looked(drawn.iloc[rows].reset_index(drop=True), vectors[rows], earlier)


def nothing() -> Looked:
    """Nobody looks at anything."""
    columns = ["sample_id", "category", "group", "seen", "feedback", "stated"]
    return Looked(pd.DataFrame(columns=columns), np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))


def _draw(found: Any, limit: int, need: Mapping[str, float], complained: set[str], salt: str) -> Any:
    """At most `limit` rows, in order of ids: photos with feedback, then one of each unseen group, then the others;
    within that, categories by need (Sainte-Laguë) and photos by a hash of salt and id."""
    table = found.assign(feedback=found["sample_id"].isin(complained))
    table["order"] = [stable_share(i, salt) for i in table["sample_id"]]
    table = table.sort_values("order")
    table["late"] = (table.groupby("group").cumcount() > 0) | table["seen"].astype(bool)
    table = table.sort_values(["late", "order"])
    category = table["category"].fillna(UNKNOWN)
    weight = category.map(dict(need)).fillna(mean_need(need))
    table["turn"] = (2 * table.groupby(category).cumcount() + 1) / weight
    table = table.sort_values(["feedback", "late", "turn", "order"], ascending=[False, True, True, True]).head(limit)
    return table.drop(columns=["order", "late", "turn"]).sort_values("sample_id", ignore_index=True)


def _vectors(catalog: Catalog, ids: list[str], known: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of `ids` in their order (NaN where there is none) and of `known`, all of one extractor: the first of
    `VECTORS` that most photos have."""
    wanted = sorted({*ids, *known})
    filters: list[Filter] = [("extractor", "in", list(VECTORS)), ("sample_id", "in", wanted)]
    rows = catalog.read("features", columns=["sample_id", "extractor", "version", "vector"], filters=filters)
    rows = rows[rows["vector"].notna()]
    if rows.empty:
        return np.full((len(ids), 1), np.nan, np.float32), np.zeros((0, 1), np.float32)
    counts = rows.groupby(["extractor", "version"]).size()
    source = max(counts.index, key=lambda s: (counts[s] * 2 > len(ids), -VECTORS.index(s[0]), counts[s]))
    mine = rows[(rows["extractor"] == source[0]) & (rows["version"] == source[1])]
    of = dict(zip(mine["sample_id"], mine["vector"], strict=True))
    none = np.full(len(next(iter(of.values()))), np.nan, np.float32)
    earlier = [of[i] for i in known if i in of]
    stacked = np.stack(earlier).astype(np.float32) if earlier else np.zeros((0, len(none)), np.float32)
    return np.stack([of.get(i, none) for i in ids]).astype(np.float32), stacked


def _guessed(catalog: Catalog, table: Any) -> list[str | None]:
    """Categories, guessed by structuring where none is known."""
    unknown = table.loc[table["category"].isna(), "sample_id"].tolist()
    filters: list[Filter] = [("extractor", "=", category_guess.EXTRACTOR), ("sample_id", "in", unknown)]
    rows = catalog.read("features", columns=["sample_id", "texts", "computed_at"], filters=filters)
    rows = rows.sort_values("computed_at")
    said = {i: dict(texts).get("category") for i, texts in zip(rows["sample_id"], rows["texts"], strict=True)}
    pairs = zip(table["sample_id"], table["category"], strict=True)
    return [c if isinstance(c, str) else said.get(i) for i, c in pairs]
