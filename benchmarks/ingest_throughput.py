"""What a photo costs in ingest, beside what other tools take to find bad files and duplicates among the same photos.

Each contender goes through the same generated camera photos twice, each time in a process of its own: a few, then
many. The difference is the cost per photo; the rest is paid once per run (loading libraries, a database, Great
Expectations' pages). Contenders take turns, so that what else the machine does falls on all. Processor time counts all
processes of a contender and depends less on that than the clock does.

    make peers
    python -m benchmarks.ingest_throughput --work data/throughput

Goes on where it was killed; writes benchmarks/ingest_throughput.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from benchmarks.throughput_peers import PEERS

HERE = Path(__file__).parent
SIZES = {"12 MP": (4032, 3024), "2 MP": (1632, 1224)}
OURS = "ingest"
DOES = {
    OURS: "sha256; header; decode at reduced size to the last byte; brightness; two sorts of hashes; copies and edits"
    " (crops, frames) against batch and catalog; 20 rules (Great Expectations) with pages; blobs copied and fsynced;"
    " rows committed",
    "decode": "PIL decodes the whole picture, nothing else",
    "imagededup": "format and size (PIL) and sha256 per file; PHash; all pairs of hashes",
    "cleanvision": "default issues: exact and near duplicates, dark, light, blurred, grey, odd size or aspect",
    "fastdup": "features by its ONNX model, nearest neighbours, file statistics",
    "fiftyone": "compute_metadata; compute_exact_duplicates; compute_near_duplicates (ResNet-18, 224 px)",
}
Run = dict[str, float]


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Camera-like JPEGs of quality 93: generated samples enlarged, with grain as a sensor leaves it."""
    from mm_core.data import samplegen

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


def some(photos: Path, count: int, into: Path) -> Path:
    """A folder with so many of the photos, by hard links, that they stay in the system's cache for all."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for number in range(count):
        os.link(photos / f"{number}.jpg", into / f"{number}.jpg")
    return into


def ingest(work: Path) -> None:
    """The measured process of ours; the drop lies ready in `work`."""
    from mm_core import stages
    from mm_core.layout import Layout
    from mm_core.params import Params
    from mm_core.settings import Settings

    began = time.perf_counter()
    report = stages.ingest(Params(), Layout(Settings.from_env(work)))
    seconds = time.perf_counter() - began
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = sum(one.ru_utime + one.ru_stime for one in spent)
    print(json.dumps({"photos": report.metrics["ingest/accepted"], "seconds": seconds, "processor": busy}))


def run(name: str, photos: Path, count: int, work: Path) -> Run:
    """One contender over so many photos, from nothing."""
    place = work / "run"
    shutil.rmtree(place, ignore_errors=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}
    if name == OURS:
        drop = some(photos, count, place / "inbox" / "unlabeled" / "new")
        lines = [f"{number}.jpg,pets\n" for number in range(count)]
        (drop / "manifest.csv").write_text("image,category\n" + "".join(lines))
        environment |= {"MM_INBOX": str(place / "inbox"), "MM_STORE": str(place / "store")}
        command = [sys.executable, "-m", "benchmarks.ingest_throughput", "--ingest", str(place)]
    else:
        some(photos, count, place / "photos")
        (place / "home").mkdir()
        python = HERE.parent / ".tools" / ("fastdup" if name == "fastdup" else "peers") / "bin" / "python"
        script = str(HERE / "throughput_peers.py")
        command = [str(python), script, name, str(place / "photos"), str(place / "home")]
    with (work / "said").open("w") as said:
        told = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=said)
    return json.loads(told.stdout.splitlines()[-1])


def per_photo(runs: dict[str, Run], few: int, many: int) -> tuple[float, float, float]:
    """Milliseconds by the clock and of processor per photo, and seconds of processor once."""
    a, b = runs[str(few)], runs[str(many)]
    clock, busy = ((b[what] - a[what]) / (many - few) for what in ("seconds", "processor"))
    return 1000 * clock, 1000 * busy, a["processor"] - few * busy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/throughput"))
    parser.add_argument("--few", type=int, default=20)
    parser.add_argument("--many", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ingest", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ingest:
        return ingest(given.ingest)
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    known = work / "runs.json"
    runs: dict[str, Run] = json.loads(known.read_text()) if known.exists() else {}
    for size, pixels in SIZES.items():
        write_photos(work / size.replace(" ", ""), given.many, pixels)
    for number in range(given.rounds):
        for size in SIZES:
            for name in (OURS, *PEERS):
                for count in (given.few, given.many):
                    key = f"{size}/{name}/{number}/{count}"
                    if key not in runs:
                        runs[key] = run(name, work / size.replace(" ", ""), count, work)
                        known.write_text(json.dumps(runs))
                        print(key, runs[key], flush=True)
        write(runs, number + 1, given, work)
    print(HERE / "ingest_throughput.md")


def write(runs: dict[str, Run], rounds: int, given: argparse.Namespace, work: Path) -> None:
    lines = ["# Ingest beside other tools, per photo", ""]
    lines += [
        f"Runner: `benchmarks/ingest_throughput.py`. Generated camera photos, {given.few} and {given.many} of each"
    ]
    lines += [
        f"size; median of {rounds} rounds. Ratio: to ours. Each peer has all cores; `once` is processor time, too."
    ]
    for size in SIZES:
        photos = [path.stat().st_size for path in (work / size.replace(" ", "")).glob("*.jpg")]
        lines += ["", f"## {size}, {sum(photos) / len(photos) / 1e6:.2f} MB each", ""]
        lines += [
            "| | ms of processor a photo | ratio | ms by the clock | ratio | s once |",
            "|---|---|---|---|---|---|",
        ]
        costs = {}
        for name in (OURS, *PEERS):
            each = [
                per_photo(
                    {str(n): runs[f"{size}/{name}/{r}/{n}"] for n in (given.few, given.many)}, given.few, given.many
                )
                for r in range(rounds)
            ]
            costs[name] = [median(values) for values in zip(*each, strict=True)]
        clock, busy, _ = costs[OURS]
        for name, (by_clock, of_processor, once) in costs.items():
            lines.append(
                f"| {name} | {of_processor:.1f} | {of_processor / busy:.2f} | {by_clock:.1f} | {by_clock / clock:.2f} "
                f"| {once:.1f} |"
            )
    lines += ["", "What each does with a photo:", "", *(f"* {name}: {does}." for name, does in DOES.items())]
    lines += ["", f"{platform.machine()}, {os.cpu_count()} cores shared with other work, {date.today()}."]
    (HERE / "ingest_throughput.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
