"""`mm demo` goes on where it was, and tells the story that it saw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm_core.cli import demo
from mm_core.core.records import write_json
from mm_core.core.settings import Settings


def test_finished_cycles_are_told_again_and_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    class Stopped(Exception):
        pass

    def note(inbox: Path, cycle: int) -> None:
        ran.append(cycle)
        raise Stopped

    monkeypatch.setattr(demo, "drop_samples", note)
    settings = Settings.from_env(tmp_path)
    told = [{"cycle": 1, "verdict": "PROMOTE"}, {"cycle": 2, "verdict": "PROMOTE"}]
    write_json(tmp_path / "demo.json", told)
    assert demo.run_demo(settings, cycles=2)["cycles"] == told
    assert ran == []
    with pytest.raises(Stopped):
        demo.run_demo(settings, cycles=3)
    assert ran == [3]
    assert json.loads((tmp_path / "demo.json").read_text()) == told


def test_only_training_mattes_of_the_third_week_are_poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, dict] = {}

    def note(inbox: Path, kind: str, batch: str, counts: dict[str, int], **how: object) -> None:
        made[batch + kind] = how | {"most": max(counts.values())}

    monkeypatch.setattr(demo, "write_drop", note)
    for cycle in (1, 2, 3):
        demo.drop_samples(tmp_path, cycle)
    poisoned = {name for name, how in made.items() if how.get("poison")}
    assert poisoned == {"2026-w03pixel_labeled"}
    assert all(made[name]["role"] == "train" for name in poisoned)
    judging = {name: how["most"] for name, how in made.items() if how.get("role") == "eval"}
    assert judging == {"2026-w01-evalpixel_labeled": 60}, "no more than 60 eval photos a category show all this"
