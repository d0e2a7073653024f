"""Lets this room's tests import their shared `label_house`, and starts one real Label Studio for all of them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mm_core.core.settings import Settings
from mm_core.labeling.label_studio_local import LocalServer, free_port

sys.path.insert(0, str(Path(__file__).parent))

_titles = itertools.count(1)


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server on 127.0.0.1 with a data folder of its own, ended by its process id."""
    python = Settings.from_env().labelstudio_python
    if not python.with_name("label-studio").is_file():
        pytest.skip("Label Studio is not installed: run `make labelstudio`")
    server = LocalServer(python, tmp_path_factory.mktemp("labelstudio"), free_port(), local_hooks=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def title() -> str:
    """Of a project of the test's own."""
    return f"Test project {next(_titles)}"
