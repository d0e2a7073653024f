"""The search misses nothing that comparing all pairs would find, and its work is bounded."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mm_core.imaging.hash_index import MAX_CANDIDATES, Hashed, HashIndex, find_candidates


def distance(a: int, b: int) -> int:
    return (a ^ b).bit_count()


@settings(max_examples=60)
@given(st.data())
def test_the_index_finds_each_pair_that_comparing_all_finds_once(data: Any) -> None:
    bits = data.draw(st.integers(0, 12))
    base = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6, unique=True))
    flips = st.lists(st.integers(0, 63), max_size=15)
    asked = [h ^ sum({1 << b for b in data.draw(flips)}) for h in base for _ in range(3)]
    inside, found = HashIndex(np.array(base, np.uint64), bits).near(np.array(asked, np.uint64))
    pairs = list(zip(inside.tolist(), found.tolist(), strict=True))
    expected = {(i, j) for i, a in enumerate(base) for j, b in enumerate(asked) if distance(a, b) <= bits}
    assert len(pairs) == len(expected) and set(pairs) == expected


def photos(rng: np.random.Generator, count: int, start: int = 0, marks: int = 4) -> list[tuple[str, str, bytes]]:
    return [
        (f"{n:05d}", f"{int(rng.integers(2**63)):016x}", rng.integers(0, 256, 8 * marks, np.uint8).tobytes())
        for n in range(start, start + count)
    ]


def hashed(rows: list[tuple[str, str, bytes]]) -> Hashed:
    return Hashed.of(*(list(column) for column in zip(*rows, strict=True))) if rows else Hashed.of([], [], [])


def test_copies_by_the_whole_edits_by_shared_landmarks_in_whatever_pieces_the_catalog_comes() -> None:
    rng = np.random.default_rng(0)
    known = photos(rng, 300)
    (_, whole, marks), (other, _, other_marks) = known[7], known[8]
    flipped = bytes([marks[0] ^ 1]) + marks[1:16]
    asked = [
        ("copy", f"{int(whole, 16) ^ 0b101:016x}", b""),
        ("edit", "f" * 16, flipped + rng.bytes(16)),
        ("two", "f" * 16, marks[:24] + other_marks[:16]),
        ("one shared landmark says little", "f" * 16, marks[:8] + rng.bytes(8)),
        ("nothing alike", "f" * 16, b""),
    ]
    copy, edit, two, one, none = find_candidates(hashed(asked), [hashed(known)], 3)
    assert (copy.copies, copy.edits) == (["00007"], [])
    assert (edit.copies, edit.edits) == ([], ["00007"])
    assert two.edits == ["00007", other], "the one that shares more comes first"
    assert (one.edits, none.edits, none.copies) == ([], [], [])
    pieces = [hashed(known[start : start + 70]) for start in range(0, 300, 70)]
    assert find_candidates(hashed(asked), [*reversed(pieces), hashed([])], 3) == [copy, edit, two, one, none]
    assert find_candidates(hashed([]), pieces, 3) == []


def test_where_all_photos_look_alike_few_are_kept_the_same_ones_in_any_order() -> None:
    """A catalog of flat pictures that carry one watermark of two landmarks."""
    known = [(f"{n:05d}", "5" * 16, b"watermrk" * 2 + b"another!") for n in range(20_000)]
    asked = [(f"new {n}", "5" * 16, b"watermrk" + b"another!" + bytes([n % 256]) * 8) for n in range(2_000)]
    found = find_candidates(hashed(asked), [hashed(known)], 3)
    first = [f"{n:05d}" for n in range(MAX_CANDIDATES)]
    assert all(one.copies == first and one.edits == first for one in found)
    halves = [hashed(known[10_000:]), hashed(known[:10_000])]
    assert find_candidates(hashed(asked[:1]), halves, 3) == found[:1]


def test_the_photo_itself_is_ranked_before_those_that_share_only_a_watermark() -> None:
    rng = np.random.default_rng(1)
    mark = b"watermrkanother!"
    known = [(one, whole, marks + mark) for one, whole, marks in photos(rng, 500)]
    (again,) = find_candidates(hashed([("again", "0" * 16, known[400][2])]), [hashed(known)], 3)
    assert again.edits[0] == "00400" and len(again.edits) == MAX_CANDIDATES
