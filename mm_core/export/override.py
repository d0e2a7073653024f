"""A person's word against the gate's: signed, logged, and good for a few days only."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TypedDict

from mm_core.core.errors import BlobNotFound, InputError
from mm_core.core.records import digest_of
from mm_core.export.registry import who
from mm_core.export.signature import check, sign
from mm_core.storage.store import Store

PREFIX = "gate/overrides"
SIGNED = ("model", "reason", "decision", "who", "when", "expires")


class Override(TypedDict):
    """A person's decision to promote a model against the gate."""

    model: str
    reason: str
    decision: str
    """What the gate said."""
    who: str
    when: str
    expires: str
    """As `when`: ISO 8601, UTC."""
    signature: dict[str, str] | None
    """None until it is signed."""


def write_override(store: Store, model: str, reason: str, decision: str, days: int) -> Override:
    """Records that the model of this digest may be promoted although the gate said `decision`; returns the record.

    Every override stays in the store. Raises InputError without a reason or a signing key.
    """
    if not reason.strip():
        raise InputError("--override needs a reason: who reads the history will ask")
    now = datetime.now(UTC)
    record: Override = {
        "model": model,
        "reason": reason.strip(),
        "decision": decision,
        "who": who(),
        "when": now.isoformat(timespec="seconds"),
        "expires": (now + timedelta(days=days)).isoformat(timespec="seconds"),
        "signature": None,
    }
    signature = sign(_signed(record))
    if signature is None:
        raise InputError("an override must be signed: set MM_SIGNING_KEY (`mm keys FILE` makes a key)")
    whole: Override = {**record, "signature": signature}
    store.put(f"{PREFIX}/{model[:32]}/{digest_of(whole)[:16]}.json", json.dumps(whole, sort_keys=True).encode())
    return whole


def valid_override(store: Store, model: str) -> Override | None:
    """The newest unexpired override of this model, or None; raises InputError where its signature is false."""
    found: list[Override] = []
    try:
        for entry in store.list(f"{PREFIX}/{model[:32]}"):
            found.append(json.loads(store.fetch(entry.key).read_text()))
    except BlobNotFound:
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    alive = sorted((o for o in found if o["model"] == model and o["expires"] > now), key=lambda o: o["when"])
    if not alive:
        return None
    check(_signed(alive[-1]), alive[-1].get("signature"))
    return alive[-1]


def _signed(record: Override) -> bytes:
    return json.dumps([record[name] for name in SIGNED]).encode()
