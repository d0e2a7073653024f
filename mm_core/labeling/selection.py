"""Select photos to label one by one by value = uncertainty × difficulty × diversity × need × feedback.

| factor      | meaning                                                                                | range      |
|-------------|----------------------------------------------------------------------------------------|------------|
| uncertainty | mean rank, within the photo's category, of the model's uncertainty (`signals.py`)      | [FLOOR, 1] |
| difficulty  | rank, within the category, of how hard the photo is to matte (`structuring.difficulty`)| [FLOOR, 1] |
| quality     | replaces the two without a model: rank of sharpness and light                          | [FLOOR, 1] |
| diversity   | d / (d + s): d to the nearest photo that is labelled or chosen, s the median of d      | (0, 1)     |
| need        | how weak the category is (`need.py`) / (2 n + 1), n photos of it chosen before         | > 0        |
| feedback    | `FEEDBACK` if a user complained about the matte, else 1                                | 1 or 2     |

Ranks are taken within a category, because the decoders' confidence differs. Diversity is greedy k-center (Sener &
Savarese 2018, "Active learning for convolutional neural networks: a core-set approach", algorithm 1) as a soft factor:
a burst of similar photos is chosen once, and an outlier has no advantage over other new photos. The divisor of need is
Sainte-Laguë's: over many photos each category's share follows its need, independent of its share of the gallery.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mm_core.ingest.placement import stable_share

FLOOR = 0.5
"""Lowest value of a ranked factor, so that no signal of an uncertain model can exclude a photo."""
REPEATED = 0.02
"""Lowest diversity, of a photo equal to a labelled one; above 0, so that the other factors still decide."""
FEEDBACK = 2.0
"""Factor for photos with user complaints."""
UNKNOWN = "unknown"
"""Category of photos with neither a stated nor a guessed category."""
ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class Looked:
    """The photos to choose from."""

    table: pd.DataFrame
    """Columns sample_id, category (None: unknown), group, seen (a photo of the group is labelled or was sent) and
    feedback (bool); `first_pass` adds `stated`, the category before a guess fills it in."""
    vectors: np.ndarray
    """float32 (N, D), NaN for photos without a vector."""
    known: np.ndarray
    """float32 (M, D), vectors of photos that are labelled or were sent."""


def choose(
    looked: Looked,
    signals: Mapping[str, pd.DataFrame],
    need: Mapping[str, float],
    *,
    budget: int,
    caps: Mapping[str, int] | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return at most `budget` rows in the order chosen, with signals, factors and `score`, the product of the factors.

    One photo of each group is chosen, and groups without a labelled or sent photo precede the others. Ties are broken
    by a hash of seed and id, so the order of the rows has no influence.

    Args:
        looked: The photos.
        signals: Ranked factor → its columns in the order of the rows; higher values favour a photo.
        need: Category → weight.
        budget: Maximum number of photos.
        caps: Category → maximum number of further photos.
        seed: Seed of the tie-break.
    """
    # Sort by id, so that the result does not depend on the order of the rows.
    order = np.argsort(looked.table["sample_id"].to_numpy(dtype=str), kind="stable")
    table: pd.DataFrame = looked.table.iloc[order].reset_index(drop=True)
    category = table["category"].fillna(UNKNOWN).to_numpy(dtype=object)
    for name, columns in signals.items():
        raw = columns.iloc[order].reset_index(drop=True)
        table[[*raw]] = raw
        table[name] = ranked(raw, category)
    table["feedback"] = np.where(table["feedback"], FEEDBACK, 1.0)
    # These factors do not change while photos are chosen.
    fixed = table[[*signals, "feedback"]].prod(axis=1).to_numpy(float)

    tie = np.array([stable_share(i, f"route/{seed}") for i in table["sample_id"]])
    group = pd.factorize(table["group"])[0]
    seen = table["seen"].to_numpy(bool)
    weight = np.array([need.get(c, mean_need(need)) for c in category])
    spread = Spread(looked.vectors[order], looked.known)
    counts = dict.fromkeys(category, 0)
    free = np.ones(len(table), bool)
    picks: list[int] = []
    parts: list[dict[str, float]] = []
    while len(picks) < budget:
        # Categories at their cap are closed.
        for name, cap in (caps or {}).items():
            if counts.get(name, 0) >= cap:
                free &= category != name
        unseen = free & ~seen
        # Prefer groups that have no labelled or sent photo.
        open_ = unseen if unseen.any() else free
        if not open_.any():
            break
        # Sainte-Laguë: the weight of a category falls with each photo chosen from it.
        left = weight / np.array([2 * counts[c] + 1 for c in category])
        value = np.where(open_, fixed * spread.share * left, -1.0)
        # Largest value first, then the smallest hash.
        best = int(np.lexsort((tie, -value))[0])
        picks.append(best)
        parts.append({"diversity": float(spread.share[best]), "need": float(left[best]), "score": float(value[best])})
        counts[category[best]] += 1
        free &= group != group[best]
        spread.add(best)
    chosen = table.iloc[picks].reset_index(drop=True)
    return chosen.join(pd.DataFrame(parts, columns=["diversity", "need", "score"]))


def ranked(columns: pd.DataFrame, category: np.ndarray) -> np.ndarray:
    """Return the mean percentile rank of the columns within each category, float64 (N,) in [FLOOR, 1]."""
    shares = columns.groupby(category).rank(pct=True).mean(axis=1).to_numpy(float)
    return FLOOR + (1 - FLOOR) * shares


class Spread:
    """Distance of each photo to the nearest photo that is labelled or chosen."""

    def __init__(self, vectors: np.ndarray, known: np.ndarray) -> None:
        """Compute the initial distances.

        Args:
            vectors: float32 (N, D), NaN rows for photos without a vector.
            known: float32 (M, D). If it is empty, distances are measured to the mean of the photos.
        """
        self._has: np.ndarray = ~np.isnan(vectors).any(axis=1) if vectors.size else np.zeros(len(vectors), bool)
        self._vectors = np.nan_to_num(vectors)
        self.distance: np.ndarray = np.full(len(vectors), np.inf)
        rows = self._vectors[self._has]
        if len(rows):
            self.distance[self._has] = nearest(rows, known if len(known) else rows.mean(0, keepdims=True))
        finite = self.distance[np.isfinite(self.distance)]
        self.scale = max(float(np.median(finite)), 1e-6) if len(finite) else 1.0
        # Photos without a vector get the median distance.
        self.distance[~self._has] = self.scale

    @property
    def share(self) -> np.ndarray:
        """Diversity, float64 (N,) in [REPEATED, 1); about 1/2 for a photo without vector."""
        return REPEATED + (1 - REPEATED) * self.distance / (self.distance + self.scale)

    def add(self, row: int) -> None:
        """Update the distances after photo `row` was chosen."""
        if self._has[row]:
            near = np.linalg.norm(self._vectors - self._vectors[row], axis=1)
            self.distance[self._has] = np.minimum(self.distance, near)[self._has]


def nearest(vectors: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the Euclidean distances float64 (N,) of `vectors` (N, D) to the nearest of `known` (M, D), M > 0."""
    vectors, best = vectors.astype(np.float64), np.full(len(vectors), np.inf)
    squared = (vectors**2).sum(1)
    for start in range(0, len(known), ROWS_AT_ONCE):
        chunk = known[start : start + ROWS_AT_ONCE].astype(np.float64)
        # |a − b|² = |a|² + |b|² − 2ab avoids an array of all differences.
        best = np.minimum(best, (squared[:, None] + (chunk**2).sum(1) - 2 * vectors @ chunk.T).min(1))
    return np.sqrt(np.maximum(best, 0))


def spread_out(
    ids: Sequence[str] | np.ndarray,
    categories: Sequence[str | None],
    vectors: np.ndarray,
    need: Mapping[str, float],
    limit: int,
    seed: int,
) -> np.ndarray:
    """Return the sorted rows of at most `limit` photos: categories by need, and distant photos within each category.

    The method is k-center, farthest point first, repeatable by seed. Photos without a vector (NaN) follow all others of
    their category.
    """
    names = np.array([c or UNKNOWN for c in categories], dtype=object)
    sizes = {name: int((names == name).sum()) for name in sorted(set(names))}
    rows: list[np.ndarray] = [np.zeros(0, int)]
    for name, count in apportion(sizes, need, limit).items():
        members = np.flatnonzero(names == name)
        rows.append(members[_far_apart([str(ids[n]) for n in members], vectors[members], count, seed)])
    return np.sort(np.concatenate(rows))


def apportion(sizes: Mapping[str, int], need: Mapping[str, float], limit: int) -> dict[str, int]:
    """Distribute at most `limit` places among categories by need (Sainte-Laguë), to none more than its size."""
    counts = dict.fromkeys(sizes, 0)
    # Give one place at a time to the category with the largest quotient.
    for _ in range(min(limit, sum(sizes.values()))):
        open_ = [name for name in sizes if counts[name] < sizes[name]]
        counts[max(open_, key=lambda name: need.get(name, mean_need(need)) / (2 * counts[name] + 1))] += 1
    return counts


def _far_apart(ids: Sequence[str], vectors: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Return the sorted rows of at most `limit` distant photos."""
    if len(ids) <= limit:
        return np.arange(len(ids))
    # Start from an order that depends on seed and id only.
    tie = np.argsort([stable_share(i, f"look/{seed}") for i in ids], kind="stable")
    spread = Spread(vectors[tie], vectors[:0])
    late = np.isnan(vectors[tie]).any(axis=1)
    picks: list[int] = []
    for _ in range(limit):
        # Negative values put photos without a vector after the others, and chosen ones last.
        distance = np.where(late, -1.0, spread.distance)
        distance[picks] = -2.0
        picks.append(int(np.argmax(distance)))
        spread.add(picks[-1])
    return np.sort(tie[picks])


def mean_need(need: Mapping[str, float]) -> float:
    """Return the mean weight, used for categories that `need` does not contain."""
    return float(np.mean(list(need.values()))) if need else 1.0
