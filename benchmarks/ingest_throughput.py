"""What a photo costs in ingest, beside what other tools take to find bad files and duplicates among the same photos.

Each contender, in a process of its own, goes through three drops of generated camera photos: a few to load its
libraries, a few, and many. The difference of the last two is the cost per photo. Processor time counts all processes
of a contender and depends less on what else the machine does than the clock.

    make peers
    python -m benchmarks.ingest_throughput --work data/throughput

Goes on where it was killed; writes benchmarks/ingest_throughput.md after each contender.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from benchmarks.throughput_peers import PEERS, measured

HERE = Path(__file__).parent
SIZES = {"12 MP": (4032, 3024), "2 MP": (1632, 1224)}
DROPS = ("warm", "few", "many")
OURS = "ingest"
DOES = {
    OURS: "sha256; header; decode at reduced size to the last byte; brightness; two sorts of hashes; copies and edits"
    " (crops, frames) against batch and catalog; 20 rules (Great Expectations) with pages; blobs copied and fsynced;"
    " rows committed",
    "decode": "PIL decodes the whole picture, nothing else",
    "imagededup": "format and size (PIL) and sha256 per file; PHash; all pairs of hashes",
    "cleanvision": "default issues: exact and near duplicates, dark, light, blurred, grey, odd size or aspect",
    "fastdup": "features by its ONNX model, nearest neighbours, file statistics",
    "fiftyone": "compute_metadata; compute_exact_duplicates; compute_near_duplicates (untrained ResNet-18, 224 px)",
}
Run = dict[str, float]
"""Photos, seconds and processor seconds of one drop."""


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Camera-like JPEGs of quality 93: generated samples enlarged, with grain as a sensor leaves it."""
    import samplegen

    folder.mkdir(parents=True, exist_ok=True)
    width, height = size
    random = np.random.default_rng(0)
    grain = cv2.resize(random.normal(0, 7, (height // 2 + 512, width // 2 + 512)).astype(np.float32), None, fx=2, fy=2)
    kinds = ("pets", "portrait", "cards", "delicacy", "accessories")
    for number in range(count):
        y, x = random.integers(0, 1000, 2)
        path = folder / f"{number}.jpg"
        if path.exists():
            continue
        drawn = samplegen.generate(kinds[number % 5], number, size=640, aspect=width / height).image
        photo = cv2.resize(drawn, size, interpolation=cv2.INTER_CUBIC)
        photo = cv2.add(photo, cv2.merge([grain[y : y + height, x : x + width]] * 3), dtype=cv2.CV_8U)
        data = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])[1]
        path.with_suffix(".part").write_bytes(data.tobytes())
        path.with_suffix(".part").rename(path)


def ingest(work: Path) -> None:
    """The measured process of ours; the drops lie ready in `work`."""
    from mm_core import stages
    from mm_core.core.layout import Layout
    from mm_core.core.params import Params
    from mm_core.core.settings import Settings
    from mm_core.pinned_inputs import Run
    from mm_core.storage.run import catalog_of

    layout = Layout(Settings.from_env(work))
    drops = [work / "inbox" / "unlabeled" / name for name in DROPS]
    told = [measured(lambda drop: void(stages.ingest(Run(Params(), layout), batch=drop.name)), drop) for drop in drops]
    assert sum(one["photos"] for one in told) == len(catalog_of(layout).read("samples")), "all were taken"
    print(json.dumps(told))


def void(result: object) -> None:
    """Nothing, of whatever was done."""


def run(name: str, photos: Path, counts: tuple[int, ...], work: Path) -> list[Run]:
    """One contender over drops of so many photos, one after the other, from nothing."""
    place = work / "run"
    shutil.rmtree(place, ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
    drops, number = [place / "inbox" / "unlabeled" / drop for drop in DROPS], 0
    for drop, count in zip(drops, counts, strict=True):
        drop.mkdir(parents=True)
        names = [f"{n}.jpg" for n in range(number, number + count)]
        for one in names:
            os.link(photos / one, drop / one)
        if name == OURS:
            (drop / "manifest.csv").write_text("image,category\n" + "".join(f"{one},pets\n" for one in names))
        number += count
    if name == OURS:
        environment |= {"MM_INBOX": str(place / "inbox"), "MM_STORE": str(place / "store")}
        command = [sys.executable, "-m", "benchmarks.ingest_throughput", "--ingest", str(place)]
    else:
        (place / "home").mkdir()
        python = HERE.parent / ".tools" / ("fastdup" if name == "fastdup" else "peers") / "bin" / "python"
        command = [str(python), str(HERE / "throughput_peers.py"), name, str(place / "home"), *map(str, drops)]
    with (work / "said").open("w") as said:
        told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=said)
    return json.loads(told.stdout.splitlines()[-1])


def per_photo(drops: list[Run]) -> tuple[float, float, float]:
    """Milliseconds by the clock and of processor per photo, and seconds of processor per drop."""
    _, few, many = drops
    clock, busy = ((many[what] - few[what]) / (many["photos"] - few["photos"]) for what in ("seconds", "processor"))
    return 1000 * clock, 1000 * busy, few["processor"] - few["photos"] * busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/throughput"))
    parser.add_argument("--few", type=int, default=20)
    parser.add_argument("--many", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ingest", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ingest:
        return ingest(given.ingest)
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    known = work / "runs.json"
    runs: dict[str, list[Run]] = json.loads(known.read_text()) if known.exists() else {}
    counts = given.few, given.few, given.many
    for number in range(given.rounds):
        for size, pixels in SIZES.items():
            photos = work / size.replace(" ", "")
            write_photos(photos, sum(counts), pixels)
            for name in (OURS, *PEERS):
                key = f"{size}/{name}/{number}"
                if key not in runs:
                    runs[key] = run(name, photos, counts, work)
                    known.write_text(json.dumps(runs))
                    print(key, runs[key], flush=True)
                    write(runs, given, work)
    print(HERE / "ingest_throughput.md")


def write(runs: dict[str, list[Run]], given: argparse.Namespace, work: Path) -> None:
    lines = ["# Ingest beside other tools, per photo", ""]
    lines += [
        f"Runner: `benchmarks/ingest_throughput.py`. Generated camera photos, {given.few} and {given.many} of each"
    ]
    lines += [f"size, up to {given.rounds} rounds, medians. Ratio: to ours. Each has all cores."]
    for size in SIZES:
        of_size = {}
        for name in (OURS, *PEERS):
            if found := [per_photo(r) for key, r in runs.items() if key.startswith(f"{size}/{name}/")]:
                of_size[name] = [median(values) for values in zip(*found, strict=True)] + [len(found)]
        if OURS not in of_size:
            continue
        photos = [path.stat().st_size for path in (work / size.replace(" ", "")).glob("*.jpg")]
        lines += ["", f"## {size}, {sum(photos) / len(photos) / 1e6:.2f} MB each", ""]
        lines += ["| | ms of processor a photo | ratio | ms by the clock | ratio | s of processor a drop | rounds |"]
        lines += ["|---|---|---|---|---|---|---|"]
        clock, busy, *_ = of_size[OURS]
        for name, (by_clock, of_processor, once, rounds) in of_size.items():
            lines.append(
                f"| {name} | {of_processor:.1f} | {of_processor / busy:.2f} | {by_clock:.1f} | {by_clock / clock:.2f} "
                f"| {once:.1f} | {rounds} |"
            )
    lines += ["", "What each does with a photo:", "", *(f"* {name}: {does}." for name, does in DOES.items())]
    lines += ["", f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[1]:.0f}, {date.today()}."]
    (HERE / "ingest_throughput.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
