"""Which photos are worth a person's time: value = uncertainty x difficulty x diversity x need, chosen one by one.

| part        | what                                                                                   | range      |
|-------------|----------------------------------------------------------------------------------------|------------|
| uncertainty | mean rank, within the photo's category, of what the model is unsure of (`signals.py`)  | [FLOOR, 1] |
| difficulty  | rank, within the category, of how hard the photo is to matte (`structuring.difficulty`)| [FLOOR, 1] |
| quality     | without a model in place of the two: rank of sharpness and light                       | [FLOOR, 1] |
| diversity   | d / (d + s): d to the nearest photo that is labelled or chosen, s the median of d      | (0, 1)     |
| need        | how weak the category is (`need.py`) / (2 n + 1), n photos of it chosen before         | > 0        |
| feedback    | `FEEDBACK` where a user complained of the cut, else 1                                  | 1 or 2     |

Ranks within a category, because decoders differ in how sure they sound. Diversity is greedy k-center (Sener & Savarese
2018, "Active learning for convolutional neural networks: a core-set approach", algorithm 1) softened to a factor: a
burst takes one place, and an outlier no more than any other new photo. The divisor of need is Sainte-Laguë's: over many
photos each category's share follows its need, whatever its share of the gallery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mm_core.ingest.snapshot import stable_share

FLOOR = 0.5
"""Lowest value of a ranked part: no signal of a model that is itself unsure can shut a photo out."""
REPEATED = 0.02
"""Diversity of a photo that shows again what is labelled: something must decide where nothing is new."""
FEEDBACK = 2.0
UNKNOWN = "unknown"
"""Category of photos of which neither a person nor a guess said one."""
ROWS_AT_ONCE = 2048


def choose(
    looked: pd.DataFrame,
    signals: Mapping[str, pd.DataFrame],
    vectors: np.ndarray,
    known: np.ndarray,
    need: Mapping[str, float],
    *,
    budget: int,
    caps: Mapping[str, int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """At most `budget` rows of `looked` in the order chosen, with signals, parts and `score`, the product of the parts.

    `looked`: columns sample_id, category (None: unknown), group, seen (one of the group is labelled or was sent) and
    feedback (bool). `signals`: ranked part -> its columns, higher = rather sent, in the rows' order. `vectors` float32
    (N, D), of NaN where a photo has none; `known` (M, D): of photos that are labelled or were sent. `caps`: category ->
    how many more may be chosen. One photo of a group, groups nobody has seen first; ties by a hash of seed and id, so
    that the rows' order means nothing.
    """
    order = np.argsort(looked["sample_id"].to_numpy(dtype=str), kind="stable")
    table: Any = looked.iloc[order].reset_index(drop=True)
    vectors = vectors[order]
    category = table["category"].fillna(UNKNOWN).to_numpy(dtype=object)
    for name, columns in signals.items():
        raw = columns.iloc[order].reset_index(drop=True)
        table[[*raw]] = raw
        table[name] = ranked(raw, category)
    table["feedback"] = np.where(table["feedback"], FEEDBACK, 1.0)
    fixed = table[[*signals, "feedback"]].prod(axis=1).to_numpy(float)

    tie = np.array([stable_share(i, f"route/{seed}") for i in table["sample_id"]])
    group = pd.factorize(table["group"])[0]
    seen = table["seen"].to_numpy(bool)
    weight = np.array([need.get(c, mean_need(need)) for c in category])
    spread = Spread(vectors, known)
    counts = dict.fromkeys(category, 0)
    free = np.ones(len(table), bool)
    picks: list[int] = []
    parts: list[dict[str, float]] = []
    while len(picks) < budget:
        for name, cap in (caps or {}).items():
            if counts.get(name, 0) >= cap:
                free &= category != name
        unseen = free & ~seen
        open_ = unseen if unseen.any() else free
        if not open_.any():
            break
        left = weight / np.array([2 * counts[c] + 1 for c in category])
        value = np.where(open_, fixed * spread.share * left, -1.0)
        best = int(np.lexsort((tie, -value))[0])
        picks.append(best)
        parts.append({"diversity": float(spread.share[best]), "need": float(left[best]), "score": float(value[best])})
        counts[category[best]] += 1
        free &= group != group[best]
        spread.add(best)
    chosen = table.iloc[picks].reset_index(drop=True)
    return chosen.join(pd.DataFrame(parts, columns=["diversity", "need", "score"]))


def ranked(columns: pd.DataFrame, category: np.ndarray) -> np.ndarray:
    """Mean percentile rank of the columns within each category, float64 (N,) in [FLOOR, 1]."""
    shares = columns.groupby(category).rank(pct=True).mean(axis=1).to_numpy(float)
    return FLOOR + (1 - FLOOR) * shares


class Spread:
    """How new each photo is beside what is labelled or chosen."""

    def __init__(self, vectors: np.ndarray, known: np.ndarray):
        """`vectors` float32 (N, D) with NaN rows where there is none, `known` (M, D); where nothing is known, the
        middle of the photos is."""
        self._has: Any = ~np.isnan(vectors).any(axis=1) if vectors.size else np.zeros(len(vectors), bool)
        self._vectors = np.nan_to_num(vectors)
        self.distance: np.ndarray = np.full(len(vectors), np.inf)
        rows = self._vectors[self._has]
        if len(rows):
            self.distance[self._has] = nearest(rows, known if len(known) else rows.mean(0, keepdims=True))
        finite = self.distance[np.isfinite(self.distance)]
        self.scale = max(float(np.median(finite)), 1e-6) if len(finite) else 1.0
        self.distance[~self._has] = self.scale

    @property
    def share(self) -> np.ndarray:
        """float64 (N,) in [REPEATED, 1); about 1/2 for a photo without vector."""
        return REPEATED + (1 - REPEATED) * self.distance / (self.distance + self.scale)

    def add(self, row: int) -> None:
        """Photo `row` is chosen: its like are no longer new."""
        if self._has[row]:
            near = np.linalg.norm(self._vectors - self._vectors[row], axis=1)
            self.distance[self._has] = np.minimum(self.distance, near)[self._has]


def nearest(vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Euclidean distance of each of `vectors` (N, D) to the nearest of `known` (M, D), M > 0; float64 (N,)."""
    vectors, best = vectors.astype(np.float64), np.full(len(vectors), np.inf)
    squared = (vectors**2).sum(1)
    for start in range(0, len(known), ROWS_AT_ONCE):
        part = known[start : start + ROWS_AT_ONCE].astype(np.float64)
        best = np.minimum(best, (squared[:, None] + (part**2).sum(1) - 2 * vectors @ part.T).min(1))
    return np.sqrt(np.maximum(best, 0))


def spread_out(
    ids: Sequence[str] | np.ndarray,
    categories: Sequence[str | None],
    vectors: np.ndarray,
    need: Mapping[str, float],
    limit: int,
    seed: int,
) -> np.ndarray:
    """Rows of at most `limit` photos, rising: categories by need, and within each photos that lie far apart.

    k-center, farthest first, repeatable by seed; photos without vector (NaN) come after all others of their category.
    """
    names = np.array([c or UNKNOWN for c in categories], dtype=object)
    sizes = {name: int((names == name).sum()) for name in sorted(set(names))}
    found: list[Any] = [np.zeros(0, int)]
    for name, count in apportion(sizes, need, limit).items():
        rows = np.flatnonzero(names == name)
        found.append(rows[_far_apart([str(ids[n]) for n in rows], vectors[rows], count, seed)])
    return np.sort(np.concatenate(found))


def apportion(sizes: Mapping[str, int], need: Mapping[str, float], limit: int) -> dict[str, int]:
    """At most `limit` places among categories of the given sizes, by need (Sainte-Laguë), none more than its size."""
    counts = dict.fromkeys(sizes, 0)
    for _ in range(min(limit, sum(sizes.values()))):
        open_ = [name for name in sizes if counts[name] < sizes[name]]
        counts[max(open_, key=lambda name: need.get(name, mean_need(need)) / (2 * counts[name] + 1))] += 1
    return counts


def _far_apart(ids: Sequence[str], vectors: np.ndarray, limit: int, seed: int) -> np.ndarray:
    if len(ids) <= limit:
        return np.arange(len(ids))
    tie = np.argsort([stable_share(i, f"look/{seed}") for i in ids], kind="stable")
    spread = Spread(vectors[tie], vectors[:0])
    late = np.isnan(vectors[tie]).any(axis=1)
    picks: list[int] = []
    for _ in range(limit):
        distance = np.where(late, -1.0, spread.distance)
        distance[picks] = -2.0
        picks.append(int(np.argmax(distance)))
        spread.add(picks[-1])
    return np.sort(tie[picks])


def mean_need(need: Mapping[str, float]) -> float:
    """What a category of which nothing is known counts as."""
    return float(np.mean(list(need.values()))) if need else 1.0
