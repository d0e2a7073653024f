"""Moments of a gallery: planted events are found, told, and not made again."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from mm_core import operations
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.records import write_json
from mm_core.core.settings import Settings
from mm_core.moments.events import cluster, haversine, representatives, time_of
from mm_core.moments.story import TONES, title, tone
from mm_core.moments.strategy import Facts
from mm_core.pinned_inputs import Run
from samplegen.gallery import PlantedEvent, jpeg, write_gallery

NOON = datetime(2026, 5, 2, 12)
VIENNA, GRAZ = (48.2, 16.37), (47.07, 15.44)
PARAMS = Params().with_values(**{"structure.ocr": []})
EVENTS = [
    PlantedEvent(NOON, 2, VIENNA, ("portrait", "pets"), 6),
    PlantedEvent(NOON + timedelta(hours=4), 2, GRAZ, ("scenery",), 4),
    PlantedEvent(NOON + timedelta(days=1, hours=7), 2, VIENNA, ("delicacy", "multi_person"), 5),
]


class TrueMattes:
    """The predictor of a world where mattes are bright discs in the middle; deterministic, and needs no training."""

    def predict(self, photos, decoders):
        found = []
        for photo, decoder in zip(photos, decoders, strict=True):
            y, x = np.mgrid[-1 : 1 : photo.shape[0] * 1j, -1 : 1 : photo.shape[1] * 1j]
            matte = 0.6 - np.hypot(x, y) if decoder != "scenery" else -y
            found.append(np.clip(matte * 20, 0, 1).astype(np.float32))
        return found

    def choose(self, photos):
        return ["saliency"] * len(photos)


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(operations, "predictor_of", lambda layout, model: (TrueMattes(), model))
    return Layout(Settings.from_env(tmp_path / "workspace"))


def seconds(*hours: float) -> np.ndarray:
    return np.array(hours, float) * 3600


def test_events_are_near_in_time_and_place() -> None:
    places = np.array([VIENNA] * 3 + [GRAZ] * 3 + [VIENNA] * 3)
    labels = cluster(seconds(0, 1, 2, 0.5, 1.5, 2.5, 12, 13, 14), places)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_photos_without_a_place_join_the_nearest_event_in_time_and_without_a_time_none() -> None:
    places = np.array([VIENNA, VIENNA, VIENNA, (np.nan, np.nan), (np.nan, np.nan), VIENNA])
    labels = cluster(seconds(0, 1, 2, 2.5, 9, np.nan), places)
    assert labels[3] == labels[0] and labels[4] not in (labels[0], -1) and labels[5] == -1


def test_without_any_place_time_alone_decides() -> None:
    nowhere = np.full((6, 2), np.nan)
    assert cluster(seconds(0, 1, 2, 10, 11, 12), nowhere).tolist() == [0, 0, 0, 1, 1, 1]
    assert cluster(np.empty(0), np.empty((0, 2))).tolist() == []


def test_a_trip_that_moves_on_is_one_event_and_a_jump_none() -> None:
    """8 km every 36 minutes; then 40 km in as long, which nobody at 15 km/h makes."""
    km = np.array([0, 8, 16, 24, 64, 64, 64])
    places = np.column_stack([48.2 + km / 111.2, np.full(7, 16.37)])
    hours = seconds(0, 0.6, 1.2, 1.8, 2.4, 2.5, 2.6)
    assert cluster(hours, places).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert len(set(cluster(hours, places, speed_kmh=0))) == 5


def test_two_phones_at_once_at_different_places_are_two_events() -> None:
    """5 km apart, taking turns: one phone could have travelled, two did not."""
    places = np.array([VIENNA, (48.245, 16.37)] * 5 + [(np.nan, np.nan)] * 2)
    hours = seconds(*(0.5 * n for n in range(10)), 2.1, 2.1)
    phones = ["one", "two"] * 6
    assert cluster(hours, places, phones).tolist() == [0, 1] * 6, "photos without a place go with their own phone"
    assert set(cluster(hours, places)) == {0}


def test_events_do_not_depend_on_the_order_of_photos() -> None:
    rng = np.random.default_rng(0)
    hours = np.concatenate([rng.uniform(0, 3, 20), rng.uniform(9, 12, 20)])
    places = np.repeat([VIENNA, GRAZ], 20, 0)
    order = rng.permutation(40)
    straight, shuffled = cluster(hours * 3600, places), cluster(hours[order] * 3600, places[order])
    assert np.array_equal(straight[order], shuffled)


def test_distances_are_kilometres() -> None:
    (found,) = haversine(np.radians(VIENNA), np.radians([GRAZ]))
    assert found == pytest.approx(144, abs=3)


@pytest.mark.parametrize(
    ("exif", "name", "hour"),
    [
        ("2026-05-02T18:30:00+02:00", "IMG_20200101_010101.jpg", datetime(2026, 5, 2, 18, 30)),
        (None, "IMG_20260502_183000.jpg", datetime(2026, 5, 2, 18, 30)),
        (None, "IMG-20260502-WA0007.jpg", datetime(2026, 5, 2, 12)),
        (None, "Screenshot_2026-05-02-18-30-00.png", datetime(2026, 5, 2, 18, 30)),
        (None, "20269999_000000.jpg", None),
        (None, "holiday.jpg", None),
    ],
)
def test_times_come_from_exif_or_the_name(exif: str | None, name: str, hour: datetime | None) -> None:
    assert time_of(exif, name) == hour


def test_the_best_are_good_and_different() -> None:
    vectors = np.array([[1, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 0, 1.0]])
    scores = np.array([0.9, 0.89, 0.5, 0.4])
    assert representatives(scores, vectors, ["a", "a", "b", "c"], 3) == [0, 2, 3]
    assert representatives(scores, vectors, ["a"] * 4, 9)[0] == 0


def test_titles_are_plain_words() -> None:
    evening = datetime(2026, 12, 12, 19)
    friends = [Facts(category="multi_person")] * 3
    assert title(friends, [evening] * 3) == "Saturday evening with friends, 12 December 2026"
    trip = [Facts(category="scenery")] * 2
    assert title(trip, [evening, evening + timedelta(days=2)]) == "3 days outdoors, 12 to 14 December 2026"
    assert title([Facts()], [evening]) == "Saturday evening, 12 December 2026"
    assert title([Facts(category="pets")], [None]) == "Undated photos with a pet"


def test_tones_follow_scene_and_hour_and_say_why() -> None:
    noon, night = datetime(2026, 5, 2, 12), datetime(2026, 5, 2, 21)
    party = [Facts(category="multi_person", colourfulness=40.0, brightness=0.3)] * 4 + [Facts(category="delicacy")] * 2
    assert tone(party, [night] * 6)[0] == "festive"
    assert tone([Facts(category="scenery", colourfulness=20.0)] * 4, [noon] * 4)[0] == "calm"
    assert tone([Facts(category="pets", colourfulness=60.0, brightness=0.6)] * 3, [noon] * 3)[0] in ("joyful", "cosy")
    mood, why = tone([Facts(category="cards")] * 3, [noon] * 3)
    assert mood == "everyday" and "3 of 3 show cards" in why
    assert tone([], [])[0] in TONES


def test_a_gallery_becomes_its_planted_events_with_pieces(layout: Layout, tmp_path: Path) -> None:
    truth = write_gallery(tmp_path / "gallery", EVENTS, size=96)
    out = tmp_path / "out"
    report = operations.moments(Run(PARAMS, layout), tmp_path / "gallery", out)
    told = json.loads((out / "moments.json").read_text())
    found = {photo["name"]: n for n, moment in enumerate(told["moments"]) for photo in moment["photos"]}
    assert adjusted_rand_score([truth[name] for name in found], list(found.values())) == 1.0
    assert len(told["moments"]) == len(EVENTS)
    assert report.metrics["moments/photos"] == len(truth)
    assert report.metrics["moments/photos_in_moments"] == len(truth), "repeated frames are counted, not lost"
    for moment in told["moments"]:
        assert moment["title"] and moment["tone"] in TONES and moment["tone_why"].endswith(".")
        assert moment["pieces"] and moment["best"]
        for piece in moment["pieces"]:
            assert (out / piece["file"]).stat().st_size > 500 and piece["why"].endswith(".")
            assert b"GPS" not in (out / piece["file"]).read_bytes()[:2000]


def test_bursts_and_copies_are_told_once(layout: Layout, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    write_gallery(gallery, [PlantedEvent(NOON, 1, VIENNA, ("pets",), 5)], size=128, bursts=0)
    again = gallery / "copy-of-first.jpg"
    again.write_bytes((gallery / "IMG_00000.jpg").read_bytes())
    operations.moments(Run(PARAMS, layout), gallery, tmp_path / "out", model="none")
    (moment,) = json.loads((tmp_path / "out" / "moments.json").read_text())["moments"]
    assert moment["repeated"] == 1 and len(moment["photos"]) == 5


def test_a_new_photo_costs_its_own_event(layout: Layout, tmp_path: Path) -> None:
    gallery, out = tmp_path / "gallery", tmp_path / "out"
    write_gallery(gallery, EVENTS, size=64, bursts=0)
    first = operations.moments(Run(PARAMS, layout), gallery, out)
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name not in ("moments.json",)}
    again = operations.moments(Run(PARAMS, layout), gallery, out)
    assert again.metrics["moments/looked_at"] == 0 and again.metrics["moments/made"] == 0
    assert {p: p.stat().st_mtime_ns for p in files} == files
    from samplegen import generate

    photo = generate("pets", 77, size=64).image
    (gallery / "IMG_90000.jpg").write_bytes(jpeg(photo, NOON + timedelta(hours=5), GRAZ))
    third = operations.moments(Run(PARAMS, layout), gallery, out)
    assert third.metrics["moments/looked_at"] == 1
    assert third.metrics["moments/made"] == 1 and third.metrics["moments/kept"] == len(EVENTS) - 1
    assert first.metrics["moments/made"] == len(EVENTS)


def test_a_moment_that_is_no_more_goes_and_what_is_not_ours_stays(layout: Layout, tmp_path: Path) -> None:
    gallery, out = tmp_path / "gallery", tmp_path / "out"
    truth = write_gallery(gallery, EVENTS[:2], size=64, bursts=0)
    operations.moments(Run(PARAMS, layout), gallery, out)
    (out / "mine").mkdir()
    (out / "mine" / "note.txt").write_text("keep")
    for name, event in truth.items():
        if event == 1:
            (gallery / name).unlink()
    operations.moments(Run(PARAMS, layout), gallery, out)
    folders = {p.name for p in out.iterdir() if p.is_dir()}
    assert len(folders) == 2 and (out / "mine" / "note.txt").read_text() == "keep"
    write_json(out / "moments.json", {"moments": [{"id": "../gallery"}, {"id": "mine"}]})
    operations.moments(Run(PARAMS, layout), gallery, out)
    assert (gallery / "IMG_00000.jpg").exists() and (out / "mine" / "note.txt").exists()


def test_broken_files_are_named_and_empty_folders_refused(layout: Layout, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    write_gallery(gallery, EVENTS[:1], size=64)
    (gallery / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    report = operations.moments(Run(PARAMS, layout), gallery, tmp_path / "out", model="none")
    assert [row["photo"] for row in report.tables["unreadable"]] == ["broken.jpg"]
    assert report.metrics["moments/pieces"] >= 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no photos"):
        operations.moments(Run(PARAMS, layout), tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        operations.moments(Run(PARAMS, layout), tmp_path / "nowhere", tmp_path / "out")
