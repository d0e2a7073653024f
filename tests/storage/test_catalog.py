"""The catalog on a folder and on S3 over HTTP: idempotent, conditional, safe beside other processes."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from time import sleep

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from mm_core.core.errors import CatalogError
from mm_core.storage import local_files, seals
from mm_core.storage.catalog import Catalog, CatalogMoved, _s3_options
from mm_core.storage.schemas import KEYS, SCHEMAS


@pytest.fixture(params=["folder", "s3"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    return Catalog(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("bucket"))


def ids(catalog: Catalog, **how) -> list[str]:
    return sorted(catalog.read("labels", columns=["id"], **how)["id"])


def test_an_empty_catalog_reads_as_empty_tables(catalog: Catalog) -> None:
    assert set(catalog.versions().values()) == {-1}
    for table, schema in SCHEMAS.items():
        frame = catalog.read(table)
        assert frame.empty and list(frame.columns) == schema.names
    assert catalog.delete("labels", "id", ["x"]) == 0
    assert set(KEYS) == set(SCHEMAS)


def test_adding_again_changes_nothing_not_even_the_version(catalog: Catalog) -> None:
    rows = [{"id": "a", "version": 1}, {"id": "b", "version": 1}]
    assert catalog.add("labels", rows) == 2
    before = catalog.version("labels")
    assert catalog.add("labels", [{"id": "a", "version": 9}]) == 0 == catalog.add("labels", [])
    assert catalog.version("labels") == before
    assert set(catalog.read("labels")["version"]) == {1}


def test_upsert_replaces_and_old_versions_stay(catalog: Catalog) -> None:
    catalog.add("labels", [{"id": "a", "version": 1, "binary": True}])
    old = catalog.version("labels")
    assert catalog.upsert("labels", [{"id": "a", "version": 2}, {"id": "b", "version": 1}]) == 1
    now = catalog.read("labels").set_index("id")
    assert now["version"].to_dict() == {"a": 2, "b": 1} and now["binary"].isna().all()
    assert ids(catalog, version=old) == ["a"] and ids(catalog, version=-1) == []


def test_counts_and_queries_of_old_versions(catalog: Catalog) -> None:
    assert catalog.count("labels") == 0
    for number in range(3):
        catalog.add("labels", [{"id": f"{number}{letter}"} for letter in "ab"])
    old = catalog.version("labels")
    catalog.delete("labels", "id", ["0a"])
    catalog.upsert("labels", [{"id": "1a", "version": 2}, {"id": "new"}])
    counts = [catalog.count("labels", version=version) for version in (None, old, -1)]
    assert counts == [6, 6, 0] == [len(catalog.read("labels", version=version)) for version in (None, old, -1)]
    catalog.delete("labels", "id", ["0b", "new"])
    assert catalog.count("labels") == 4
    catalog.compact("labels")
    assert catalog.count("labels") == 4
    sql = "SELECT count(*) AS n, count(version) AS v FROM labels WHERE withdrawn_at IS NULL"
    counts = [catalog.query(sql, versions).iloc[0].tolist() for versions in (None, {"labels": old}, {"labels": -1})]
    assert counts == [[4, 1], [6, 0], [0, 0]]


def test_fill_touches_only_what_is_null(catalog: Catalog) -> None:
    catalog.add("samples", [{"id": "a", "caption": "first", "role": "train"}, {"id": "b"}])
    new = [{"id": i, "caption": "second", "category": "pets", "role": "eval"} for i in "abc"]
    assert catalog.fill("samples", new, ("caption", "category")) == 1
    rows = catalog.read("samples").set_index("id")
    assert rows["caption"].to_dict() == {"a": "first", "b": "second", "c": "second"}
    assert set(rows["category"]) == {"pets"}
    assert rows.loc["a", "role"] == "train" and pd.isna(rows.loc["b", "role"])


def test_a_commit_decided_on_an_old_version_is_refused(catalog: Catalog) -> None:
    catalog.add("labels", [{"id": "a"}], at=-1)
    version = catalog.version("labels")
    catalog.add("labels", [{"id": "b"}], at=version)
    with pytest.raises(CatalogMoved):
        catalog.add("labels", [{"id": "c"}], at=version)
    with pytest.raises(CatalogMoved):
        catalog.fill("labels", [{"id": "c"}], ("annotator",), at=-1)
    assert ids(catalog) == ["a", "b"]


@pytest.mark.parametrize("damage", ["missing", "folder", "emptied", "one bit"])
def test_a_damaged_commit_is_not_read_as_another_one(tmp_path: Path, damage: str) -> None:
    """delta-rs takes an empty commit for one without changes, and reads the table without a missing newest one."""
    catalog, log = Catalog(str(tmp_path)), tmp_path / "catalog" / "labels" / "_delta_log"
    for name in "ab":
        catalog.add("labels", [{"id": name}])
    newest = sorted(log.glob("*.json"))[-1]
    whole = newest.read_bytes()
    newest.unlink()
    if damage == "folder":
        newest.mkdir()
    if damage == "emptied":
        newest.touch()
    if damage == "one bit":
        # The commit would name another number of rows.
        newest.write_bytes(whole.replace(b'numRecords\\":1', b'numRecords\\":3'))
        assert newest.read_bytes() != whole
    for use in (lambda: catalog.read("labels"), lambda: catalog.version("labels"), lambda: catalog.count("labels")):
        with pytest.raises(CatalogError, match=rf"{newest} is .*: restore the store's catalog/ from a backup"):
            use()
    newest.rmdir() if newest.is_dir() else newest.unlink(missing_ok=True)
    newest.write_bytes(whole)
    assert ids(catalog) == ["a", "b"]


@pytest.mark.parametrize("use", ["read", "query", "upsert", "delete", "compact"])
def test_a_flipped_bit_in_a_data_file_ends_no_process_and_is_not_copied(tmp_path: Path, use: str) -> None:
    """A negative length in parquet's footer aborts delta-rs, and a merge would seal a flipped value anew."""
    catalog = Catalog(str(tmp_path))
    for name in "ab":
        catalog.add("labels", [{"id": name, "version": 1}])
    file = sorted((tmp_path / "catalog" / "labels").glob("*.parquet"))[0]
    whole = file.read_bytes()
    uses = {
        "read": lambda: catalog.read("labels"),
        "query": lambda: catalog.query("SELECT count(*) FROM labels"),
        "upsert": lambda: catalog.upsert("labels", [{"id": "a", "version": 2}]),
        "delete": lambda: catalog.delete("labels", "id", ["a"]),
        "compact": lambda: catalog.compact("labels"),
    }
    version = catalog.version("labels")
    # The last byte before the length of the footer, and one in the middle of the values.
    for place in (len(whole) - 9, len(whole) // 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(CatalogError, match=rf"{file} is damaged, .*: restore the store's catalog/ from a backup"):
            uses[use]()
    file.write_bytes(whole)
    assert catalog.version("labels") == version and ids(catalog) == ["a", "b"]


def test_filters_and_columns(catalog: Catalog) -> None:
    for number in range(4):  # several files, so that file statistics come into play
        catalog.add("labels", [{"id": str(number), "sample_id": f"s{number % 2}", "version": number}])
    assert ids(catalog, filters=[("sample_id", "=", "s1")]) == ["1", "3"]
    assert ids(catalog, filters=[("id", "in", ["0", "3", "x"])]) == ["0", "3"]
    assert ids(catalog, filters=[("sample_id", "!=", "s1"), ("version", ">", 1)]) == ["2"]
    assert ids(catalog, filters=[("id", "in", [])]) == []


def test_missing_values_of_pandas_become_null(catalog: Catalog) -> None:
    catalog.add("samples", [{"id": "a", "caption": math.nan, "category": pd.NA, "source": None}])
    frame = catalog.read("samples")
    catalog.upsert("samples", frame.to_dict("records"))
    assert catalog.read("samples")[["caption", "category", "source"]].isna().all(axis=None)


def test_maps_come_back_as_dicts(catalog: Catalog) -> None:
    row = {"sample_id": "a", "extractor": "photo", "version": "1", "numbers": {"x": 0.5}, "texts": {"k": "v"}}
    catalog.upsert("features", [row])
    found = catalog.read("features").iloc[0]
    assert found["numbers"] == {"x": 0.5} and found["texts"] == {"k": "v"}


def test_delete_by_value(catalog: Catalog) -> None:
    catalog.add("rejects", [{"key": k, "batch": "x"} for k in "abc"])
    assert catalog.delete("rejects", "key", ["a", "b", "x"]) == 2
    assert list(catalog.read("rejects")["key"]) == ["c"]


def test_a_table_of_another_version_is_said(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "catalog" / "labels"), pa.table({"id": ["a"], "mask": ["b"]}))
    with pytest.raises(CatalogError, match="another version"):
        Catalog(str(tmp_path)).read("labels")


def test_a_table_from_before_a_column_is_read_and_brought_up_by_the_next_write(catalog: Catalog) -> None:
    columns = [name for name in SCHEMAS["features"].names if name != "vector"]
    old = pa.schema([SCHEMAS["features"].field(name) for name in columns])
    DeltaTable.create(f"{catalog.url}/features", old, storage_options=_s3_options())
    row = {"sample_id": "a", "extractor": "photo", "version": "1"}
    rows = pa.Table.from_pylist([row | {"numbers": {"x": 1.0}}], schema=old)
    write_deltalake(f"{catalog.url}/features", rows, mode="append", storage_options=_s3_options())
    before = catalog.version("features")
    assert catalog.read("features", columns=["sample_id", "vector"])["vector"].isna().all()
    pinned = catalog.query("SELECT vector FROM features", {"features": before})
    assert pinned["vector"].isna().tolist() == [True] and catalog.version("features") == before
    assert catalog.upsert("features", [row | {"extractor": "embedding", "vector": [0.5, 2.0]}]) == 1
    found = catalog.read("features").set_index("extractor")
    assert found.loc["photo", "vector"] is None and found.loc["photo", "numbers"] == {"x": 1.0}
    assert list(found.loc["embedding", "vector"]) == [0.5, 2.0]
    assert catalog.read("features", version=before)["vector"].isna().all()


def test_photos_from_before_landmarks_stay_and_new_ones_join_them(catalog: Catalog) -> None:
    old = pa.schema([field for field in SCHEMAS["samples"] if field.name not in ("landmarks", "near")])
    DeltaTable.create(f"{catalog.url}/samples", old, storage_options=_s3_options())
    rows = pa.Table.from_pylist([{"id": "a", "phash": "0" * 16}], schema=old)
    write_deltalake(f"{catalog.url}/samples", rows, mode="append", storage_options=_s3_options())
    assert catalog.read("samples", columns=["id", "landmarks", "near"]).isna().any(axis=None)
    assert catalog.add("samples", [{"id": "a"}, {"id": "b", "landmarks": b"12345678", "near": ["a"]}]) == 1
    found = catalog.read("samples").set_index("id")
    assert found.loc["a", "landmarks"] is None and found.loc["a", "phash"] == "0" * 16
    assert found.loc["b", "landmarks"] == b"12345678" and list(found.loc["b", "near"]) == ["a"]


def test_small_files_are_put_together_and_old_versions_stay_readable(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the writer, every so many commits; rows, and what a named version says, are the same before and after."""
    monkeypatch.setattr("mm_core.storage.catalog.COMPACT_EVERY", 5)
    files = []
    for number in range(9):
        catalog.add("labels", [{"id": f"{number}", "version": number}])
        files.append(len(DeltaTable(f"{catalog.url}/labels", storage_options=_s3_options()).file_uris()))
    assert files == [1, 2, 3, 4, 1, 2, 3, 4, 1], "at versions 5 and 10; the compaction itself is version 6"
    assert ids(catalog) == [str(n) for n in range(9)]
    assert ids(catalog, version=4) == ["0", "1", "2", "3"]
    assert catalog.upsert("labels", [{"id": "3", "version": 30}]) == 0
    found = catalog.read("labels").set_index("id")["version"]
    assert found["3"] == 30 and found.drop("3").tolist() == list(found.drop("3").index.astype(int))


def test_compaction_and_vacuum_by_hand(catalog: Catalog) -> None:
    """Each of nothing moves no version; a vacuum spares what a kept version needs and what is young."""
    assert catalog.compact("labels") == catalog.vacuum("labels") == 0
    for number in range(3):
        catalog.add("labels", [{"id": f"{number}"}])
    kept = catalog.version("labels")
    assert catalog.compact("labels") == 3
    assert catalog.compact("labels") == 0, "there is one file"
    done = catalog.version("labels")
    assert catalog.vacuum("labels") == 0, "nobody has waited long enough"
    assert catalog.vacuum("labels", keep=[kept], days=0) == 0 and catalog.version("labels") == done
    assert ids(catalog, version=kept) == ids(catalog) == ["0", "1", "2"]
    assert catalog.vacuum("labels", days=0) == 3
    assert ids(catalog) == ["0", "1", "2"]
    with pytest.raises(CatalogError):
        catalog.read("labels", version=kept)


def test_rows_are_written_in_pieces_and_the_last_of_a_key_counts(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mm_core.storage.catalog.PIECE", 2)
    rows = ({"id": f"{n % 4}", "version": n} for n in range(7))
    assert catalog.add("labels", rows) == 4
    assert catalog.version("labels") == 1, "one commit"
    found = catalog.read("labels").set_index("id")["version"].to_dict()
    assert found == {"0": 4, "1": 5, "2": 6, "3": 3}


def test_a_broken_table_is_said(tmp_path: Path) -> None:
    catalog = Catalog(str(tmp_path))
    catalog.add("labels", [{"id": "a"}])
    for file in (tmp_path / "catalog" / "labels").glob("*.parquet"):
        file.write_bytes(b"not parquet")
    with pytest.raises(CatalogError, match="labels"):
        catalog.read("labels")


WRITER = """
import sys
from pathlib import Path
from time import sleep
from mm_core.storage.catalog import Catalog
url, me, go = sys.argv[1:]
import deltalake, pyarrow.dataset
Path(f"{go}-{me}").touch()
while not Path(go).exists():
    sleep(0.01)
for number in range(4):
    Catalog(url).add("labels", [{"id": f"{me}-{number}"}, {"id": f"same-{number}"}])
"""


@pytest.mark.parametrize("where", ["folder", "s3"])
def test_processes_write_at_once(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Also the table itself is made by all of them at once."""
    url = str(tmp_path / "store") if where == "folder" else request.getfixturevalue("bucket")
    go = tmp_path / "go"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, url, str(n), str(go)]) for n in range(3)]
    while len(list(tmp_path.glob("go-*"))) < 3 and all(w.poll() is None for w in writers):
        sleep(0.02)
    go.touch()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    expected = [f"{n}-{i}" for n in range(3) for i in range(4)] + [f"same-{i}" for i in range(4)]
    assert sorted(Catalog(url).read("labels")["id"]) == sorted(expected)


def test_batches_keep_no_memory_of_the_engine(tmp_path: Path) -> None:
    """One buffer of the engine keeps its whole batch, several times the size of the copied texts."""
    catalog = Catalog(str(tmp_path / "store"))
    catalog.add("samples", [{"id": f"{n:04}", "width": n, "group": "g" if n % 2 else None} for n in range(2000)])
    before = pa.total_allocated_bytes()
    batches = list(catalog.scan("samples", columns=["id", "width", "group"]))
    # Only memory that pyarrow has allocated counts.
    assert pa.total_allocated_bytes() - before >= sum(batch.get_total_buffer_size() for batch in batches)


def test_a_half_written_seal_is_no_damage_and_goes_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(str(tmp_path / "store"))
    catalog.add("reviews", [{"id": "r", "sample_id": "s"}])
    table = tmp_path / "store" / "catalog" / "reviews"
    half = table / seals.FOLDER / ".00000000000000000009.json.json.1-2.tmp"
    half.write_text('{"_delta')
    assert list(seals.broken_seals(table)) == []
    seals.seal(table)
    assert half.exists(), "another process may be writing it"
    monkeypatch.setattr(local_files, "LEFT_AFTER", 0)
    seals.seal(table)
    assert not half.exists()
