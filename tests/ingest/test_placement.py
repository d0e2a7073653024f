"""The placement in columns gives the frames and digests of the plain one in pandas, on random small catalogs."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mm_core.core.params import SnapshotParams
from mm_core.core.records import CATEGORIES, Report, digest_of
from mm_core.ingest.learnt import Learnt
from mm_core.ingest.placement import POOLS, SCHEMA, table_digest
from mm_core.ingest.snapshot import build_snapshot, eval_state, place, read_pool, write_frames
from mm_core.labeling.candidates import candidates
from mm_core.labeling.outbox import ROUTED
from mm_core.storage.catalog import Catalog
from tests.ingest.snapshot_reference import frame_digest, frame_of, reference_place
from tests.ingest.snapshot_rows import label, sample

COLUMNS = ["sample_id", "group", "alpha_sha256", "label_version", "label_binary", "dropped", *POOLS]


def random_catalog(
    seed: int, count: int, *, weeks: int = 6, apart: bool = False
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows with shared groups, near-duplicates, edited photos, roles, unknown categories and withdrawn labels.

    With `apart` most scenes arrive within one week.
    """
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, max(2, count // 4))
    samples: list[dict[str, object]] = []
    for n in range(count):
        near_hash = rng.random() < (0.02 if apart else 0.2)
        phash = int(rng.choice(centres)) ^ (1 << int(rng.integers(63))) if near_hash else int(rng.integers(2**63))
        week = 1 + int(rng.integers(weeks))
        near = [samples[int(rng.integers(n))]["id"], "erased"] if n and rng.random() < 0.05 else None
        samples.append(
            sample(
                n,
                kind=str(rng.choice(["pixel_labeled", "unlabeled", "text_image"], p=[0.6, 0.3, 0.1])),
                category=[*CATEGORIES, "scenery", "unheard of", None][
                    int(rng.integers(9)) if rng.random() < 0.7 else 0
                ],
                caption=[None, "", "a dog", 'says "hi", twice\nand more'][int(rng.integers(4))],
                group=[f"{week if apart else ''}g{rng.integers(count)}", f"burst{rng.integers(5)}", "", None][
                    int(rng.choice(4, p=[0.64, 0.01, 0.3, 0.05] if apart else [0.6, 0.05, 0.3, 0.05]))
                ],
                role=["", "eval", "train", None][int(rng.choice(4, p=[0.85, 0.05, 0.05, 0.05]))],
                phash=[f"{phash:016x}", "", None][int(rng.choice(3, p=[0.96, 0.02, 0.02]))],
                near=near,
                batch=f"b{n % 3}",
                accepted_at=None if week > 25 else f"2026-01-{week:02d}T00:00:00",
            )
        )
    labels = []
    for row in samples:
        if (row["kind"] == "pixel_labeled") != (rng.random() < 0.1):
            for version in range(1, 1 + int(rng.choice([1, 1, 1, 2, 3]))):
                gone = f"2026-02-{int(rng.integers(1, 9)):02d}T00:00:00" if rng.random() < 0.15 else None
                if gone and rng.random() < 0.3:
                    gone = f"2026-01-{int(rng.integers(1, 7)):02d}T00:00:00"
                when = f"2026-01-{int(rng.integers(1, 4)):02d}T00:00:00"
                same = 1 if rng.random() < 0.3 else version
                labels.append(
                    label(
                        row,
                        version,
                        withdrawn_at=gone,
                        created_at=when,
                        binary=[True, False, None][int(rng.integers(3))],
                    )
                    | {"version": same}
                )
    return samples, labels


def random_params(seed: int) -> SnapshotParams:
    rng = np.random.default_rng(seed)
    return SnapshotParams(
        eval_share=float(rng.choice([0.05, 0.2, 0.5])),
        eval_least=int(rng.choice([0, 8, 20])),
        validation_share=float(rng.choice([0.05, 0.1, 0.4])),
        near_duplicate_bits=int(rng.choice([0, 3, 8])),
    )


def random_learnt(seed: int, samples: pd.DataFrame) -> Learnt:
    """Random photos and groups as the ones that earlier cycles have learnt from."""
    rng, share = np.random.default_rng(seed), (seed // 2) % 3 * 0.1

    def some(column: str, share: float) -> list[str]:
        return [str(value) for value in samples[column].dropna() if rng.random() < share]

    ids = [pa.array(some("id", share), pa.string()) for _ in range(2)]
    return Learnt(*ids, *(some("group", share / 10) for _ in range(2)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 160), st.sampled_from([1, 6, 26]), st.booleans())
@example(5, 160, 6, True)
@example(23, 160, 6, False)
@example(1554, 117, 6, False)  # a label that was withdrawn before its photo arrived
def test_columns_place_as_pandas_does(seed: int, count: int, weeks: int, apart: bool) -> None:
    samples, labels = (pd.DataFrame(rows) for rows in random_catalog(seed, count, weeks=weeks, apart=apart))
    if labels.empty:
        labels = pd.DataFrame(columns=[*label(sample(0)), "withdrawn_at"])
    params = random_params(seed)
    learnt = random_learnt(seed, samples) if seed % 2 else Learnt()
    new, old = place(params, samples, labels, learnt=learnt), reference_place(params, samples, labels, learnt)
    # pandas has two missing values.
    new_rows, old_rows = (table[COLUMNS].astype(object).where(table[COLUMNS].notna(), None) for table in (new, old))
    assert new_rows.to_dict("records") == old_rows.to_dict("records")
    assert [c or None for c in new["category"].fillna("")] == [c or None for c in old["category"].fillna("")]


@pytest.mark.parametrize("seed", range(4))
def test_files_and_digests_are_those_of_pandas(seed: int, tmp_path) -> None:
    samples, labels = random_catalog(seed, 400)
    catalog, params = Catalog(str(tmp_path / "store")), random_params(seed)
    catalog.add("samples", samples[:250])
    catalog.add("samples", samples[250:])
    catalog.add("labels", labels)
    inputs = {"catalog": {t: catalog.version(t) for t in ("samples", "labels")}, "champion": None, "anchor": None}
    facts = build_snapshot(params, catalog, inputs, tmp_path / "new", Report("snapshot")).facts
    old = reference_place(params, catalog.read("samples"), catalog.read("labels"))
    frames = {pool: frame_of(old, pool) for pool in POOLS}
    write_frames(tmp_path / "old", frames, SCHEMA)
    for pool in POOLS:
        assert (tmp_path / "new" / f"{pool}.parquet").read_bytes() == (
            tmp_path / "old" / f"{pool}.parquet"
        ).read_bytes()
    read = {pool: read_pool(tmp_path / "old", pool) for pool in POOLS}
    assert facts["digest"] == digest_of({pool: frame_digest(frame, SCHEMA.names) for pool, frame in read.items()})
    assert facts["eval_digest"] == frame_digest(read["eval"], ("sample_id", "category", "alpha_sha256"))
    dropped = old.loc[old["dropped"] != "", "dropped"].value_counts()
    assert facts["dropped_for_leakage"] == dict(sorted(dropped.items()))
    counts = {
        p: {str(k): int(v) for k, v in f["category"].fillna("unknown").value_counts().items()}
        for p, f in frames.items()
    }
    assert facts["counts"] == {pool: dict(sorted(found.items())) for pool, found in counts.items()}
    state = {row["category"]: (row["eval"], row["labelled"]) for row in eval_state(params, catalog)["categories"]}
    labelled = old.loc[old["alpha_sha256"].notna()]
    for category in CATEGORIES:
        here = labelled["category"] == category
        assert state[category] == (int(labelled.loc[here, "eval"].sum()), int(here.sum()))


@pytest.mark.parametrize("seed", range(3))
def test_candidates_are_those_of_pandas(seed: int, tmp_path) -> None:
    """The oracle joins and groups whole tables in pandas."""
    samples, labels = random_catalog(seed, 300)
    catalog, params = Catalog(str(tmp_path / "store")), random_params(seed)
    catalog.add("samples", samples)
    catalog.add("labels", labels)
    sent = [row["id"] for row in samples[::7]]
    routed = {"extractor": ROUTED, "version": "1", "numbers": {}, "texts": {}, "computed_at": "2026-03-01"}
    catalog.add("features", [{"sample_id": identity, **routed} for identity in sent])
    table = reference_place(params, catalog.read("samples"), catalog.read("labels"))
    known = table["sample_id"].isin(sent + [row["sample_id"] for row in labels])
    table["seen"] = known.groupby(table["group"]).transform("any")
    expected = table.loc[(table["train_unlabeled"] | table["train_text_image"]) & ~known]
    result = candidates(catalog, params)
    assert len(result) > 20 and result["seen"].any() and not result["seen"].all()
    for name in ("sample_id", "group", "seen"):
        assert result[name].tolist() == expected[name].tolist()
    assert [c or None for c in result["category"]] == [c or None for c in expected["category"].fillna("")]


TEXTS = st.none() | st.text(st.sampled_from(["a", '"', ",", "\n", "\r", "'", " ", "\\", "é", "\t"]), max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.none() | st.integers(-5, 5), st.none() | st.booleans()), max_size=12))
def test_digest_is_that_of_the_csv(rows: list[tuple[object, ...]]) -> None:
    schema = pa.schema([("a", pa.string()), ("b", pa.string()), ("n", pa.int32()), ("f", pa.bool_())])
    table = pa.table([list(column) for column in zip(*rows, strict=True)] or [[]] * 4, schema=schema)
    frame = table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype(), pa.bool_(): pd.BooleanDtype()}.get)
    assert table_digest(table, ("a", "b", "n", "f")) == frame_digest(frame, ("a", "b", "n", "f"))
    assert table_digest(table, ("b", "a")) == frame_digest(frame, ("b", "a"))
