"""How often eval photos have been asked: each candidate that they judged may have been chosen because of the answer.

One small object per candidate and eval set in the store, written before the gate looks, so that a killed run counts
too and the same candidate judged again does not. Eval sets grow: a use counts as the share of today's photos in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime

from mm_core.core.records import digest_of, sha256_bytes
from mm_core.storage.store import Store

PREFIX = "gate/uses"
SKETCH = 256
"""Photos kept of each set: those of the smallest hashes, a uniform sample (bottom-k, Cohen & Kaplan 2007)."""


def record_use(store: Store, eval_ids: Iterable[str], candidate: str) -> float:
    """Notes that `candidate` (digest) is judged on these photos; returns how many others they have judged before."""
    ids = sorted(set(eval_ids))
    mine = sketch(ids)
    key = f"{PREFIX}/{candidate[:32]}-{digest_of(ids)[:32]}.json"
    earlier: dict[str, float] = {}
    for entry in store.list(PREFIX):
        use = json.loads(store.fetch(entry.key).read_text())
        if use["candidate"] != candidate:
            seen = share_seen(mine, use["sketch"])
            earlier[use["candidate"]] = max(seen, earlier.get(use["candidate"], 0.0))
    if not store.exists(key):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        use = {"candidate": candidate, "photos": len(ids), "sketch": mine, "when": now}
        store.put(key, json.dumps(use).encode())
    return sum(earlier.values())


def sketch(ids: Iterable[str]) -> list[str]:
    """The `SKETCH` smallest hashes (16 hex digits) of the ids, ascending."""
    return sorted(sha256_bytes(identity.encode())[:16] for identity in set(ids))[:SKETCH]


def share_seen(today: list[str], earlier: list[str]) -> float:
    """Share of today's set that the earlier one holds, in [0, 1], from their sketches; exact for small sets."""
    # Above the last hash of a full sketch nothing is known about its set.
    reach = min([s[-1] for s in (today, earlier) if len(s) == SKETCH], default="g")
    comparable = [item for item in today if item <= reach]
    known = set(earlier)
    return sum(item in known for item in comparable) / len(comparable) if comparable else 0.0
