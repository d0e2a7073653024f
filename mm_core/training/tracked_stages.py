"""Follow the stages of a cycle in MLflow: each stage has a run that is RUNNING while the stage runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from mm_core.core.errors import ReleaseRefused
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.pins import has_snapshot
from mm_core.core.records import Report
from mm_core.training.tracking import Tracker

TRAINING = tuple(f"train-{stage}" for stage in TRAIN_STAGES)
STAGES = {verb: verb for verb in ("snapshot", "split", *TRAINING, "evaluate", "gate", "export", "promote")}
STAGES |= {"html-report": "report"}
"""Verb → name of the stage's run. The training stages open their runs themselves, possibly in other processes."""


@contextmanager
def tracked(params: Params, layout: Layout, verb: str, *, outermost: bool) -> Iterator[Callable[[object], None]]:
    """Open the runs of the cycle and of a stage for the body, and close them after the outermost stage.

    Args:
        params: The parameters; those of a cycle are logged to its run.
        layout: The workspace. The caller holds its cycle lock.
        verb: What runs in the body. The runs are opened if it is a stage of the cycle.
        outermost: True for the body that holds the lock first; nested stages share its cycle's run.

    Yields:
        A function that logs the stage's result, if it is a report.
    """
    tracker, stage = Tracker(layout.settings), STAGES.get(verb)
    if outermost:
        # The lock is ours, so that the process that left open runs cannot live any more.
        tracker.close_runs(layout, "KILLED")
    # The snapshot stage makes the digest that identifies a cycle, so that its runs are opened at its end.
    begun = stage if verb != "snapshot" and has_snapshot(layout) else None
    if begun:
        tracker.open_cycle(params, layout, begun)
    try:
        with tracker.open_stage(layout, begun) if begun and begun not in TRAINING else nullcontext():
            yield lambda result: _log(tracker, params, layout, stage, result)
    except BaseException as error:
        if outermost:
            # A refused release is an answer, not a failure of the cycle.
            status = "FINISHED" if isinstance(error, ReleaseRefused) else "FAILED"
            tracker.close_runs(layout, status, error=f"{type(error).__name__}: {error}")
        raise
    if outermost:
        tracker.close_runs(layout, "FINISHED")


def _log(tracker: Tracker, params: Params, layout: Layout, stage: str | None, result: object) -> None:
    if stage is None or not isinstance(result, Report) or not has_snapshot(layout):
        return
    tracker.open_cycle(params, layout, stage)
    # A training stage has logged itself, unless it reused the result of an earlier cycle.
    if stage in TRAINING and tracker.has_stage(layout, stage):
        return
    tracker.log_report(layout, result, files=[layout.html_report] if stage == "report" else [])
