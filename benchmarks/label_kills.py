"""Do killed pushes and pulls leave a photo twice, or lose a label? SIGKILL at 50 random points, a real Label Studio.

    python benchmarks/label_kills.py --kills 50

Each round has a workspace and a project of its own: 16 generated photos. Pushes are killed one to three times, then one
runs through; the simulated annotator hands in 12 answers, skips 1, edits 3, deletes 2; pulls are killed one to three
times, some of them between the edits, then one runs through. In every second round the server is stopped and started
again between two kills. Afterwards the server must hold each photo once, with one upload, and the catalog exactly what
one undisturbed pull of the same project puts into a copy of it. Counts are kept in --work: a killed runner goes on.
Writes benchmarks/label_kills.md after each round. Needs `make labelstudio`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "labeling"))

from annotator import SimulatedAnnotator  # noqa: E402  # pyright: ignore[reportMissingImports]
from label_house import LabelHouse, server_of  # noqa: E402  # pyright: ignore[reportMissingImports]

from mm_core.core.layout import Layout  # noqa: E402
from mm_core.core.params import Params  # noqa: E402
from mm_core.core.records import Report, write_json  # noqa: E402
from mm_core.core.settings import Settings  # noqa: E402
from mm_core.labeling import pull as pull_module  # noqa: E402
from mm_core.labeling import push as push_module  # noqa: E402
from mm_core.labeling.apply_annotations import Taken  # noqa: E402
from mm_core.labeling.label_studio_client import Server  # noqa: E402
from mm_core.labeling.label_studio_local import LocalServer, free_port  # noqa: E402
from mm_core.storage.catalog import Catalog  # noqa: E402
from mm_core.storage.run import StorageRun  # noqa: E402

PHOTOS = 16
PIECE = 4
"""Photos per request or commit here, so that a kill has more places to hit."""


def layout_at(root: Path) -> Layout:
    return Layout(Settings(root, "", str(root / "store"), "", root / "params.yaml", "cpu"))


def push(root: Path, url: str, token: str, title: str) -> None:
    push_module.AT_ONCE = PIECE
    push_module.push_tasks(layout_at(root), Server(url, token, title), Report("push"), progress=lambda *_: None)


def pull(root: Path, url: str, token: str, title: str) -> None:
    pull_module.AT_ONCE = PIECE
    layout = layout_at(root)
    server = Server(url, token, title)
    pull_module.pull_labels(StorageRun(Params(), layout), server, Taken())


class Rounds:
    def __init__(self, work: Path, kills: int):
        self.work, self.wanted = work, kills
        self.state = work / "counts.json"
        self.counts: Counter[str] = Counter(json.loads(self.state.read_text()) if self.state.is_file() else {})
        self.rng = random.Random(self.counts["rounds"])
        python = Settings.from_env().labelstudio_python
        shutil.rmtree(work / "labelstudio", ignore_errors=True)
        self.local = LocalServer(python, work / "labelstudio", free_port())
        self.context = multiprocessing.get_context("forkserver")
        # Children are forked from a process that has imported everything and opened nothing.
        self.context.set_forkserver_preload(["label_kills", "deltalake", "httpx", "cv2"])

    def run(self) -> None:
        base = LabelHouse(self.work / f"base-{time.time_ns()}", PHOTOS)
        base.route(PHOTOS)
        self.local.start()
        try:
            while self.counts["kills of push"] + self.counts["kills of pull"] < self.wanted:
                self._round(base)
                write_json(self.state, self.counts)
                self.write()
                print(dict(self.counts), file=sys.stderr)
        finally:
            self.local.stop()

    def _round(self, base: LabelHouse) -> None:
        number = self.counts["rounds"]
        title = f"Kills {number} {time.time_ns()}"
        root = self.work / f"round{number}"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(base.layout.root, root)
        server = server_of(self.local, title)
        where = (root, server.url, self._token(), title)
        _ = server.project
        start = time.perf_counter()
        keys = sorted(base.truth)

        self._killed("push", push, where, 6.0, restart=number % 2 == 1)
        push(*where)
        self.counts["seconds"] += int(time.perf_counter() - start)
        tasks, uploads = server.tasks_of(keys), server.uploads()
        self.counts["photos pushed"] += len(keys)
        self.counts["photos with exactly one task"] += sum(len(tasks.get(key, [])) == 1 for key in keys)
        self.counts["photos with exactly one upload"] += sum(len(uploads.get(f"{key}.jpg", [])) == 1 for key in keys)
        self.counts["other tasks or uploads"] += len(set(uploads) - {f"{key}.jpg" for key in keys})
        self.counts["other tasks or uploads"] += sum(1 for _ in server.changed_since(None)) - len(keys)

        annotator = SimulatedAnnotator(server, base.truth)
        numbers = annotator.work(keys[:12])
        annotator.skip(keys[12:13])
        self._killed("pull", pull, where, 3.0, restart=False)
        for key in keys[:3]:
            annotator.edit(key, numbers[key], attempt=1)
        for key in keys[3:5]:
            server.sdk.annotations.delete(id=numbers[key])
        self._killed("pull", pull, where, 3.0, restart=number % 2 == 0)
        pull(*where)

        copy = self.work / f"copy{number}"
        shutil.copytree(base.layout.root, copy)
        pull(copy, *where[1:])
        got, wanted = _in_use(root), _in_use(copy)
        self.counts["labels that should count"] += len(wanted)
        self.counts["labels lost"] += len(set(wanted) - set(got))
        self.counts["labels that should not count"] += len(set(got) - set(wanted))
        before = Catalog(str(root / "store")).versions()
        pull(*where)
        self.counts["rounds whose next pull changed nothing"] += Catalog(str(root / "store")).versions() == before
        self.counts["rounds"] += 1
        shutil.rmtree(root)
        shutil.rmtree(copy)

    def _killed(self, name: str, work, where: tuple, most: float, *, restart: bool) -> None:
        """Starts the work one to three times and kills it after a random while."""
        for _ in range(self.rng.choice((1, 2, 3))):
            child = self.context.Process(target=work, args=where)
            child.start()
            time.sleep(self.rng.uniform(0, most))
            child.kill()
            child.join()
            self.counts[f"kills of {name}" if child.exitcode == -9 else f"{name} had finished before"] += 1
            if restart:
                self.local.stop()
                self.local.start()
                self.counts["restarts of the server"] += 1
                restart = False

    def _token(self) -> str:
        return json.loads((self.local.folder / "account.json").read_text())["token"]

    def write(self) -> None:
        rows = "\n".join(f"| {name} | {self.counts[name]} |" for name in ROWS)
        (HERE / "label_kills.md").write_text(f"""# Pushes to and pulls from Label Studio, killed at random points

Runner: `benchmarks/label_kills.py`, {platform.machine()}, Python {platform.python_version()}, Label Studio 1.23.2 on
sqlite, {PHOTOS} photos a round, {PIECE} per request or commit. Children were killed with SIGKILL after a uniform
share of a few seconds.

| | |
|---|---|
{rows}
""")


ROWS = (
    "rounds", "kills of push", "kills of pull", "push had finished before", "pull had finished before",
    "restarts of the server", "photos pushed", "photos with exactly one task", "photos with exactly one upload",
    "other tasks or uploads", "labels that should count", "labels lost", "labels that should not count",
    "rounds whose next pull changed nothing",
)  # fmt: skip


def _in_use(root: Path) -> set[tuple[str, str]]:
    """Photo and digest of every label that counts; raises where one photo has two rows of the same version."""
    from mm_core.ingest.placement import newest_labels

    rows = Catalog(str(root / "store")).read("labels")
    assert not rows.duplicated(["sample_id", "version"]).any()
    newest = newest_labels(rows)
    return set(zip(newest["sample_id"], newest["alpha_sha256"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mm-label-kills")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    Rounds(args.work, args.kills).run()


if __name__ == "__main__":
    main()
