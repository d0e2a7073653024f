"""The values of params.yaml as launchpad config, so that one run may use other values than the file."""

from collections.abc import Iterator, Mapping
from typing import Optional, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from mm_core.core.params import Params


def config_class(model: type[BaseModel]) -> type[dg.Config]:
    """Return a Dagster config class with the sections and fields of a params model, all of them optional.

    Dagster checks names and types when a run is launched, and shows each field's documentation in the launchpad.
    Bounds and combinations are checked by the model itself when the run starts.
    """
    fields: dict[str, tuple[object, object]] = {name: _optional(field) for name, field in model.model_fields.items()}
    # pydantic types the values of fields as Any.
    return create_model(f"{model.__name__}OfOneRun", __base__=dg.Config, __doc__=model.__doc__, **fields)  # pyright: ignore


def given_values(config: dg.Config | None) -> dict[str, object]:
    """Return the values that a person set, nested like params.yaml."""
    given: dict[str, object] = {}
    for name in type(config).model_fields if config else ():
        value = getattr(config, name)
        if isinstance(value, dg.Config):
            value = given_values(value) or None
        if value is not None:
            given[name] = value
    return given


def dotted(values: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Yield nested values as `train.simple.steps=10`."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={value}"


def _optional(field: FieldInfo) -> tuple[object, object]:
    """Return the type and the pydantic field of one optional entry."""
    kind = field.annotation
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        section = " ".join((kind.__doc__ or "").split()) or "A section of params.yaml."
        return Optional[config_class(kind)], Field(default=None, description=section)  # noqa: UP045  built at run time
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    words = [f"{' '.join((field.description or '').split())} Default: {default!r}.".strip()]
    if choices := _choices(kind):
        words.append(f"Allowed: {', '.join(map(repr, choices))}.")
    return Optional[_plain(kind)], Field(default=None, description=" ".join(words))  # noqa: UP045


def _plain(kind: object) -> object:
    """Return a type that Dagster's config knows; `Params` itself checks the allowed values."""
    if get_origin(kind) in (tuple, list):
        return list[str]
    if get_origin(kind) is dict:
        return dict[str, float]
    return kind if kind in (int, float, bool, str) else str


def _choices(kind: object) -> tuple[str, ...]:
    """Return the allowed words of a type that is made of `Literal`."""
    inner = [argument for argument in get_args(kind) if argument is not ...]
    if inner and all(isinstance(argument, str) for argument in inner):
        return tuple(inner)
    return _choices(inner[0]) if inner else ()


RunParams = config_class(Params)
"""The config of `Workspace.overrides`."""
