"""Connect to Ray when `MM_ENGINE=ray`: the same work, shared by several processes or machines.

The work itself is in `structuring/on_ray.py` and `training/on_ray.py`. Nothing in this module changes a result.
"""

from __future__ import annotations

import logging
import os

from mm_core.core.errors import InputError, MattingError
from mm_core.core.settings import Settings


def join(settings: Settings) -> None:
    """Connect this process to the cluster at `MM_RAY_ADDRESS`, or start a local one that ends with this process.

    Repeated calls change nothing.

    Args:
        settings: `ray_address` and `ray_workers` are read.

    Raises:
        InputError: Ray is not installed, the cluster does not answer, or it has fewer processors than workers.
    """
    # Ray reports usage statistics to its makers by default.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers use the environment that this program was installed into, not one that Ray makes for `uv run`.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError("MM_ENGINE=ray: Ray is not installed here; run `make ray` in the project") from None

    if not ray.is_initialized():
        # An existing cluster has its own processor count; only a local one takes ours.
        local_options = {} if settings.ray_address else {"num_cpus": settings.ray_workers, "include_dashboard": False}
        try:
            ray.init(
                settings.ray_address or "local", logging_level=logging.WARNING, log_to_driver=False, **local_options
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"MM_RAY_ADDRESS={settings.ray_address!r}: no Ray cluster answers: {error}") from error
    processors = int(ray.cluster_resources().get("CPU", 0))
    # Too few processors would make the workers wait without end.
    if processors < settings.ray_workers:
        count = f"MM_RAY_WORKERS={settings.ray_workers}"
        raise InputError(f"{count}: the Ray cluster has {processors} processors; give at most that many")


def own_error(error: BaseException | None) -> MattingError | None:
    """Return the MattingError that stopped a worker, unwrapped from Ray's errors; None if no such error is found."""
    # Ray keeps the original error in `cause`; Python's own chain is in `__cause__`.
    while error is not None and not isinstance(error, MattingError):
        error = getattr(error, "cause", None) or error.__cause__
    return error
