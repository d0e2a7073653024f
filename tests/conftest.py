"""What tests of several rooms share: an S3 server over HTTP, and the real photos where they are."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from playwright.sync_api import Browser
from sqlalchemy import event
from sqlalchemy.engine import Engine
from xdist.scheduler import LoadFileScheduling

from mm_core.core import headless
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from tests.servers import postgres_programs, postgres_server

# Before torch loads OpenMP: threads that spin at its barriers crawl on a machine that others use too.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Networks of a few thousand parameters gain nothing from threads, and two test processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Container images often set PYTHONDONTWRITEBYTECODE. Without bytecode each of the hundreds of processes that the tests
# start compiles thousands of modules, which takes 40 % of its imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

STARTED_FIRST = (
    "tests/pipelines/test_operated.py",
    "tests/test_docs.py",
    "tests/test_dvc.py",
    "tests/export/",
    "tests/test_one_cycle.py",
    "tests/test_loop.py",
    "tests/training/test_on_ray.py",
    "tests/pipelines/test_daemon.py",
    "tests/pipelines/test_cycle.py",
    "tests/labeling/",
)
"""Files and folders that take longest. Short files come last, so that all test processes end together."""
ONE_PROCESS = ("tests/export/", "tests/gallery/", "tests/labeling/")
"""Folders whose files share costly session fixtures: a cycle, a gallery, a server of Label Studio."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        late = len(STARTED_FIRST)
        places = {name: place for place, name in enumerate(STARTED_FIRST)}
        items.sort(
            key=lambda item: min((p for name, p in places.items() if item.nodeid.startswith(name)), default=late)
        )


class SharedFixtures(LoadFileScheduling):
    """Runs each file in one process, and the files of some folders, or those that start Ray, in the same process."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if file.endswith("test_on_ray.py"):
            return "ray"
        return next((folder for folder in ONE_PROCESS if file.startswith(folder)), file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedFixtures:
    return SharedFixtures(config, log)


# No test fails by the clock.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

_buckets = count()


@event.listens_for(Engine, "connect")
def _no_waiting_for_the_disk(connection: Any, _: Any) -> None:
    """MLflow's and Dagster's sqlite files: what no test looks at is what a power cut leaves."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session", autouse=True)
def kept_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of the kept ONNX graphs, which the workspaces of all test processes share.

    An export takes 6 s of processor time, and its key covers all that it depends on.
    """
    base = tmp_path_factory.getbasetemp()
    # With xdist each process has a folder of its own in that of the session.
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layout, "graphs", property(lambda _: folder))
        yield folder


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations take seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def with_tables(empty_database: Path) -> Callable[[Path], Path]:
    """Gives a workspace's folder an MLflow database that has its tables; returns the folder."""

    def put(workspace: Path) -> Path:
        (workspace / "mlflow").mkdir(parents=True)
        shutil.copyfile(empty_database, workspace / "mlflow" / "mlflow.db")
        return workspace

    return put


@pytest.fixture(scope="module")
def clean_layout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """An empty workspace; as long as the module's tests run, no variable leads to another store, inbox or registry."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MM_STORE", "MM_INBOX", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        yield Layout(Settings.from_env(tmp_path_factory.mktemp("clean") / "data"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """An open Chromium; skipped where there is none. Of one module, as Playwright runs once at a time in a process."""
    try:
        headless.chromium()
    except InputError as error:
        pytest.skip(str(error))
    with headless.browser() as opened:
        yield opened


@pytest.fixture(scope="session")
def s3_address() -> Iterator[str]:
    """moto's server in a thread of this process, reachable for other processes too."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line per request otherwise
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new bucket; the environment leads boto3 and delta-rs to it."""
    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{os.getpid()}-{next(_buckets)}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of its own on loopback, without a database name; skipped where Debian's is absent."""
    if not postgres_programs():
        pytest.skip("PostgreSQL is absent: apt-get install postgresql")
    with postgres_server() as url:
        yield url


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real photos; the test is skipped where it is absent."""
    folder = Path(os.environ.get("MM_SHARED_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "inbox").is_dir():
        pytest.skip(f"no real photos at {folder}: set MM_SHARED_DATA")
    return folder
