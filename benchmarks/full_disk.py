"""Does a command end with one line when the disk becomes full while it runs, and is nothing lost afterwards?

    python benchmarks/full_disk.py --base FOLDER [--minutes 20] [--calls 4] [--seed 0] [--command ingest]

On the tiny workspace of `two_processes.py`, on a file system in memory (tmpfs, which needs root). Each command runs
once with space, which tells how much it writes. Then it runs with a random part of that space, from none to nearly all,
in half of the calls also for temporary files. It must end with the same result, or with a line that names a file and
the remedy. With space again the same command must succeed, `mm check` must find no fault, and `mm status` must answer
as after the command that had space. Adds a row for each call to benchmarks/full_disk.csv, and writes the table of
benchmarks/full_disk.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csv_rows import read_rows, write_page_table, write_rows
from file_damage import COMMANDS, NAMED, SAME, Damage, Ended, difference, steady

HERE = Path(__file__).parent
TABLE = HERE / "full_disk.csv"
MORE_COMMANDS = (
    "train-hard --json",
    "label push --json",
    "label pull --json",
    "drop PHOTOS --kind unlabeled --batch more --json",
    "moments PHOTOS -o OUT --json",
    "keys KEYS --json",
)
"""Commands that write and that `file_damage.py` leaves out, because they read little."""
ONCE = ("quarantine accept",)
"""Commands that a second call refuses, because the first has done what was asked, however it ended."""
LONG = ("gate simulate",)
"""Commands that last for minutes."""
PAGE = 4096
"""Bytes of a page, in which a tmpfs counts its space."""
REMEDY = "free some space"


class Disk:
    """A file system in memory, whose free space can be set."""

    def __init__(self, folder: Path):
        self.folder = folder

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Mount it for as long as the context lasts."""
        options = ["-t", "tmpfs", "-o", "size=4g,nr_inodes=0", "tmpfs", str(self.folder)]
        subprocess.run(["mount", *options], check=True)
        try:
            yield self.folder
        finally:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)

    def used(self) -> int:
        """Return the pages in use."""
        space = os.statvfs(self.folder)
        return space.f_blocks - space.f_bfree

    def leave(self, pages: int | None) -> None:
        """Leave this number of free pages; None: plenty."""
        size = 4 << 30 if pages is None else (self.used() + pages) * PAGE
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


class FullDisk:
    """Calls of commands on a workspace whose disk becomes full."""

    def __init__(self, disk: Disk, logs: Path):
        self.disk, self.trial = disk, Damage(disk.folder, logs)
        self.temporary = disk.folder / "tmp"
        self.trial.words["KEYS"] = str(self.trial.work / "new-key.pem")

    def renew(self) -> None:
        """Make the workspace equal to the base again."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()
        self.trial.renew()

    def learn(self, command: str) -> tuple[Ended, str, int]:
        """Return the end of a command that has space, the state after it, and the pages that it took."""
        self.renew()
        before = self.disk.used()
        ended = self.trial.call(command)
        pages = self.disk.used() - before
        return ended, self.state(), pages

    def state(self) -> str:
        """Return what `mm status` answers."""
        return steady(self.trial.call("status --json").out)

    def try_one(self, command: str, pages: int, expected: str, state: str) -> dict[str, str]:
        """Run a command with this number of free pages, then with space, and judge both ends."""
        self.renew()
        self.disk.leave(pages)
        try:
            ended = self.trial.call(command)
        finally:
            self.disk.leave(None)
        if command.startswith("check"):
            # It reports faults, and their remedies are in its table.
            ended = ended._replace(err=f"mm: {ended.out}")
        result, details = judge(self.disk.folder, ended, expected)
        again = ended if command.startswith(ONCE) and ended.code else self.trial.call(command)
        faults = self.trial.call("check --json")
        if again.code != 0 and again is not ended:
            after = f"fails: {again.line[:300]}"
        elif faults.code != 0:
            after = f"faults: {faults.out[-400:]}"
        else:
            after = "as before" if (now := self.state()) == state else difference(now, state)
        line = f"{ended.line[:400]}{details}".replace(str(self.disk.folder), "DISK")
        return {"result": result, "line": line, "with_space": after.replace(str(self.disk.folder), "DISK")}


def judge(disk: Path, ended: Ended, expected: str) -> tuple[str, str]:
    """Return how a command ended on a full disk, SAME, NAMED or the fault, and details."""
    if ended.code is None:
        return "hangs", ""
    if ended.code < 0 or "Traceback" in ended.out + ended.err:
        return "traceback", ended.err[-1500:]
    if ended.code == 0:
        same = steady(ended.out) == expected
        return (SAME, "") if same else ("other result", difference(steady(ended.out), expected))
    if REMEDY not in ended.line:
        return "no remedy", ""
    return (NAMED, "") if re.search(rf"{re.escape(str(disk)[1:])}/\w", ended.line) else ("file not named", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="Folder that two_processes.py prepared.")
    parser.add_argument("--minutes", type=float, default=20.0, help="Processor time after which no call begins.")
    parser.add_argument("--calls", type=int, default=4, help="Calls of each command, those of earlier runs among them.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", action="append", help="Commands that begin with this; default all.")
    arguments = parser.parse_args()
    rows = read_rows(TABLE)
    chosen = [c for c in (*COMMANDS, *MORE_COMMANDS) if not c.startswith(LONG)]
    chosen = [c for c in chosen if not arguments.command or c.startswith(tuple(arguments.command))]
    with tempfile.TemporaryDirectory() as logs, tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder))
        with disk.mounted():
            copy_base(arguments.base, disk.folder)
            trial = FullDisk(disk, Path(logs))
            for command in chosen:
                count = sum(row["command"] == command for row in rows)
                if count >= arguments.calls or sum(os.times()[:4]) > 60 * arguments.minutes:
                    continue
                ended, state, pages = trial.learn(command)
                if ended.code != 0:
                    print(f"mm {command} fails with space: {ended.err[-500:]}", flush=True)
                    continue
                draw = random.Random(f"{arguments.seed} {command} {count}")
                for number in range(count, arguments.calls):
                    # The first call has no space at all; a command that writes nothing needs no other.
                    free = 0 if number == 0 or pages < 1 else draw.randrange(pages)
                    shared = number % 2 == 0
                    os.environ["TMPDIR"] = str(trial.temporary if shared else logs)
                    row = {"command": command, "free_pages": str(free), "of": str(pages), "tmp": str(shared)}
                    row |= trial.try_one(command, free, steady(ended.out), state)
                    rows.append(row)
                    if row["result"] not in (SAME, NAMED) or row["with_space"] != "as before":
                        print(json.dumps(row), flush=True)
                    write_table(rows)


def copy_base(base: Path, folder: Path) -> None:
    """Copy a prepared workspace, whose backups and workspace words name its own folder."""
    for path in sorted(base.iterdir()):
        if path.name == "base":
            shutil.copytree(path, folder / path.name)
        elif path.is_file():
            shutil.copy2(path, folder / path.name)


def write_table(rows: list[dict[str, str]]) -> None:
    """The rows as CSV, and by command as the table of the page."""
    write_rows(TABLE, rows)
    lines = [
        "| command | calls | same result | a line names file and remedy | anything else | with space, nothing lost |",
        "|---|---|---|---|---|---|",
    ]
    for command in [*sorted({row["command"] for row in rows}), ""]:
        chosen = [row for row in rows if command in ("", row["command"])]
        results = [row["result"] for row in chosen]
        same, named = results.count(SAME), results.count(NAMED)
        whole = sum(row["with_space"] == "as before" for row in chosen)
        name = f"`mm {command.removesuffix(' --json')}`" if command else "all"
        other = len(results) - same - named
        lines.append(f"| {name} | {len(results)} | {same} | {named} | {other} | {whole} |")
    write_page_table(HERE / "full_disk.md", lines)


if __name__ == "__main__":
    main()
