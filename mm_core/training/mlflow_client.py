"""The client of MLflow: it reports a server that does not answer, and names it in its errors."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mm_core.core.deferred import Deferred
from mm_core.core.errors import StoreError, TrackingServerError
from mm_core.core.servers import RemoteServer, public_address, report_wait
from mm_core.core.settings import Settings
from mm_core.storage.retry import explain_sqlite
from mm_core.storage.seals import DATABASES, lost_database
from mm_core.training.rehome import rehome

if TYPE_CHECKING:
    import mlflow
    from mlflow import MlflowClient, exceptions
else:
    mlflow = Deferred("mlflow")
    exceptions = Deferred("mlflow.exceptions")

_TRANSFERS = ("log_artifact", "log_artifacts", "log_model_artifacts")
"""Calls that last as long as their files are large."""


def open_client(settings: Settings) -> MlflowClient:
    """Return an MLflow client for the server or the sqlite database of the settings.

    Raises:
        TrackingServerError: The server does not answer. The client's methods raise it too.
    """
    # The import of MLflow sets the levels of its loggers.
    client = mlflow.MlflowClient
    # These report every migration of a new database.
    for talkative in ("alembic", "mlflow"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    # It logs a traceback of each error that it raises.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    uri = settings.mlflow_uri
    if database := require_database(settings):
        database.parent.mkdir(parents=True, exist_ok=True)
        # A workspace that was moved to another path has old artifact paths in its database.
        rehome(settings)
        return cast("MlflowClient", _LocalClient(client, uri, database))
    return cast("MlflowClient", _WatchedClient(client, uri))


def require_database(settings: Settings) -> Path | None:
    """Return the file of MLflow's sqlite database, or where a new one begins; None for a server.

    Raises:
        StoreError: The database was lost.
    """
    path = settings.mlflow_database
    if path and (fault := lost_database(settings.workspace, path)):
        raise StoreError(
            f"{path} {fault}: restore it from a backup; to go on without its models and runs, "
            f"delete it and {settings.workspace / DATABASES}"
        )
    return path


def expect_quick_answer() -> None:
    """Make MLflow's requests of this process fail after 5 s, without repetition: for commands that only look.

    MLflow's own variables take precedence.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


class _Proxy(ABC):
    """An MlflowClient whose calls, also that of the constructor, are wrapped."""

    def __init__(self, client: Callable[..., MlflowClient], uri: str) -> None:
        # The constructor connects to a database, and makes a new one.
        self._client = self._wrapped(client)(tracking_uri=uri, registry_uri=uri)

    def __getattr__(self, name: str) -> object:
        value = getattr(self._client, name)
        return self._wrapped(value) if callable(value) else value

    @abstractmethod
    def _wrapped(self, call: Callable[..., object]) -> Callable[..., object]: ...


class _WatchedClient(_Proxy):
    """Proxy of an MlflowClient for a server."""

    def __init__(self, client: Callable[..., MlflowClient], uri: str) -> None:
        check = "is it running, is MLFLOW_TRACKING_URI right?"
        self._server = RemoteServer("MLflow", public_address(uri), check)
        super().__init__(client, uri)

    def _wrapped(self, call: Callable[..., object]) -> Callable[..., object]:
        """Return `call` with its notice, and with errors that name the server."""

        @wraps(call)
        def watched(*args: object, **options: object) -> object:
            waiting = nullcontext() if call.__name__ in _TRANSFERS else report_wait(self._server)
            try:
                with waiting:
                    return call(*args, **options)
            except ModuleNotFoundError as error:
                needs = f"MLFLOW_TRACKING_URI needs the Python package {error.name}"
                raise TrackingServerError(f"{needs}: run `make postgres` and write postgresql+psycopg2://…") from error
            # MLflow, requests and sqlalchemy have no common error class. All other errors are raised again.
            except Exception as error:
                if (fault := _server_fault(error)) is None:
                    raise
                raise TrackingServerError(f"{self._server.silence} ({fault})") from error

        return watched


class _LocalClient(_Proxy):
    """Proxy of an MlflowClient for a sqlite database; its errors about the disk name the database."""

    def __init__(self, client: Callable[..., MlflowClient], uri: str, database: Path) -> None:
        self._database = database
        super().__init__(client, uri)

    def _wrapped(self, call: Callable[..., object]) -> Callable[..., object]:
        """Return `call` with errors of sqlite about its file as StoreError."""

        @wraps(call)
        def explained(*args: object, **options: object) -> object:
            try:
                return call(*args, **options)
            # MLflow wraps some errors of sqlalchemy and raises others as they are.
            except Exception as error:
                if not _is_of_database(error) or (fault := explain_sqlite(str(error))) is None:
                    raise
                raise StoreError(f"{self._database}: {fault}") from error

        return explained


def _is_of_database(error: Exception) -> bool:
    """Return whether an error comes from MLflow, sqlalchemy or sqlite."""
    return bool(_packages_of(error) & {"mlflow", "sqlalchemy", "sqlite3"})


def _packages_of(error: Exception) -> set[str]:
    """Return the packages that define the class of an error and its base classes."""
    return {cls.__module__.partition(".")[0] for cls in type(error).__mro__}


def _server_fault(error: Exception) -> str | None:
    """Return the cause in a few words if an error comes from the connection or from a foreign server; else None."""
    text = " ".join(str(error).split())
    # MLflow's errors about entries, such as a missing run, begin with their code instead.
    if isinstance(error, exceptions.MlflowException) and text.startswith(("API request to", "Invalid url")):
        cause = error.__cause__ or error.__context__
        return type(cause).__name__ if cause else text[:200]
    return type(error).__name__ if "sqlalchemy" in _packages_of(error) else None
