"""The part of a pool that is used when it is larger than its use needs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from mm_core.core.params import SnapshotParams
from mm_core.core.records import Report
from mm_core.ingest.snapshot import build_snapshot, read_pool
from mm_core.ingest.subset import is_within_limit
from mm_core.storage.catalog import Catalog
from tests.ingest.snapshot_rows import label, sample

ROWS = st.lists(st.tuples(st.sampled_from(["pets", "cards", None]), st.integers(0, 12)), max_size=60)


def frame_of(rows: list[tuple[str | None, int]]) -> pd.DataFrame:
    return pd.DataFrame({"category": [c for c, _ in rows], "group": [f"g{g}" for _, g in rows]})


@given(ROWS, st.integers(1, 20), st.randoms())
def test_whole_groups_up_to_the_limit(rows: list[tuple[str | None, int]], most: int, random) -> None:
    chosen = [row for row, taken in zip(rows, is_within_limit(frame_of(rows), most, "use"), strict=True) if taken]
    sizes, counts = Counter(rows), Counter(chosen)
    assert all(counts[pair] == sizes[pair] for pair in counts), "no group is split"
    for category in {c for c, _ in rows}:
        groups = [pair for pair in counts if pair[0] == category]
        photos, total = sum(counts[pair] for pair in groups), sum(sizes[p] for p in sizes if p[0] == category)
        assert groups and (photos <= most or len(groups) == 1)
        left = [sizes[pair] for pair in sizes if pair[0] == category and pair not in counts]
        assert photos == total or max(counts[p] for p in groups) > most or all(size > most - photos for size in left)
    shuffled = random.sample(rows, len(rows))
    again = [
        row for row, taken in zip(shuffled, is_within_limit(frame_of(shuffled), most, "use"), strict=True) if taken
    ]
    assert Counter(again) == counts, "the order of the rows does not matter"


def test_no_limit_and_stable_choices() -> None:
    single = pd.DataFrame({"category": "pets", "group": [f"g{n}" for n in range(1000)]})
    assert is_within_limit(single, 0, "use").all() and is_within_limit(single, 1000, "use").all()
    few, more = is_within_limit(single, 100, "use"), is_within_limit(single, 200, "use")
    assert (few.sum(), more.sum()) == (100, 200) and not (few & ~more).any()
    # A set that grows by a tenth keeps about nine tenths of its choice.
    grown = pd.DataFrame({"category": "pets", "group": [f"g{n}" for n in range(1100)]})
    kept = (is_within_limit(grown, 100, "use")[:1000] & few).sum()
    assert 80 <= kept < 100
    assert 0 < (is_within_limit(single, 100, "another use") & few).sum() < 30


def test_the_snapshot_evaluates_a_part_and_trains_on_none_of_the_rest(tmp_path) -> None:
    rows = [
        sample(n, kind="pixel_labeled", group=f"g{n // 2}", category="pets", role="eval" if n < 40 else "")
        for n in range(60)
    ]
    catalog = Catalog(str(tmp_path / "store"))
    catalog.add("samples", rows)
    catalog.add("labels", [label(row) for row in rows])
    inputs = {"catalog": {t: catalog.version(t) for t in ("samples", "labels")}, "champion": None, "anchor": None}

    def pools(most: int) -> dict[str, set[str]]:
        params = SnapshotParams(eval_most=most)
        report = build_snapshot(params, catalog, inputs, tmp_path / f"{most}", Report("snapshot"))
        frames = {name: read_pool(tmp_path / f"{most}", name) for name in ("eval", "validation", "train_labeled")}
        above = 0 if not most else whole - most
        assert report.metrics["snapshot/eval_above_limit"] == above
        assert report.facts["counts"]["eval"] == {"pets": len(frames["eval"])}
        return {name: set(frame["sample_id"]) for name, frame in frames.items()}

    whole = 0
    all_pools = pools(0)
    whole = len(all_pools["eval"])
    assert whole >= 40
    limited = pools(10)
    assert len(limited["eval"]) == 10 and limited["eval"] < all_pools["eval"]
    assert all(limited[name] == all_pools[name] for name in ("validation", "train_labeled"))
    groups = Counter(int(np.flatnonzero([row["id"] == i for row in rows])[0]) // 2 for i in limited["eval"])
    assert set(groups.values()) == {2}
