"""Is the catalog the same after SIGKILL, at any moment of an ingest, as after an undisturbed run?

Each trial begins with an empty store and five small drops (`arrivals.py`). A child process ingests them and is killed:
at a uniformly random moment, or exactly before, within or after its n-th write of a blob, record or table. Some trials
kill several runs in a row. Then a run goes to its end; the five tables (without times), all blobs, records and kept
files must equal those of an undisturbed run. Last, a run an hour later must find no temporary files.

    python -m benchmarks.ingest_kills --kills 200

Writes benchmarks/ingest_kills.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arrivals import differences, ingest, start, state, warm_up, write_arrivals
from mm_core.core.records import write_json
from mm_core.storage import local_files
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import LocalStore

HERE = Path(__file__).parent
WRITES = ((LocalStore, "put"), (Catalog, "add"), (Catalog, "fill"), (Catalog, "upsert"), (Catalog, "delete"))


@contextmanager
def at_writes(event: Callable[[], None]) -> Iterator[None]:
    """Calls `event` before and after each write, and within each write of a file: on disk, not yet in its place."""
    real = {(owner, name): getattr(owner, name) for owner, name in WRITES}
    real_fsync = os.fsync

    def watched(verb: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **more: Any) -> Any:
            event()
            result = verb(*args, **more)
            event()
            return result

        return write

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        event()

    for (owner, name), verb in real.items():
        setattr(owner, name, watched(verb))
    os.fsync = fsync
    try:
        yield
    finally:
        os.fsync = real_fsync
        for (owner, name), verb in real.items():
            setattr(owner, name, verb)


@dataclass
class Kills:
    """The drops, what an undisturbed run makes of them, and what trials found."""

    root: Path
    rows: int = 0
    seconds: float = 0.0
    """Of an undisturbed run."""
    events: int = 0
    """Moments around writes in an undisturbed run."""
    expected: dict[str, Any] = field(default_factory=dict)
    kills: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    """Temporary files that killed runs left, by sort."""
    after: Counter[str] = field(default_factory=Counter)
    """Those that were still there after a run an hour later."""
    failures: list[str] = field(default_factory=list)

    def prepare(self) -> None:
        warm_up(self.root)
        self.rows = write_arrivals(self.root / "inbox")
        calm = self.root / "calm"
        calm.mkdir()
        count = calm / "events"

        def counted() -> int:
            seen: list[None] = []
            with at_writes(lambda: seen.append(None)):
                ingest(calm, str(self.root / "inbox"), str(calm / "store"))
            return len(seen)

        began = time.perf_counter()
        self._finish(start(counted, count), count)
        self.seconds = time.perf_counter() - began
        self.events = int(count.read_text())
        self.expected = self._state(calm)

    def trial(self, number: int, seed: int, kills: int) -> None:
        """Kills so many runs, lets one end, compares."""
        chance = random.Random(seed)
        root = self.root / f"trial-{number}"
        root.mkdir()
        told = []
        while len(told) < kills:
            if chance.random() < 0.5:
                told.append(self._kill_at_moment(root, chance.uniform(0, self.seconds)))
            else:
                told.append(self._kill_at_write(root, chance.randrange(self.events)))
            if not told[-1]:  # the run had nothing left to do at that moment: it ended
                break
        self._finish(start(lambda: ingest(root, str(self.root / "inbox"), str(root / "store")), root / "said"), root)
        if lines := differences(self.expected, self._state(root)):
            self.failures.append(f"trial {number} (seed {seed}), killed {', '.join(told)}:\n" + "\n".join(lines[:20]))
        self.left.update(left_over(root))
        if number % 10 == 0:
            self._finish(start(lambda: an_hour_later(root), root / "said"), root)
            self.after.update(left_over(root))
        shutil.rmtree(root)

    def remember(self, progress: Path, trials: int, seconds: float) -> None:
        counts = {name: getattr(self, name) for name in ("kills", "left", "after")}
        write_json(progress, {"trials": trials, "seconds": seconds, "failures": self.failures, **counts})

    def go_on(self, progress: Path) -> tuple[int, float]:
        """Takes up what an earlier process found; trials and seconds so far."""
        if not progress.exists():
            return 0, 0.0
        known = json.loads(progress.read_text())
        self.failures = known["failures"]
        self.kills, self.left, self.after = (Counter(known[name]) for name in ("kills", "left", "after"))
        return known["trials"], known["seconds"]

    def _kill_at_moment(self, root: Path, after: float) -> str:
        child = start(lambda: ingest(root, str(self.root / "inbox"), str(root / "store")), root / "said")
        child.join(after)
        child.kill()
        child.join()
        return self._told(child, root, "at a random moment", f"after {after:.3f} s")

    def _kill_at_write(self, root: Path, event: int) -> str:
        seen: list[None] = []

        def die() -> None:
            seen.append(None)
            if len(seen) > event:
                os.kill(os.getpid(), signal.SIGKILL)

        def work() -> None:
            with at_writes(die):
                ingest(root, str(self.root / "inbox"), str(root / "store"))

        child = start(work, root / "said")
        child.join()
        return self._told(child, root, "around a write", f"at event {event}")

    def _told(self, child: Any, root: Path, sort: str, words: str) -> str:
        if child.exitcode == 0:
            return ""
        if child.exitcode != -signal.SIGKILL:
            self.failures.append(f"{root.name}: ended with {child.exitcode}: {(root / 'said').read_text()}")
        self.kills[sort] += 1
        return words

    def _finish(self, child: Any, said: Path) -> None:
        child.join()
        if child.exitcode:
            raise RuntimeError((said / "said" if said.is_dir() else said).read_text())

    def _state(self, root: Path) -> dict[str, Any]:
        out = root / "state.json"
        self._finish(start(lambda: json.dumps(state(root, str(root / "store"))), out), out)
        return json.loads(out.read_text())


def left_over(root: Path) -> Counter[str]:
    """Files that no one will read, by sort."""
    store, found = root / "store", Counter[str]()
    found["half-written files of the store"] = sum(p.is_file() for p in (store / ".tmp").rglob("*"))
    found["folders of batches in work"] = len(list((root / "cache" / "ingest").glob("*")))
    found["half-written files of delta-rs"] = sum(
        "#" in p.name or p.suffix == ".tmp" for p in store.glob("catalog/**/*")
    )
    for table in (store / "catalog").glob("*"):
        named = "".join(path.read_text() for path in table.glob("_delta_log/*.json"))
        found["data files that no commit names"] += sum(path.name not in named for path in table.glob("*.parquet"))
    return found


def an_hour_later(root: Path) -> None:
    """A new drop is ingested when what killed runs left is old."""
    local_files.LEFT_AFTER = 0
    inbox = root / "later"
    write_arrivals(inbox, photos=2)
    ingest(root, str(inbox), str(root / "store"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--progress", type=Path, default=Path("data/kills.json"), help="goes on where this left off")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mm-kills-") as folder:
        work = Kills(Path(folder))
        work.prepare()
        trials, seconds = work.go_on(args.progress)
        while work.kills.total() < args.kills:
            began, several = time.perf_counter(), trials % 4 == 3
            work.trial(trials, args.seed * 10**6 + trials, min(args.kills - work.kills.total(), 3 if several else 1))
            trials, seconds = trials + 1, seconds + time.perf_counter() - began
            work.remember(args.progress, trials, seconds)
            print(f"\r{work.kills.total()} kills, {len(work.failures)} failures   ", end="", flush=True)
        write(work, trials, seconds)
    args.progress.unlink(missing_ok=True)
    print(f"\n{HERE / 'ingest_kills.md'}")


def write(work: Kills, trials: int, seconds: float) -> None:
    kinds = ", ".join(f"{count} {sort}" for sort, count in sorted(work.kills.items()))
    lines = [
        "# Ingest under SIGKILL: is the catalog that of an undisturbed run?",
        "",
        f"Runner: `benchmarks/ingest_kills.py`. {work.rows} rows in five drops, {work.events} moments around writes;"
        f" an undisturbed run takes {work.seconds:.1f} s."
        f" {platform.machine()}, {os.cpu_count()} cores; {seconds:.0f} s.",
        "",
        "| what | count |",
        "|---|---|",
        f"| SIGKILLs | {work.kills.total()} ({kinds}) |",
        f"| trials, each ended by one run to completion | {trials} |",
        f"| whose tables, blobs, records or kept files differ from the undisturbed run's | {len(work.failures)} |",
        *(f"| {sort}, left by killed runs in all trials | {count} |" for sort, count in sorted(work.left.items())),
        *(f"| {sort}, an hour later (every tenth trial) | {n} |" for sort, n in sorted(work.after.items())),
        "",
        *(f"```\n{failure}\n```" for failure in work.failures),
    ]  # fmt: skip
    (HERE / "ingest_kills.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
