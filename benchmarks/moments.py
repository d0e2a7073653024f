"""Planted events of generated galleries: how well `mm moments` groups them, and what a new photo costs.

    python benchmarks/moments.py [--photos 1000]

A year of one phone: events of hours and of days, some close to each other in time or place, bursts, a sixth of the
photos without a place. Goes on where it was when killed (photos and records lie in benchmarks/.moments). Writes
benchmarks/moments.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from mm_core import stages
from mm_core.aigc.events import cluster, time_of
from mm_core.aigc.gallery import Gallery, read_gallery, seconds_of
from mm_core.aigc.moments import events_of
from mm_core.data.samplegen import generate
from mm_core.data.samplegen.gallery import PlantedEvent, jpeg, write_gallery
from mm_core.layout import Layout
from mm_core.params import Params
from mm_core.settings import Settings

HERE = Path(__file__).parent
WORK = HERE / ".moments"
HOME = np.array([48.2, 16.37])
KINDS = (("portrait", "pets"), ("scenery",), ("multi_person", "delicacy"), ("delicacy",), ("scenery", "portrait"),
         ("cards", "accessories"))  # fmt: skip


def year(photos: int, seed: int) -> list[PlantedEvent]:
    """Events until they have so many photos: half at home or near it, half away; two a day now and then."""
    rng = np.random.default_rng(seed)
    events, now, left = [], datetime(2026, 1, 3, 9), photos
    while left > 0:
        away = rng.random() < 0.5
        place = HOME + (rng.normal(0, 3.0, 2) if away else rng.normal(0, 0.05, 2))
        hours = float(rng.choice([0.3, 1.0, 2.0, 4.0, 7.0]))
        # Close enough together that an hour has two photos: a pause longer than the gap is another event by definition.
        count = min(left, int(rng.integers(4, 14) + 2 * hours))
        kinds = KINDS[int(rng.integers(len(KINDS)))]
        events.append(PlantedEvent(now, hours, (float(place[0]), float(place[1])), kinds, count))
        left -= count
        # The next one the same day elsewhere, the next day, or some days later.
        pause = rng.choice([2.5, 5.0, 16.0, 40.0, 120.0], p=[0.15, 0.15, 0.3, 0.25, 0.15])
        now += timedelta(hours=hours + float(pause) + float(rng.uniform(0, 1)))
    return events


def rand(gallery: Gallery, truth: dict[str, int], labels: np.ndarray) -> float:
    return float(adjusted_rand_score([truth[p.name] for p in gallery.pictures], labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    args = parser.parse_args()
    params = Params().with_values(**{"structure.ocr": []})
    rows = []
    for seed in range(3):
        folder, layout = WORK / f"gallery-{seed}", Layout(Settings.from_env(WORK / f"workspace-{seed}"))
        events = year(args.photos, seed)
        extra = folder / "IMG_99999.jpg"
        extra.unlink(missing_ok=True)
        truth = write_gallery(folder, events, seed=seed, size=96)
        start = time.perf_counter()
        gallery = read_gallery(folder, params, layout, stages.catalog_of(layout))
        first = time.perf_counter() - start
        times = seconds_of([time_of(p.taken_at, p.path.name) for p in gallery.pictures])
        places = np.array([p.place for p in gallery.pictures])
        mine = cluster(times, places, gap_hours=params.moments.gap_hours, radius_km=params.moments.radius_km)
        nowhere = np.full_like(places, np.nan)
        by_time = cluster(times, nowhere, gap_hours=params.moments.gap_hours)
        days = np.unique(times // 86400, return_inverse=True)[1]
        means = KMeans(len(events), random_state=0, n_init=3).fit_predict(times[:, None])  # pyright: ignore[reportArgumentType]
        told = events_of(gallery, params.moments, params.ingest.near_duplicate_bits)
        extra.write_bytes(jpeg(generate("pets", 1, size=96).image, events[-1].start, events[-1].place))
        start = time.perf_counter()
        again = read_gallery(folder, params, layout, stages.catalog_of(layout))
        second = time.perf_counter() - start
        assert again.looked_at == 1
        extra.unlink()
        rows.append(
            f"| {seed} | {len(truth)} | {len(events)} | {len(told)} | {rand(gallery, truth, mine):.3f} "
            f"| {rand(gallery, truth, by_time):.3f} | {rand(gallery, truth, days):.3f} "
            f"| {rand(gallery, truth, means):.3f} | {gallery.looked_at} in {first:.0f} s | {second:.1f} s |"
        )
        lines = [
            "# Moments: planted events found",
            "",
            "Runner: `benchmarks/moments.py`. Generated galleries of a year, adjusted Rand index (1: just the planted"
            " events, 0: chance) of `cluster` with the default params, beside time alone (same gap), calendar days,"
            " and k-means on time that is told the number of events. Told: events with two different photos or more."
            f" {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end.",
            "",
            "| gallery | photos | planted | told | time and place | time alone | days | k-means, told k | looked at "
            "| one photo more |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *rows,
        ]
        (HERE / "moments.md").write_text("\n".join(lines) + "\n")
    print(HERE / "moments.md")


if __name__ == "__main__":
    main()
