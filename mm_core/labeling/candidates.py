"""Find the photos that may be sent for a training label, and choose those that the champion predicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mm_core.core.params import RouteParams, SnapshotParams
from mm_core.ingest.placement import read_placement, stable_share
from mm_core.labeling.need import Need
from mm_core.labeling.outbox import ROUTED
from mm_core.labeling.selection import UNKNOWN, Looked, mean_need, spread_out
from mm_core.storage.catalog import Catalog, Filter
from mm_core.structuring import category_guess
from mm_core.structuring.rows import VECTORS

FIRST_PASS = 4
"""The first pass reads the features of this many times `route.look` photos."""
KNOWN = 4000
"""Maximum number of labelled or sent photos that new ones are compared with."""
FEEDBACK = "feedback"
"""Extractor name of the rows that record user complaints about a photo's matte."""


def candidates(catalog: Catalog, params: SnapshotParams) -> pd.DataFrame:
    """Return the photos that may be sent for a training label, sorted by sample id.

    Returns:
        DataFrame with sample_id, category (None: unknown), group and `seen`: a photo of the group is labelled or was
        sent.
    """
    columns = ["sample_id", "category", "group", "seen"]
    placement = read_placement(params, catalog)
    if not placement.samples.num_rows:
        return pd.DataFrame(columns=columns)
    ids, groups = placement.samples["id"], np.asarray(placement.group.indices)
    labelled, sent = (
        np.asarray(pc.is_in(ids, value_set=pa.array(rows["sample_id"], pa.string())))
        for rows in (catalog.read("labels", columns=["sample_id"]), _sent(catalog))
    )
    # A group is seen if any of its photos is.
    seen = (np.bincount(groups, weights=labelled | sent) > 0)[groups]
    free = (placement.pools["train_unlabeled"] | placement.pools["train_text_image"]) & ~labelled & ~sent
    rows = pa.array(np.flatnonzero(free))
    texts = (ids, placement.category, placement.group)
    frame = pd.DataFrame(
        {
            name: pd.Series(column.take(rows).to_pylist(), dtype=object)
            for name, column in zip(columns, texts, strict=False)
        }
    )
    return frame.assign(seen=seen[free])


def sent_today(catalog: Catalog, now: datetime) -> Counter[str]:
    """Count the photos sent for a training label since midnight UTC.

    The key is the stated or guessed category that they were chosen for, or `unknown`.
    """
    rows = _sent(catalog, since=f"{now.astimezone(UTC):%Y-%m-%d}")
    texts = [dict(t) for t in rows["texts"]]
    return Counter(t.get("chosen_as") or UNKNOWN for t in texts if t.get("queue", "train") == "train")


def _sent(catalog: Catalog, since: str = "") -> pd.DataFrame:
    """Return the rows of sent photos, since a date if one is given."""
    filters: list[Filter] = [("extractor", "=", ROUTED)]
    if since:
        filters.append(("computed_at", ">=", since))
    return catalog.read("features", columns=["sample_id", "texts"] if since else ["sample_id"], filters=filters)


# ── the first pass ───────────────────────────────────────────────────────────────────────────────


def first_pass(params: RouteParams, catalog: Catalog, found: pd.DataFrame, need: Mapping[str, Need]) -> Looked:
    """Choose at most `route.look` candidates: categories by need, and distant photos within each category.

    Only features of a random draw are read, so the cost hardly grows with the catalog. Photos with feedback are always
    included. The result is repeatable by `route.seed` on the same catalog.
    """
    if found.empty:
        return nothing()
    rows_of_feedback = catalog.read("features", columns=["sample_id"], filters=[("extractor", "=", FEEDBACK)])
    complained = set(rows_of_feedback["sample_id"])
    sent = set(_sent(catalog)["sample_id"])
    weights = {category: entry.weight for category, entry in need.items()}
    # The number of sent photos is part of the salt, so that each run draws other photos.
    drawn = _draw(found, FIRST_PASS * params.look, weights, complained, f"draw/{params.seed}/{len(sent)}")
    labelled = set(catalog.read("labels", columns=["sample_id"])["sample_id"])
    # A stable subset of the known photos limits the cost of the distances.
    known = sorted(sent | labelled, key=lambda i: stable_share(i, f"known/{params.seed}"))[:KNOWN]
    ids = drawn["sample_id"].to_numpy(dtype=object)
    vectors, earlier = _vectors(catalog, list(ids), known)
    has_feedback = drawn["feedback"].to_numpy(bool)
    reported, others = np.flatnonzero(has_feedback)[: params.look], np.flatnonzero(~has_feedback)
    drawn["stated"] = drawn["category"]
    drawn["category"] = _guessed(catalog, drawn)
    # Photos with feedback take their places first; the rest is spread out.
    of_others = drawn["category"].iloc[others].tolist()
    left = params.look - len(reported)
    far = others[spread_out(ids[others], of_others, vectors[others], weights, left, params.seed)]
    rows = np.sort(np.concatenate([reported, far]))
    return Looked(drawn.iloc[rows].reset_index(drop=True), vectors[rows], earlier)


def nothing() -> Looked:
    """Return an empty selection."""
    columns = ["sample_id", "category", "group", "seen", "feedback", "stated"]
    return Looked(pd.DataFrame(columns=columns), np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))


def _draw(found: pd.DataFrame, limit: int, need: Mapping[str, float], complained: set[str], salt: str) -> pd.DataFrame:
    """Draw at most `limit` rows, sorted by id.

    Photos with feedback precede one photo of each unseen group, and these precede the others. Within these classes the
    order is by the need of the category (Sainte-Laguë) and then by a hash of salt and id.
    """
    table = found.assign(feedback=found["sample_id"].isin(list(complained)))
    table["order"] = [stable_share(i, salt) for i in table["sample_id"]]
    table = table.sort_values("order")
    # `late` marks photos of seen groups and further photos of a group.
    table["late"] = (table.groupby("group").cumcount() > 0) | table["seen"].astype(bool)
    table = table.sort_values(["late", "order"])
    category = table["category"].fillna(UNKNOWN)
    usual = mean_need(need)
    weight = np.array([need.get(name, usual) for name in category], float)
    # The k-th photo of a category has rank (2 k + 1) / weight.
    table["turn"] = (2 * table.groupby(category).cumcount() + 1) / weight
    table = table.sort_values(["feedback", "late", "turn", "order"], ascending=[False, True, True, True]).head(limit)
    return table.drop(columns=["order", "late", "turn"]).sort_values("sample_id", ignore_index=True)


def _vectors(catalog: Catalog, ids: list[str], known: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of `ids` in their order (NaN if missing) and of `known`, all of one extractor.

    The extractor is the first of `VECTORS` that more than half of the photos have.
    """
    wanted = sorted({*ids, *known})
    filters: list[Filter] = [("extractor", "in", list(VECTORS)), ("sample_id", "in", wanted)]
    rows = catalog.read("features", columns=["sample_id", "extractor", "version", "vector"], filters=filters)
    rows = rows[rows["vector"].notna()]
    if rows.empty:
        return np.full((len(ids), 1), np.nan, np.float32), np.zeros((0, 1), np.float32)
    # Vectors of different extractors or versions cannot be compared.
    counts = rows.groupby(["extractor", "version"]).size()
    source = max(counts.index, key=lambda s: (counts[s] * 2 > len(ids), -VECTORS.index(s[0]), counts[s]))
    chosen = rows[(rows["extractor"] == source[0]) & (rows["version"] == source[1])]
    by_id = dict(zip(chosen["sample_id"], chosen["vector"], strict=True))
    none = np.full(len(next(iter(by_id.values()))), np.nan, np.float32)
    earlier = [by_id[i] for i in known if i in by_id]
    stacked = np.stack(earlier).astype(np.float32) if earlier else np.zeros((0, len(none)), np.float32)
    return np.stack([by_id.get(i, none) for i in ids]).astype(np.float32), stacked


def _guessed(catalog: Catalog, table: pd.DataFrame) -> list[str | None]:
    """Return the categories of the rows; unknown ones are replaced by structuring's newest guess."""
    unknown = table.loc[table["category"].isna(), "sample_id"].tolist()
    filters: list[Filter] = [("extractor", "=", category_guess.EXTRACTOR), ("sample_id", "in", unknown)]
    rows = catalog.read("features", columns=["sample_id", "texts", "computed_at"], filters=filters)
    rows = rows.sort_values("computed_at")
    guesses = {i: dict(texts).get("category") for i, texts in zip(rows["sample_id"], rows["texts"], strict=True)}
    pairs = zip(table["sample_id"], table["category"], strict=True)
    return [c if isinstance(c, str) else guesses.get(i) for i, c in pairs]
