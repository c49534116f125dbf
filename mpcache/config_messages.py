"""What a validation mistake reads like: what was wrong, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mpcache.errors import UsageError

Model = TypeVar("Model", bound=BaseModel)
SECRET_KEYS = ("prompt", "prompt_file")
_MAX_SHOWN = 60


def explain(model: type[Model], values: dict[str, Any], layers: dict[str, dict]) -> Model:
    """Validate `values`; `layers` maps where a value may come from, strongest first, to the layer.

    Raises:
        UsageError: one line a mistake.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_line(model, dict(mistake), layers) for mistake in error.errors()]
    raise UsageError("\n".join(dict.fromkeys(lines)))


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, what it expects) of every key, sections before their content."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        yield key, field.description or "a section of keys"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{key}.")


def _line(model: type[BaseModel], mistake: dict[str, Any], layers: dict[str, dict]) -> str:
    keys = dict(known_keys(model))
    path = [part for part in mistake["loc"] if isinstance(part, str)]
    where = _where(path, layers)
    if mistake["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(path)} {where}{_suggest(path, list(keys))}"
    dotted = ".".join(path)
    reason = str(mistake["ctx"]["error"]) if mistake["type"] == "value_error" else ""
    if dotted not in keys:
        return reason or str(mistake["msg"])
    if isinstance(mistake["input"], dict) and reason:
        return f"{dotted}: {reason} ({where})"
    shown = "the text" if dotted in SECRET_KEYS else _show(mistake["input"])
    because = f" ({reason})" if reason else ""
    return f"{dotted}: {shown} is not allowed{because}; expected {keys[dotted]}; change it {where}"


def _where(path: list[str], layers: dict[str, dict]) -> str:
    """The name of the strongest layer that sets `path`, such as ``on the command line``."""
    for name, layer in layers.items():
        value: Any = layer
        for part in path:
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            return name
    return "where it is set"


def _suggest(path: list[str], known: list[str]) -> str:
    """The nearest known key in the same section, else anywhere by its last name."""
    section = ".".join(path[:-1])
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    found = difflib.get_close_matches(".".join(path), siblings, n=1, cutoff=0.6)
    if not found:
        by_name = {key.rpartition(".")[2]: key for key in reversed(known)}
        names = difflib.get_close_matches(path[-1], by_name, n=1, cutoff=0.6)
        found = [by_name[name] for name in names]
    if found:
        return f"; did you mean {found[0]}?"
    return f"; expected one of {', '.join(siblings)}"


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else shown[: _MAX_SHOWN - 3] + "..."
