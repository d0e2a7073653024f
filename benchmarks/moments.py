"""Planted events of generated years (benchmarks/planted.py): how well `mm moments` groups them, beside other ways.

    python benchmarks/moments.py [--photos 1000] [--seeds 8]

First metadata alone, at three densities; then one gallery of real JPEGs, and what one photo more costs. Goes on where
it was when killed (photos and records lie in benchmarks/.moments). Writes benchmarks/moments.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from planted import Shot, Year
from sklearn.cluster import DBSCAN, HDBSCAN
from sklearn.metrics import adjusted_rand_score

from mm_core.core.layout import Layout
from mm_core.core.params import MomentsParams, Params
from mm_core.core.records import CATEGORIES
from mm_core.core.settings import Settings
from mm_core.moments.events import cluster, time_of
from mm_core.moments.gallery_reader import read_gallery, seconds_of
from mm_core.storage.run import StorageRun
from samplegen import generate
from samplegen.gallery import jpeg

HERE = Path(__file__).parent
WORK = HERE / ".moments"
PARAMS = MomentsParams()
DENSITIES = {"sparse": 1.5, "usual": 4.0, "dense": 15.0}
"""Photos an hour."""
ABOUT = """Runner: `benchmarks/moments.py`, years of `benchmarks/planted.py`: {photos} photos, {seeds} seeds a row.
Two phones and a camera without GPS whose clock is an hour off; stays, trips that move on, two visits to one place on
one day, two phones at different places at once, shared events; 15 % without a place, 3 % without a time or with the
day alone, 5 % of no event. Adjusted Rand index: mean ± standard deviation (least); 1: just the planted events, 0:
chance. Peers: sklearn on time and place in units of our gap and radius, fixed eps."""
Method = Callable[[np.ndarray, np.ndarray, Sequence[str]], np.ndarray]


def ours(times: np.ndarray, places: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
    p = PARAMS
    return cluster(times, places, cameras, gap_hours=p.gap_hours, radius_km=p.radius_km, speed_kmh=p.speed_kmh)


def blind(times: np.ndarray, places: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
    """Ours, told neither cameras nor that people travel."""
    return cluster(times, places, gap_hours=PARAMS.gap_hours, radius_km=PARAMS.radius_km, speed_kmh=0)


def gaps(times: np.ndarray, places: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
    """A new event after each pause longer than the gap."""
    order = np.argsort(times)
    labels = np.empty(len(times), int)
    labels[order] = np.cumsum(np.diff(times[order], prepend=times[order][:1]) > PARAMS.gap_hours * 3600)
    return labels


def scaled(times: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(t, x, y) in units of the gap and the radius; a photo without a place has that of the one before."""
    order = np.argsort(times)
    known = np.isfinite(places[order]).all(1)
    last = np.maximum.accumulate(np.where(known, np.arange(len(order)), -1))
    last[last < 0] = int(np.argmax(known))
    filled = np.empty_like(places)
    filled[order] = places[order][last]
    km = filled * 111.2 * np.array([1.0, np.cos(np.radians(48.2))])
    return np.column_stack([times / (PARAMS.gap_hours * 3600), km / PARAMS.radius_km])


def dbscan(times: np.ndarray, places: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
    return DBSCAN(eps=1.0, min_samples=3).fit_predict(scaled(times, places))


def hdbscan(times: np.ndarray, places: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
    return HDBSCAN(min_cluster_size=3, cluster_selection_epsilon=1.0).fit_predict(scaled(times, places))


METHODS: dict[str, Method] = {
    "ours": ours,
    "ours, blind to cameras and travel": blind,
    "time gap": gaps,
    "DBSCAN (t, x, y)": dbscan,
    "HDBSCAN (t, x, y)": hdbscan,
}


def rand(truth: Sequence[int], labels: np.ndarray) -> float:
    """Adjusted Rand index; a photo that a method leaves out is a group of its own."""
    alone = labels < 0
    labels = labels.copy()
    labels[alone] = labels.max(initial=0) + 1 + np.arange(alone.sum())
    return float(adjusted_rand_score(list(truth), labels))


def score(method: Method, truth: Sequence[int], times: np.ndarray, places: np.ndarray, cameras: Sequence[str]) -> float:
    timed = np.isfinite(times)
    labels = np.full(len(times), -1)
    labels[timed] = method(times[timed], places[timed], [c for c, t in zip(cameras, timed, strict=True) if t])
    return rand(truth, labels)


def name_of(shot: Shot, number: int) -> str:
    if shot.clock == "day":
        return f"IMG-{shot.taken:%Y%m%d}-WA{number:04d}.jpg"
    return f"photo{number:05d}.jpg"


def metadata(shots: Sequence[Shot]) -> tuple[list[int], np.ndarray, np.ndarray, list[str]]:
    """Event, time, place and camera of each photo, as they are read from its file."""
    stamps = [shot.taken.isoformat() if shot.clock == "exif" else None for shot in shots]
    times = seconds_of([time_of(t, name_of(s, n)) for n, (t, s) in enumerate(zip(stamps, shots, strict=True))])
    places = np.array([shot.place or (np.nan, np.nan) for shot in shots])
    return [shot.event for shot in shots], times, places, [shot.camera for shot in shots]


def metadata_rows(photos: int, seeds: int) -> list[str]:
    rows = []
    for word, density in DENSITIES.items():
        years = [metadata(Year(photos, seed, density).shots) for seed in range(seeds)]
        events = np.mean([len(set(year[0])) for year in years])
        cells = []
        for method in METHODS.values():
            found = [score(method, *year) for year in years]
            cells.append(f"{np.mean(found):.3f} ± {np.std(found, ddof=1):.3f} ({min(found):.3f})")
        rows.append(f"| {word}, {density:g} an hour | {events:.0f} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return rows


def files(photos: int) -> str:
    """One gallery of real JPEGs through the whole of `read_gallery`."""
    params = Params().with_values(**{"structure.ocr": []})
    folder, layout = WORK / f"year-{photos}", Layout(Settings.from_env(WORK / f"workspace-{photos}"))
    folder.mkdir(parents=True, exist_ok=True)
    shots = Year(photos, 0, DENSITIES["usual"]).shots
    for number, shot in enumerate(shots):
        path = folder / name_of(shot, number)
        if not path.exists():
            picture = generate(CATEGORIES[shot.event % len(CATEGORIES)], number, size=96, aspect=4 / 3).image
            when = shot.taken if shot.clock == "exif" else None
            path.write_bytes(jpeg(picture, when, shot.place, camera=shot.camera))
    truth = {name_of(shot, number): shot.event for number, shot in enumerate(shots)}
    extra = folder / "zzz.jpg"
    extra.unlink(missing_ok=True)
    start = time.perf_counter()
    gallery = read_gallery(StorageRun(params, layout), folder)
    first = time.perf_counter() - start
    times = seconds_of([time_of(p.taken_at, p.path.name) for p in gallery.pictures])
    places = np.array([p.place for p in gallery.pictures])
    found = score(ours, [truth[p.name] for p in gallery.pictures], times, places, [p.camera for p in gallery.pictures])
    extra.write_bytes(jpeg(generate("pets", 1, size=96).image, shots[-1].taken, shots[-1].place))
    start = time.perf_counter()
    again = read_gallery(StorageRun(params, layout), folder)
    second = time.perf_counter() - start
    assert again.looked_at == 1
    extra.unlink()
    return f"| {len(truth)} | {found:.3f} | {gallery.looked_at} in {first:.0f} s | {second:.1f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    lines = [
        "# Moments: planted events found",
        "",
        ABOUT.format(photos=args.photos, seeds=args.seeds),
        "",
        f"| photos | events | {' | '.join(METHODS)} |",
        "|---" * (2 + len(METHODS)) + "|",
        *metadata_rows(args.photos, args.seeds),
    ]
    (HERE / "moments.md").write_text("\n".join(lines) + "\n")
    lines += [
        "",
        f"From JPEGs on disk (usual density, seed 0). {platform.machine()}, {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.1f} at the start.",
        "",
        "| photos | ours | looked at | one photo more |",
        "|---|---|---|---|",
        files(args.photos),
    ]
    (HERE / "moments.md").write_text("\n".join(lines) + "\n")
    print(HERE / "moments.md")


if __name__ == "__main__":
    main()
