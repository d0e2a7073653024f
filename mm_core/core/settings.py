"""Environment variables with paths and addresses. Values that change results are in `params.yaml`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from zoneinfo import ZoneInfo

from mm_core.core.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[2]
"""Root of the checkout. An installed package has no checkout, and then no Makefile lies there."""
SQLITE = "sqlite:///"
"""Beginning of the address of a sqlite database; its path follows."""


@dataclass(frozen=True)
class Settings:
    """Roots and addresses of one installation, read from the environment.

    Secrets (AWS keys, database passwords) are not fields. The libraries that need them read the environment themselves,
    so no repr or log of this class can show one.
    """

    # Folders, stores and the device.
    workspace: Path
    """`MM_WORKSPACE`, default `data/` of the current folder: all files that the system writes on this machine."""
    inbox: str
    """`MM_INBOX`: folder or `s3://bucket/prefix` where drops arrive; default `<workspace>/inbox`."""
    store: str
    """`MM_STORE`: folder or `s3://bucket/prefix` of blobs and catalog; default `<workspace>/store`."""
    mlflow_uri: str
    """`MLFLOW_TRACKING_URI`; default sqlite in the workspace."""
    params_file: Path
    """`MM_PARAMS`; default `params.yaml` of the current folder."""
    device: str
    """`MM_DEVICE`: `cpu`, `cuda`, … ; default `auto`."""
    pixel_cache_gb: int = 20
    """`MM_PIXEL_CACHE_GB`: GB (1e9 bytes) of decoded photos for training, above which a stage removes old ones that it
    does not need."""
    # Tools in separate environments, and services.
    pages_url: str = ""
    """`MM_PAGES_URL`: the address under which people open the workspace's pages; `mm ui` has a default. Empty: none."""
    executorch_python: Path = Path(".tools/executorch/bin/python")
    """`MM_EXECUTORCH_PYTHON`: the Python that has ExecuTorch; default: the path of `make formats`."""
    litert_python: Path = Path(".tools/litert/bin/python")
    """`MM_LITERT_PYTHON`: the Python that has LiteRT; default: the path of `make formats`."""

    fiftyone_python: Path = Path(".tools/fiftyone/bin/python")
    """`MM_FIFTYONE_PYTHON`: the Python that has FiftyOne, for `mm browse`; default: the path of `make browse`."""
    onnxruntime_web: Path = Path(".tools/onnxruntime-web/package/dist")
    """`MM_ONNXRUNTIME_WEB`: the files of onnxruntime-web; default: the path of `make gallery`. Absent: the server
    computes the gallery's mattes."""
    gallery: Path = Path("gallery")
    """`MM_GALLERY`: the folder of photos from which Dagster makes moments; default `<workspace>/gallery`."""
    label_studio_url: str = ""
    """`LABEL_STUDIO_URL`: the label server; its key is in `LABEL_STUDIO_API_KEY`. Empty: the server of `mm label serve`
    on this workspace, or none."""
    label_studio_host: str = ""
    """`LABEL_STUDIO_HOST`: the address under which people open the label server, for links; Label Studio reads the same
    variable. Empty: `LABEL_STUDIO_URL`."""
    label_studio_project: str = "Matting Moments"
    """`LABEL_STUDIO_PROJECT`: title of the project on the server; it is created if it is missing."""
    labelstudio_python: Path = Path(".tools/labelstudio/bin/python")
    """`MM_LABELSTUDIO_PYTHON`: the Python that has Label Studio; default: the path of `make labelstudio`."""

    # Ray.
    engine: str = "local"
    """`MM_ENGINE`: `local`, or `ray` for structuring by Ray Data and training by Ray Train."""
    ray_address: str = ""
    """`MM_RAY_ADDRESS`: the cluster (`host:port`, or `auto` on one of its machines). Empty: a local one is started."""
    ray_workers: int = 2
    """`MM_RAY_WORKERS`: number of processes that structure or train together."""

    @staticmethod
    def from_env(workspace: str | Path | None = None, inbox: str | None = None) -> Settings:
        """Read the environment; arguments take precedence."""
        root = Path(workspace or os.environ.get("MM_WORKSPACE") or "data").expanduser().absolute()
        return Settings(
            workspace=root,
            inbox=_absolute(inbox or os.environ.get("MM_INBOX") or str(root / "inbox")),
            store=_absolute(os.environ.get("MM_STORE") or str(root / "store")),
            mlflow_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{root / 'mlflow' / 'mlflow.db'}",
            params_file=_path("MM_PARAMS", "params.yaml"),
            device=os.environ.get("MM_DEVICE") or "auto",
            pixel_cache_gb=_whole("MM_PIXEL_CACHE_GB", 20, 0, 1_000_000),
            executorch_python=_tool("MM_EXECUTORCH_PYTHON", Settings.executorch_python),
            litert_python=_tool("MM_LITERT_PYTHON", Settings.litert_python),
            fiftyone_python=_tool("MM_FIFTYONE_PYTHON", Settings.fiftyone_python),
            onnxruntime_web=_tool("MM_ONNXRUNTIME_WEB", Settings.onnxruntime_web),
            gallery=_path("MM_GALLERY", root / "gallery"),
            labelstudio_python=_tool("MM_LABELSTUDIO_PYTHON", Settings.labelstudio_python),
            label_studio_url=os.environ.get("LABEL_STUDIO_URL", "").rstrip("/"),
            label_studio_host=os.environ.get("LABEL_STUDIO_HOST", "").rstrip("/"),
            label_studio_project=os.environ.get("LABEL_STUDIO_PROJECT") or "Matting Moments",
            pages_url=os.environ.get("MM_PAGES_URL", "").rstrip("/"),
            engine=_engine(),
            ray_address=os.environ.get("MM_RAY_ADDRESS", ""),
            ray_workers=_whole("MM_RAY_WORKERS", 2, 1, 10_000),
        )

    @property
    def mlflow_database(self) -> Path | None:
        """The file of MLflow's sqlite database, whether it exists or not; None for a server."""
        return Path(self.mlflow_uri.removeprefix(SQLITE)) if self.mlflow_uri.startswith(SQLITE) else None

    @staticmethod
    def of_demo() -> Settings:
        """Return the settings of `mm demo`: `data/demo` holds its inbox, its store and its MLflow database.

        The environment's own ones are not used, so that no generated photo or model is mixed with real ones.
        """
        root = Path("data/demo").absolute()
        places = {"inbox": str(root / "inbox"), "store": str(root / "store")}
        database = f"{SQLITE}{root / 'mlflow' / 'mlflow.db'}"
        return replace(Settings.from_env(root), mlflow_uri=database, **places)


def _path(name: str, default: str | Path) -> Path:
    return Path(os.environ.get(name) or default).expanduser().absolute()


def _tool(name: str, default: Path) -> Path:
    """Return the path of a program or files under `.tools`: of the variable, the current folder, or the checkout.

    `make` writes `.tools` into the checkout, and a person may call `mm` in any folder.
    """
    if os.environ.get(name) or default.exists() or not (CHECKOUT / "Makefile").is_file():
        return _path(name, default)
    return CHECKOUT / default


def _absolute(url: str) -> str:
    # Only folders are made absolute; they must not depend on the current folder later.
    return url if "://" in url else str(Path(url).expanduser().absolute())


def secret(name: str) -> str:
    """Return a secret: the variable `name`, or the content of the file named by `<name>_FILE`; "" if neither is set.

    Neither value nor path may reach a log. Raises InputError if the file cannot be read.
    """
    if path := os.environ.get(f"{name}_FILE"):
        try:
            return Path(path).expanduser().read_text().strip()
        except OSError as error:
            # `from None`: the error of the system contains the path.
            raise InputError(f"{name}_FILE cannot be read: {error.strerror}") from None
    return os.environ.get(name, "").strip()


def dagster_url() -> str:
    """Return `MM_DAGSTER_URL`, the address under which people open Dagster, for links. Empty: no links."""
    return os.environ.get("MM_DAGSTER_URL", "").rstrip("/")


def backup_place() -> str:
    """Return `MM_BACKUP_TO`, the folder or `s3://bucket/prefix` of Dagster's nightly backups. Empty: no backups."""
    return os.environ.get("MM_BACKUP_TO", "")


def tick_seconds() -> int:
    """Return `MM_TICK_SECONDS`, default 30: seconds between two checks of the sensors for drops and notices."""
    return _whole("MM_TICK_SECONDS", 30, 1, 86_400)


def time_zone() -> str:
    """Return `MM_TIME_ZONE`, default UTC, for the schedule (Monday 03:00). A name such as `Asia/Shanghai`."""
    name = os.environ.get("MM_TIME_ZONE") or "UTC"
    try:
        return ZoneInfo(name).key
    except (ValueError, OSError, LookupError):
        raise InputError(f"MM_TIME_ZONE={name!r}: write a name such as Asia/Shanghai") from None


def _whole(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name) or str(default)
    # `int` would also take signs, spaces and underscores.
    if not text.isdecimal() or not least <= int(text) <= most:
        raise InputError(f"{name}={text!r}: write a whole number from {least} to {most}")
    return int(text)


def _engine() -> str:
    name = os.environ.get("MM_ENGINE") or "local"
    if name not in ("local", "ray"):
        raise InputError(f"MM_ENGINE={name!r}: write `local` or `ray`")
    return name


def s3_timeout() -> float:
    """Return `MM_S3_TIMEOUT`, default 60: seconds without an answer from S3 before a request is repeated."""
    text = os.environ.get("MM_S3_TIMEOUT") or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # This refuses NaN too, as every comparison with it is false.
    if not 0 < seconds < 86_400:
        raise InputError(f"MM_S3_TIMEOUT={text!r}: write a number of seconds above 0")
    return seconds
