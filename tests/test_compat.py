"""Which models can read each other: rules that pydantic itself confirms."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, create_model
from typing_extensions import TypedDict

from rstream import Event
from rstream.codec import ModelCodec
from rstream.compat import differences, digest
from rstream.errors import ConfigError, EntryInvalid
from rstream.schema import describe


class Red(Enum):
    RED = "red"


class Colours(Enum):
    RED, BLUE = "red", "blue"


class Part(Event):
    n: int


class PartWithName(Part):
    name: str = ""


class PartNamed(Part):
    name: str


class Tree(Event):
    n: int
    children: list[Tree] = []  # noqa: RUF012


class Bush(Event):
    n: str
    children: list[Bush] = []  # noqa: RUF012


class Open(Event):
    model_config = ConfigDict(extra="allow")
    n: int


class Closed(Event):
    model_config = ConfigDict(extra="forbid")
    n: int


class Cat(Event):
    kind: Literal["cat"]
    lives: int


class Cat2(Event):
    kind: Literal["cat"]
    lives: str


class Dog(Event):
    kind: Literal["dog"]


class Loose(TypedDict, total=False):
    n: int


class Firm(TypedDict):
    n: int


def model(kind: Any, *default: Any, name: str = "M") -> type[BaseModel]:
    made: type[BaseModel] = create_model(name, __base__=Event, x=(kind, *(default or (...,))))
    return made


def schema(kind: type[BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(describe(kind, None)))
    return found


def compared(written: Any, read: Any) -> list[str]:
    return differences(schema(model(written)), schema(model(read)))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (int, int), (int, float), (int, int | None), (int, Any), (datetime, str), (datetime, datetime), (UUID, UUID),
        (float, Decimal), (bytes, bytes), (Red, Colours), (Red, str), (Literal["a"], Literal["a", "b"]),
        (list[int], list[float]), (set[int], list[int]), (tuple[int, str], tuple[int, str]),
        (tuple[int, int], list[int]), (Part, PartWithName),
        (PartNamed, Part), (dict[str, int], dict[str, float]), (Tree, Tree), (Part, dict[str, int]),
        (int | str, str | int), (Firm, Loose), (list, list), (dict, dict), (list[int], list),
        (dict[UUID, int], dict[str, int]), (dict[Red, int], dict[Colours, int]), (dict[int, int], dict[Any, int]),
        (dict[Red, int], dict[str, int]), (Cat | Dog, Dog | Cat | Part),
    ],
)  # fmt: skip
def test_what_can_be_read(written: Any, read: Any) -> None:
    assert compared(written, read) == []


@pytest.mark.parametrize(
    ("written", "read", "told"),
    [
        (float, int, "x: written as number, read as integer"),
        (int, str, "x: written as integer, read as string"),
        (int | None, int, "x: written as integer or null, read as integer"),
        (str, datetime, "x: written as string, read as date-time"),
        (bytes, str, "x: written as bytes, read as string"),
        (Any, int, "x: written as anything, read as integer"),
        (Colours, Red, "x: 'blue' may be written, and is not read"),
        (str, Red, "x: written as string, read as 'red'"),
        (Red, int, "x: written as 'red', read as integer"),
        (Literal[1], Literal[True], "x: written as 1, read as True"),
        (list[int], list[str], "x[]: written as integer, read as string"),
        (tuple[int, int], tuple[int, int, int], "x: written with 2 items, read with 3"),
        (list[int], tuple[int, int], "x: written with any number of items, read with 2"),
        (dict[str, str], dict[str, int], "x.*: written as string, read as integer"),
        (Part, PartNamed, "x.name: required, and not written"),
        (list[Part], list[PartNamed], "x[].name: required, and not written"),
        (Part | None, PartNamed | None, "x.name: required, and not written"),
        (Tree, Bush, "x.n: written as integer, read as string"),
        (Loose, Firm, "x.n: required, and not always written"),
        (list, list[int], "x[]: written as anything, read as integer"),
        (dict[str, int], dict[int, int], "x: keys: written as string, read as integer"),
        (dict[int, int], dict[str, int], "x: keys: written as integer, read as string"),
        (dict[Colours, int], dict[Red, int], "x: keys: 'blue' may be written, and is not read"),
        (dict[str, int], dict[Literal["a"], int], "x: keys: written as string, read as 'a'"),
        (Part, dict[int, int], "x: keys: written as 'n', read as integer"),
        (Open, Closed, "x.*: unknown fields may be written, and are refused"),
        (Cat | Dog, Dog | Cat2, "x.lives: written as integer, read as string"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(written: Any, read: Any, told: str) -> None:
    assert compared(written, read) == [told]


def test_fields_that_come_and_go() -> None:
    class Old(Event):
        a: int
        gone: int = 0

    class New(Event):
        a: int
        more: int = 0

    class Hidden(Event):
        a: int = Field(default=0, exclude=True)
        gone: int

    assert differences(schema(Hidden), schema(Old)) == ["a: required, and not always written"]

    class Strict(Event):
        model_config = ConfigDict(extra="forbid")
        a: int

    assert differences(schema(Old), schema(New)) == differences(schema(New), schema(Old)) == []
    assert differences(schema(Old), schema(Strict)) == ["gone: written, and refused as an unknown field"]
    assert differences(schema(Part), schema(New)) == ["a: required, and not written"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("told_apart", [True, False])
def test_many_kinds_that_contain_each_other(told_apart: bool) -> None:
    """As the nodes of a syntax tree: what was compared is not compared again wherever it occurs."""
    names = [f"Node{n}" for n in range(40 if told_apart else 8)]
    union = " | ".join(names)
    kinds: dict[str, Any] = {}
    for name in names:
        kind: Any = Literal[name] if told_apart else str  # type: ignore[valid-type]
        kinds[name] = create_model(
            name, __base__=Event, kind=(kind, ...), left=(f"{union} | None", None), more=(int, 0)
        )
    for each in kinds.values():
        each.model_rebuild(_types_namespace=kinds)
    text = json.dumps(describe(model(eval(union, kinds)), None))
    written = json.loads(text)
    assert differences(written, json.loads(text)) == []
    other = json.loads(text)
    other["$defs"]["Node1"]["properties"]["more"] = {"type": "array", "items": {"type": "integer"}}
    found = differences(written, other)
    assert found == ["x.left.more: written as integer, read as array"] if told_apart else found == []


def test_a_plain_enum_as_a_literal_is_refused() -> None:
    """pydantic does not read its value again: whatever is published would be a dead letter."""

    class Text(StrEnum):
        RED = "red"

    for kind in (Literal[Colours.RED], list[Literal[Colours.RED, "x"]]):
        with pytest.raises(ConfigError, match=r"Literal\[Colours.RED\] is stored as 'red'.*class Colours\(str, Enum\)"):
            describe(model(kind), None)
    fine = model(Literal[Text.RED])
    codec = ModelCodec(fine)
    describe(fine, None)
    assert codec.decode(codec.encode({"x": Text.RED}, 1)) == fine(x=Text.RED)


def test_a_digest_is_of_the_shape_alone() -> None:
    class Described(Event):
        """With words."""

        title: int = Field(description="a field of that name")

    class Bare(Event):
        title: int

    class Other(Event):
        title: str

    assert digest(schema(Described)) == digest(schema(Bare)) != digest(schema(Other))
    turned = create_model("Turned", __base__=Event, b=(int, ...), a=(str, ...))
    assert digest(schema(turned)) == digest(schema(create_model("Turned", __base__=Event, a=(str, ...), b=(int, ...))))
    assert digest(schema(model(int, 1))) != digest(schema(model(int, 2)))


VALUES: dict[Any, Any] = {
    int: st.integers(-(2**60), 2**60),
    float: st.floats(allow_nan=False, allow_infinity=False),  # of those a Decimal reads none
    str: st.text(),
    bool: st.booleans(),
    bytes: st.binary(),
    datetime: st.datetimes(),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    UUID: st.uuids(),
    Red: st.sampled_from(Red),
    Colours: st.sampled_from(Colours),
    Part: st.builds(Part, n=st.integers(0, 9)),
    PartNamed: st.builds(PartNamed, n=st.integers(0, 9), name=st.text()),
}
KINDS = [*VALUES, *(kind | None for kind in VALUES), *(list[kind] for kind in VALUES)]


def values(kind: Any) -> Any:
    if kind in VALUES:
        return VALUES[kind]
    inner = kind.__args__[0]
    return st.lists(VALUES[inner], max_size=3) if kind == list[inner] else VALUES[inner] | st.none()


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_is_told_to_be_readable_is_read(data: st.DataObject) -> None:
    """The promise of the rules: no differences, no entry that is set aside."""
    out, into = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(KINDS))
    written, read = model(out), model(into)
    if differences(schema(written), schema(read)):
        return
    payload = ModelCodec(written).encode(written(x=data.draw(values(out))), 1)
    try:
        ModelCodec(read).decode(payload)
    except EntryInvalid as error:
        raise AssertionError(f"{out} as {into}") from error
