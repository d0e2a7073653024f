"""Damaged files of a trained workspace: does every command say which file it is and what helps?

    python benchmarks/file_damage.py [--base FOLDER] [--minutes 40] [--seed 0] [--command status] [--kind pins]

On the tiny workspace of `two_processes.py`: each command runs once on intact files, and the kernel's access times say
which files it read. Then it runs again with one of these files truncated, emptied, changed by one bit, without read
permission, or replaced by garbage, a folder, a pipe or a broken link. All commands get their first call before one gets
its second. The command must end with the same result, or with a line that names the file and a remedy. Processes are
forked from one that has loaded the libraries. Adds a row for each call to benchmarks/file_damage.csv, and writes the
table of benchmarks/file_damage.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from csv_rows import read_rows, write_page_table, write_rows  # noqa: E402
from trained_workspace import KINDS, TrainedWorkspace, flip, stamp  # noqa: E402

from mm_core.cli.app import main as run_mm  # noqa: E402

TABLE = HERE / "file_damage.csv"
MORE_KINDS = {
    "reports": "cycle/reports/*",
    "verdict": "cycle/gate/*",
    "records of checkpoints": "checkpoints/*/done.json",
    "kept scores": "cache/scores/*",
    "seal of the databases": "databases.json",
    "headline numbers": "cycle/metrics.json",
    "record of the export": "cycle/export/*",
    "manifest in the inbox": "inbox/*/*/manifest.csv",
}
ALL_KINDS = {kind: pattern for kind, pattern in KINDS.items() if kind != "sqlite"} | MORE_KINDS
ALL_KINDS["sqlite"] = KINDS["sqlite"]
COMMANDS = (
    "status --json",
    "check --json",
    "quarantine list --json",
    "quarantine show KEY --json",
    "quarantine accept KEY --why looked --by ana --json",
    "quarantine retry broken --json",
    "ingest --json",
    "pin-inputs --json",
    "snapshot --json",
    "split --json",
    "train-simple --json",
    "train-multimodal --json",
    "evaluate --json",
    "gate --json",
    "gate show --json",
    "gate simulate --photos 10 --json",
    "export --json",
    "promote --json",
    "report --json",
    "rollback --reason halos --json",
    "anchor 1 --reason phones --json",
    "lineage 2",
    "verify BUNDLE --json",
    "predict IMAGE -o OUT --json",
    "compare 1 2 PHOTOS -o OUT --json",
    "export-data OUT --as folders --json",
    "forget PHOTO --dry-run --json",
    "forget PHOTO --yes --json",
    "catalog compact --json",
    "backup BACKUP --json",
    "label status --json",
    "label value --json",
)
Task = tuple[str, str, list[str], str]
"""Command, kind of file, files of this kind that the command reads, damage."""
SAME, NAMED = "same result", "names file and remedy"
"""The two results that are no fault."""
LONGEST = 240.0
"""Seconds after which a call counts as hanging."""
VOLATILE = re.compile(
    r'"(\w+/)?(seconds|cpu_seconds|watts|\w+_at|at|when|time|duration|\w*bytes|run|run_id|backup|statement|files|'
    r'images_per_s|data_wait_share)": ("[^"]*"|[-\d.e]+|null)'
    r"|\d{4}-\d\d-\d\d[T ][\d:.+Z]+|\d+\.\d+ s\b|[0-9a-f]{32}(?![0-9a-f])"
)
"""Values that differ between two runs on the same files."""
REMEDY = re.compile(r"`mm ([^`]+)`|delete|move it away|restore|permission|rights|readable|free some|fetch|run ")


def truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path, draw: random.Random) -> None:
    path.write_bytes(b"")


def flip_bit(path: Path, draw: random.Random) -> None:
    flip(path, draw.randrange(8 * path.stat().st_size))


def scribble(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.randbytes(max(64, min(path.stat().st_size, 1 << 16))))


def make_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def make_pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def break_link(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


def forbid(path: Path, draw: random.Random) -> None:
    path.chmod(0)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncate,
    "emptied": empty,
    "one bit": flip_bit,
    "garbage": scribble,
    "folder": make_folder,
    "pipe": make_pipe,
    "broken link": break_link,
    "no permission": forbid,
}


def obey_permissions() -> None:
    """Give up root's right to read files without permission, for this process."""

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    libc, header, data = ctypes.CDLL(None), Header(0x20080522, 0), (Data * 2)()
    libc.capget(ctypes.byref(header), data)
    data[0].effective &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc.capset(ctypes.byref(header), data)


class Ended(NamedTuple):
    """How a command ended."""

    code: int | None
    """Exit code, or the negative number of a signal; None if it took longer than LONGEST."""
    out: str
    err: str

    @property
    def line(self) -> str:
        """The error message of `mm`, or else the last line of stderr."""
        lines = [line for line in reversed(self.err.splitlines()) if line.strip()]
        return next((line for line in lines if line.startswith("mm: ")), lines[0] if lines else "")


class Damage:
    """A base workspace, and calls on copies of it with one damaged file."""

    def __init__(self, root: Path, logs: Path | None = None):
        """Prepare the workspace.

        Args:
            root: Folder of a workspace that `two_processes.py` prepared, or an empty one, where it is made.
            logs: Folder for the output of the commands; by default `root`.
        """
        self.trained = TrainedWorkspace(root)
        self.trained.load_modules()
        self.trained.renew()
        self.base, self.work = self.trained.base, self.trained.work
        self.out, self.backup, self.logs = root / "out", root / "backup", logs or root
        self.damaged: Path | None = None
        bundle = next(path for path in sorted(self.work.glob("bundle/*")) if path.is_dir())
        photos = self.work / "inbox" / "pixel_labeled" / "late" / "images"
        self.words = self.trained.words | {
            "BACKUP": str(self.backup),
            "BUNDLE": str(bundle),
            "IMAGE": str(sorted(photos.iterdir())[0]),
            "PHOTOS": str(photos),
            "OUT": str(self.out),
        }

    def renew(self) -> None:
        """Make the workspace equal to the base again."""
        for path in (self.out, self.backup):
            if path.is_dir():
                shutil.rmtree(path)
            else:  # `mm compare` writes a page
                path.unlink(missing_ok=True)
        self.trained.renew(self.damaged)

    def call(self, command: str) -> Ended:
        """Run a command in a process of its own."""
        words = [self.words.get(word, word) for word in command.split()]
        logs = [self.logs / name for name in ("stdout", "stderr")]
        process = multiprocessing.get_context("fork").Process(target=_run, args=(words, logs))
        process.start()
        process.join(LONGEST)
        if process.exitcode is None:
            process.kill()
            process.join()
            return Ended(None, "", "")
        return Ended(process.exitcode, *(log.read_text(errors="replace") for log in logs))

    def learn(self, command: str) -> tuple[str, list[str]]:
        """Return the output of a command on intact files, and the files that it read."""
        self.renew()
        ended = self.call(command)
        if ended.code != 0:
            print(f"mm {command} fails on intact files: {ended.err[-500:]}", flush=True)
            return "", []
        read = []
        for origin in sorted(path for path in self.base.rglob("*") if path.is_file()):
            name = origin.relative_to(self.base).as_posix()
            path = self.work / name
            if not path.exists() or path.stat().st_atime_ns or stamp(path) != stamp(origin):
                read.append(name)
        return steady(ended.out), read

    def try_one(self, command: str, name: str, damage: str, draw: random.Random, expected: str) -> dict[str, str]:
        """Damage a file, run a command and judge how it ends."""
        self.renew()
        path = self.damaged = self.work / name
        DAMAGES[damage](path, draw)
        ended = self.call(command)
        result, details = judge(command, path, ended, expected)
        line = f"{ended.line[:400]}{details}".replace(str(self.work), "WORK")
        # Some libraries leave out the first slash of a path.
        return {"result": result, "line": line.replace(str(self.work)[1:], "WORK")}


def judge(command: str, path: Path, ended: Ended, expected: str) -> tuple[str, str]:
    """Return how a command ended that read a damaged file, SAME, NAMED or the fault, and details.

    Args:
        command: The command with its options.
        path: The damaged file.
        ended: How it ended.
        expected: Its output on intact files, without what differs between two runs.
    """
    is_check = command.startswith("check")
    if ended.code is None:
        return "hangs", ""
    if ended.code < 0 or "Traceback" in ended.out + ended.err:
        return "traceback", ended.err[-700:]
    if ended.code == 0:
        if steady(ended.out) == expected:
            return SAME, ""
        if is_check or names(path, ended.out):
            return "file named, but exit code 0", ""
        return "other result", difference(steady(ended.out), expected)
    if not names(path, ended.line + ended.out if is_check else ended.line):
        return "file not named", ""
    # `mm check` reports faults; their remedies are in its table.
    return (NAMED, "") if is_check or REMEDY.search(ended.line) else ("no remedy", "")


def names(path: Path, text: str) -> bool:
    """Return whether a text names the file, its folder of files that are written together, its digest or its table."""
    folder, table = path.parent, re.search(r"/catalog/(\w+)/", str(path))
    return (
        str(path) in text
        or path.name in text
        or (len(path.name) >= 64 and path.name[:12] in text)
        or (str(folder) in text and folder.name not in ("work", "cycle"))
        or (table is not None and table[1] in text)
    )


def steady(text: str) -> str:
    """Return an output without what differs between two runs."""
    return VOLATILE.sub("", text)


def difference(one: str, other: str) -> str:
    """Return the first place at which two texts differ."""
    at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"…{one[max(0, at - 60) : at + 120]}… instead of …{other[max(0, at - 20) : at + 120]}…"


def kind_of(name: str) -> str:
    """Return the kind of a file; "" for files of no kind, such as bytecode of MLflow models."""
    return next((kind for kind, pattern in ALL_KINDS.items() if fnmatch(name, pattern.replace("**/", "*"))), "")


def _run(words: list[str], logs: list[Path]) -> None:
    for stream, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    obey_permissions()
    sys.argv = ["mm", *words]
    run_mm()


def deal(tasks: list[Task], done: set[tuple[str, str, str]]) -> list[Task]:
    """Return the tasks that are not done; commands take turns, and the kinds of files of one command take turns."""
    calls, calls_of_kind = Counter(), Counter()
    for command, kind, _ in done:
        calls[command] += 1
        calls_of_kind[command, kind] += 1
    turns: list[tuple[int, int, Task]] = []
    for task in tasks:
        command, kind, _, damage = task
        if (command, kind, damage) not in done:
            turns.append((calls_of_kind[command, kind], len(turns), task))
            calls_of_kind[command, kind] += 1
    order: list[tuple[int, int, Task]] = []
    for _, number, task in sorted(turns, key=lambda turn: turn[:2]):
        order.append((calls[task[0]], number, task))
        calls[task[0]] += 1
    return [task for _, _, task in sorted(order, key=lambda turn: turn[:2])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, help="Folder of a workspace that two_processes.py prepared.")
    parser.add_argument("--minutes", type=float, default=40.0, help="Processor time after which no call begins.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", help="Commands that begin with this; default all.")
    parser.add_argument("--kind", action="append", help="Kinds of files; default all.")
    arguments = parser.parse_args()
    chosen = [c for c in COMMANDS if not arguments.command or c.startswith(tuple(arguments.command))]
    with tempfile.TemporaryDirectory() as folder:
        trial, rows = Damage(arguments.base or Path(folder)), read_rows(TABLE)
        done = {(row["command"], row["kind"], row["damage"]) for row in rows}
        draw, expected, tasks = random.Random(arguments.seed), {}, []
        for command in chosen:
            begun = time.perf_counter()
            expected[command], read = trial.learn(command)
            seconds = time.perf_counter() - begun
            kinds: dict[str, list[str]] = {}
            for name in read:
                if (kind := kind_of(name)) and (trial.base / name).stat().st_size:
                    kinds.setdefault(kind, []).append(name)
            print(f"mm {command}: {seconds:.1f} s, {', '.join(f'{len(v)} {k}' for k, v in kinds.items())}", flush=True)
            tasks += [(command, kind, files, damage) for kind, files in kinds.items() for damage in DAMAGES]
        tasks = [task for task in tasks if not arguments.kind or task[1] in arguments.kind]
        draw.shuffle(tasks)
        for command, kind, files, damage in deal(tasks, done):
            if sum(os.times()[:4]) > 60 * arguments.minutes:
                break
            name, begun = draw.choice(files), time.perf_counter()
            row = {"command": command, "kind": kind, "damage": damage, "file": name}
            row |= trial.try_one(command, name, damage, draw, expected[command])
            rows.append(row)
            if row["result"] not in (SAME, NAMED):
                print(json.dumps(row | {"seconds": round(time.perf_counter() - begun, 1)}), flush=True)
            write_table(rows)


def write_table(rows: list[dict[str, str]]) -> None:
    """The rows as CSV, and by command as the table of the page."""
    write_rows(TABLE, rows)
    lines = [
        "| command | calls | same result | a line names file and remedy | anything else |",
        "|---|---|---|---|---|",
    ]
    for command in [*sorted({row["command"] for row in rows}), ""]:
        results = [row["result"] for row in rows if command in ("", row["command"])]
        same, named = results.count(SAME), results.count(NAMED)
        name = f"`mm {command.removesuffix(' --json')}`" if command else "all"
        lines.append(f"| {name} | {len(results)} | {same} | {named} | {len(results) - same - named} |")
    write_page_table(HERE / "file_damage.md", lines)


if __name__ == "__main__":
    main()
