"""`mm check`: a flipped bit in any file that is kept is found; what can be repaired is, from where it came."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mm_core import stages
from mm_core.core.errors import BlobDamaged, InputError, StoreError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.progress import quiet
from mm_core.core.records import Report, sha256_file, write_json, write_sealed_json
from mm_core.core.settings import Settings
from mm_core.export.registry import Registry
from mm_core.export.signature import make_keys, sign_file
from mm_core.export.start_weights import PREFIX, kept_starts
from mm_core.pinned_inputs import Run, read_inputs
from mm_core.services.check import Fault, check
from mm_core.services.repair import repair
from mm_core.storage.catalog import Catalog
from mm_core.storage.retry import archive_fault
from mm_core.storage.seals import (
    DATABASES,
    database_fault,
    read_sealed_table,
    require_unbroken,
    seal_databases,
    seal_folder,
)
from mm_core.storage.store import BLOBS, LocalStore, blob_key, fetch_blob, open_store, put_blob
from mm_core.training.mlflow_client import open_client
from mm_core.training.stage_data import read_data
from samplegen import write_drop

PARAMS = Params().with_values(**{"structure.ocr": ()})


@pytest.fixture(scope="module")
def filled(clean_layout: Layout) -> Layout:
    """A drop in the catalog, its snapshot, a finished and an unfinished checkpoint, a bundle, a champion's pin."""
    layout = clean_layout
    write_drop(Path(layout.settings.inbox), "pixel_labeled", "w01", {"pets": 4, "cards": 3}, seed=1, size=64)
    stages.ingest(Run(PARAMS, layout))
    stages.structure(Run(PARAMS, layout))
    stages.pin_inputs(Run(PARAMS, layout))
    stages.snapshot(Run(PARAMS, layout))
    done, state, bundle = layout.checkpoints / "a", layout.checkpoints / "b", layout.bundles / "v"
    for folder in (done, state, bundle):
        folder.mkdir(parents=True)
    weights = random.Random(1).randbytes(4000)
    (done / "model.safetensors").write_bytes(weights)
    digest = sha256_file(done / "model.safetensors")
    write_json(done / "done.json", {"metrics": {}, "facts": {"digest": digest}})
    torch.save({"state": {"step": 3}, "module": {"w": torch.rand(500)}}, state / "state.pt")
    (bundle / "saliency.int8.onnx").write_bytes(weights[:500])
    (bundle / "golden.npz").write_bytes(weights[500:900])
    files = {p.name: {"sha256": sha256_file(p), "bytes": p.stat().st_size} for p in bundle.iterdir()}
    decoders = {"saliency": {"file": "saliency.int8.onnx", "formats": {}}}
    golden = {"file": "golden.npz", "tolerance": {"mse": 1e-4, "max": 0.1}}
    manifest = {"version": "v", "decoders": decoders, "golden": golden, "input": {"mean": [0] * 3, "std": [1] * 3}}
    write_json(bundle / "manifest.json", manifest | {"files": files})
    store = open_store(layout.settings.store, layout.cache)
    pin = {"version": "1", "digest": put_blob(store, done / "model.safetensors"), "files": {}}
    write_sealed_json(layout.inputs, {**read_inputs(layout), "champion": pin, "anchor": pin})
    return layout


@pytest.fixture
def own(filled: Layout, tmp_path: Path) -> Layout:
    layout = Layout(Settings.from_env(tmp_path / "data"))
    shutil.copytree(filled.root, layout.root)
    return layout


def look(layout: Layout) -> list[Fault]:
    return check(layout, Report("check"), progress=lambda what, done, total: None)


def flip(path: Path, seed: int = 0) -> None:
    """One bit somewhere in a file, its size and name as they were."""
    data = bytearray(path.read_bytes())
    place = random.Random(f"{seed}{path.name}").randrange(len(data) * 8)
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def test_a_whole_workspace_has_no_fault(own: Layout) -> None:
    report = Report("check")
    assert check(own, report, progress=lambda what, done, total: None) == []
    assert report.metrics["check/blobs"] == 15, "seven photos, seven mattes, one model"
    assert all(report.metrics[f"check/unsealed/{table}"] == 0 for table in ("samples", "labels", "features"))


def kept(layout: Layout) -> list[Path]:
    """Every blob, Delta log, data file, checkpoint and bundle's file."""
    store = Path(layout.settings.store)
    found = [*(store / "blobs").rglob("*"), *(store / "catalog").rglob("*"), *layout.checkpoints.rglob("*")]
    found += [*layout.bundles.rglob("*.onnx"), *layout.bundles.rglob("*.npz")]
    passed_over = ("done.json", "_last_checkpoint")
    return sorted(p for p in found if p.is_file() and p.name not in passed_over and p.parent.name != "_seals")


def is_named(path: Path, faults: list[Fault]) -> bool:
    """Whether a fault is about this file, or about the folder of its bundle."""
    return any(str(path).endswith(f.where) or str(path.parent) == f.where for f in faults)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(own: Layout, seed: int) -> None:
    """In all of them at once, at random places; with four seeds more than 100 flips."""
    files, whole = kept(own), {}
    assert len(files) > 30
    for path in files:
        whole[path] = path.read_bytes()
        flip(path, seed)
    (state,) = (path for path in files if path.suffix == ".pt")
    if same_values(whole[state], state):  # padding between the members: nothing that is read
        files.remove(state)
    faults = look(own)
    assert [str(path) for path in files if not is_named(path, faults)] == []


def test_a_snapshot_of_other_rows_than_its_digest_is_found(own: Layout) -> None:
    path = own.snapshot / "train_labeled.parquet"
    table = pq.read_table(path)
    changed = table.set_column(0, "sample_id", pa.array(["0" * 64] * len(table)))
    pq.write_table(changed, path)
    assert [fault.kind for fault in look(own)] == ["snapshot"]
    path.write_bytes(b"PAR1 scribble")
    assert [fault.kind for fault in look(own)] == ["snapshot"]


def same_values(whole: bytes, path: Path) -> bool:
    """Whether torch reads the same from a changed archive, whose checksums hold."""
    if archive_fault(path):
        return False
    before = path.with_suffix(".before")
    before.write_bytes(whole)
    try:
        first, second = (torch.load(p, weights_only=True) for p in (before, path))
        return first["state"] == second["state"] and torch.equal(first["module"]["w"], second["module"]["w"])
    finally:
        before.unlink()


def test_a_damaged_database_is_found(own: Layout) -> None:
    path = own.root / "dagster" / "runs.db"
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE runs (id TEXT PRIMARY KEY)")
        database.executemany("INSERT INTO runs VALUES (?)", [(f"run {n}",) for n in range(2000)])
    assert look(own) == []
    data = bytearray(path.read_bytes())
    data[4096 : 4096 + 200] = bytes(200)
    path.write_bytes(data)
    assert [(fault.kind, fault.where) for fault in look(own)] == [("database", str(path))]
    path.write_bytes(b"scribble" * 1000)
    assert [fault.kind for fault in look(own)] == ["database"]


def test_damaged_photos_mattes_models_and_checkpoints_are_repaired(own: Layout) -> None:
    store = open_store(own.settings.store, own.cache)
    photo = str(Catalog(own.settings.store).read("samples")["id"].min())
    matte = str(Catalog(own.settings.store).read("labels")["alpha_sha256"].min())
    model = json.loads(own.inputs.read_text())["champion"]["digest"]
    flip(store.fetch(blob_key(photo)))
    store.delete(blob_key(matte))
    flip(store.fetch(blob_key(model)))
    flip(own.checkpoints / "b" / "state.pt", 3)
    with pytest.raises(BlobDamaged, match="mm check --repair"):
        fetch_blob(store, photo)
    faults = look(own)
    assert {fault.digest for fault in faults if fault.kind == "blob"} == {photo, matte, model}
    repair(own, faults)
    assert all(fault.repaired for fault in faults)
    assert look(own) == []
    assert all(sha256_file(fetch_blob(store, digest)) == digest for digest in (photo, matte, model))


def test_files_are_found_by_every_spelling_of_their_names(tmp_path: Path) -> None:
    """A manifest of another system separates folders by backslashes; the catalog keeps its spelling."""
    layout = Layout(Settings.from_env(tmp_path / "data"))
    folder = write_drop(Path(layout.settings.inbox), "pixel_labeled", "b", {"pets": 2}, seed=0, size=64)
    text = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(text.replace("images/", ".\\images\\").replace("alphas/", "alphas\\"))
    stages.ingest(Run(PARAMS, layout))
    for path in (Path(layout.settings.store) / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    faults = look(layout)
    assert len(faults) == 4
    repair(layout, faults)
    assert {fault.repaired for fault in faults} == {"restored from its drop"} and look(layout) == []


def test_what_cannot_be_repaired_says_what_to_do(own: Layout) -> None:
    store = open_store(own.settings.store, own.cache)
    photo = str(Catalog(own.settings.store).read("samples")["id"].min())
    store.delete(blob_key(photo))
    shutil.rmtree(own.settings.inbox)
    faults = look(own)
    repair(own, faults)
    assert [fault.repaired for fault in faults] == [""] and "backup" in faults[0].remedy


@pytest.mark.parametrize("text", ["", "{", "[]", '{"catalog": {"samples": 99, "labels": 0, "features": 0}}'])
def test_damaged_pins_are_found(own: Layout, text: str) -> None:
    own.inputs.write_text(text)
    assert [fault.kind for fault in look(own)] == ["pin"]


def test_a_damaged_download_is_fetched_again_and_a_damaged_object_is_refused(bucket: str, tmp_path: Path) -> None:
    store = open_store(f"{bucket}/store", tmp_path / "cache")
    digest = put_blob(store, b"a photo")
    copy = fetch_blob(store, digest)
    flip(copy)
    assert fetch_blob(store, digest).read_bytes() == b"a photo"
    store.put(blob_key(digest), b"A photo")
    store.drop_copy(blob_key(digest))
    with pytest.raises(BlobDamaged, match=f"{BLOBS}.*mm check --repair"):
        fetch_blob(store, digest)


def test_a_record_of_the_store_with_a_flipped_bit_is_found_and_not_read(tmp_path: Path) -> None:
    """Records keep their keys and change their contents: a seal beside the store's objects has their digests."""
    store = LocalStore(tmp_path)
    for key in ("ingest/a.json", "gate/best/b.parquet", "quarantine/mattes/c.png"):
        store.put(key, b"before")
        store.put(key, b"now")
        assert store.fetch(key).read_bytes() == b"now"
        (tmp_path / key).write_bytes(b"nov")
        with pytest.raises(BlobDamaged, match=r"is damaged, its bytes are not those that were written"):
            store.fetch(key)
        store.put(key, b"now")
        assert store.fetch(key)
        (tmp_path / ".seals" / f"{key}.json").write_text("{")
        with pytest.raises(BlobDamaged, match="its seal .* is damaged"):
            store.fetch(key)
        store.delete(key)
    assert list(store.list()) == [] and not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "file", ["snapshot/train_unlabeled.parquet", "snapshot/snapshot.json", "split/simple.parquet", "split/hard.parquet"]
)
def test_a_flipped_bit_in_snapshot_or_split_is_found_and_not_trained_on(own: Layout, file: str) -> None:
    """Bytes that hold no value were compared with nothing, and the split's values neither."""
    stages.split(Run(PARAMS, own))
    path, stage = own.cycle / file, file.partition("/")[0]
    assert len(read_data("simple", own).labeled) and not look(own)
    content = bytearray(path.read_bytes())
    content[4 if path.suffix == ".parquet" else len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path.name} is damaged.*run `mm {stage}` again"):
        read_data("simple", own)
    # Where rows differ, the fault names the whole snapshot.
    named = {fault.where for fault in look(own) if fault.remedy == f"mm {stage}"}
    assert named & {str(path), str(path.parent)}


def test_scores_with_a_flipped_bit_are_not_judged(tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    (folder / "mattes").mkdir(parents=True)
    (tmp_path / "quantised").mkdir()
    for name in ("per_image.parquet", "mattes/best.png", "../quantised/a.onnx"):
        (folder / name).write_bytes(b"score")
    require_unbroken(folder, "run `mm evaluate` again")  # an older version sealed nothing
    seal_folder(folder, [tmp_path / "quantised" / "a.onnx"])
    require_unbroken(folder, "run `mm evaluate` again")
    for name in ("per_image.parquet", "../quantised/a.onnx"):
        (folder / name).write_bytes(b"scorf")
        with pytest.raises(InputError, match=r"is damaged.*run `mm evaluate` again"):
            require_unbroken(folder, "run `mm evaluate` again")
        (folder / name).write_bytes(b"score")


def test_a_value_that_flips_in_a_database_is_found(tmp_path: Path) -> None:
    """sqlite's own check finds a broken structure, and no other value. Bits that rot leave the time of the file."""
    layout = Layout(Settings.from_env(tmp_path / "data"))
    write_drop(Path(layout.settings.inbox), "pixel_labeled", "b", {"pets": 1}, seed=0, size=64)
    stages.ingest(Run(PARAMS, layout))
    path = layout.root / "history.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE t (v); INSERT INTO t VALUES ('the value');")
    stages.pin_inputs(Run(PARAMS, layout))
    assert check(layout, Report("check"), progress=quiet) == []
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b"the value", b"the valud"))
    assert check(layout, Report("check"), progress=quiet) == [], "somebody wrote to it since"
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    (fault,) = check(layout, Report("check"), progress=quiet)
    assert (fault.kind, fault.fault) == ("database", "its bytes changed and its time did not")
    path.write_bytes(data)
    stages.pin_inputs(Run(PARAMS, layout))
    assert check(layout, Report("check"), progress=quiet) == []


@pytest.mark.parametrize("damage", ["missing", "empty", "folder"])
def test_a_lost_database_is_no_new_one(tmp_path: Path, damage: str) -> None:
    """With an empty file in its place there would be no champion, and the next cycle would promote a first model."""
    layout = Layout(Settings.from_env(tmp_path / "data"))
    assert Registry(layout.settings).pin("champion") is None, "a workspace begins without a database"
    path = layout.root / "mlflow" / "mlflow.db"
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE t (v);")
    seal_databases(layout.root, layout.cache)
    path.unlink()
    if damage == "empty":
        path.touch()
    if damage == "folder":
        path.mkdir()
    for use in (lambda: Registry(layout.settings).pin("champion"), lambda: open_client(layout.settings)):
        with pytest.raises(StoreError, match=rf"{path} is .*: restore it from a backup; .* delete it and"):
            use()
    assert str(path) in {fault.where for fault in look(layout)}
    # The second remedy of the message: a registry without models.
    if damage != "missing":
        path.rmdir() if path.is_dir() else path.unlink()
    (layout.root / DATABASES).unlink()
    assert Registry(layout.settings).pin("champion") is None and look(layout) == []


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"[" * 100_000, b"flip a digest", b"flip a name"])
def test_damaged_seals_of_databases_are_named_and_accuse_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript("CREATE TABLE t (v);")
    layout = Layout(Settings.from_env(tmp_path))
    seal_databases(layout.root, layout.cache)
    seals, whole = tmp_path / DATABASES, (tmp_path / DATABASES).read_bytes()
    digest = json.loads(whole)["history.db"][2].encode()
    other = {b"flip a digest": whole.replace(digest, b"0" * 64), b"flip a name": whole.replace(b"history", b"histosy")}
    seals.write_bytes(other.get(content, content))
    (fault,) = look(layout)
    assert fault.where == str(seals) and "is damaged: delete it" in fault.fault
    assert database_fault(layout.root, path) == ""
    seal_databases(layout.root, layout.cache)
    assert look(layout) == [] and json.loads(seals.read_bytes()) == json.loads(whole)


@pytest.mark.parametrize("field", ["key", "signature", "algorithm"])
def test_a_flipped_bit_in_a_signature_is_found(
    own: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    manifest = own.bundles / "v" / "manifest.json"
    for name in ("key", "other"):
        make_keys(tmp_path / name)
    for name in ("other", "key"):  # a bundle of another signer is no fault
        monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / name))
        sign_file(manifest)
        monkeypatch.setenv("MM_SIGNING_KEY", str(tmp_path / "key"))
        assert look(own) == []
    path = own.bundles / "v" / "manifest.json.sig"
    content = json.loads(path.read_text())
    letter = content[field][3]
    content[field] = content[field][:3] + ("0" if letter != "0" else "1") + content[field][4:]
    write_json(path, content)
    assert [fault.where for fault in look(own)] == [str(path)]


@pytest.mark.parametrize("before", [b"/part-", b".parquet", b'": "', b"this file"])
def test_a_flipped_name_in_the_seal_of_a_commit_is_found(own: Layout, before: bytes) -> None:
    """A name that no file has was taken for a file that compaction removed."""
    table = Path(own.settings.store) / "catalog" / "samples"
    path = sorted((table / "_seals").iterdir())[-1]
    whole = path.read_bytes()
    place = whole.index(before if before in whole else b"part-") + 1
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert [(fault.where, fault.fault) for fault in look(own)] == [(str(path), "not the digests that were written")]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"[" * 100_000])
def test_a_damaged_seal_is_no_missing_seal(tmp_path: Path, content: bytes) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    seal_folder(tmp_path)
    assert read_sealed_table(tmp_path / "a.parquet", "run `mm x` again").num_rows == 1
    (tmp_path / "digests.json").write_bytes(content)
    for read in (require_unbroken, lambda folder, remedy: read_sealed_table(folder / "a.parquet", remedy)):
        with pytest.raises(InputError, match=r"digests.json is damaged, not the digests that were written: run `mm x`"):
            read(tmp_path, "run `mm x` again")
    (tmp_path / "digests.json").unlink()
    with pytest.raises(InputError, match=r"a.parquet is damaged .*: run `mm x` again"):
        read_sealed_table(tmp_path / "a.parquet", "run `mm x` again", ["b"])


def test_a_kept_start_without_its_files_is_found(own: Layout) -> None:
    """No row, pin or version refers to a kept candidate. The next cycle would start from it."""
    store = open_store(own.settings.store, own.cache)
    weights, frame = put_blob(store, b"weights"), put_blob(store, b"frame")
    provenance = put_blob(store, json.dumps({"snapshot_files": {"a": frame}, "split_files": {}}).encode())
    record = {"digest": weights, "provenance": provenance, "catalog": {}, "snapshot": "s", "when": "2026"}
    key = f"{PREFIX}/{weights}.json"
    store.put(key, json.dumps(record).encode())
    assert look(own) == []
    for digest in (weights, frame, provenance):
        content = store.fetch(blob_key(digest)).read_bytes()
        store.delete(blob_key(digest))
        assert [(fault.kind, fault.digest) for fault in look(own)] == [("blob", digest)]
        store.put(blob_key(digest), content)
    store.put(key, b"{}")
    assert [fault.where for fault in look(own)] == [f"{store.url}/{key}"]
    with pytest.raises(InputError, match="is damaged: .*backup"):
        kept_starts(store)


def test_databases_of_a_linked_folder_are_checked(own: Layout, tmp_path: Path) -> None:
    """Who moves the history to another disk and links it."""
    (tmp_path / "disk").mkdir()
    (own.root / "dagster").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "runs.db").write_bytes(b"scribble" * 1000)
    assert [(fault.kind, fault.where) for fault in look(own)] == [("database", str(own.root / "dagster" / "runs.db"))]
