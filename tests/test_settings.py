"""Settings come in strictly: unknown keys, wrong types and bad values are named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from seld.errors import InputError
from seld.settings import from_mapping, override, to_mapping


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    sizes: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = 0.5
    name: str | None = None
    on: bool = True
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


def test_round_trip_through_plain_values() -> None:
    settings = Outer(rate=2.0, name="x", inner=Inner(sizes=(5,)), maybe=Inner(kind="b"))
    assert from_mapping(Outer, to_mapping(settings), "test") == settings


def test_assignments_are_read_as_the_field_types() -> None:
    changed = override(
        Outer(), ["rate=3", "inner.sizes=4,5,6", "inner.kind=b", "on=false", "name=none"]
    )
    assert changed == Outer(rate=3.0, on=False, inner=Inner(sizes=(4, 5, 6), kind="b"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rat=3", "did you mean 'rate'"),
        ("inner.kid=b", "did you mean 'kind'"),
        ("inner.kind=c", "kind is 'c', expected one of a, b"),
        ("inner.size=2.5", "size is '2.5', expected int"),
        ("on=maybe", "true or false"),
        ("outer.size=2", "expected a group among: inner"),
        ("rate", "dotted.key=value"),
        ("rate=fast", "expected float"),
        ("rate=nan", "rate is 'nan', expected a finite number"),
        ("rate=inf", "expected a finite number"),
    ],
)
def test_bad_assignments_are_named(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(Outer(), [assignment])


def test_a_whole_number_may_come_as_float_from_json_but_not_a_fraction() -> None:
    assert from_mapping(Inner, {"size": 4.0}, "file.json").size == 4
    with pytest.raises(InputError, match=r"file\.json: size is 4\.5, expected a whole number"):
        from_mapping(Inner, {"size": 4.5}, "file.json")
