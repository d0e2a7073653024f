"""What every function of a run needs: the params, the workspace, the progress callback, and the storage.

The rooms above storage take a `StorageRun`. Stages and operations take its subclass `Run` (`mm_core.pinned_inputs`),
which also gives the MLflow tracker and the model registry.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from mm_core.core.errors import InputError
from mm_core.core.folders import has_file
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.progress import Progress, quiet
from mm_core.storage.catalog import Catalog
from mm_core.storage.store import Store, open_store


@dataclass(frozen=True)
class StorageRun:
    """Params, workspace and progress of one run. Store, inbox and catalog are opened at their first use and kept.

    `dataclasses.replace(run, params=…)` returns a run with other params, which opens its own store and catalog.
    """

    params: Params
    layout: Layout
    progress: Progress = quiet
    """Called as (what, done, total) during long work."""
    started_by: str = ""
    """The command that started it where that was not `mm`: `dagster retrain`, for example."""

    @cached_property
    def store(self) -> Store:
        """The store of photos, mattes and models. Raises InputError if its URL has an unknown scheme."""
        return store_of(self.layout)

    @cached_property
    def inbox(self) -> Store:
        """The inbox of drops, opened as a store. Raises InputError if its URL has an unknown scheme."""
        return inbox_of(self.layout)

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog in the store."""
        return catalog_of(self.layout)

    def with_layout(self, layout: Layout, params: Params | None = None) -> Self:
        """Return a run in another workspace on the same store, with other params if they are given.

        The opened store is shared, so that files that were fetched from S3 are not fetched again.
        """
        other = replace(self, layout=layout, params=params or self.params)
        # A cached property keeps its value in the instance's dict, also in a frozen dataclass.
        vars(other)["store"] = self.store
        return other


def store_of(layout: Layout) -> Store:
    """Open the workspace's store. Raises InputError if its URL has an unknown scheme, or while it is restored."""
    require_restored(layout)
    return open_store(layout.settings.store, layout.cache)


def inbox_of(layout: Layout) -> Store:
    """Open the inbox as a store; its cache is separate from the store's."""
    return open_store(layout.settings.inbox, layout.cache / "inbox")


def catalog_of(layout: Layout) -> Catalog:
    """Open the catalog in the store. Raises InputError while it is restored."""
    require_restored(layout)
    return Catalog(layout.settings.store)


def require_restored(layout: Layout) -> None:
    """Raise InputError if a restore of this workspace is not finished.

    A table with only a part of its log is an earlier version of the table. What is committed to it would be lost when
    the restore goes on.
    """
    if has_file(layout.restoring):
        raise InputError(
            f"{layout.restoring}: a restore is not finished: wait for it, repeat `mm restore`, or empty the folder"
        )
