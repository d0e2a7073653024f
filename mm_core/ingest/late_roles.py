"""Roles that a drop gave to a known photo after its arrival, from the table `corrections`."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from mm_core.storage.catalog import Catalog

LATE, LATE_TRAIN = "late eval", "late eval, train before"
"""Roles of photos that got the role `eval` after their arrival; the catalog has `eval`."""


def with_late_roles(samples: pa.Table, catalog: Catalog, version: int | None = None) -> pa.Table:
    """Return the samples with the roles LATE, LATE_TRAIN and `train` of photos that had another role before.

    `version` is that of `corrections`: the newest by default, and -1 before its first row.

    A photo that could have been trained on before a drop gave it the role `eval` has LATE, or LATE_TRAIN if it had the
    role `train`. A photo that once had the role `train` keeps it if no drop gave it another one.
    """
    if version == -1:
        return samples
    of_roles = [("column", "=", "role")]
    changes = catalog.read("corrections", version=version, columns=["sample_id", "old"], filters=of_roles)
    before: dict[str, set[str]] = {}
    for sample, old in zip(changes["sample_id"], changes["old"].fillna(""), strict=True):
        before.setdefault(sample, set()).add(old)
    if not before:
        return samples
    changed = pc.is_in(samples["id"], pa.array(list(before), pa.string())).combine_chunks()
    role = samples["role"].cast(pa.string()).combine_chunks()
    rows = zip(samples["id"].filter(changed).to_pylist(), role.filter(changed).to_pylist(), strict=True)
    roles = [_late_role(now or "", before[sample]) for sample, now in rows]
    column = pc.replace_with_mask(role, changed, pa.array(roles, pa.string())).dictionary_encode()
    return samples.set_column(samples.schema.get_field_index("role"), "role", column)


def _late_role(now: str, before: Collection[str]) -> str:
    if now == "eval" and any(role != "eval" for role in before):
        return LATE_TRAIN if "train" in before else LATE
    return "train" if not now and "train" in before else now


def given_by(catalog: Catalog, batches: Collection[str]) -> set[str]:
    """Return the ids of the photos whose role one of the batches (kind/batch) changed."""
    changes = catalog.read("corrections", columns=["sample_id", "kind", "batch"], filters=[("column", "=", "role")])
    return set(changes.loc[(changes["kind"] + "/" + changes["batch"]).isin(list(batches)), "sample_id"])
