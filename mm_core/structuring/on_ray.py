"""Compute features by Ray Data: each worker decodes and measures its share of the photos."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from mm_core.core import cluster
from mm_core.core.deferred import Deferred
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.settings import Settings
from mm_core.storage.store import open_store
from mm_core.structuring.extractors import Extractor, chosen
from mm_core.structuring.run_extractors import Done, Task, measured

if TYPE_CHECKING:
    from ray import data as ray_data
else:
    ray_data = Deferred("ray.data")

BATCH = 64
"""Photos per call of a worker, and the number repeated after a worker is lost."""


def measured_on_ray(
    params: Params, layout: Layout, tasks: Sequence[Task], extractors: Sequence[Extractor]
) -> Iterator[Done]:
    """Yield the results of `measured` in the same order. If a worker is lost, another one repeats its photos."""
    if not tasks:
        return
    cluster.join(layout.settings)
    # The caller expects results in the order of the tasks.
    context = ray_data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    items = [{"task": json.dumps(asdict(task) | {"lacks": sorted(task.lacks)})} for task in tasks]
    wanted = {extractor.name: extractor.version for extractor in extractors}
    done = ray_data.from_items(items, override_num_blocks=math.ceil(len(items) / BATCH)).map_batches(
        _Worker,
        fn_constructor_args=(params.model_dump_json(), layout.settings, wanted),
        batch_size=BATCH,
        concurrency=(1, layout.settings.ray_workers),
        num_cpus=1,
    )
    for row in done.iter_rows():
        if row["refused"]:
            raise InputError(row["refused"])
        yield Done(**json.loads(row["done"]))


class _Worker:
    """One process of the cluster, which keeps its extractors between calls."""

    def __init__(self, params: str, settings: Settings, wanted: dict[str, str]) -> None:
        layout = Layout(settings)
        self._store = open_store(settings.store, layout.cache)
        # `ExitStack` is never closed: the extractors live as long as the process.
        self._found = chosen(Params.model_validate_json(params), layout, ExitStack())
        self._wanted = wanted

    def __call__(self, batch: dict[str, Sequence[str]]) -> dict[str, list[str]]:
        """Measure a batch of tasks; refuse it if the worker has other extractors than the caller."""
        have = {extractor.name: extractor.version for extractor in self._found.extractors}
        # Rows of other versions would be computed again by the next run.
        if have != self._wanted:
            refused = (
                f"a Ray worker has the extractors {have}, this machine has {self._wanted}: install the same on every "
                f"machine (left out there: {self._found.left_out})"
            )
            return {"done": [""], "refused": [refused]}
        tasks = [json.loads(text) for text in batch["task"]]
        done = Done()
        for result in measured(
            self._store,
            [Task(**task | {"lacks": frozenset(task["lacks"])}) for task in tasks],
            self._found.extractors,
            1,
        ):
            done += result
        # JSON text keeps floats exactly (shortest decimal), and Arrow needs no schema for the nested types.
        return {"done": [json.dumps(asdict(done))], "refused": [""]}
