"""Forgetting on a folder and on S3: nothing of the photo is left, it does not come back, a kill changes nothing."""

from __future__ import annotations

import io
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest

from mm_core import operations
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.progress import quiet
from mm_core.core.records import Report, sha256_bytes
from mm_core.core.settings import Settings
from mm_core.ingest import erasure as forgetting
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.erasure import SHORTEST_PREFIX, describe_photos, erase, find_photos, forget_photos
from mm_core.ingest.ingest import ingest_ready
from mm_core.pinned_inputs import Run
from mm_core.services.backup import back_up
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import LocalStore, Store, blob_key


@pytest.fixture
def shop(any_workshop, make, monkeypatch):
    """Three labelled photos, two of one group, two of them with one and the same matte; one also in quarantine."""
    monkeypatch.setattr(DataDocs, "build", lambda self: None)
    shared = make.encoded(make.matte(1), "PNG")
    rows = [make.row(1, group="trip", caption="Ann"), make.row(2, group="trip"), make.row(3, alpha_bytes=shared)]
    any_workshop.drop("pixel_labeled", "a", [{**row, "caption": row.get("caption", "")} for row in rows])
    any_workshop.ingest()
    any_workshop.drop("pixel_labeled", "b", [make.row(1, category="nonsense"), make.row(4)])
    any_workshop.ingest()
    return any_workshop


def sample(shop, seed: int) -> str:
    names = shop.catalog.read("samples").set_index("name")["id"]
    return names[f"images/{seed}.jpg"]


def alphas(shop, identity: str) -> list[str]:
    return shop.catalog.read("labels", filters=[("sample_id", "=", identity)])["alpha_sha256"].tolist()


def everything(store: Store) -> dict[str, bytes]:
    """Every object of the store, as text where it is parquet: what somebody who looks can find."""
    found = {}
    for entry in store.list():
        path = store.fetch(entry.key)
        found[entry.key] = (
            repr(pq.read_table(path).to_pylist()).encode() if entry.key.endswith(".parquet") else path.read_bytes()
        )
    return found


def test_nothing_is_left_but_the_memory_of_the_id(shop) -> None:
    one, three = sample(shop, 1), sample(shop, 3)
    (matte,) = alphas(shop, one)
    assert alphas(shop, three) == [matte], "the matte is shared"
    shop.catalog.compact("samples")
    assert forget_photos(shop.catalog, shop.store, [one]) == [one]
    left = everything(shop.store)
    assert not any(one in key for key in left) and blob_key(matte) in left
    holders = {
        key.split("/")[1] for key, content in left.items() if one.encode() in content and "_delta_log" not in key
    }
    assert holders == {"forgotten"}
    assert not any(b"Ann" in content for content in left.values()), "the caption is in no old file and no statistics"
    assert one not in set(shop.catalog.read("samples")["id"]) and len(shop.catalog.read("samples")) == 3
    forget_photos(shop.catalog, shop.store, [three])
    assert blob_key(matte) not in everything(shop.store), "nobody has this matte any more"


def test_a_bucket_that_keeps_versions_and_its_downloads_hold_nothing_of_the_photo(
    bucket: str, make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket keeps versions, as infra/s3 sets it up, and holds a replaced matte, a refused copy and a backup."""
    monkeypatch.setattr(DataDocs, "build", lambda self: None)
    client, name = boto3.session.Session().client("s3"), bucket.removeprefix("s3://")
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    settings = replace(Settings.from_env(tmp_path / "data"), store=f"{bucket}/store", inbox=str(tmp_path / "inbox"))
    run = Run(Params(), Layout(settings))
    one, other = make.row(1, caption="Ann"), make.row(2, caption="")
    matte = make.encoded(make.matte(5), "PNG")
    for batch, rows in {
        "a": [one, other],
        "b": [{**one, "alpha_bytes": matte}],
        "c": [make.row(1, category="nonsense", caption="Ann")],
    }.items():
        make.write_rows(tmp_path / "inbox" / "pixel_labeled" / batch, rows)
        ingest_ready(run, Report("ingest"))
    secrets = [b"Ann", one["image_bytes"], one["alpha_bytes"], matte]

    def secrets_left() -> set[str]:
        """Return where a person who reads every version, or the workspace, finds something of the photo."""
        files = {f"{path}": path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
        for page in client.get_paginator("list_object_versions").paginate(Bucket=name):
            for entry in page.get("Versions", ()):
                body = client.get_object(Bucket=name, Key=entry["Key"], VersionId=entry["VersionId"])["Body"].read()
                files[f"{entry['Key']} {entry['VersionId']}"] = body
        for where, content in files.items():
            if content[:4] == b"PAR1":
                files[where] = repr(pq.read_table(io.BytesIO(content)).to_pylist()).encode()
        return {where for where, content in files.items() if any(secret in content for secret in secrets)}

    back_up(settings, f"{bucket}/backup", Report("backup"), keep=1, progress=quiet)
    assert secrets_left()
    operations.forget(run, [sha256_bytes(one["image_bytes"])])
    assert {where.partition("/")[0] for where in secrets_left()} == {"backup"}, "as the operator's guide says"
    back_up(settings, f"{bucket}/backup", Report("backup"), keep=1, progress=quiet)
    assert secrets_left() == set()
    assert run.store.exists(blob_key(sha256_bytes(other["image_bytes"]))), "the other photo is there"


def test_a_delivery_again_does_not_bring_it_back(shop, make) -> None:
    one = sample(shop, 1)
    forget_photos(shop.catalog, shop.store, [one])
    shop.drop("pixel_labeled", "again", [make.row(1), make.row(5)])
    report = shop.ingest()
    assert shop.verdicts()["images/1.jpg"] == ("duplicate", "forgotten")
    assert report.metrics["ingest/accepted"] == 1 and report.metrics["ingest/held"] == 0
    assert one not in set(shop.catalog.read("samples")["id"]) and not shop.store.exists(blob_key(one))


def test_a_group_and_again_after_it_is_gone(shop) -> None:
    trip = sorted([sample(shop, 1), sample(shop, 2)])
    assert forget_photos(shop.catalog, shop.store, [], "trip") == trip
    before = shop.tables()
    assert forget_photos(shop.catalog, shop.store, [], "trip") == trip
    assert shop.tables() == before and len(shop.catalog.read("samples")) == 2


def test_what_never_was_cannot_be_forgotten(workshop) -> None:
    for samples, group in ((["f" * 64], None), ([], "nobody"), ([], None)):
        with pytest.raises(InputError):
            forget_photos(workshop.catalog, workshop.store, samples, group)
    assert workshop.catalog.version("forgotten") == -1


def test_a_photo_is_named_by_its_file_a_drop_or_the_beginning_of_its_id(workshop, make, tmp_path: Path) -> None:
    rows = [make.row(1), make.row(2)]
    workshop.drop("pixel_labeled", "a", rows)
    workshop.drop("unlabeled", "a", [make.row(3)])
    workshop.ingest()
    one, two, three = (sample(workshop, n) for n in (1, 2, 3))
    file = tmp_path / "1.jpg"
    file.write_bytes(rows[0]["image_bytes"])
    find = lambda *names: find_photos(workshop.catalog, names)  # noqa: E731
    assert find(str(file)) == find(one) == find(one[:SHORTEST_PREFIX]) == [one]
    assert find("pixel_labeled/a") == sorted([one, two]) and find("unlabeled/a") == [three]
    with pytest.raises(InputError, match="names drops of pixel_labeled and unlabeled"):
        find("a")
    assert find("pixel_labeled/a", three[:12], str(file)) == sorted([one, two, three])
    shown = describe_photos(workshop.catalog, [one, three])
    assert [(row["drop"], row["name"], row["mattes"]) for row in shown] == [
        ("pixel_labeled/a", "images/1.jpg", 1),
        ("unlabeled/a", "images/3.jpg", 0),
    ]
    assert forget_photos(workshop.catalog, workshop.store, [str(file)]) == [one]
    assert find(one[:8]) == [one], "also once it is gone, so that a killed run can be finished"


def test_a_name_that_leads_nowhere_or_to_two_things_is_told(workshop, make, tmp_path: Path, monkeypatch) -> None:
    rows = [make.row(1), make.row(2)]
    workshop.drop("pixel_labeled", "week", rows)
    workshop.ingest()
    ids = ["abcdef" + digit * 58 for digit in "01"]
    workshop.catalog.add("samples", [{"id": i, "kind": "unlabeled", "batch": "twins"} for i in ids])
    monkeypatch.chdir(tmp_path)
    Path("week").write_bytes(rows[0]["image_bytes"])
    Path("other.jpg").write_bytes(b"another picture")
    for name, words in {
        "abcdef": "begins 2 ids",
        "abc": "no sample's id or its beginning",
        "week": "is a drop and a file: write ./week",
        "other.jpg": "no photo of exactly these bytes",
        "gone.jpg": "no photo's file",
        "text_image/week": "no drop with photos",
    }.items():
        with pytest.raises(InputError, match=words):
            forget_photos(workshop.catalog, workshop.store, [ids[0], name])
    assert workshop.catalog.version("forgotten") == -1, "nothing of it was forgotten"
    assert find_photos(workshop.catalog, ["./week"]) == [sample(workshop, 1)]


def test_names_are_taken_literally(workshop, make, tmp_path: Path) -> None:
    """No pattern, no piece of a query and no folder names a photo; a path with spaces and brackets is a file."""
    rows = [make.row(1), make.row(2, group="trip")]
    workshop.drop("pixel_labeled", "week 1", rows)
    workshop.ingest()
    one = sample(workshop, 1)
    file = tmp_path / "my [best] photo*.jpg"
    file.write_bytes(rows[0]["image_bytes"])
    assert find_photos(workshop.catalog, [str(file)]) == [one]
    assert len(find_photos(workshop.catalog, ["week 1"])) == len(find_photos(workshop.catalog, [one, "week 1"])) == 2
    names = ["*", "week*", "pixel_labeled/*", "*/week 1", "week 1'", "x' OR '1'='1", "", ".", "/", str(tmp_path),
             "week 1 ", one[:12].upper(), one[:11] + "*", one + "0", one[:12] + "g", "a\0b", "x" * 5000]  # fmt: skip
    for name in names:
        with pytest.raises(InputError, match="is no sample's id"):
            find_photos(workshop.catalog, [one, name])
    for group in ("*", "tri", "trip' OR 'a'='a", ""):
        with pytest.raises(InputError, match="holds no sample of it"):
            find_photos(workshop.catalog, [], group)


class Killed(BaseException):
    pass


def test_killed_anywhere_the_next_run_ends_the_same(shop, monkeypatch) -> None:
    """Before each write in turn; each time the call is made again, until it gets through."""
    one, two = sample(shop, 1), sample(shop, 2)
    mattes = alphas(shop, one) + alphas(shop, two)
    budget = writes = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal writes
            if writes == budget:
                raise Killed
            writes += 1
            return real(*args, **kwargs)

        return call

    for owner, verb in ((Catalog, "upsert"), (Catalog, "delete"), (Catalog, "vacuum"), (type(shop.store), "delete")):
        monkeypatch.setattr(owner, verb, counted(getattr(owner, verb)))
    done: list[str] = []
    while not done:
        with suppress(Killed):
            done = forget_photos(shop.catalog, shop.store, [], "trip")
        budget, writes = budget + 1, 0
    assert done == sorted([one, two]) and budget > 8
    assert not set(shop.catalog.read("samples")["id"]) & {one, two}
    keys = set(everything(shop.store))
    assert not any(i in key for i in (one, two) for key in keys)
    assert blob_key(mattes[0]) in keys and blob_key(mattes[1]) not in keys


def test_an_ingest_in_the_same_moment_takes_it_out_again(workshop, make, monkeypatch) -> None:
    """Forgotten between the verdicts and their commit, while the catalog does not know the photo."""
    from mm_core.ingest import ingest

    row = make.row(1)
    one = sha256_bytes(row["image_bytes"])
    workshop.drop("pixel_labeled", "a", [row, make.row(2)])
    real, late = ingest.Ingest._write_record, [True]

    def meanwhile(*given):
        if late:
            late.clear()
            erase(workshop.catalog, workshop.store, {one})
        return real(*given)

    monkeypatch.setattr(ingest.Ingest, "_write_record", meanwhile)
    workshop.ingest()
    assert set(workshop.catalog.read("samples")["name"]) == {"images/2.jpg"}
    assert one not in set(workshop.catalog.read("labels")["sample_id"])
    assert isinstance(workshop.store, LocalStore) and not workshop.store.exists(blob_key(one))
    assert workshop.verdicts()["images/1.jpg"] == ("duplicate", forgetting.FORGOTTEN)


def test_a_name_of_several_drops_is_refused(workshop, make) -> None:
    """With --yes both would have gone."""
    workshop.drop("pixel_labeled", "week", [make.row(1)])
    workshop.drop("unlabeled", "week", [{"image": "2.jpg", "image_bytes": make.encoded(make.photo(2))}])
    workshop.ingest()
    with pytest.raises(InputError, match="names drops of pixel_labeled and unlabeled: write kind/batch"):
        find_photos(workshop.catalog, ["week"])
    assert find_photos(workshop.catalog, ["pixel_labeled/week"]) == [sample(workshop, 1)]


def test_a_refused_photo_that_quarantine_keeps_is_forgotten_by_its_file(workshop, make) -> None:
    folder = workshop.drop("pixel_labeled", "a", [make.row(1, category="nonsense"), make.row(2), make.row(3)])
    workshop.ingest()
    name = str(folder / "images" / "1.jpg")
    (photo,) = find_photos(workshop.catalog, [name])
    assert workshop.store.exists(f"quarantine/{photo}")
    (row,) = describe_photos(workshop.catalog, [photo])
    assert (row["name"], row["category"]) == ("images/1.jpg", "refused")
    forget_photos(workshop.catalog, workshop.store, [name])
    assert not any(
        photo in key or photo in repr(data)
        for key, data in everything(workshop.store).items()
        if "forgotten" not in key and "ingest/" not in key
    )
    workshop.ingest()
    assert len(workshop.catalog.read("samples")) == 2


def test_the_drops_that_still_hold_the_photo_are_named(workshop, make):
    """Also a drop that repeats it, and one where it was refused; not one that left the inbox."""
    for batch, more in (("a", {}), ("b", {}), ("c", {"category": "nonsense"}), ("d", {})):
        workshop.drop("unlabeled", batch, [make.row(1, **more), make.row(ord(batch)), make.row(ord(batch) + 10)])
    workshop.ingest()
    shutil.rmtree(workshop.inbox.root / "unlabeled" / "d")
    remaining = operations._remaining(Run(Params(), Layout(Settings.from_env(workshop.root))), [sample(workshop, 1)])
    assert remaining == [{"what": "drop", "where": f"{workshop.inbox.url}/unlabeled/{batch}"} for batch in "abc"]
