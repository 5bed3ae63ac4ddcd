"""Events to bytes and back: every kind of field, and every kind of rubbish."""

# ruff: noqa: RUF012 - pydantic copies the defaults of a model

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
    model_serializer,
)

from rstream import Event
from rstream.codec import (
    ModelCodec,
    key_text,
    pack_headers,
    pack_payload,
    unpack_headers,
    unpack_payload,
)
from rstream.errors import EntryInvalid, EventInvalid, KeyMissing


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Mode(StrEnum):
    FAST = "fast"
    SLOW = "slow"


class Part(Event):
    name: str
    data: bytes = b""
    parts: list[Part] = []


class Square(Event):
    shape: Literal["square"] = "square"
    side: int


class Circle(Event):
    shape: Literal["circle"] = "circle"
    radius: float


class Everything(Event):
    """One field for each kind of value that an event may have."""

    text: str
    number: int
    real: float
    yes: bool
    raw: bytes
    when: datetime
    day: date
    hour: time
    span: timedelta
    price: Decimal
    id: UUID
    colour: Colour
    level: Level
    mode: Mode
    choice: Literal["a", "b", 3]
    numbers: set[int]
    names: frozenset[str]
    by_number: dict[int, str]
    blobs: dict[str, bytes]
    by_id: dict[UUID, Decimal]
    times: list[datetime]
    raws: set[bytes]
    pair: tuple[int, bytes]
    many: tuple[Colour, ...]
    part: Part
    parts: list[Part]
    shape: Annotated[Square | Circle, Field(discriminator="shape")]
    maybe_text: str | None
    maybe_raw: bytes | None
    maybe_when: datetime | None = None
    maybe_part: Part | None = None
    either: int | str | None
    anything: Any = None


zones = st.builds(lambda minutes: timezone(timedelta(minutes=minutes)), st.integers(-1439, 1439))
# An offset that leaves the years 1 to 9999 cannot be written
datetimes = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=st.none() | st.just(UTC) | zones)
decimals = st.decimals(allow_nan=False, allow_infinity=False)
reals = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(max_size=20)
integers = st.integers(-(2**63), 2**64 - 1)
blobs = st.binary(max_size=30)
parts: st.SearchStrategy[Part] = st.recursive(
    st.builds(Part, name=words, data=blobs),
    lambda inner: st.builds(Part, name=words, data=blobs, parts=st.lists(inner, max_size=3)),
    max_leaves=4,
)


def few(values: st.SearchStrategy[Any], of: Any = list) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=3).map(of)


EVERYTHING = st.fixed_dictionaries(
    {
        "text": words,
        "number": integers,
        "real": reals,
        "yes": st.booleans(),
        "raw": blobs,
        "when": datetimes,
        "day": st.dates(),
        "hour": st.times(),
        "span": st.timedeltas(),
        "price": decimals,
        "id": st.uuids(),
        "colour": st.sampled_from(Colour),
        "level": st.sampled_from(Level),
        "mode": st.sampled_from(Mode),
        "choice": st.sampled_from(["a", "b", 3]),
        "numbers": few(integers, set),
        "names": few(words, frozenset),
        "by_number": few(st.tuples(integers, words), dict),
        "blobs": few(st.tuples(words, blobs), dict),
        "by_id": few(st.tuples(st.uuids(), decimals), dict),
        "times": few(datetimes),
        "raws": few(blobs, set),
        "pair": st.tuples(integers, blobs),
        "many": few(st.sampled_from(Colour), tuple),
        "part": parts,
        "parts": few(parts),
        "shape": st.builds(Square, side=integers) | st.builds(Circle, radius=reals),
        "maybe_text": st.none() | words,
        "maybe_raw": st.none() | blobs,
        "either": st.none() | integers | words,
    },
    optional={
        "maybe_when": st.none() | datetimes,
        "maybe_part": st.none() | parts,
        "anything": st.none() | words | integers | few(words) | st.dictionaries(words, integers, max_size=2),
    },
).map(lambda fields: Everything(**fields))


def again(event: BaseModel) -> Any:
    codec = ModelCodec(type(event))
    return codec.decode(codec.encode(event, 1))


@settings(max_examples=300, deadline=None)
@given(EVERYTHING)
def test_an_event_comes_back_as_it_went(event: Everything) -> None:
    found = again(event)
    assert found == event
    assert [type(value) for _, value in found] == [type(value) for _, value in event]


def test_bytes_travel_as_they_are() -> None:
    raw = bytes(range(256)) * 4
    payload = ModelCodec(Part).encode(Part(name="a", data=raw), 7)
    assert raw in payload
    assert msgpack.unpackb(payload) == [7, {"name": "a", "data": raw, "parts": []}]


def test_a_mapping_is_validated_and_encoded_like_its_model() -> None:
    codec = ModelCodec(Part)
    assert codec.encode({"name": "a", "data": b"hi"}, 1) == codec.encode(Part(name="a", data=b"hi"), 1)
    with pytest.raises(EventInvalid, match=r"^Part: name: Field required$"):
        codec.encode({}, 1)
    with pytest.raises(EventInvalid, match=r"^expected a Part, got a str$"):
        codec.encode("name", 1)  # type: ignore[arg-type]
    with pytest.raises(EventInvalid, match=r"^expected a Part, got a Square$"):
        codec.encode(Square(side=1), 1)  # type: ignore[arg-type]


def test_a_subclass_is_published_as_its_base() -> None:
    class Special(Part):
        more: int = 5

    found = ModelCodec(Part).decode(ModelCodec(Part).encode(Special(name="a"), 1))
    assert found == Part(name="a")


# -- what cannot be published


class Loose(Event):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    value: Any = None


class Opaque:
    """Nothing knows how to encode it."""


def cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def deep() -> list[Any]:
    found: list[Any] = []
    for _ in range(2000):
        found = [found]
    return found


@pytest.mark.parametrize(
    "value",
    [
        *(2**64, -(2**63) - 1, [2**100], {"a": 2**64}, "\ud800", ["a\udfff"], {"\ud800": 1}, cycle(), deep()),
        *(Opaque(), {"a": [Opaque()]}, {Opaque()}, {Opaque(): 1}, lambda: 1, SecretStr("hush"), [SecretStr("hush")]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_encoded_is_named(value: Any) -> None:
    with pytest.raises(EventInvalid, match=r"cannot be encoded: .") as caught:
        ModelCodec(Loose).encode(Loose(value=value), 1)
    assert "\n" not in str(caught.value) and "hush" not in str(caught.value)


def test_a_secret_is_not_stored_as_asterisks() -> None:
    class Login(Event):
        user: str
        password: SecretStr

    with pytest.raises(EventInvalid, match=r"field_serializer"):
        ModelCodec(Login).encode(Login(user="ada", password=SecretStr("hush")), 1)

    class Revealed(Login):
        @field_serializer("password")
        def _reveal(self, value: SecretStr) -> str:
            return value.get_secret_value()

    found = again(Revealed(user="ada", password=SecretStr("hush")))
    assert found.password.get_secret_value() == "hush"


def test_what_has_no_fields_is_refused_before_it_is_stored() -> None:
    class Text(Event):
        text: str

        @model_serializer
        def _plain(self) -> str:
            return self.text

    for event in (Text(text="a"), RootModel[int](5)):
        with pytest.raises(EventInvalid, match="named fields"):
            ModelCodec(type(event)).encode(event, 1)


def test_an_instance_that_was_changed_to_the_wrong_types_is_refused_before_it_is_stored() -> None:
    """No validation saw it, and every consumer would find it invalid."""
    changed = Part(name="a")
    changed.name = 5  # type: ignore[assignment]
    for event in (changed, Part.model_construct(name=5), Part(name="a", parts=[Part.model_construct(name=5)])):
        with pytest.raises(EventInvalid, match=r"^Part cannot be encoded: .*'name'.*input_type=int") as caught:
            ModelCodec(Part).encode(event, 1)
        assert "input_value" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_would_come_back_as_a_list_is_refused_before_it_is_stored() -> None:
    class Grid(Event):
        cells: dict[tuple[int, int], str]

    codec = ModelCodec(Grid)
    try:
        payload = codec.encode(Grid(cells={(1, 2): "x"}), 1)
    except EventInvalid:
        return
    assert codec.decode(payload) == Grid(cells={(1, 2): "x"})  # or it does come back


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, AssertionError, RuntimeError, ZeroDivisionError])
def test_a_validator_that_fails_makes_the_event_or_entry_invalid(error: type[Exception]) -> None:
    class Checked(Event):
        number: int

        @field_validator("number")
        @classmethod
        def _check(cls, value: int) -> int:
            raise error("not this one")

    codec = ModelCodec(Checked)
    with pytest.raises(EntryInvalid, match="not this one") as caught:
        codec.decode(pack_payload(1, {"number": 5}))
    assert caught.value.reason == "invalid"
    with pytest.raises(EventInvalid, match="not this one"):
        codec.encode({"number": 5}, 1)


# -- what cannot be read


EXAMPLE = ModelCodec(Everything).encode(
    Everything(
        text="é" * 20, number=2**63, real=0.5, yes=True, raw=bytes(range(64)), when=datetime(2026, 11, 20, tzinfo=UTC),
        day=date(2026, 11, 20), hour=time(9, 30), span=timedelta(hours=1), price=Decimal("1.10"), id=UUID(int=7),
        colour=Colour.RED, level=Level.LOW, mode=Mode.FAST, choice=3, numbers={1, 2}, names=frozenset("ab"),
        by_number={1: "a"}, blobs={"a": b"\xff"}, by_id={UUID(int=1): Decimal(2)}, times=[], raws={b"\xfe"},
        pair=(1, b"x"), many=(Colour.RED,), part=Part(name="p"), parts=[Part(name="q")], shape=Square(side=1),
        maybe_text=None, maybe_raw=b"", either=None,
    ),
    1,
)  # fmt: skip


def decodes_or_is_invalid(model: type[BaseModel], payload: bytes) -> None:
    try:
        assert isinstance(ModelCodec(model).decode(payload), model)
    except EntryInvalid as error:
        assert error.reason in ("undecodable", "invalid")
        assert str(error) and "\n" not in str(error)


def test_every_truncation_is_undecodable() -> None:
    assert ModelCodec(Everything).decode(EXAMPLE)
    for size in range(len(EXAMPLE)):
        with pytest.raises(EntryInvalid) as caught:
            ModelCodec(Everything).decode(EXAMPLE[:size])
        assert caught.value.reason == "undecodable"
    with pytest.raises(EntryInvalid):
        ModelCodec(Everything).decode(EXAMPLE + b"\0")


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(EXAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_garbled_bytes_decode_or_are_invalid(changes: list[tuple[int, int]]) -> None:
    payload = bytearray(EXAMPLE)
    for at, value in changes:
        payload[at] = value
    decodes_or_is_invalid(Everything, bytes(payload))


class Extra(Event):
    model_config = ConfigDict(extra="allow")
    name: str = ""


class Closed(Event):
    model_config = ConfigDict(extra="forbid")
    name: str = ""


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60) | st.binary(max_size=60).map(b"\x92\x01".__add__))
def test_any_bytes_decode_or_are_invalid(payload: bytes) -> None:
    for model in (Part, Extra, Closed, Loose):
        decodes_or_is_invalid(model, payload)


atoms = st.none() | st.booleans() | integers | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
extensions = st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=9))
stamps = st.builds(msgpack.Timestamp, st.integers(0, 2**40), st.integers(0, 999_999_999))
values = st.recursive(
    atoms | extensions | stamps,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(atoms | extensions, inner, max_size=3),
    max_leaves=8,
)
fields = st.dictionaries(st.sampled_from([*Everything.model_fields]) | atoms, values, max_size=8)


@settings(max_examples=300, deadline=None)
@given(version=values, found=fields | values)
def test_any_msgpack_decodes_or_is_invalid(version: object, found: object) -> None:
    for packed in (msgpack.packb([1, found]), msgpack.packb([version, found]), msgpack.packb(found)):
        for model in (Everything, Part, Extra, Closed, Loose):
            decodes_or_is_invalid(model, packed)


@pytest.mark.parametrize(
    "payload",
    [
        *(b"", b"\xc1", b"\x92\x01", b"\x92\x01\xa1", b"\x92\x01\x05", b"\x91\x01", b"\x93\x01\x80\x80", b"\x80"),
        *(b'{"a": 1}', b"\x92\xa11\x80", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000),
        *(b"\x92\x01\x81\xa1\xff\x01", b"\x92\x01\xdf\x7f\xff\xff\xff", b"\x92\xc0\x80"),
    ],
    ids=lambda payload: payload[:8].hex(),
)
def test_what_is_not_version_and_fields_is_undecodable(payload: bytes) -> None:
    with pytest.raises(EntryInvalid, match=r"^the payload is not msgpack \[version, fields\]") as caught:
        unpack_payload(payload)
    assert caught.value.reason == "undecodable"


def test_an_entry_of_another_shape_is_invalid_and_its_values_stay_private() -> None:
    with pytest.raises(EntryInvalid) as caught:
        ModelCodec(Part).decode(pack_payload(1, {"name": {"private": "hush"}, "data": 5, "parts": [{"name": 3}]}))
    assert caught.value.reason == "invalid"
    assert str(caught.value).startswith("Part: name: Input should be a valid string; data: ")
    assert "parts.0.name" in str(caught.value) and "hush" not in str(caught.value)


def test_a_complaint_is_one_line() -> None:
    with pytest.raises(EntryInvalid, match=r"^Everything: .*by_number\.a b\.\[key\]: ") as caught:
        ModelCodec(Everything).decode(pack_payload(1, {**unpack_payload(EXAMPLE)[1], "by_number": {"a\nb": "x"}}))
    assert "\n" not in str(caught.value)


def test_a_long_complaint_is_cut() -> None:
    with pytest.raises(EntryInvalid, match=r"\(and 27 more\)$"):
        ModelCodec(Everything).decode(pack_payload(1, {}))


# -- what pydantic models may say of themselves


def test_extra_fields() -> None:
    payload = pack_payload(1, {"name": "a", "other": 1})
    assert ModelCodec(Part).decode(payload) == Part(name="a")
    assert ModelCodec(Extra).decode(payload) == Extra.model_validate({"name": "a", "other": 1})
    assert again(Extra.model_validate({"name": "a", "other": b"\xff"})).other == b"\xff"  # type: ignore[attr-defined]
    with pytest.raises(EntryInvalid, match="other: Extra inputs are not permitted"):
        ModelCodec(Closed).decode(payload)


@pytest.mark.parametrize("by_alias", [None, True, False])
def test_aliases_are_for_others_the_payload_has_field_names(by_alias: bool | None) -> None:
    class Inner(BaseModel):
        model_config = ConfigDict(serialize_by_alias=by_alias)
        inside: int = Field(alias="in-side")

    class Aliased(Event):
        model_config = ConfigDict(serialize_by_alias=by_alias, extra="forbid")
        device: str = Field(alias="deviceId")
        read: str = Field(validation_alias="r1", serialization_alias="r2")
        inner: Inner

    event = Aliased.model_validate({"deviceId": "d", "r1": "x", "inner": {"in-side": 1}})
    codec = ModelCodec(Aliased)
    payload = codec.encode(event, 1)
    assert unpack_payload(payload)[1] == {"device": "d", "read": "x", "inner": {"inside": 1}}
    assert codec.decode(payload) == event
    assert codec.encode({"deviceId": "d", "r1": "x", "inner": {"in-side": 1}}, 1) == payload
    assert codec.encode({"device": "d", "read": "x", "inner": {"inside": 1}}, 1) == payload


def test_a_strict_model_takes_back_what_it_gave() -> None:
    class Strict(Event):
        model_config = ConfigDict(strict=True, frozen=True)
        when: datetime
        price: Decimal
        id: UUID
        colour: Colour
        numbers: set[int]
        pair: tuple[int, str]
        alone: timedelta = Field(strict=True)

    event = Strict(
        when=datetime(2026, 11, 20, tzinfo=UTC), price=Decimal("1.10"), id=UUID(int=7), colour=Colour.BLUE,
        numbers={1, 2}, pair=(1, "a"), alone=timedelta(seconds=1),
    )  # fmt: skip
    assert again(event) == event
    assert hash(again(Frozen(name="a"))) == hash(Frozen(name="a"))
    with pytest.raises(EventInvalid, match="valid integer"):
        ModelCodec(Numbered).encode({"number": "5"}, 1)


class Frozen(Event):
    model_config = ConfigDict(frozen=True)
    name: str


class Numbered(Event):
    model_config = ConfigDict(strict=True)
    number: int


def test_computed_fields_are_computed_again() -> None:
    class Area(Event):
        model_config = ConfigDict(extra="forbid")
        side: int

        @computed_field  # type: ignore[prop-decorator]
        @property
        def area(self) -> int:
            return self.side**2

    assert again(Area(side=3)).area == 9
    assert unpack_payload(ModelCodec(Area).encode(Area(side=3), 1))[1] == {"side": 3}


def test_json_fields_stay_text() -> None:
    class Wrapped(Event):
        inner: Json[list[int]]

    event = Wrapped(inner="[1, 2]")  # type: ignore[arg-type]
    assert again(event) == event and event.inner == [1, 2]


def test_a_field_serializer_decides_what_is_stored() -> None:
    class Packed(Event):
        numbers: list[int]

        @field_serializer("numbers")
        def _pack(self, value: list[int]) -> bytes:
            return bytes(value)

        @field_validator("numbers", mode="before")
        @classmethod
        def _unpack(cls, value: object) -> object:
            return list(value) if isinstance(value, bytes) else value

    payload = ModelCodec(Packed).encode(Packed(numbers=[1, 255]), 1)
    assert unpack_payload(payload)[1] == {"numbers": b"\x01\xff"}
    assert ModelCodec(Packed).decode(payload) == Packed(numbers=[1, 255])


def test_a_field_serializer_that_fails_makes_the_event_invalid() -> None:
    class Failing(Event):
        number: int

        @field_serializer("number")
        def _fail(self, value: int) -> int:
            raise KeyError("hm")

    with pytest.raises(EventInvalid, match=r"^Failing cannot be encoded: .*hm"):
        ModelCodec(Failing).encode(Failing(number=1), 1)


def test_an_enum_may_have_any_plain_value() -> None:
    class Odd(Enum):
        RAW = b"\xff\x00"
        WORD = "w"
        NOTHING = None

    class Picked(Event):
        odds: list[Odd]

    event = Picked(odds=[*Odd])
    assert again(event) == event


# -- keys


class Empty(Enum):
    EMPTY = ""
    NONE = None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("ada", "ada"), (" ", " "), ("é日本", "é日本"), ("0", "0"), (0, "0"), (-5, "-5"), (2**80, str(2**80)),
        (UUID("ABCDEF00-0000-0000-0000-000000000001"), "abcdef00-0000-0000-0000-000000000001"), (Colour.RED, "red"),
        (Level.HIGH, "2"), (Mode.FAST, "fast"), (Decimal("1.10"), "1.10"), (date(2026, 11, 20), "2026-11-20"),
        (datetime(2026, 11, 20, tzinfo=UTC), "2026-11-20T00:00:00Z"), (True, "True"), (b"ada", "ada"), (1.5, "1.5"),
    ],
)  # fmt: skip
def test_the_text_of_a_key(value: object, text: str) -> None:
    assert key_text(value, "device") == text
    assert type(key_text(value, "device")) is str


@pytest.mark.parametrize("value", [None, "", b"", Empty.EMPTY, Empty.NONE, StrEnum("E", {"A": ""})("")])
def test_a_key_must_be_there(value: object) -> None:
    with pytest.raises(KeyMissing, match=r"^the event has no 'device', which is the key of this stream: set it$"):
        key_text(value, "device")


@pytest.mark.parametrize("value", ["\ud800", "a\udfff", b"\xff", Opaque()])
def test_a_key_must_be_text(value: object) -> None:
    with pytest.raises(KeyMissing, match="'device'") as caught:
        key_text(value, "device")
    assert "\n" not in str(caught.value)


def test_a_mapping_has_the_key_that_its_model_has() -> None:
    class Seen(Event):
        device: str = Field(default="unknown", alias="deviceId")
        id: UUID = UUID(int=0)

        @field_validator("device")
        @classmethod
        def _lower(cls, value: str) -> str:
            return value.lower()

    codec = ModelCodec(Seen)
    for mapping in ({}, {"deviceId": "ADA"}, {"device": "ADA"}, {"id": "ABCDEF00-0000-0000-0000-000000000001"}):
        model = Seen.model_validate(mapping, by_alias=True, by_name=True)
        for field in ("device", "id"):
            assert key_text(codec.key(mapping, field), field) == key_text(codec.key(model, field), field)
    assert codec.key(Seen(), "nonsense") is None


# -- headers


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text()))
def test_headers_come_back(headers: dict[str, str]) -> None:
    assert unpack_headers(pack_headers(headers)) == headers


def test_no_headers_take_no_bytes() -> None:
    assert pack_headers(None) == pack_headers({}) == b""
    assert unpack_headers(None) == unpack_headers(b"") == {}


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"a": None}, {b"a": "b"}, {"a": "\ud800"}, {"\ud800": "a"}])
def test_headers_are_text(headers: Any) -> None:
    with pytest.raises(EventInvalid, match="headers"):
        pack_headers(headers)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | (values | st.dictionaries(words, atoms, min_size=1)).map(msgpack.packb))
def test_any_headers_are_text_or_invalid(packed: bytes) -> None:
    try:
        found = unpack_headers(packed)
    except EntryInvalid as error:
        assert error.reason == "undecodable"
    else:
        assert all(isinstance(part, str) for pair in found.items() for part in pair)
