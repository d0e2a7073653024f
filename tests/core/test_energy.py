"""Watts of a stage, from counters as Linux shows them."""

from pathlib import Path

import pytest

from mm_core.core import energy
from mm_core.core.records import Report, timed


def count(folder: Path, name: str, microjoules: int) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "COUNTERS", tmp_path)
    assert energy.joules() is None
    for name, value in {"intel-rapl:0": 3_000_000, "intel-rapl:1": 500_000, "intel-rapl:0:0": 9_000_000}.items():
        count(tmp_path, name, value)
    assert energy.joules() == 3.5
    count(tmp_path, "intel-rapl:0", 13_000_000)
    assert energy.watts(3.5, 4.0) == 2.5
    count(tmp_path, "intel-rapl:0", 1)  # it has begun again
    assert energy.watts(3.5, 4.0) is None


def test_a_stage_says_what_it_drew_only_where_that_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "COUNTERS", tmp_path)
    with timed(Report("x")) as report:
        pass
    assert set(report.cost) == {"cpu_seconds"}
    count(tmp_path, "intel-rapl:0", 0)
    with timed(Report("x")) as report:
        count(tmp_path, "intel-rapl:0", 5_000_000_000)
    assert report.cost["watts"] > 0
