"""A training stage that is killed at a random moment and called again ends with the very bytes of an undisturbed one.

    python benchmarks/resume_kills.py

The four stages of a cycle on generated samples, through the functions of `mm train-simple` … `mm train-multimodal`.
For each stage one undisturbed training; then trainings from the same start, each in a process that is killed with
SIGKILL and called again. The moment: a step drawn evenly from all of the stage, and a random part of a step's time
after the process has told of it: kills fall into steps, validations and checkpoints being written. A kill counts only
if it found the process alive; otherwise another one is drawn. Compares the model files.
Writes benchmarks/resume_kills.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mm_core import stages
from mm_core.core.layout import TRAIN_STAGES, Layout
from mm_core.core.params import Params
from mm_core.core.records import CATEGORIES, sha256_file
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import Run
from mm_core.training import trainer
from samplegen import write_drop

HERE = Path(__file__).parent
SAVE_SECONDS = 0.1
"""Time between checkpoints, 30 by default: a kill shall meet a run that has something to go on from."""
STAGES = {
    "simple": stages.train_simple,
    "hard": stages.train_hard,
    "semi": stages.train_semi,
    "multimodal": stages.train_multimodal,
}


@dataclass
class Kill:
    step: int
    """The last that the process had reported."""
    resumed_from: int
    """Where the next call went on; 0: from the start."""
    equal: bool


def prepare(root: Path, steps: int) -> tuple[Params, Layout]:
    """Generated samples, ingested and split, and the params of a small model."""
    values = {
        "model.encoder": "test_efficientnet",
        "model.pretrained": "",
        "model.size": 64,
        "model.width": 8,
        "structure.ocr": (),
        "train.common.batch": 4,
        "train.common.validate_every": 5,
        "clip.steps": 4,
    }
    params = Params().with_values(**values, **{f"train.{stage}.steps": steps for stage in TRAIN_STAGES})
    layout = Layout(replace(Settings.from_env(root), device="cpu"))
    inbox = Path(layout.settings.inbox)
    for kind, count in (("pixel_labeled", 10), ("unlabeled", 4), ("text_image", 4)):
        counts: dict[str, int] = dict.fromkeys(CATEGORIES, count)  # pyright: ignore[reportAssignmentType]
        write_drop(inbox, kind, "batch", counts, seed=len(kind), size=96, burst_share=0)
    for stage in (stages.ingest, stages.structure, stages.pin_inputs, stages.snapshot, stages.split):
        stage(Run(params, layout))
    return params, layout


class Training:
    """A stage in a process of its own, which tells through a pipe what step it has done and where it went on."""

    def __init__(self, stage: str, params: Params, layout: Layout):
        reading, writing = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(reading)
            code = 1
            try:
                torch.set_num_threads(1)
                trainer.fit.__kwdefaults__["save_seconds"] = SAVE_SECONDS  # pyright: ignore[reportOptionalSubscript]

                def tell(what: str, done: int, total: int) -> None:
                    if what == f"train {stage}":
                        os.write(writing, f"{done}\n".encode())

                report = STAGES[stage](Run(params, layout, tell))
                os.write(writing, f"from {report.facts['resumed_from']}\n".encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writing)
        self._said, self.last = os.fdopen(reading), ""

    def reach(self, step: int) -> None:
        """Comes back when the process has done `step`."""
        while (line := self._said.readline()).strip().isdigit():
            self.last = line
            if int(line) >= step:
                return

    def kill(self) -> int | None:
        """The last step told before SIGKILL; None where that found nothing training."""
        os.kill(self._child, signal.SIGKILL)
        told, status = self._end()
        return int(told) if os.WIFSIGNALED(status) and told.isdigit() else None

    def end(self) -> int:
        """Where the run that has come to its end had gone on."""
        told, status = self._end()
        assert status == 0 and told.startswith("from "), (status, told)
        return int(told.split()[1])

    def _end(self) -> tuple[str, int]:
        """The last line told and the exit status."""
        told = self.last
        with self._said as said:
            for line in said:
                told = line
        return told.strip(), os.waitpid(self._child, 0)[1]


def fresh(layout: Layout) -> None:
    shutil.rmtree(layout.checkpoints, ignore_errors=True)


def killed(stage: str, params: Params, layout: Layout, kills: int, steps: int, rng: random.Random) -> list[Kill]:
    """One training per kill, each against the undisturbed one, whose model stays for the next stage."""
    fresh(layout)
    undisturbed = Training(stage, params, layout)
    undisturbed.reach(1)
    begun = time.monotonic()
    assert undisturbed.end() == 0
    each = (time.monotonic() - begun) / steps
    whole, found = sha256_file(layout.model(stage)), []
    while len(found) < kills:
        fresh(layout)
        layout.model(stage).unlink()
        training = Training(stage, params, layout)
        training.reach(rng.randint(1, steps))
        time.sleep(rng.uniform(0, each))
        if (step := training.kill()) is not None:
            came_from = Training(stage, params, layout).end()
            found.append(Kill(step, came_from, sha256_file(layout.model(stage)) == whole))
            print(stage, found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="in all, over the four stages")
    parser.add_argument("--steps", type=int, default=100, help="of each stage")
    args = parser.parse_args()
    rng = random.Random(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="mm-resume-") as root:
        params, layout = prepare(Path(root), args.steps)
        gc.freeze()
        found = {
            stage: killed(stage, params, layout, args.kills // len(STAGES), args.steps, rng) for stage in TRAIN_STAGES
        }
    write(found, args.steps)


def write(found: dict[str, list[Kill]], steps: int) -> None:
    every = [kill for kills in found.values() for kill in kills]
    lines = [
        "# Training killed and resumed",
        "",
        f"Runner: `benchmarks/resume_kills.py`. The four stages of a cycle, {steps} steps each, a checkpoint every"
        f" {SAVE_SECONDS} s; a training of its own per SIGKILL, at a random moment while it trains, then called again."
        f" {platform.machine()}, {os.cpu_count()} cores.",
        "",
        "| stage | SIGKILLs that hit | at step | next call went on from step | model file bit-equal to an undisturbed"
        " training's |",
        "|---|---|---|---|---|",
    ]
    for stage, kills in found.items():
        at = ", ".join(str(kill.step) for kill in kills)
        back = ", ".join(str(kill.resumed_from) for kill in kills)
        lines.append(f"| {stage} | {len(kills)} | {at} | {back} | {sum(k.equal for k in kills)} of {len(kills)} |")
    lines.append(f"| all | {len(every)} | | | {sum(kill.equal for kill in every)} of {len(every)} |")
    (HERE / "resume_kills.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
