"""A deferred module is imported when it is first used, and behaves like the module from then on."""

from __future__ import annotations

import sys

import pytest

from mm_core.core.deferred import Deferred


def test_the_module_is_imported_at_the_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    colours = Deferred("colorsys")
    assert "colorsys" not in sys.modules
    assert colours.rgb_to_hsv(1.0, 0.0, 0.0) == (0.0, 1.0, 1.0)
    assert "colorsys" in sys.modules


def test_a_submodule_is_imported_by_its_full_name() -> None:
    assert Deferred("xml.etree.ElementTree").fromstring("<a/>").tag == "a"


def test_its_exceptions_can_be_caught() -> None:
    deferred_json = Deferred("json")
    with pytest.raises(deferred_json.JSONDecodeError):
        deferred_json.loads("{")


def test_a_missing_module_or_name_is_an_error_at_its_use() -> None:
    missing = Deferred("no_such_module_of_anyone")
    with pytest.raises(ModuleNotFoundError):
        _ = missing.value
    with pytest.raises(AttributeError):
        _ = Deferred("json").no_such_name
