"""`mm demo` goes on where it was, and checks the verdicts that it promises."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from mm_core.cli import demo
from mm_core.cli.app import main
from mm_core.core.categories import ALL_CATEGORIES, CATEGORIES
from mm_core.core.errors import InputError, ParamsError
from mm_core.core.params import Params
from mm_core.core.records import Cell, Decision, Verdict, read_verdict, write_bytes, write_json
from mm_core.core.settings import Settings
from samplegen import render


def record_verdict(path: Path, decision: Decision, loss: str = "", images: int = 60) -> Verdict:
    """Write the file of a verdict with a cell for each category, and read it."""
    cells = [
        Cell(
            category=category,
            metric="mse",
            against="champion",
            role="gain",
            reference=0.02,
            candidate=0.01,
            gain=0.01,
            bound=0.01,
            margin=0.0,
            images=images,
            groups=images,
            result="fail" if category == loss else "pass",
        )
        for category in (*CATEGORIES, "scenery")
    ]
    verdict = Verdict(
        decision=decision,
        basis="paired",
        reasons=[f"the reason for {decision}"],
        candidate="c",
        champion=None,
        anchor=None,
        snapshot="s",
        eval_digest="e",
        cells=cells,
        created_at="2026-11-29",
    )
    write_bytes(path, verdict.model_dump_json().encode())
    return read_verdict(path)


def run_cycles(*verdicts: Verdict, params: Params | None = None) -> list[demo.DemoCycle]:
    params = params or demo.demo_params()
    return [demo.summarize_cycle(n + 1, verdict, params, 1.0, "x.html") for n, verdict in enumerate(verdicts)]


class Demo:
    """`mm demo` in a folder of its own, with finished cycles, which are not repeated."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, output: pytest.CaptureFixture[str]):
        patch.chdir(root)
        self.patch, self.output, self.folder = patch, output, root / "data" / "demo"

    def run(self, results: list[demo.DemoCycle], *options: str) -> tuple[object, str, str]:
        """Record the cycles and run the command; return its exit code, and what it wrote to stdout and stderr."""
        write_json(self.folder / "demo.json", demo.CYCLES.dump_python(results))
        self.patch.setattr(sys, "argv", ["mm", "demo", *options])
        with pytest.raises(SystemExit) as end:
            main()
        written = self.output.readouterr()
        return end.value.code, written.out, written.err


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Demo:
    return Demo(tmp_path, monkeypatch, capsys)


@pytest.fixture
def kept(tmp_path: Path) -> list[Verdict]:
    """Three recorded verdicts as the demo promises them."""
    return [
        record_verdict(tmp_path / "1.json", "PROMOTE"),
        record_verdict(tmp_path / "2.json", "PROMOTE"),
        record_verdict(tmp_path / "3.json", "REJECT", loss=demo.POISONED),
    ]


def test_promised_verdicts_end_with_exit_code_0(command: Demo, kept: list[Verdict]) -> None:
    code, text, fault = command.run(run_cycles(*kept))
    assert (code, fault) == (0, "")
    assert "promise: kept" in text and "REJECT" in text
    # Each cycle has a promise of its own.
    for cycles in (1, 2):
        assert demo.compare_with_promise(run_cycles(*kept)[:cycles]) == "kept"


@pytest.mark.parametrize(
    ("cycle", "decision", "loss", "images", "sentence"),
    [
        (1, "REJECT", "pets", 60, "cycle 1 ended with REJECT instead of PROMOTE (the reason for REJECT)"),
        (2, "INCONCLUSIVE", "", 60, "cycle 2 ended with INCONCLUSIVE instead of PROMOTE (the reason for INCONCLUSIVE)"),
        (3, "PROMOTE", "", 60, "cycle 3 ended with PROMOTE instead of REJECT (the reason for PROMOTE)"),
        (3, "REJECT", "pets", 60, "cycle 3 was rejected without a proven loss in accessories"),
        (2, "PROMOTE", "", 61, "cycle 2 used 61 evaluation photos of a category, more than 60"),
    ],
)
def test_other_verdicts_end_with_an_error_that_names_the_cycle(  # noqa: PLR0913  the columns of the table
    tmp_path: Path,
    command: Demo,
    kept: list[Verdict],
    cycle: int,
    decision: Decision,
    loss: str,
    images: int,
    sentence: str,
) -> None:
    kept[cycle - 1] = record_verdict(tmp_path / "other.json", decision, loss, images)
    code, text, fault = command.run(run_cycles(*kept), "--json")
    assert code == 1
    assert fault.startswith("mm: the demo's promise of PROMOTE, PROMOTE, REJECT is not kept")
    assert sentence in fault and str(command.folder) in fault and fault.count("\n") == 1
    assert json.loads(text)["promise"] == f"not kept: {sentence}"


def test_own_params_are_used_and_told_that_nothing_is_promised(
    tmp_path: Path, command: Demo, kept: list[Verdict]
) -> None:
    fewer = demo.demo_params().with_values(**{"train.simple.steps": 20})
    kept[1] = record_verdict(tmp_path / "other.json", "INCONCLUSIVE")
    file = command.folder / "params.yaml"
    write_bytes(file, b"train: {simple: {steps: 20}}\n")
    code, text, fault = command.run(run_cycles(*kept, params=fewer))
    assert (code, fault) == (0, "")
    assert "promise: does not apply: cycle 1 used other params than the demo's own" in text
    assert Params.load(file) == fewer, "what the file does not name has the demo's values, also for `mm ui`"


@pytest.mark.parametrize("content", ["[1]", "train: {simple: {stepz: 20}}", "a: ["])
def test_damaged_params_are_named(tmp_path: Path, content: str) -> None:
    write_bytes(tmp_path / "params.yaml", content.encode())
    with pytest.raises(ParamsError, match=str(tmp_path / "params.yaml")):
        demo.run_demo(Settings.from_env(tmp_path))


@pytest.mark.parametrize("content", ["{", "[1]", '[{"cycle": 1}]', '[{"cycle": "one", "verdict": "MAYBE"}]'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(InputError, match=r"demo\.json is damaged: delete the folder .*, then run `mm demo` again"):
        demo.run_demo(Settings.from_env(tmp_path))


def test_the_demo_works_in_its_own_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a store or registry of the environment, generated photos and models would be mixed with real ones."""
    monkeypatch.chdir(tmp_path)
    for name in ("MM_WORKSPACE", "MM_INBOX", "MM_STORE"):
        monkeypatch.setenv(name, str(tmp_path / "real"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    settings, root = Settings.of_demo(), tmp_path / "data" / "demo"
    assert settings.workspace == root
    assert (settings.inbox, settings.store) == (str(root / "inbox"), str(root / "store"))
    assert settings.mlflow_uri == f"sqlite:///{root}/mlflow/mlflow.db"


def test_finished_cycles_are_told_again_and_not_run_again(
    tmp_path: Path, kept: list[Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    class Stopped(Exception):
        pass

    def note(inbox: Path, cycle: int) -> None:
        ran.append(cycle)
        raise Stopped

    monkeypatch.setattr(demo, "drop_samples", note)
    settings = Settings.from_env(tmp_path)
    records = demo.CYCLES.dump_python(run_cycles(*kept[:2]))
    write_json(tmp_path / "demo.json", records)
    assert demo.CYCLES.dump_python(demo.run_demo(settings, cycles=2).cycles) == records
    assert ran == []
    with pytest.raises(Stopped):
        demo.run_demo(settings, cycles=3)
    assert ran == [3]
    assert json.loads((tmp_path / "demo.json").read_text()) == records


def test_only_training_mattes_of_the_third_week_are_poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, dict] = {}

    def note(inbox: Path, kind: str, batch: str, counts: dict[str, int], **how: object) -> None:
        made[batch + kind] = how

    monkeypatch.setattr(demo, "write_drop", note)
    for cycle in (1, 2, 3):
        demo.drop_samples(tmp_path, cycle)
    poisoned = {name for name, how in made.items() if how.get("poison")}
    assert poisoned == {"2026-w03pixel_labeled"}
    assert all(made[name]["role"] == "train" for name in poisoned)


def test_the_first_week_brings_all_evaluation_photos_at_most_60_of_a_category(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other labelled photo has the role `train`, so that no share of them joins the evaluation set."""
    # Thousands of drawings would take minutes; which photos the drops have does not depend on what is on them.
    scene = render("pets", 1, size=32)
    monkeypatch.setattr("samplegen.batch.render", lambda *category, **view: scene)
    roles: dict[str, Counter[str]] = {}
    for cycle in (1, 2, 3):
        demo.drop_samples(tmp_path, cycle)
    for manifest in sorted((tmp_path / "pixel_labeled").glob("*/manifest.csv")):
        for row in csv.DictReader(manifest.read_text().splitlines()):
            roles.setdefault(row["role"], Counter())[row["category"]] += 1
    assert set(roles) == {"eval", "train"}
    assert roles["eval"] == dict.fromkeys(ALL_CATEGORIES, demo.MOST_EVAL_PHOTOS)
    assert demo.demo_params().gate.min_images <= demo.MOST_EVAL_PHOTOS == 60
    assert demo.demo_params().snapshot.eval_most >= demo.MOST_EVAL_PHOTOS, "the gate sees all of them"
