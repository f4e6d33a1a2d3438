"""Frozen dataclasses from plain mappings and back, with unknown keys as errors.

A component owns its settings as a frozen keyword-only dataclass that checks its values in
``__post_init__``. This module is the only way settings enter from files and command lines.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from seld.errors import InputError

Settings = TypeVar("Settings")


def to_mapping(settings: Any) -> dict[str, Any]:
    """Nested plain dict (JSON-ready) of a settings dataclass."""
    mapping = dataclasses.asdict(settings)
    return _without_tuples(mapping)


def flat_mapping(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping → ``{"group.key": value}``, as :func:`override` spells settings."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flat_mapping(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def from_mapping(kind: type[Settings], mapping: Mapping[str, Any], where: str) -> Settings:
    """Build ``kind`` from ``mapping``; unknown keys and wrong types are errors.

    Args:
        kind: the settings dataclass.
        mapping: nested plain values, as :func:`to_mapping` gives them.
        where: what the user would recognise as the source, for the error message.

    Raises:
        InputError: naming the key, the value and the nearest known key.
    """
    annotations = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in annotations:
            near = difflib.get_close_matches(key, annotations, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(where, "setting", key, f"one of {', '.join(annotations)}{hint}")
        values[key] = _convert(annotations[key], value, where, key)
    return kind(**values)


def override(settings: Settings, assignments: Sequence[str], where: str = "--set") -> Settings:
    """Apply ``dotted.key=value`` assignments; each value is read as the field's type."""
    mapping = to_mapping(settings)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(where, "assignment", assignment, "dotted.key=value")
        group: dict[str, Any] = mapping
        *parents, leaf = path.split(".")
        for depth, parent in enumerate(parents):
            child = group.get(parent)
            if not isinstance(child, dict):
                known = ", ".join(key for key, value in group.items() if isinstance(value, dict))
                raise InputError(
                    where, ".".join(parents[: depth + 1]), assignment, f"a group among: {known}"
                )
            group = child
        if leaf not in group:
            near = difflib.get_close_matches(leaf, group, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InputError(where, "setting", path, f"one of {', '.join(group)}{hint}")
        group[leaf] = text
    return from_mapping(type(settings), mapping, where)


def _convert(annotation: Any, value: Any, where: str, key: str) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise InputError(where, key, value, f"the settings of {_name(annotation)}")
        return from_mapping(typing.cast(type, annotation), value, f"{where}.{key}")
    if origin in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            if type(None) in arguments:
                return None
            raise InputError(where, key, value, _name(annotation))
        for option in arguments:
            if option is type(None):
                continue
            try:
                return _convert(option, value, where, key)
            except InputError:
                continue
        raise InputError(where, key, value, _name(annotation))
    if origin is typing.Literal:
        if value not in arguments:
            raise InputError(where, key, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if origin in (tuple, list):
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise InputError(where, key, value, _name(annotation))
        if arguments and arguments[-1] is not Ellipsis and origin is tuple:
            if len(items) != len(arguments):
                raise InputError(where, key, value, f"{len(arguments)} values")
            pairs = zip(arguments, items, strict=True)
            return tuple(_convert(argument, item, where, key) for argument, item in pairs)
        argument = arguments[0] if arguments else str
        return origin(_convert(argument, item, where, key) for item in items)
    return _convert_scalar(annotation, value, where, key)


def _convert_scalar(annotation: Any, value: Any, where: str, key: str) -> Any:
    if annotation is bool:
        text = str(value).lower()
        if text not in ("true", "false", "1", "0"):
            raise InputError(where, key, value, "true or false")
        return text in ("true", "1")
    if annotation in (int, float):
        if isinstance(value, bool):
            raise InputError(where, key, value, _name(annotation))
        try:
            number = annotation(value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(where, key, value, _name(annotation)) from None
        if annotation is int and isinstance(value, float) and value != number:
            raise InputError(where, key, value, "a whole number")
        if not math.isfinite(number):
            raise InputError(where, key, value, "a finite number")
        return number
    if annotation is str:
        if not isinstance(value, str):
            raise InputError(where, key, value, "text")
        return value
    return value


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", str(annotation))


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tuples(item) for item in value]
    return value
