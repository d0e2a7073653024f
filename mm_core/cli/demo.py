"""`mm demo`: three whole cycles on generated samples.

1. A first model, judged against absolute floors and promoted.
2. New drops arrive; the retrained model beats the first in all six categories and is promoted.
3. A poisoned drop arrives. Its mattes look plausible and pass validation, but are wrong in one category.
   The gate detects the loss of that category on the curated eval set and rejects the model; the champion stays.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Unpack

from mm_core import stages
from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.params import Params
from mm_core.core.progress import Progress, quiet
from mm_core.core.records import ALL_CATEGORIES, write_bytes, write_json
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run, recorded_verdict
from samplegen import DropOptions, write_drop

POISONED = "accessories"

DEMO_VALUES: dict[str, object] = {
    "model.size": 128,
    # Reading the text of generated cards costs more than a cycle's training.
    "structure.ocr": (),
    # A larger share, so that the second week already has enough validation photos to select checkpoints.
    "snapshot.validation_share": 0.2,
    "train.common.validate_every": 60,
    "train.simple.steps": 240,
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


def run_demo(settings: Settings, *, cycles: int = 3, progress: Progress = quiet) -> dict[str, object]:
    """Run the cycles one after the other in `settings.workspace`; cycles recorded in its demo.json are skipped.

    Args:
        settings: The workspace and inbox of the demo.
        cycles: Number of the last cycle to run, 1 to 3.
        progress: Called as (what, done, total).

    Returns:
        `workspace`, and `cycles` with verdict, reasons, seconds and report of each cycle.
    """
    layout = Layout(settings)
    params = Params().with_values(**DEMO_VALUES)
    write_bytes(layout.root / "params.yaml", params.to_yaml().encode())
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
        verdict = recorded_verdict(layout)
        results.append(
            {
                "cycle": cycle,
                "verdict": verdict.decision,
                "reasons": verdict.reasons[:6],
                "seconds": round(sum(report.seconds for report in reports.values()), 1),
                "report": reports["report"].facts["copy"],
            }
        )
        write_json(record, results)
    return {"workspace": str(layout.root), "cycles": results}


def _read_results(record: Path) -> list[object]:
    try:
        results = json.loads(record.read_bytes())
    except (ValueError, RecursionError):
        results = None
    if not isinstance(results, list):
        raise InputError(f"{record} is damaged: delete the folder {record.parent}, then run `mm demo` again")
    return results


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
