"""Programs of other environments are found by the variable, in the current folder, or in the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm_core.core import settings
from mm_core.core.settings import Settings

TOOLS = {
    "executorch_python": "MM_EXECUTORCH_PYTHON",
    "litert_python": "MM_LITERT_PYTHON",
    "fiftyone_python": "MM_FIFTYONE_PYTHON",
    "labelstudio_python": "MM_LABELSTUDIO_PYTHON",
    "onnxruntime_web": "MM_ONNXRUNTIME_WEB",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a person's own, not the checkout."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for variable in TOOLS.values():
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "here"


@pytest.mark.parametrize("field", TOOLS)
def test_a_tool_of_the_checkout_is_found_from_any_folder(field: str) -> None:
    """`make browse` installs it there, and `mm browse` of another folder said that it was missing."""
    checkout = Path(__file__).resolve().parents[2]
    assert getattr(Settings.from_env(), field) == checkout / getattr(Settings, field)


@pytest.mark.parametrize("field", TOOLS)
def test_the_current_folder_and_the_variable_come_first(
    field: str, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = elsewhere / getattr(Settings, field)
    own.mkdir(parents=True)
    assert getattr(Settings.from_env(), field) == own
    monkeypatch.setenv(TOOLS[field], "other")
    assert getattr(Settings.from_env(), field) == elsewhere / "other"


def test_code_outside_of_a_checkout_looks_in_the_current_folder(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "CHECKOUT", elsewhere.parent / "site-packages")
    assert Settings.from_env().fiftyone_python == elsewhere / Settings.fiftyone_python
