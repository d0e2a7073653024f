"""The tiny workspace with two champions of `two_processes.py`, and copies of it whose files are damaged."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from mm_core.core.layout import Layout  # noqa: E402
from mm_core.core.settings import Settings  # noqa: E402
from mm_core.model.torchvision_shim import ensure_torchvision  # noqa: E402

KINDS = {
    "photos and mattes": "store/blobs/**/*",
    "catalog, data": "store/catalog/*/*.parquet",
    "catalog, Delta log": "store/catalog/*/_delta_log/*",
    "catalog, seals": "store/catalog/*/_seals/*",
    "statements of drops": "store/ingest/**/*",
    "quarantine": "store/quarantine/**/*",
    "records of the gate": "store/gate/**/*",
    "checkpoints": "checkpoints/*/model.safetensors",
    "snapshot and split": "cycle/s*/*",
    "models of the cycle": "cycle/models/**/*",
    "int8 files of the cycle": "cycle/quantised/*",
    "evaluation": "cycle/eval*/**/*",
    "bundles": "bundle/*/*",
    "pins": "inputs.json",
    "sqlite": "**/*.db",
}
"""Kind of file → pattern, relative to the workspace."""


class TrainedWorkspace:
    """A base workspace that stays as it is, and a copy of it that may be damaged."""

    def __init__(self, root: Path):
        self.base, self.work = root / "base", root / "work"
        if not self.base.is_dir():
            # In a process of its own, which imports what a cycle needs.
            program = "import sys, pathlib, two_processes as t; t.Bench(pathlib.Path(sys.argv[1])).prepare()"
            subprocess.run([sys.executable, "-c", program, str(root)], cwd=HERE, check=True)
        # A killed call may have left a flipped bit, which size and time do not show.
        shutil.rmtree(self.work, ignore_errors=True)
        for name in ("MM_STORE", "MM_INBOX", "MLFLOW_TRACKING_URI"):
            os.environ.pop(name, None)
        os.environ |= {
            "MM_DEVICE": "cpu",
            "MM_WORKSPACE": str(self.work),
            "MM_PARAMS": str(root / "params.yaml"),
            "MM_SIGNING_KEY": str(root / "key.pem"),
        }
        self.words: dict[str, str] = json.loads((root / "words.json").read_text())
        """Placeholder in a command of `two_processes.py`, such as PHOTO → its value."""

    @property
    def layout(self) -> Layout:
        return Layout(Settings.from_env())

    def load_modules(self) -> None:
        """Import what a cycle imports, so that a forked process does not import it again.

        Many imports are slow, and a call on the tiny workspace is short. Importing starts no threads of delta-rs.
        """
        ensure_torchvision()
        modules = json.loads((self.base.parent / "modules.json").read_text())
        for name in ("mm_core.stages", "mm_core.operations", *modules):
            # Some modules exist only in the process that made the list.
            with suppress(ImportError):
                importlib.import_module(name)

    def renew(self, damaged: Path | None = None) -> None:
        """Make the copy equal to the base again; the access time of every file is 0.

        Args:
            damaged: A file to copy in any case, because size and time do not show a flipped bit.
        """
        self.work.mkdir(exist_ok=True)
        if damaged is not None and damaged.is_dir():
            damaged.rmdir()
        elif damaged is not None:
            damaged.unlink(missing_ok=True)
        for path in sorted(self.work.rglob("*"), reverse=True):
            origin = self.base / path.relative_to(self.work)
            if path.is_dir() and not path.is_symlink():
                if not origin.is_dir():
                    path.rmdir()
            elif not origin.is_file() or stamp(path) != stamp(origin):
                path.unlink()
        for origin in sorted(self.base.rglob("*")):
            path = self.work / origin.relative_to(self.base)
            if origin.is_dir():
                path.mkdir(exist_ok=True)
                continue
            if not path.exists():
                shutil.copy2(origin, path)
            os.utime(path, ns=(0, origin.stat().st_mtime_ns))


def stamp(path: Path) -> tuple[int, int, int]:
    """Return size, modification time in ns and mode of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_mode


def flip(path: Path, place: int) -> None:
    """Flip the bit of this number; the file's time stays, as where a disk rots."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.seek(place // 8)
        (byte,) = stream.read(1)
        stream.seek(place // 8)
        stream.write(bytes([byte ^ (1 << place % 8)]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
