"""Counting how often eval photos were asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mm_core.eval.eval_budget import record_use, share_seen, sketch
from mm_core.storage.store import LocalStore


def test_each_candidate_counts_once(tmp_path: Path) -> None:
    store, photos = LocalStore(tmp_path), [f"photo{n}" for n in range(40)]
    assert record_use(store, photos, "a" * 64) == 0
    assert record_use(store, photos, "a" * 64) == 0, "the same candidate again is no new use"
    assert record_use(store, photos, "b" * 64) == 1
    assert record_use(store, photos, "c" * 64) == 2
    assert record_use(store, [f"other{n}" for n in range(40)], "d" * 64) == 0, "fresh photos were never asked"


def test_grown_eval_set_counts_by_the_share_seen_before(tmp_path: Path) -> None:
    store, photos = LocalStore(tmp_path), [f"photo{n}" for n in range(30)]
    record_use(store, photos, "a" * 64)
    assert record_use(store, [*photos, *(f"new{n}" for n in range(10))], "b" * 64) == pytest.approx(0.75)


def test_sketches_estimate_the_share_of_large_sets() -> None:
    """Bottom-256 of sets of thousands: the standard error of a share s is about sqrt(s (1 - s) / 256) = 3 points."""
    today = [f"p{n}" for n in range(6000)]
    for kept in (0, 1500, 4500, 6000):
        earlier = [*today[:kept], *(f"q{n}" for n in range(3000))]
        assert share_seen(sketch(today), sketch(earlier)) == pytest.approx(kept / 6000, abs=4 * np.sqrt(0.25 / 100))
