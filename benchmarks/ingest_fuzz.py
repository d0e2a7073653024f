"""Does any file make ingest crash, hang, or take memory without bound?

Mutated valid pictures of every format and mode, constructed traps, and mutated manifests (`fuzz_files.py`). Each is
taken as ingest takes it, in a child process that is watched: a signal that ends the child is a crash, more than LIMIT
seconds on one file a hang. Each picture must end accepted or with a rule that it breaks, each manifest as rows or
with a reason.

    python -m benchmarks.ingest_fuzz --files 10000

Writes benchmarks/ingest_fuzz.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import signal
import tempfile
import time
from collections import Counter, defaultdict
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from queue import LifoQueue

from benchmarks.arrivals import FORK, warm_up
from benchmarks.fuzz_files import fuzzed_manifest, fuzzed_picture, valid_pictures
from mm_core.core.errors import DropError
from mm_core.core.params import IngestParams
from mm_core.ingest import decode_sandbox
from mm_core.ingest.data_docs import DataDocs
from mm_core.ingest.expectations import Judge
from mm_core.ingest.manifest import ManifestRow, read_manifest
from mm_core.ingest.probe import Probe, Prober
from mm_core.storage.store import LocalStore

HERE = Path(__file__).parent
LIMIT = 30.0
"""Seconds for one file, after which the run counts as hung."""
MANIFESTS = 0.2
"""Share of manifests among the files."""
JUDGED = 500
"""Rows that Great Expectations judges at once."""


def is_manifest(number: int) -> bool:
    return number % 10 < 10 * MANIFESTS


def take_picture(folder: Path, number: int, data: bytes) -> Probe:
    """The file as a labelled photo, and as the matte of a valid one where the number is odd."""
    batch = folder / "inbox" / "pixel_labeled" / "b"
    batch.mkdir(parents=True, exist_ok=True)
    (folder / "spool").mkdir(exist_ok=True)
    (batch / "manifest.csv").touch()
    (batch / "good.png").write_bytes(valid_pictures()["png"])
    (batch / "matte.png").write_bytes(valid_pictures()["png-16"])
    (batch / "fuzzed").write_bytes(data)
    names = ("good.png", "fuzzed") if number % 2 else ("fuzzed", "matte.png")
    prober = Prober(
        LocalStore(folder / "inbox"),
        "pixel_labeled/b/manifest.csv",
        "pixel_labeled",
        IngestParams(),
        folder / "spool",
    )
    return prober(ManifestRow(number, *names))


def take_manifest(folder: Path, name: str, data: bytes) -> str:
    """How it ended: rows, or the reason in words; the first rows are looked for as ingest does."""
    batch = folder / "inbox" / "unlabeled" / "m"
    batch.mkdir(parents=True, exist_ok=True)
    for old in batch.iterdir():
        old.unlink()
    (batch / name).write_bytes(data)
    try:
        rows = read_manifest(batch / name)
    except DropError as error:
        assert str(error).startswith(name) and "\n" not in str(error), str(error)
        return "held"
    prober = Prober(LocalStore(folder / "inbox"), f"unlabeled/m/{name}", "unlabeled", IngestParams(), folder / "spool")
    for row in islice(rows, 20):
        probe = prober(row)
        assert not probe.image_decodes, "no picture was there"
    return "rows"


def judged(folder: Path, probes: list[Probe]) -> dict[int, str]:
    """Row → accepted, or the reason of the rule that it breaks."""
    faults = Judge(IngestParams(), "pixel_labeled", "fuzz", DataDocs(folder / "docs")).rows(probes)
    return {probe.row: faults[probe.row].reason if probe.row in faults else "accepted" for probe in probes}


def work(pipe: Connection, folder: Path, first: int, last: int, seed: int) -> None:
    """Takes files first … last - 1; says (number, what) before each and (number, end, seconds, MB) after."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    probes: list[Probe] = []

    def settle() -> None:
        for number, end in judged(folder, probes).items():
            pipe.send(("end", number, end))
        probes.clear()

    for number in range(first, last):
        name = ""
        if is_manifest(number):
            what, name, data = fuzzed_manifest(seed + number)
        else:
            what, data = fuzzed_picture(seed + number)
        before = rested_memory()
        pipe.send(("begin", number, what))
        began = time.perf_counter()
        # What is raised here would have ended ingest: it ends this process too, and counts as a crash.
        if is_manifest(number):
            pipe.send(("end", number, take_manifest(folder, name, data)))
        else:
            probes.append(take_picture(folder, number, data))
        pipe.send(("took", number, time.perf_counter() - began, peak_memory() - before))
        if len(probes) == JUDGED:
            settle()
    if probes:
        settle()
    pipe.send(("done",))


def rested_memory() -> int:
    """Bytes of this process and its decoders now; the peak is counted from here."""
    for process in processes():
        Path(f"/proc/{process}/clear_refs").write_text("5")
    return sum(_status(process, "VmRSS") for process in processes())


def peak_memory() -> int:
    return sum(_status(process, "VmHWM") for process in processes())


def processes() -> list[int]:
    """This one, and those that decode what is risky for it."""
    return [os.getpid(), *(worker.pid for worker in decode_sandbox._idle.get(os.getpid(), LifoQueue()).queue)]


def _status(process: int, name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return 1024 * int(lines[name].split()[0])


class Fuzz:
    """Watches children that take files, and starts another where one died."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.ends: dict[int, str] = {}
        self.what: dict[int, str] = {}
        self.took: dict[int, tuple[float, int]] = {}
        self.failures: list[str] = []

    def run(self, files: int, show: bool = False) -> None:
        warm_up(self.folder)
        valid_pictures()
        first = 0
        while first < files:
            first = self._child(first, files, show)

    def _child(self, first: int, last: int, show: bool) -> int:
        """Where the next child has to begin."""
        ours, theirs = FORK.Pipe()
        child = FORK.Process(target=work, args=(theirs, self.folder, first, last, self.seed))
        child.start()
        theirs.close()
        at, done = first, False
        try:
            while not done:
                if not ours.poll(LIMIT):
                    self.failures.append(f"hang: {at} {self.what.get(at)}")
                    child.kill()
                    break
                verb, *told = ours.recv()
                done = verb == "done"
                if verb == "begin":
                    at, self.what[told[0]] = told[0], told[1]
                    if show and at % 100 == 0:
                        print(f"\r{at} files, {len(self.failures)} failures   ", end="", flush=True)
                elif verb == "end":
                    self.ends[told[0]] = told[1]
                elif verb == "took":
                    self.took[told[0]] = (told[1], told[2])
        except EOFError:
            child.join()
            code = child.exitcode or 0
            died = signal.Signals(-code).name if code < 0 else f"exit {code}"
            self.failures.append(f"crash ({died}): {at} {self.what.get(at)}")
        child.join()
        return last if done else at + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-fuzz-") as folder:
        fuzz = Fuzz(Path(folder), args.seed)
        began = time.perf_counter()
        fuzz.run(args.files, show=True)
        write(fuzz, args.files, time.perf_counter() - began)
    print(f"\n{HERE / 'ingest_fuzz.md'}")


def write(fuzz: Fuzz, files: int, seconds: float) -> None:
    manifests = sum(map(is_manifest, range(files)))
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    for number, end in fuzz.ends.items():
        ends["manifests" if is_manifest(number) else "pictures"][end] += 1
    times = sorted(seconds for seconds, _ in fuzz.took.values())
    slowest = sorted(fuzz.took, key=lambda n: -fuzz.took[n][0])[:5]
    largest = sorted(fuzz.took, key=lambda n: -fuzz.took[n][1])[:5]
    lines = [
        "# Fuzzed files: does one of them crash, hang or burst ingest?",
        "",
        f"Runner: `benchmarks/ingest_fuzz.py`. {files - manifests} pictures from {len(valid_pictures())} valid ones,"
        f" half taken as photo and half as matte, and {manifests} manifests; seed {fuzz.seed}."
        f" {platform.machine()}, {os.cpu_count()} cores; {seconds:.0f} s.",
        "",
        "| what | count |",
        "|---|---|",
        f"| crashes and hangs (more than {LIMIT:g} s) | {len(fuzz.failures)} |",
        f"| files that ended without a verdict | {files - len(fuzz.ends)} |",
        *(f"| {sort}: {end} | {count} |" for sort, by_end in ends.items() for end, count in by_end.most_common()),
        f"| median and 99.9 % of seconds a file | {times[len(times) // 2]:.4f}, {times[int(len(times) * 0.999)]:.2f} |",
        *(f"| slow: {fuzz.what[n]} | {fuzz.took[n][0]:.2f} s |" for n in slowest),
        *(f"| large: {fuzz.what[n]} | {fuzz.took[n][1] / 1e6:.0f} MB above rest |" for n in largest),
        "",
        *(f"* {failure}" for failure in fuzz.failures),
    ]
    (HERE / "ingest_fuzz.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
