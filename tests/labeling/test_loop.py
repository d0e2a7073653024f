"""Route → a person → collect, on a real catalog, store and model file."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from mm_core.core.layout import Layout
from mm_core.core.params import Params, RouteParams, SnapshotParams
from mm_core.core.records import Report, sha256_file
from mm_core.core.settings import Settings
from mm_core.imaging.images import load_alpha, load_rgb
from mm_core.ingest.placement import newest_labels, stable_share
from mm_core.labeling.apply_annotations import Taken
from mm_core.labeling.collect import collect_labels
from mm_core.labeling.label_studio_format import brush_region, collected, inbox, outbox
from mm_core.labeling.rle import decode_rle
from mm_core.labeling.route import route_hard
from mm_core.storage.catalog import Catalog
from mm_core.storage.run import StorageRun
from mm_core.storage.store import LocalStore, fetch_blob, put_blob

WIDTH, HEIGHT = 48, 64
EVAL_GROUP = next(f"n{n}" for n in range(99) if stable_share(f"n{n}", "eval") < SnapshotParams().eval_share)


def quiet(*_):
    pass


class House:
    def __init__(self, root):
        self.layout = Layout(Settings(root, "", str(root / "store"), "", root / "params.yaml", "cpu"))
        self.store = LocalStore(root / "store")
        self.catalog = Catalog(self.store.url)
        self.inputs = {"catalog": {}, "champion": None, "anchor": None}

    def add(self, number, **values):
        """A photo of its own; upright it is WIDTH × HEIGHT, as a file it lies on its side (EXIF orientation 6)."""
        pixels = np.random.default_rng(number).integers(0, 256, (WIDTH, HEIGHT, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", exif=exif)
        sample = put_blob(self.store, stream.getvalue())
        row = {
            "id": sample, "kind": "unlabeled", "batch": "b", "category": None, "caption": None, "group": f"g{number}",
            "role": "", "width": WIDTH, "height": HEIGHT, "phash": f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}",
        }  # fmt: skip
        self.catalog.add("samples", [row | values])
        return sample

    def run(self, **sections):
        """A run on this house's own store and catalog, which some tests replace."""
        run = StorageRun(Params(**sections), self.layout)
        vars(run).update(store=self.store, catalog=self.catalog)
        return run

    def route(self, budget=24):
        report = Report("route")
        route_hard(self.run(route=RouteParams(budget=budget)), self.inputs, report)
        return report

    def collect(self):
        taken, report = Taken(), Report("collect")
        report.metrics["collect/files"] = collect_labels(self.run(), taken)
        taken.report(report)
        return report

    def tasks(self):
        return [task for path in sorted(outbox(self.layout).glob("*.json")) for task in json.loads(path.read_text())]

    def hand_in(self, tasks, name="export.json"):
        inbox(self.layout).mkdir(parents=True, exist_ok=True)
        (inbox(self.layout) / name).write_text(json.dumps(tasks))

    def labels(self):
        return newest_labels(self.catalog.read("labels")).set_index("sample_id")

    def matte(self, sample):
        alpha = load_alpha(fetch_blob(self.store, self.labels().loc[sample, "alpha_sha256"]))
        return np.rint(alpha * 255).astype(np.uint8)


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


@pytest.fixture
def champion(house, tmp_path):
    from mm_core.core.params import ModelParams
    from mm_core.model.files import save_model
    from mm_core.model.network import build_model

    net = build_model(ModelParams(pretrained="", encoder="u2netp", size=64, width=4), seed=0)
    save_model(tmp_path / "m.safetensors", net, {"stage": "multimodal"})
    digest = put_blob(house.store, tmp_path / "m.safetensors")
    house.inputs["champion"] = {"version": "3", "digest": digest, "files": {}}
    return digest


def finished(task, alpha, when="2099-11-02T10:00:00Z", category="pets", number=1, **values):
    """What the export holds after a person worked on a task."""
    choice = {"type": "choices", "from_name": "category", "to_name": "image", "value": {"choices": [category]}}
    work = {
        "id": number, "completed_by": 5, "was_cancelled": False, "updated_at": when,
        "result": [brush_region(alpha), choice],
    }  # fmt: skip
    return {**task, "id": number, "annotations": [*task.get("annotations", []), work | values]}


def painted(seed=0):
    """A soft matte with a hole that a person painted: upright, so taller than wide."""
    alpha = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH)).astype(np.uint8)
    alpha[10:20, 10:20] = 255
    return alpha


# ── route ────────────────────────────────────────────────────────────────────────────────────────


def test_tasks_carry_the_champions_matte_and_an_upright_photo(house, champion):
    samples = {house.add(n) for n in range(3)}
    report = house.route()
    assert report.metrics["route/chosen"] == 3
    tasks = house.tasks()
    assert {task["data"]["key"] for task in tasks} == samples
    from mm_core.model.predict import TorchPredictor

    for task in tasks:
        region = task["predictions"][0]["result"][0]
        assert (region["original_width"], region["original_height"]) == (WIDTH, HEIGHT)
        matte = decode_rle(region["value"]["rle"], WIDTH, HEIGHT)
        model = TorchPredictor(fetch_blob(house.store, champion), "cpu")
        rgb = load_rgb(fetch_blob(house.store, task["data"]["key"]))
        assert np.array_equal(matte, np.rint(model.predict([rgb], ["saliency"])[0] * 255).astype(np.uint8))
        picture = Image.open(outbox(house.layout) / task["data"]["image"].split("?d=")[1])
        assert picture.size == (WIDTH, HEIGHT)
        assert not picture.getexif().get(0x0112)
    assert (outbox(house.layout) / "label_config.xml").is_file()
    rows = house.catalog.read("features").query("extractor == 'routed'")
    assert set(rows["sample_id"]) == samples
    assert {"uncertainty", "difficulty", "diversity", "need", "score"} < set(rows["numbers"].iloc[0])
    assert rows["texts"].iloc[0]["model"].startswith("3:")


def test_no_photo_is_sent_twice(house):
    for n in range(5):
        house.add(n)
    assert house.route(budget=3).metrics["route/chosen"] == 3
    assert house.route(budget=3).metrics["route/chosen"] == 2
    assert house.route(budget=3).metrics["route/chosen"] == 0
    keys = [task["data"]["key"] for task in house.tasks()]
    assert len(keys) == len(set(keys)) == 5


def test_eval_photos_their_groups_and_twins_and_labelled_ones_are_never_sent(house):
    far = house.add(1)
    judged = house.add(2, kind="pixel_labeled", category="pets", group=EVAL_GROUP, phash="00000000000000ff")
    labelled = house.add(3)
    house.add(4, group=EVAL_GROUP)
    house.add(5, phash="00000000000000fe")
    house.add(6, role="eval")
    rows = [{"id": s, "sample_id": s, "alpha_sha256": "a", "version": 1} for s in (judged, labelled)]
    house.catalog.add("labels", rows)
    house.route()
    assert [task["data"]["key"] for task in house.tasks()] == [far]


def test_one_of_a_group_and_unseen_groups_first(house):
    burst = {house.add(n, group="burst") for n in range(4)}
    single = house.add(9)
    house.route(budget=5)
    sent = {task["data"]["key"] for task in house.tasks()}
    assert single in sent and len(sent & burst) == 1
    other = house.add(10)
    house.route(budget=1)
    assert {task["data"]["key"] for task in house.tasks()} - sent == {other}


def test_an_empty_catalog_and_no_budget_send_nothing(house):
    assert house.route().metrics["route/chosen"] == 0
    house.add(1)
    assert house.route(budget=0).metrics["route/chosen"] == 0
    assert not list(outbox(house.layout).glob("*.json"))


@pytest.mark.parametrize("moment", ["before the rows", "after the rows"])
def test_killed_while_sending_the_next_run_sends_each_photo_once(house, monkeypatch, moment):
    samples = {house.add(n) for n in range(4)}

    def dying(table, rows, **options):
        if moment == "after the rows":
            Catalog(house.store.url).upsert(table, rows, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(house.catalog, "upsert", dying)
        with pytest.raises(KeyboardInterrupt):
            house.route()
    assert not list(outbox(house.layout).glob("*.json"))
    house.route()
    assert sorted(task["data"]["key"] for task in house.tasks()) == sorted(samples)
    assert not list(outbox(house.layout).glob(".*"))


# ── collect ──────────────────────────────────────────────────────────────────────────────────────


def test_round_trip_is_exact(house, champion):
    sample = house.add(1)
    house.route()
    (task,) = house.tasks()
    region = task["predictions"][0]["result"][0]
    alpha = decode_rle(region["value"]["rle"], WIDTH, HEIGHT)
    alpha[5:15, 8:20] = 255
    house.hand_in([finished(task, alpha)])
    report = house.collect()
    assert report.metrics["collect/new_labels"] == 1
    assert np.array_equal(house.matte(sample), alpha)
    label = house.labels().loc[sample]
    assert (label["version"], label["origin"], label["annotator"]) == (1, "label_studio", "5")
    assert not label["binary"]
    assert house.catalog.read("samples")["category"].iloc[0] == "pets"
    assert house.catalog.read("samples")["width"].iloc[0] == WIDTH


def test_the_same_export_again_changes_nothing(house):
    house.add(1)
    house.route()
    export = [finished(house.tasks()[0], painted())]
    house.hand_in(export)
    house.collect()
    before = house.catalog.versions()
    house.hand_in(export, "copy.json")
    report = house.collect()
    assert report.metrics["collect/unchanged"] == 1
    assert report.metrics["collect/new_labels"] == 0
    assert house.catalog.versions() == before
    assert not list(inbox(house.layout).iterdir())
    assert len(list(collected(house.layout).iterdir())) == 2


def test_edits_become_versions_and_old_exports_do_not_undo_them(house):
    sample = house.add(1)
    house.route()
    (task,) = house.tasks()
    first, second = painted(1), painted(2)
    house.hand_in([finished(task, first, "2099-11-02T10:00:00Z")], "1.json")
    house.collect()
    house.hand_in([finished(task, second, "2099-11-03T10:00:00Z")], "2.json")
    house.collect()
    assert house.labels().loc[sample, "version"] == 2
    house.hand_in([finished(task, first, "2099-11-02T10:00:00Z", category="cards")], "late copy of 1.json")
    house.collect()
    assert np.array_equal(house.matte(sample), second)
    assert house.catalog.read("samples")["category"].iloc[0] == "pets"
    house.hand_in([finished(task, first, "2099-11-04T10:00:00Z")], "the person went back.json")
    house.collect()
    assert np.array_equal(house.matte(sample), first)
    assert house.labels().loc[sample, "version"] == 3


def test_of_several_annotations_the_latest_counts_and_cancelled_ones_do_not(house):
    sample = house.add(1)
    house.route()
    (task,) = house.tasks()
    task = finished(task, painted(1), "2099-11-02T12:00:00+02:00", number=1)
    task = finished(task, painted(2), "2099-11-02T11:00:00Z", number=2)
    task = finished(task, painted(3), "2099-11-02T09:00:00Z", number=3)
    task = finished(task, painted(4), "2099-11-09T09:00:00Z", number=4, was_cancelled=True)
    house.hand_in([task])
    metrics = house.collect().metrics
    assert np.array_equal(house.matte(sample), painted(2))
    assert (metrics["collect/superseded"], metrics["collect/cancelled"], metrics["collect/new_labels"]) == (2, 1, 1)


def test_hostile_tasks_are_refused_one_by_one_and_the_rest_lands(house):
    samples = [house.add(n) for n in range(3)]
    house.route()
    stranger = house.add(77)
    tasks = {task["data"]["key"]: task for task in house.tasks()}
    good = finished(tasks[samples[0]], painted())
    lying = finished(tasks[samples[1]], painted())
    lying["annotations"][0]["result"][0]["value"]["rle"][:4] = [255] * 4
    wrong_size = finished(tasks[samples[2]], painted().T.copy())
    unknown = finished({"data": {"key": "f" * 64}}, painted())
    never_sent = finished({"data": {"key": stranger}}, painted())
    house.hand_in([lying, wrong_size, unknown, never_sent, "text", None, {"data": {"key": ["x"]}}, good])
    report = house.collect()
    assert report.metrics["collect/new_labels"] == 1
    assert report.metrics["collect/refused"] == 7
    assert set(house.labels().index) == {samples[0]}
    reasons = " | ".join(row["reason"] for row in report.tables["refused"])
    assert "claims 4294967295" in reasons and "of size" in reasons and "not a photo that was sent" in reasons
    kept = sorted(path.name for path in collected(house.layout).iterdir())
    assert [name.split("-", 1)[1] for name in kept] == ["export.json", "export.refused.json"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"[" * 100_000, b"[1,", b"nonsense"])
def test_files_that_are_no_export_are_refused_whole_and_kept(house, content):
    inbox(house.layout).mkdir(parents=True)
    (inbox(house.layout) / "x.json").write_bytes(content)
    report = house.collect()
    assert "x.json" in report.tables["refused"][0]["reason"]
    kept = [path for path in collected(house.layout).iterdir() if not path.name.endswith(".refused.json")]
    assert [path.read_bytes() for path in kept] == [content]


def test_an_export_of_too_many_bytes_is_put_away_unread(house, monkeypatch):
    house.add(1)
    house.route()
    house.hand_in([finished(house.tasks()[0], painted())])
    (export,) = inbox(house.layout).glob("*.json")
    monkeypatch.setattr("mm_core.labeling.collect.MAX_BYTES", export.stat().st_size - 1)
    report = house.collect()
    assert report.metrics["collect/new_labels"] == 0 and "export fewer tasks" in report.tables["refused"][0]["reason"]
    assert not [*inbox(house.layout).glob("*.json")] and len([*collected(house.layout).iterdir()]) == 2


def test_unfinished_tasks_are_no_error(house):
    house.add(1)
    house.route()
    house.hand_in([{**task, "annotations": []} for task in house.tasks()])
    report = house.collect()
    assert report.metrics["collect/refused"] == report.metrics["collect/new_labels"] == 0


@pytest.mark.parametrize("table", ["samples", "labels"])
def test_killed_between_commits_the_next_run_completes(house, monkeypatch, table):
    sample = house.add(1)
    house.route()
    house.hand_in([finished(house.tasks()[0], painted())])

    def dying(name, rows, **options):
        count = Catalog(house.store.url).upsert(name, rows, **options)
        if name == table:
            raise KeyboardInterrupt
        return count

    with monkeypatch.context() as patched:
        patched.setattr(house.catalog, "upsert", dying)
        with pytest.raises(KeyboardInterrupt):
            house.collect()
    assert len(list(inbox(house.layout).iterdir())) == 1
    house.collect()
    assert np.array_equal(house.matte(sample), painted())
    assert house.labels().loc[sample, "version"] == 1
    assert len(house.catalog.read("labels")) == 1
    assert house.catalog.read("samples")["category"].iloc[0] == "pets"


def test_nothing_to_collect(house):
    assert house.collect().metrics["collect/files"] == 0


def test_collected_files_are_named_by_their_content(house):
    house.hand_in([])
    digest = sha256_file(inbox(house.layout) / "export.json")
    house.collect()
    assert [path.name for path in collected(house.layout).iterdir()] == [f"{digest}-export.json"]
