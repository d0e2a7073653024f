"""Rows of a catalog for tests of the snapshot and of what is held out of training."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mm_core.core.params import SnapshotParams
from mm_core.core.records import CATEGORIES
from mm_core.ingest.placement import POOLS, stable_share
from mm_core.ingest.snapshot import place

PARAMS = SnapshotParams()


def sample(number, **values):
    """A labelled pet of its own group, far from every other, that came in batch `b0`."""
    rng = np.random.default_rng(number + 10_000)
    row = {
        "id": f"s{number:05d}", "kind": "pixel_labeled", "batch": "b0", "category": "pets", "caption": None,
        "group": f"g{number}", "role": "", "width": 64, "height": 48, "format": "PNG",
        "phash": f"{int(rng.integers(0, 2**63)):016x}", "near": None,
        "accepted_at": "2026-01-01T00:00:00",
    }  # fmt: skip
    return row | values


def label(row, version=1, alpha=None, **values):
    alpha = alpha or f"alpha-{row['id']}-{version}"
    return {
        "id": f"{row['id']}/{alpha}", "sample_id": row["id"], "alpha_sha256": alpha, "version": version,
        "origin": "drop", "binary": False, "created_at": "2026-01-01T00:00:00",
    } | values  # fmt: skip


def group_in(share_below=None, share_from=None, start=0):
    """A group name whose eval hash lies below or above a bound."""
    for number in range(start, start + 10_000):
        share = stable_share(f"n{number}", "eval")
        if (share_below is None or share < share_below) and (share_from is None or share >= share_from):
            return f"n{number}"
    raise AssertionError


def eval_group(start=0):
    return group_in(share_below=PARAMS.eval_share, start=start)


def train_group(start=0):
    return group_in(share_from=PARAMS.eval_share, start=start)


def placed(samples, labels=None, params=PARAMS):
    labels = [label(row) for row in samples if row["kind"] == "pixel_labeled"] if labels is None else labels
    columns = [*label(sample(0)), "withdrawn_at"]
    return place(params, pd.DataFrame(samples), pd.DataFrame(labels, columns=columns)).set_index("sample_id")


def pools_of(table, sample_id):
    return {pool for pool in POOLS if table.loc[sample_id, pool]}


def many(count=140):
    rows = [sample(n, category=CATEGORIES[n % 6], group=f"g{n // 2}") for n in range(count)]
    rows += [sample(1000 + n, kind="unlabeled", category=None) for n in range(10)]
    return rows + [sample(2000 + n, kind="text_image", caption="a dog") for n in range(10)]


def train_groups(count):
    names = []
    while len(names) < count:
        names.append(train_group(int(names[-1][1:]) + 1 if names else 0))
    return names


def evaluated(rows):
    table = placed(rows)
    return set(table.loc[table["eval"], "group"])


def later(week):
    """Values of a sample that arrives that many weeks after the first batch."""
    return {"batch": f"b{week}", "accepted_at": f"2026-02-{week:02d}T00:00:00"}
