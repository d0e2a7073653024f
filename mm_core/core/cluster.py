"""Ray, where the environment asks for it (`MM_ENGINE=ray`): the same work by several processes or machines.

`structuring/on_ray.py` and `training/on_ray.py` say what runs there; nothing here changes a result.
"""

from __future__ import annotations

import logging
import os

from mm_core.core.errors import InputError, MattingError
from mm_core.core.settings import Settings


def join(settings: Settings) -> None:
    """Connects this process to the cluster that `MM_RAY_ADDRESS` names, or starts one here for as long as it lives.

    Repeated calls change nothing. Raises InputError where the cluster does not answer or has
    fewer processors than `MM_RAY_WORKERS` workers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers use the environment that this program was installed into, not one that Ray makes for `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("MM_ENGINE=ray: Ray is not installed here; run `make ray` in the project") from None

    if not ray.is_initialized():
        here = {} if settings.ray_address else {"num_cpus": settings.ray_workers, "include_dashboard": False}
        try:
            ray.init(settings.ray_address or "local", logging_level=logging.WARNING, log_to_driver=False, **here)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"MM_RAY_ADDRESS={settings.ray_address!r}: no Ray cluster answers: {error}") from error
    processors = int(ray.cluster_resources().get("CPU", 0))
    if processors < settings.ray_workers:
        count = f"MM_RAY_WORKERS={settings.ray_workers}"
        raise InputError(f"{count}: the Ray cluster has {processors} processors; give at most that many")


def own_error(error: BaseException | None) -> MattingError | None:
    """The error of ours that a worker stopped with, out of what Ray wraps it in."""
    while error is not None and not isinstance(error, MattingError):
        error = getattr(error, "cause", None) or error.__cause__
    return error
