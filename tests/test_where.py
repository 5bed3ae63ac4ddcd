"""`field=value`, on payloads as they are stored."""

from __future__ import annotations

from typing import Any

import pytest

from rstream.errors import ConfigError
from rstream.where import parse, where

FIELDS: dict[str, Any] = {
    "s": "a=b", "n": 3, "f": 2.5, "b": True, "none": None, "raw": b"\xff", "inner": {"x": {"y": 1}},
    "l": [1, "a"], "e": "",
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["s=a=b", "n=3", "n=3.0", "f=2.5", "f=25e-1", "b=true", "none=null", "raw=/w==", "raw=_w==", "inner.x.y=1",
     'l=[1, "a"]', "e=",
     'inner.x={"y": 1}'],
)  # fmt: skip
def test_what_holds(text: str) -> None:
    assert where([text])(FIELDS)


@pytest.mark.parametrize(
    "text",
    ["s=a", "n=4", "n=three", "n=true", "b=1", "b=True", "none=", "none=None", "raw=x", "inner.x.z=1", "n.x=1",
     "gone=null", "l=[1", "inner=x", "e=null", "f=nan"],
)  # fmt: skip
def test_what_does_not_hold(text: str) -> None:
    assert not where([text])(FIELDS)


def test_all_must_hold() -> None:
    assert where([])(FIELDS) and where(["n=3", "b=true"])(FIELDS) and not where(["n=3", "b=false"])(FIELDS)


@pytest.mark.parametrize("text", ["n", "=3", "", "a..b=1", ".a=1"])
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(ConfigError, match="write field=value"):
        parse(text)


def test_a_field_that_nobody_knows() -> None:
    assert where(["inner.q=1"], FIELDS)(FIELDS) is False
    with pytest.raises(ConfigError, match="no field 'nn': they have s, n"):
        where(["nn=1"], FIELDS)
