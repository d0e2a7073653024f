"""A person's override of the gate's verdict: signed, logged, and valid for a few days."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TypedDict

from mm_core.core.errors import BlobNotFound, InputError
from mm_core.core.records import digest_of, parse_record
from mm_core.export.registry import who
from mm_core.export.signature import check, sign
from mm_core.storage.store import Store

PREFIX = "gate/overrides"
FIELDS = ("model", "reason", "decision", "who", "when", "expires")
"""Fields of a record that are signed."""


# Every field except the signature is covered by the signature.
class Override(TypedDict):
    """A person's decision to promote a model against the gate."""

    model: str
    reason: str
    decision: str
    """The gate's decision."""
    who: str
    when: str
    expires: str
    """ISO 8601, UTC, like `when`."""
    signature: dict[str, str] | None
    """None until it is signed."""


def write_override(store: Store, model: str, reason: str, decision: str, days: int) -> Override:
    """Record that a model may be promoted against the gate's decision.

    Every override stays in the store.

    Args:
        store: Keeps the record.
        model: Digest of the model's weights.
        reason: The person's reason.
        decision: The gate's decision.
        days: Validity.

    Returns:
        The signed record.

    Raises:
        InputError: The reason is empty, or no signing key is configured.
    """
    if not reason.strip():
        raise InputError("--override needs a reason: it is kept in the history")
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
    # An unsigned override would let anyone with access to the store promote a model.
    signature = sign(_signed(record))
    if signature is None:
        raise InputError("an override must be signed: set MM_SIGNING_KEY (`mm keys FILE` makes a key)")
    whole: Override = {**record, "signature": signature}
    store.put(f"{PREFIX}/{model[:32]}/{digest_of(whole)[:16]}.json", json.dumps(whole, sort_keys=True).encode())
    return whole


def valid_override(store: Store, model: str) -> Override | None:
    """Return the newest unexpired override of this model, or None; raise InputError for a false signature."""
    overrides: list[Override] = []
    try:
        for entry in store.list(f"{PREFIX}/{model[:32]}"):
            where = f"{store.url}/{entry.key}"
            content = store.fetch(entry.key).read_bytes()
            # A record without one of these fields cannot be judged, so it must not be passed over.
            overrides.append(parse_record(content, Override, where, "delete it and override again", FIELDS))
    except BlobNotFound:
        return None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    # The folder name holds only a part of the digest, so the record's own field is compared.
    alive = sorted((o for o in overrides if o["model"] == model and o["expires"] > now), key=lambda o: o["when"])
    if not alive:
        return None
    check(_signed(alive[-1]), alive[-1].get("signature"))
    return alive[-1]


def _signed(record: Override) -> bytes:
    signed = [record["model"], record["reason"], record["decision"], record["who"], record["when"], record["expires"]]
    return json.dumps(signed).encode()
