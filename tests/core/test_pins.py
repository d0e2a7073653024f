"""Pins with a damaged or missing field are refused, also where the file is valid JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_core.core.errors import InputError
from mm_core.core.layout import Layout
from mm_core.core.pins import PinnedInputs
from mm_core.core.records import write_sealed_json
from mm_core.core.settings import Settings
from mm_core.pinned_inputs import frozen_inputs, read_inputs

PINS: PinnedInputs = {
    "catalog": {"samples": 3, "labels": 1, "features": 2},
    "champion": {"version": "1", "digest": "c" * 64, "files": {"saliency.int8.onnx": "d" * 64}},
    "anchor": None,
}


@pytest.fixture(params=[read_inputs, frozen_inputs])
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], PinnedInputs]:
    """Write the text as the pins of `inputs.json` or of the snapshot, and read them."""
    layout = Layout(Settings.from_env(tmp_path))
    path = layout.inputs if request.param is read_inputs else layout.snapshot / "snapshot.json"

    def write_and_read(text: str) -> PinnedInputs:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A snapshot has further fields, inputs.json has none.
        path.write_text(text if path == layout.inputs else text.replace("{", '{"digest": "s", "eval_digest": "e", ', 1))
        return request.param(layout)

    return write_and_read


def test_whole_pins_are_read(read: Callable[[str], PinnedInputs]) -> None:
    assert read(json.dumps(PINS)) == PINS


@pytest.mark.parametrize("name", ["catalog", "champion", "anchor", "samples", "labels", "features", "version", "files"])
def test_a_flipped_bit_in_a_fields_name_is_damage(read: Callable[[str], PinnedInputs], name: str) -> None:
    """A champion that is not found would let the next cycle train from scratch."""
    text = json.dumps(PINS).replace(f'"{name}"', f'"{chr(ord(name[0]) ^ 4)}{name[1:]}"', 1)
    with pytest.raises(InputError, match="is damaged"):
        read(text)


@pytest.mark.parametrize(
    "change", ['"samples": 2|"samples": 1', '"portrait.int8|"qortrait.int8', '"this file|"tiis file']
)
def test_a_flipped_bit_in_a_value_of_the_pins_is_damage(tmp_path: Path, change: str) -> None:
    """An older version of a table lacks the newest photos, and a file of another name is not found."""
    layout = Layout(Settings.from_env(tmp_path))
    pins = {**PINS, "catalog": {**PINS["catalog"], "samples": 2}}
    pins["champion"] = {"version": "1", "digest": "d", "files": {"portrait.int8.onnx": "e"}}
    write_sealed_json(layout.inputs, pins)
    assert read_inputs(layout) == pins
    before, after = change.split("|")
    text = layout.inputs.read_text()
    layout.inputs.write_text(text.replace(before, after))
    assert layout.inputs.read_text() != text
    with pytest.raises(InputError, match="is damaged: delete it"):
        read_inputs(layout)


def test_an_unknown_field_of_the_pins_is_damage(tmp_path: Path) -> None:
    """A start of training under another name would not be found."""
    layout = Layout(Settings.from_env(tmp_path))
    start = {
        "digest": "a" * 64,
        "provenance": "b" * 64,
        "catalog": PINS["catalog"],
        "snapshot": "c" * 64,
        "when": "2026-01-01T00:00:00",
        "before": None,
    }
    layout.inputs.write_text(json.dumps({**PINS, "start": start}))
    assert read_inputs(layout).get("start") == start
    layout.inputs.write_text(json.dumps({**PINS, "sdart": start}))
    with pytest.raises(InputError, match="is damaged"):
        read_inputs(layout)


@pytest.mark.parametrize("value", ["[]", "null", '"x"', '{"catalog": null, "champion": null, "anchor": null}'])
def test_other_json_is_damage(read: Callable[[str], PinnedInputs], value: str) -> None:
    with pytest.raises(InputError, match="is damaged"):
        read(value)
