"""The installation of infra/compose.yaml as processes on this machine: PostgreSQL under Dagster and MLflow, S3 over
HTTP, a code location, the daemon. Each can be killed and started again; secrets are words that can be searched for."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import yaml

from mm_core.core.layout import Layout
from mm_core.core.settings import Settings
from mm_core.export.signature import make_keys
from tests.servers import Receiver

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT / "infra" / "compose.yaml").read_text())
PORTS = {"5000": "mlflow", "4000": "code", "3000": "webserver", "3002": "pages"}
"""In the containers, and whose."""
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "sentinel-aws-secret",
    "DAGSTER_PG_PASSWORD": "sentinel-dagster-password",
    "MLFLOW_TRACKING_PASSWORD": "sentinel-tracking-password",
    "LABEL_STUDIO_API_KEY": "sentinel-label-studio-key",
}
"""Given to every process; `Operated.secrets` adds those in addresses and the signing key's."""
MLFLOW_PASSWORD, WEBHOOK_PATH = "sentinel-mlflow-password", "sentinel-webhook-path"

TICK_SECONDS = 10
"""Every tick of a sensor costs the daemon, the code location and PostgreSQL processor time."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Operated:
    """All processes of one installation below `root`."""

    def __init__(self, root: Path, postgres: str, s3: str):
        """`postgres`: URL of a server; `s3`: address of a server. Both get databases and a bucket of this one's own."""
        self.root, self.webhook, self.s3 = root, Receiver(f"/{WEBHOOK_PATH}"), s3
        self.name = f"o{os.getpid()}_{free_port()}"
        self.bucket = self.name.replace("_", "-")
        host, _, port = postgres.rpartition("@")[2].partition(":")
        for database in ("dagster", "mlflow"):
            url = f"{postgres}/postgres"
            subprocess.run(["psql", "-q", url, "-c", f"CREATE DATABASE {self.name}_{database}"], check=True)
        self.databases = {name: f"{postgres}/{self.name}_{name}" for name in ("dagster", "mlflow")}
        self.ports = {name: free_port() for name in PORTS.values()}
        self.home = root / "dagster-home"
        for folder in (self.home, root / "logs", root / "data"):
            folder.mkdir(parents=True)
        make_keys(root / "signing.pem")
        self.environment = os.environ | SECRETS | {
            "AWS_ENDPOINT_URL": s3,
            "AWS_ACCESS_KEY_ID": "engine",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "MM_S3_TIMEOUT": "5",
            "MM_WORKSPACE": str(root / "data"),
            "MM_STORE": f"s3://{self.bucket}/store",
            "MM_INBOX": f"s3://{self.bucket}/inbox",
            "MM_PARAMS": str(root / "params.yaml"),
            "MM_DEVICE": "cpu",
            "MM_TICK_SECONDS": str(TICK_SECONDS),
            "MM_SIGNING_KEY": (root / "signing.pem").read_text(),
            "MM_PAGES_URL": f"http://127.0.0.1:{self.ports['pages']}",
            "MM_WEBHOOK_URL": self.webhook.url,
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports['mlflow']}",
            "MLFLOW_TRACKING_USERNAME": "engine",
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_PG_HOST": host,
            "DAGSTER_PG_PORT": port,
            "DAGSTER_PG_DB": f"{self.name}_dagster",
            "DAGSTER_PG_USER": "mm",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(PROJECT),
        }  # fmt: skip
        (root / "signing.pem").unlink()
        (self.home / "dagster.yaml").write_text((PROJECT / "infra" / "dagster.postgres.yaml").read_text())
        compose = (PROJECT / "infra" / "workspace.compose.yaml").read_text()
        here = compose.replace("host: code", "host: 127.0.0.1").replace("4000", str(self.ports["code"]))
        (root / "workspace.yaml").write_text(here)
        self.client().create_bucket(Bucket=self.bucket)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def secrets(self) -> list[str]:
        key = self.environment["MM_SIGNING_KEY"].splitlines()[1]
        return [*SECRETS.values(), MLFLOW_PASSWORD, WEBHOOK_PATH, key]

    @property
    def layout(self) -> Layout:
        return Layout(Settings.from_env(self.root / "data"))

    def client(self) -> Any:
        secret = self.environment["AWS_SECRET_ACCESS_KEY"] if hasattr(self, "environment") else "x"
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.s3,
            aws_access_key_id="engine",
            aws_secret_access_key=secret,
            region_name="us-east-1",
        )

    def start(self, name: str) -> None:
        """One of compose.yaml's services of our image, by its command there; returns before it answers."""
        with (self.root / "logs" / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name), env=self.environment_of(name), cwd=PROJECT, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def command(self, name: str) -> list[str]:
        """Entrypoint and command of a service, with this machine's places, ports and bucket for the container's."""
        service = COMPOSE["services"][name]
        here = {"/app": str(PROJECT), "0.0.0.0": "127.0.0.1", "s3://matting/": f"s3://{self.bucket}/", "$$": "$"}
        here |= {port: str(self.ports[owner]) for port, owner in PORTS.items()}
        here["infra/workspace.compose.yaml"] = str(self.root / "workspace.yaml")
        there = re.compile("|".join(map(re.escape, here)))  # at one go: a port of ours may hold the digits of another
        words = [*service.get("entrypoint", []), *service["command"]]
        words = [there.sub(lambda found: here[found[0]], word) for word in words]
        if "--workers" in words:
            words[words.index("--workers") + 1] = "1"
        return words

    def environment_of(self, name: str) -> dict[str, str]:
        """The processes find the same programs by the same names as in the image."""
        environment = self.environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        if name == "mlflow":
            url = self.databases["mlflow"]
            secret = url.replace("postgresql://mm:unused", f"postgresql+psycopg2://mm:{MLFLOW_PASSWORD}")
            environment["MLFLOW_BACKEND_STORE_URI"] = secret
        return environment

    def kill(self, name: str, *, alone: bool = False) -> None:
        """SIGKILL to the process and, but for `alone`, to all that it started."""
        process = self.processes.pop(name)
        for child in [] if alone else descendants(process.pid):
            _kill(child)
        _kill(process.pid)
        process.wait()

    def stop(self) -> None:
        for name in reversed([*self.processes]):
            self.kill(name)
        self.webhook.stop()

    def answers(self, name: str, seconds: float = 120) -> None:
        """Waits until a server takes connections."""
        wait(lambda: _open(self.ports[name]), f"{name} to answer", seconds, self)

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        """The run history that the processes write."""
        before = dict(os.environ)
        os.environ.update({name: value for name, value in self.environment.items() if name.startswith("DAGSTER_")})
        try:
            with dg.DagsterInstance.from_config(str(self.home)) as made:
                yield made
        finally:
            os.environ.clear()
            os.environ.update(before)

    def upload(self, drop: Path, inbox: Path) -> None:
        """A drop into the S3 inbox, its manifest last, as a producer must."""
        client = self.client()
        files = [path for path in drop.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: path.name.startswith("manifest")):
            client.upload_file(str(path), self.bucket, f"inbox/{path.relative_to(inbox).as_posix()}")


def descendants(pid: int) -> list[int]:
    """Process ids of all that `pid` started, and theirs."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait(condition: Callable[[], Any], what: str, seconds: float, operated: Operated | None = None) -> Any:
    """Polls until `condition` is true and returns its value; raises TimeoutError with the ends of the logs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.5)
    logs = sorted((operated.root / "logs").iterdir()) if operated else []
    tails = "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
    raise TimeoutError(f"waited {seconds} s for {what}\n{tails}")
