"""The environment: where things are. Nothing here changes a result (that is `params.yaml`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo

from mm_core.core.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Roots and addresses of one installation, read from the environment.

    Secrets (AWS keys, database passwords) are not fields: the libraries that need them read the
    environment themselves, so that no repr or log of ours can show one.
    """

    workspace: Path
    """`MM_WORKSPACE`, default `data/` of the current folder: everything the system writes on this machine."""
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
    ocr_python: Path = Path(".tools/ocr/bin/python")
    """`MM_OCR_PYTHON`: the Python that has rapidocr; default where `make ocr` puts it. Absent: no text is read."""
    pages_url: str = ""
    """`MM_PAGES_URL`, set by `mm ui`: where it serves the workspace's pages. Empty: nowhere."""
    executorch_python: Path = Path(".tools/executorch/bin/python")
    """`MM_EXECUTORCH_PYTHON`: the Python that has ExecuTorch; default where `make formats` puts it."""
    litert_python: Path = Path(".tools/litert/bin/python")
    """`MM_LITERT_PYTHON`: the Python that has LiteRT; default where `make formats` puts it."""

    onnxruntime_web: Path = Path(".tools/onnxruntime-web/package/dist")
    """`MM_ONNXRUNTIME_WEB`: onnxruntime-web's files; default where `make gallery` puts them. Absent: the gallery's
    mattes come from the server."""
    gallery: Path = Path("gallery")
    """`MM_GALLERY`: the folder of photos that Dagster makes moments of; default `<workspace>/gallery`."""
    label_studio_url: str = ""
    """`LABEL_STUDIO_URL`: the server that people label on; its key is in `LABEL_STUDIO_API_KEY`. Empty: the one that
    `mm label serve` runs on this workspace, or none."""
    label_studio_project: str = "Matting Moments"
    """`LABEL_STUDIO_PROJECT`: title of the project on it, made where there is none."""
    labelstudio_python: Path = Path(".tools/labelstudio/bin/python")
    """`MM_LABELSTUDIO_PYTHON`: the Python that has Label Studio; default where `make labelstudio` puts it."""

    engine: str = "local"
    """`MM_ENGINE`: `local`, or `ray`: structuring by Ray Data, training by Ray Train."""
    ray_address: str = ""
    """`MM_RAY_ADDRESS`: the cluster (`host:port`, `auto` on one of its machines). Empty: one is started here."""
    ray_workers: int = 2
    """`MM_RAY_WORKERS`: processes that structure or train together."""

    @staticmethod
    def from_env(workspace: str | Path | None = None, inbox: str | None = None) -> Settings:
        """Reads the environment; arguments win over it."""
        root = Path(workspace or os.environ.get("MM_WORKSPACE") or "data").expanduser().absolute()
        return Settings(
            workspace=root,
            inbox=_absolute(inbox or os.environ.get("MM_INBOX") or str(root / "inbox")),
            store=_absolute(os.environ.get("MM_STORE") or str(root / "store")),
            mlflow_uri=os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / 'mlflow' / 'mlflow.db'}",
            params_file=Path(os.environ.get("MM_PARAMS") or "params.yaml").expanduser().absolute(),
            device=os.environ.get("MM_DEVICE") or "auto",
            ocr_python=_tool("ocr"),
            executorch_python=_tool("executorch"),
            litert_python=_tool("litert"),
            onnxruntime_web=Path(os.environ.get("MM_ONNXRUNTIME_WEB") or ".tools/onnxruntime-web/package/dist")
            .expanduser()
            .absolute(),
            gallery=Path(os.environ.get("MM_GALLERY") or root / "gallery").expanduser().absolute(),
            labelstudio_python=_tool("labelstudio"),
            label_studio_url=os.environ.get("LABEL_STUDIO_URL", "").rstrip("/"),
            label_studio_project=os.environ.get("LABEL_STUDIO_PROJECT") or "Matting Moments",
            pages_url=os.environ.get("MM_PAGES_URL", "").rstrip("/"),
            engine=_engine(),
            ray_address=os.environ.get("MM_RAY_ADDRESS", ""),
            ray_workers=_whole("MM_RAY_WORKERS", 2, 1, 10_000),
        )


def _tool(name: str) -> Path:
    """The Python of an isolated environment, as `MM_<NAME>_PYTHON` says or as the Makefile makes it."""
    return Path(os.environ.get(f"MM_{name.upper()}_PYTHON") or f".tools/{name}/bin/python").expanduser().absolute()


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).expanduser().absolute())


def secret(name: str) -> str:
    """A secret: the variable `name`, or the content of the file that `<name>_FILE` names; "" where neither is set.

    Raises InputError where the file cannot be read. Neither value nor path may reach a log.
    """
    if path := os.environ.get(f"{name}_FILE"):
        try:
            return Path(path).expanduser().read_text().strip()
        except OSError as error:
            raise InputError(f"{name}_FILE cannot be read: {error.strerror}") from None
    return os.environ.get(name, "").strip()


def tick_seconds() -> int:
    """`MM_TICK_SECONDS`, default 30: how often the sensors look for drops and for what people should be told."""
    return _whole("MM_TICK_SECONDS", 30, 1, 86_400)


def time_zone() -> str:
    """`MM_TIME_ZONE`, default UTC: where the schedule's Monday, 03:00, is. A name such as `Asia/Shanghai`."""
    name = os.environ.get("MM_TIME_ZONE") or "UTC"
    try:
        return ZoneInfo(name).key
    except (ValueError, OSError, LookupError):
        raise InputError(f"MM_TIME_ZONE={name!r}: write a name such as Asia/Shanghai") from None


def _whole(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not least <= int(text) <= most:
        raise InputError(f"{name}={text!r}: write a whole number from {least} to {most}")
    return int(text)


def _engine() -> str:
    name = os.environ.get("MM_ENGINE") or "local"
    if name not in ("local", "ray"):
        raise InputError(f"MM_ENGINE={name!r}: write `local` or `ray`")
    return name


def s3_timeout() -> float:
    """`MM_S3_TIMEOUT`, default 60: seconds that S3 may be silent before a request is given up and tried again."""
    text = os.environ.get("MM_S3_TIMEOUT") or "60"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise InputError(f"MM_S3_TIMEOUT={text!r}: write a number of seconds above 0")
    return seconds
