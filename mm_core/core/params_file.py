"""Read `params.yaml`: plain YAML of limited size; mistakes are reported in one line with the nearest valid name."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mm_core.core.errors import ParamsError

Model = TypeVar("Model", bound=BaseModel)
MOST_BYTES = 1 << 20
"""Largest size of a params file."""


def read_yaml(path: Path) -> object:
    """Return the parsed content of a params file.

    Raises:
        ParamsError: the file is missing, too large, not YAML, or uses aliases. A few bytes of aliases can expand to
            values that fill the memory.
    """
    try:
        with path.open("rb") as stream:
            # One byte more than allowed shows that the file is too large without reading all of it.
            data = stream.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ParamsError(f"{path}: more than {MOST_BYTES} bytes: is it the params file?")
        text = data.decode()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ParamsError(f"{path}: has aliases (*name): write the values out")
        return yaml.safe_load(text)
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run in the project's folder or set MM_PARAMS") from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first mistake in one line: its dotted name, the problem, and the nearest valid names.

    Args:
        error: pydantic's validation error for the file's values.
        model: the class that describes the whole file.
    """
    first = error.errors()[0]
    field = ".".join(str(name) for name in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{field[:200] or 'the file'}: {first['msg']} (got {reprlib.repr(first.get('input'))})"
    message = f"{field[:200]}: there is no parameter of this name"
    if names := similar_names(field, model):
        return f"{message}; did you mean {' or '.join(names)}?"
    return f"{message}; remove it: `mm params` prints the names that exist"


def merge_values(params: Model, values: Mapping[str, object], source: str) -> Model:
    """Return a copy of the params with nested values in place of its own.

    Args:
        params: All params, or a section of them.
        values: Sections and fields as in params.yaml. A dict that is one value, such as `gate.floors`, replaces the old
            one as a whole.
        source: Where the values are from, for the error message.

    Raises:
        ParamsError: A name is unknown or a value is not allowed; the message names source and field.
    """
    try:
        return type(params).model_validate(_merged(params, values))
    except ValidationError as error:
        raise ParamsError(f"{source}: {explain(error, type(params))}") from None


def _merged(params: BaseModel, values: Mapping[str, object]) -> dict[str, object]:
    merged = params.model_dump()
    for name, value in values.items():
        section = getattr(params, name, None)
        if isinstance(section, BaseModel) and isinstance(value, Mapping):
            merged[name] = _merged(section, value)
        else:
            merged[name] = value
    return merged


def similar_names(field: str, model: type[BaseModel]) -> list[str]:
    """Return up to four dotted names of `model` that an unknown name may mean, the nearest first.

    Names with the same last part in another section come first (`train.simple.lr` for `train.lr`), then names of
    similar spelling in the same section.
    """
    names = list(dotted_names(model))
    section, _, last = field[:200].rpartition(".")
    # Candidates in other sections, those of the same parent section first.
    elsewhere = [name for name in names if name.rpartition(".")[2] == last]
    elsewhere.sort(key=lambda name: not name.startswith(f"{section}."))
    siblings = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
    near = [siblings[word] for word in difflib.get_close_matches(last, siblings, 4, 0.75)]
    return (elsewhere or near)[:4]


def dotted_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every name that a params file may hold, sections included, as `train.simple.lr`."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dotted_names(field.annotation, f"{prefix}{name}.")
