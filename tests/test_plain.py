"""Models that are encoded without pydantic: to the same bytes, and only where nothing else can come of it."""

from __future__ import annotations

from datetime import date
from functools import cached_property
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    RootModel,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)

from rstream import Event
from rstream.codec import ModelCodec
from rstream.errors import EventInvalid
from rstream.plain import SHAPES, Plain


class Measured(Event):
    name: str = Field(alias="theName", max_length=99)
    count: int = 0
    share: float = 0.0
    live: bool = True
    raw: bytes = b""
    note: str | None = None
    nothing: None = None
    size: Annotated[int, Field(gt=0)] | None = 1

    @field_validator("note")
    @classmethod
    def _strip(cls, value: str | None) -> str | None:
        return value and value.strip()

    @model_validator(mode="after")
    def _same(self) -> Measured:
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.count

    @cached_property
    def kept(self) -> int:
        return 7


def by_pydantic(event: BaseModel) -> bytes:
    codec = ModelCodec(type(event))
    codec._plain = None
    return codec.encode(event, 1)


@given(
    name=st.text(st.characters(codec="utf-8"), max_size=9),
    count=st.integers(-(2**63), 2**64 - 1),
    share=st.floats(),
    live=st.booleans(),
    raw=st.binary(max_size=9),
    note=st.none() | st.text(st.characters(codec="utf-8"), max_size=9),
    size=st.none() | st.integers(1, 9),
)
def test_the_bytes_are_those_of_pydantic(**fields: Any) -> None:
    event = Measured(theName=fields.pop("name"), **fields)
    codec = ModelCodec(Measured)
    assert codec._plain is not None and codec._plain.fits(event.__dict__)
    assert codec.encode(event, 1) == by_pydantic(event)


@pytest.mark.parametrize("field", ["name", "count", "share", "live", "raw", "nothing"])
@pytest.mark.parametrize("value", ["text", 3, 2.5, b"bytes", None, [1], {"a": 1}, date(2026, 11, 20)], ids=repr)
def test_an_instance_that_was_changed_is_refused_as_by_pydantic(field: str, value: object) -> None:
    event = Measured(theName="a").model_copy(update={field: value})
    try:
        expected = by_pydantic(event)
    except EventInvalid as error:
        with pytest.raises(EventInvalid) as caught:
            ModelCodec(Measured).encode(event, 1)
        assert str(caught.value) == str(error)
    else:
        assert ModelCodec(Measured).encode(event, 1) == expected


@pytest.mark.parametrize("fields", [{"name": "\ud800"}, {"name": "a", "count": 2**64}])
def test_what_msgpack_cannot_carry_is_told_as_by_pydantic(fields: dict[str, Any]) -> None:
    event = Measured.model_construct(**fields)
    with pytest.raises(EventInvalid) as expected:
        by_pydantic(event)
    with pytest.raises(EventInvalid) as caught:
        ModelCodec(Measured).encode(event, 1)
    assert str(caught.value) == str(expected.value)


class Sub(Measured):
    more: str = "x"


def test_instances_that_are_more_or_less_than_the_model_go_through_pydantic() -> None:
    codec, event = ModelCodec(Measured), Measured(theName="a", count=3)
    payload = codec.encode(event, 1)
    assert event.kept == 7 and "kept" in event.__dict__
    assert codec.encode(event, 1) == payload
    partial = Measured.model_construct(name="a")
    del partial.__dict__["count"]
    assert codec.encode(partial, 1) == by_pydantic(partial) != payload
    sub = Sub(theName="a", count=3)
    codec._plain, plain = None, codec._plain
    expected = codec.encode(sub, 1)
    codec._plain = plain
    assert codec.encode(sub, 1) == expected


def _plain_serializer() -> type[BaseModel]:
    class Model(Event):
        a: int

        @field_serializer("a")
        def _a(self, value: int) -> str:
            return str(value)

    return Model


def _whole_serializer() -> type[BaseModel]:
    class Model(Event):
        a: int

        @model_serializer
        def _all(self) -> dict[str, Any]:
            return {"a": self.a + 1}

    return Model


class Extra(Event):
    model_config = ConfigDict(extra="allow")
    a: int


class Excluded(Event):
    a: int = Field(1, exclude=True)


class ExcludedIf(Event):
    a: int = Field(1, exclude_if=lambda value: value == 2)


class Annotations(Event):
    a: Annotated[int, PlainSerializer(lambda value: value + 1)]


class Inner(Event):
    inner: Extra


class Listed(Event):
    a: list[int]


class Dated(Event):
    a: date


class Picked(Event):
    a: Literal["x"]


class Either(Event):
    a: int | str


class Rooted(RootModel[int]): ...


class Tree(Event):
    a: int
    left: Tree | None = None


class Anything(Event):
    a: Any


NOT_PLAIN = [
    *(_plain_serializer(), _whole_serializer(), Extra, Excluded, ExcludedIf, Annotations, Inner, Listed, Dated, Picked),
    *(Either, Rooted, Tree, Anything),
]


@pytest.mark.parametrize("model", NOT_PLAIN, ids=lambda model: str(model.__name__))
def test_models_with_more_in_them_are_not_plain(model: type[BaseModel]) -> None:
    assert Plain.of(model) is None


def test_what_is_no_model_is_not_plain() -> None:
    assert Plain.of(int) is None


def test_of_very_many_combinations_of_types_not_all_are_remembered() -> None:
    plain = Plain({f"f{n}": frozenset({int, str}) for n in range(10)})
    for bits in range(2**10):
        assert plain.fits({f"f{n}": n if bits >> n & 1 else "text" for n in range(10)})
    assert len(plain._known) == SHAPES
    assert not plain.fits({f"f{n}": None for n in range(10)})
    assert not plain.fits({f"g{n}": 1 for n in range(10)})
