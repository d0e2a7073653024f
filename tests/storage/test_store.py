"""The two stores keep one contract: a folder and S3 over HTTP."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from mm_core.core.errors import BlobNotFound, InputError, StoreError
from mm_core.core.records import sha256_bytes
from mm_core.storage.store import LocalStore, S3Store, Store, blob_key, fetch_blob, open_store, put_blob


@pytest.fixture(params=["folder", "s3", "s3 without prefix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"), tmp_path / "cache")
    url = request.getfixturevalue("bucket")
    return open_store(f"{url}/some/prefix" if request.param == "s3" else url, tmp_path / "cache")


def test_put_fetch_replace_delete(store: Store, tmp_path: Path) -> None:
    assert not store.exists("a/b.txt")
    with pytest.raises(BlobNotFound, match="a/b.txt"):
        store.fetch("a/b.txt")
    store.put("a/b.txt", b"one")
    assert store.fetch("a/b.txt").read_bytes() == b"one"
    source = tmp_path / "source"
    source.write_bytes(b"two")
    store.put("a/b.txt", source)
    assert store.fetch("a/b.txt").read_bytes() == b"two", "a cached copy must not hide the new content"
    assert store.exists("a/b.txt") and not store.exists("a")
    store.delete("a/b.txt")
    store.delete("a/b.txt")
    assert not store.exists("a/b.txt")


def test_list_in_key_order_by_whole_folders(store: Store) -> None:
    assert list(store.list()) == [] == list(store.list("nowhere", delimiter=True))
    keys = ["a.txt", "a/1", "a/b/2", "ab/3", "ü ß/4"]
    for key in keys:
        store.put(key, key.encode())
    assert [entry.key for entry in store.list()] == sorted(keys)
    assert [entry.key for entry in store.list("a")] == ["a/1", "a/b/2"], "`ab/` is not below `a`"
    assert [(e.key, e.size) for e in store.list("a", delimiter=True)] == [("a/1", 3), ("a/b/", 0)]
    assert [entry.key for entry in store.list(delimiter=True)] == ["a.txt", "a/", "ab/", "ü ß/"]
    assert list(store.list("a/", delimiter=True)) == list(store.list("a", delimiter=True))


@pytest.mark.parametrize("key", ["../out", "a/../../out", "..", ""])
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    for verb in (store.fetch, store.exists, store.delete, lambda k: store.put(k, b"x")):
        with pytest.raises(StoreError, match="leaves the store"):
            verb(key)


@pytest.mark.parametrize("key", ["x" * 300, "nul\0byte"])
def test_a_name_that_no_file_can_have_is_not_there(tmp_path: Path, key: str) -> None:
    with pytest.raises(BlobNotFound):
        LocalStore(tmp_path).fetch(key)


def test_blobs_are_content_addressed_and_written_once(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "photo"
    source.write_bytes(b"pixels")
    digest = put_blob(store, source)
    assert digest == put_blob(store, b"pixels") == sha256_bytes(b"pixels")
    assert fetch_blob(store, digest).read_bytes() == b"pixels"
    assert [entry.key for entry in store.list("blobs")] == [blob_key(digest)]


def test_threads_write_and_read_the_same_key(store: Store) -> None:
    values = [str(i).encode() * 2000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda value: store.put("one", value), values))
        assert set(pool.map(lambda _: store.fetch("one").read_bytes(), values)) <= set(values)
    assert [entry.key for entry in store.list()] == ["one"]


def test_a_failed_write_leaves_the_old_object_and_no_litter(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.put("key", b"old")
    with pytest.raises(StoreError, match="key"):
        store.put("key", tmp_path / "no such file")
    assert store.fetch("key").read_bytes() == b"old"
    assert [path.name for path in (tmp_path / "store").rglob("*") if path.is_file()] == ["key"]


def test_files_of_a_killed_writer_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".0123.tmp").write_bytes(b"half")
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "0123").write_bytes(b"half")
    (tmp_path / "notes.tmp").write_bytes(b"whole")
    for delimiter in (False, True):
        assert [e.key for e in LocalStore(tmp_path).list(delimiter=delimiter)] == ["notes.tmp"]


def test_what_killed_writers_left_goes_and_what_others_write_stays(store: Store, tmp_path: Path) -> None:
    """The next process that writes tidies up, by age: another may be at work in the same folder."""
    assert isinstance(store, LocalStore | S3Store)
    drafts = (store.root if isinstance(store, LocalStore) else store.cache) / ".tmp"
    (drafts / "folder").mkdir(parents=True)
    (drafts / "folder" / "inner").write_bytes(b"old")
    for name in ("old", "new"):
        (drafts / name).write_bytes(b"half")
    for name in ("old", "folder"):
        os.utime(drafts / name, (1, 1))
    store.put("key", b"whole")
    assert store.fetch("key").read_bytes() == b"whole"
    assert [path.name for path in drafts.iterdir()] == ["new"]


def test_listing_does_not_walk_into_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").symlink_to(tmp_path)
    (tmp_path / "a" / "broken").symlink_to(tmp_path / "gone")
    (tmp_path / "a" / "c").write_bytes(b"c")
    assert [entry.key for entry in LocalStore(tmp_path).list()] == ["a/broken", "a/c"]


def test_s3_blobs_are_downloaded_once(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket, tmp_path)
    digest = put_blob(store, b"pixels")
    fetch_blob(store, digest)
    open_store(bucket, tmp_path / "elsewhere").delete(blob_key(digest))
    assert fetch_blob(store, digest).read_bytes() == b"pixels"
    store.delete(blob_key(digest))
    with pytest.raises(BlobNotFound):  # its local copy goes with an object
        fetch_blob(store, digest)


def test_s3_large_files_go_in_parts_and_come_back_whole(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket, tmp_path / "cache")
    assert isinstance(store, S3Store)
    source = tmp_path / "large"
    source.write_bytes(os.urandom(1 << 20) * 9)
    digest = put_blob(store, source)
    head = store._client.head_object(Bucket=store.bucket, Key=blob_key(digest))
    assert head["ETag"].strip('"').endswith("-2"), "two parts"
    assert sha256_bytes(fetch_blob(store, digest).read_bytes()) == digest


def test_s3_lists_more_than_a_page_and_no_folder_markers(bucket: str, tmp_path: Path, monkeypatch) -> None:
    store = open_store(bucket, tmp_path)
    assert isinstance(store, S3Store)
    store._client.put_object(Bucket=store.bucket, Key="drops/", Body=b"")
    for number in range(7):
        store.put(f"drops/{number}", b"x")
    real = store._client.get_paginator("list_objects_v2")
    monkeypatch.setattr(
        store._client, "get_paginator", lambda _: type("Small", (), {"paginate": staticmethod(
            lambda **kw: real.paginate(**kw, PaginationConfig={"PageSize": 2}))})
    )  # fmt: skip
    assert [entry.key for entry in store.list("drops")] == [f"drops/{number}" for number in range(7)]


def test_s3_failures_are_store_errors(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}-that-is-not-there/x", tmp_path)
    with pytest.raises(StoreError, match="writing"):
        store.put("a", b"")
    with pytest.raises(StoreError, match="listing"):
        list(store.list())


@pytest.mark.parametrize("url", ["s3://", "ftp://host/x"])
def test_a_url_that_is_no_store(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        open_store(url, tmp_path)


def test_a_file_that_is_another_by_now_is_not_stored(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "photo"
    source.write_bytes(b"pixels")
    digest = sha256_bytes(b"pixels")
    source.write_bytes(b"others")
    with pytest.raises(StoreError, match="changed while it was read: run again"):
        put_blob(store, source, digest)
    assert not store.exists(blob_key(digest)) and not list(store.list("blobs"))
    source.write_bytes(b"pixels")
    assert put_blob(store, source, digest) == digest and fetch_blob(store, digest).read_bytes() == b"pixels"


def test_in_a_bucket_that_keeps_versions_nothing_deleted_can_be_read(bucket: str, tmp_path: Path) -> None:
    """As infra/s3 sets it up: the object, its replaced contents and what others deleted under a prefix."""
    client, name = boto3.session.Session().client("s3"), bucket.removeprefix("s3://")
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    store = open_store(f"{bucket}/store", tmp_path)
    for content in (b"one", b"two"):
        store.put("a/photo", content)
        store.put("a/photo2", content)
        store.put("catalog/t/x", content)
    store.delete("a/photo")
    store.delete("a/photo")
    client.delete_object(Bucket=name, Key="store/catalog/t/x")  # as delta-rs does
    assert store.purge("catalog") == 2

    def versions(key: str) -> list[dict]:
        found = client.list_object_versions(Bucket=name, Prefix=f"store/{key}")
        return found.get("Versions", [])

    assert [v for v in versions("a/photo") if v["Key"] == "store/a/photo"] == []
    assert versions("catalog") == []
    assert len(versions("a/photo2")) == 2 and store.fetch("a/photo2").read_bytes() == b"two", "nothing else went"


def test_without_versions_nothing_is_asked_of_them(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/store", tmp_path)
    store.put("a", b"x")
    store.delete("a")
    assert store.purge("catalog") == 0 and not store.exists("a")


def test_a_missing_blob_and_a_folder_in_its_place_are_named_with_the_remedy(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    key = blob_key("0" * 64)
    with pytest.raises(BlobNotFound, match="holds no .*mm check --repair"):
        store.fetch(key)
    (tmp_path / key).mkdir(parents=True)
    with pytest.raises(BlobNotFound, match="is a folder: move it away"):
        store.fetch(key)
    with pytest.raises(BlobNotFound, match="holds no gate/x.json: restore it from a backup"):
        store.fetch("gate/x.json")
    # No file of ours, but one that a producer names: no command of ours brings it back.
    with pytest.raises(BlobNotFound, match="holds no photos/a.jpg$"):
        store.fetch("photos/a.jpg")
