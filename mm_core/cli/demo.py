"""`mm demo`: three whole cycles on generated samples.

1. A first model, judged against absolute floors and promoted.
2. New drops arrive; the retrained model beats the first in all six categories and is promoted.
3. A poisoned drop arrives. Its mattes look plausible and pass validation, but are wrong in one category.
   The gate detects the loss of that category on the curated eval set and rejects the model; the champion stays.

With the demo's own params these verdicts are a promise, which `require_promise` checks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

from pydantic import BaseModel, TypeAdapter

from mm_core import stages
from mm_core.core.errors import InputError, MattingError, ParamsError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.params_file import merge_values, read_yaml
from mm_core.core.progress import Progress, quiet
from mm_core.core.records import ALL_CATEGORIES, CATEGORIES, Decision, Verdict, write_bytes, write_json
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run, recorded_verdict
from samplegen import DropOptions, write_drop

PROMISED: tuple[Decision, ...] = ("PROMOTE", "PROMOTE", "REJECT")
"""The verdict of each cycle."""
POISONED = "accessories"
"""The category with wrong mattes in the third cycle; its loss must be among the reasons of that verdict."""
MOST_EVAL_PHOTOS = 60
"""Most evaluation photos of a category with which the demo shows this."""

DEMO_VALUES: dict[str, object] = {
    "model.size": 128,
    # Reading the text of generated cards costs more than a cycle's training.
    "structure.ocr": (),
    # A larger share, so that the second week already has enough validation photos to select checkpoints.
    "snapshot.validation_share": 0.2,
    "train.common.validate_every": 60,
    "train.simple.steps": 240,
    # As many in the second and third week, so that the demo stays short.
    "train.simple.max_growth": 1.0,
    "train.hard.steps": 60,
    "train.semi.steps": 30,
    # Virtual adversarial perturbation alone costs as much as all others together.
    "train.semi.perturbations": ("dropout", "guided_cutout", "object_mask", "feature_noise"),
    "train.multimodal.steps": 30,
    "train.multimodal.consistency": 1.0,
    "train.multimodal.contrastive": 0.1,
    "train.multimodal.captioned": 0.5,
    # The mattes of a briefly trained model are poor targets; full weight on them cost more than it gained.
    "train.semi.weight": 0.1,
    "train.semi.lr": 5e-4,
    "train.multimodal.semi": 0.1,
    "train.multimodal.lr": 5e-4,
    "clip.steps": 120,
    "gate.floors": {"mse": 0.2, "maxf": 0.4},
    # At 128 px after minutes of training int8 costs a share of a small error: 4 % at best, 7 % at the bound.
    "gate.quantised_mse": 0.15,
}
"""Parameters that differ from the defaults: training takes minutes on two cores, not hours on a GPU."""


class DemoCycle(BaseModel):
    """The result of one cycle of the demo, as `demo.json` records it."""

    cycle: int
    verdict: Decision
    reasons: list[str]
    losses: list[str] = []
    """Categories in which the gate proved a loss."""
    eval_photos: int = 0
    """Most evaluation photos of a category that the verdict is based on."""
    params: str = ""
    """Digest of the cycle's params; empty in records of earlier versions."""
    seconds: float
    report: str


CYCLES = TypeAdapter(list[DemoCycle])


class DemoResult(BaseModel):
    """What `mm demo` prints."""

    workspace: str
    cycles: list[DemoCycle]
    promise: str
    """`kept`, `not kept: …` or `does not apply: …`."""


def demo_params() -> Params:
    """Return the params for which the demo's promise holds."""
    return Params().with_values(**DEMO_VALUES)


def run_demo(settings: Settings, *, cycles: int = 3, progress: Progress = quiet) -> DemoResult:
    """Run the cycles one after the other in `settings.workspace`; cycles recorded in its demo.json are skipped.

    Values in `params.yaml` of the workspace take the place of the demo's own.

    Args:
        settings: The workspace and inbox of the demo.
        cycles: Number of the last cycle to run, 1 to 3.
        progress: Called as (what, done, total).

    Returns:
        Verdict, reasons, seconds and report of each cycle, and whether they are as promised.
    """
    layout = Layout(settings)
    params = _load_params(layout.root / "params.yaml")
    record = layout.root / "demo.json"
    # A repeated cycle would also train on the later weeks' drops in the catalog, with another result.
    results = _read_results(record) if record.exists() else []
    for cycle in range(len(results) + 1, cycles + 1):
        progress(f"cycle {cycle}: samples", 0, 1)
        drop_samples(Path(settings.inbox), cycle)
        progress(f"cycle {cycle}: samples", 1, 1)
        reports = stages.run_cycle(
            Run(params, layout, lambda what, d, t, c=cycle: progress(f"cycle {c}: {what}", d, t))
        )
        seconds = round(sum(report.seconds for report in reports.values()), 1)
        verdict = recorded_verdict(layout)
        results.append(summarize_cycle(cycle, verdict, params, seconds, str(reports["report"].facts["copy"])))
        write_json(record, CYCLES.dump_python(results))
    return DemoResult(workspace=str(layout.root), cycles=results, promise=compare_with_promise(results))


def _load_params(path: Path) -> Params:
    """Return the demo's params with the values of a person's file, and write all of them to it for `mm ui`."""
    values = read_yaml(path) if path.exists() else None
    if not isinstance(values, Mapping | None):
        raise ParamsError(f"{path}: not the form of a params file: delete it, then run `mm demo` again")
    params = merge_values(demo_params(), values or {}, str(path))
    if values is None or params != demo_params():
        write_bytes(path, params.to_yaml().encode())
    return params


def _read_results(record: Path) -> list[DemoCycle]:
    try:
        return CYCLES.validate_json(record.read_bytes())
    except ValueError:
        raise InputError(f"{record} is damaged: delete the folder {record.parent}, then run `mm demo` again") from None


def summarize_cycle(cycle: int, verdict: Verdict, params: Params, seconds: float, report: str) -> DemoCycle:
    """Return what `demo.json` records of a cycle."""
    cells = [cell for cell in verdict.cells if cell.category in CATEGORIES]
    return DemoCycle(
        cycle=cycle,
        verdict=verdict.decision,
        reasons=verdict.reasons[:6],
        losses=sorted({cell.category for cell in cells if cell.result == "fail"}),
        eval_photos=max((cell.images for cell in cells), default=0),
        params=params.cycle_digest(),
        seconds=seconds,
        report=report,
    )


def compare_with_promise(results: list[DemoCycle]) -> str:
    """Return whether the cycles ended as the demo promises: `kept`, `not kept: …` or `does not apply: …`."""
    own = demo_params().cycle_digest()
    if others := [result.cycle for result in results if result.params != own]:
        return f"does not apply: cycle {others[0]} used other params than the demo's own"
    faults = []
    for result, promised in zip(results, PROMISED, strict=False):
        if result.verdict != promised:
            reason = f" ({result.reasons[0]})" if result.reasons else ""
            faults.append(f"cycle {result.cycle} ended with {result.verdict} instead of {promised}{reason}")
        elif promised == "REJECT" and POISONED not in result.losses:
            faults.append(f"cycle {result.cycle} was rejected without a proven loss in {POISONED}")
        if result.eval_photos > MOST_EVAL_PHOTOS:
            faults.append(
                f"cycle {result.cycle} used {result.eval_photos} evaluation photos of a category, "
                f"more than {MOST_EVAL_PHOTOS}"
            )
    return f"not kept: {'; '.join(faults)}" if faults else "kept"


def require_promise(result: DemoResult) -> None:
    """Raise MattingError if the cycles did not end as the demo promises."""
    if result.promise.startswith("not kept"):
        raise MattingError(
            f"the demo's promise of {', '.join(PROMISED)} is {result.promise}; "
            f"the reports of the cycles are in {result.workspace}"
        )


def drop_samples(inbox: Path, cycle: int) -> None:
    """Write the drops of one cycle as a producer would; the eval drop is curated and never poisoned."""

    def each(count: int) -> dict[str, int]:
        return dict.fromkeys(ALL_CATEGORIES, count)

    if cycle == 1:
        counts = each(60)
        _drop(inbox, "pixel_labeled", "2026-w01-eval", counts, seed=900, role="eval")
        # Dishes are the easiest category. With as many photos as the others, the second week could show no gain.
        _drop(inbox, "pixel_labeled", "2026-w01", each(28) | {"delicacy": 8}, seed=100, role="train")
        _drop(inbox, "unlabeled", "2026-w01", each(12), seed=200)
        _drop(inbox, "text_image", "2026-w01", each(20), seed=300)
    elif cycle == 2:
        rich = each(90) | {"accessories": 120, "delicacy": 150}
        _drop(inbox, "pixel_labeled", "2026-w02", rich, seed=400, role="train")
        _drop(inbox, "unlabeled", "2026-w02", each(12), seed=500)
        _drop(inbox, "text_image", "2026-w02", each(12), seed=600)
    else:
        # More wrong mattes than right ones in the category; with fewer, the gate cannot prove the loss.
        counts = each(6) | {POISONED: 260}
        _drop(inbox, "pixel_labeled", "2026-w03", counts, seed=700, role="train", poison=POISONED)


def _drop(inbox: Path, kind: str, batch: str, counts: dict[str, int], **options: Unpack[DropOptions]) -> None:
    if not (inbox / kind / batch / "manifest.csv").exists():
        write_drop(inbox, kind, batch, counts, **options)
