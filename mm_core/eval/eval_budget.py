"""Count of the candidates that were judged on the eval photos; repeated use of an eval set overfits to it.

The store keeps one small object per candidate and eval set. It is written before the gate runs, so an interrupted run
counts, and judging a candidate again does not count twice. Eval sets grow, so an earlier use counts as the share of
today's photos that it contained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TypedDict

from mm_core.core.records import digest_of, parse_record, sha256_bytes
from mm_core.storage.store import Store

PREFIX = "gate/uses"
SKETCH = 256
"""Size of the sketch of a set: its smallest hashes, a uniform sample (bottom-k, Cohen & Kaplan 2007)."""


def record_use(store: Store, eval_ids: Iterable[str], candidate: str) -> float:
    """Record that a candidate is judged on these photos, and return how many other candidates they judged before.

    Args:
        store: Holds one object per use under `PREFIX`.
        eval_ids: Sample ids of the eval photos.
        candidate: Digest of the candidate's weights.

    Returns:
        The number of other candidates, each weighted by the share of today's photos that judged it.
    """
    # The key depends on the set of photos, not on their order.
    ids = sorted(set(eval_ids))
    mine = sketch(ids)
    key = f"{PREFIX}/{candidate[:32]}-{digest_of(ids)[:32]}.json"
    earlier: dict[str, float] = {}
    for entry in store.list(PREFIX):
        content, where = store.fetch(entry.key).read_bytes(), f"{store.url}/{entry.key}"
        # Without this record the gate would count one use of the eval photos too few.
        use = parse_record(content, Use, where, "restore it from a backup", ("candidate", "sketch"))
        if use["candidate"] != candidate:
            seen = share_seen(mine, use["sketch"])
            # A candidate judged on several eval sets counts once, with its largest share.
            earlier[use["candidate"]] = max(seen, earlier.get(use["candidate"], 0.0))
    if not store.exists(key):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        own: Use = {"candidate": candidate, "photos": len(ids), "sketch": mine, "when": now}
        store.put(key, json.dumps(own).encode())
    return sum(earlier.values())


class Use(TypedDict):
    """The record of one judged candidate."""

    candidate: str
    photos: int
    sketch: list[str]
    """As of `sketch`."""
    when: str
    """ISO 8601, UTC."""


def sketch(ids: Iterable[str]) -> list[str]:
    """Return the `SKETCH` smallest hashes (16 hex digits) of the ids, in ascending order."""
    return sorted(sha256_bytes(identity.encode())[:16] for identity in set(ids))[:SKETCH]


def share_seen(today: list[str], earlier: list[str]) -> float:
    """Estimate the share of today's set that the earlier set contains, in [0, 1]; exact for small sets."""
    # A full sketch contains no information about hashes above its last one. "g" sorts after every hex digit.
    reach = min([s[-1] for s in (today, earlier) if len(s) == SKETCH], default="g")
    comparable = [item for item in today if item <= reach]
    known = set(earlier)
    return sum(item in known for item in comparable) / len(comparable) if comparable else 0.0
