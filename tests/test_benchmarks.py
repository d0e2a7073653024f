"""Runners of benchmarks start: a name that moves in the product breaks them, and no other test calls most of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(f"{name}: {error}")
"""


def test_every_runner_can_be_imported() -> None:
    folder = PROJECT / "benchmarks"
    runners = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    assert len(runners) > 30
    # As `python benchmarks/RUNNER.py` and as `python -m benchmarks.RUNNER`: both folders are on the path.
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(PROJECT)!r}]{IMPORT_ALL}"
    done = subprocess.run([sys.executable, "-c", code, *runners], capture_output=True, text=True, cwd=PROJECT)
    assert not done.returncode and not done.stdout, done.stdout + done.stderr
