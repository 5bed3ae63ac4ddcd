"""JSON from a command line, checked and encoded by the stored schema alone: as if the model had done it."""

# ruff: noqa: RUF012 - pydantic copies the defaults of a model

from __future__ import annotations

import base64
import json
import re
from datetime import datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from pydantic import (
    UUID4,
    AfterValidator,
    AnyUrl,
    Base64Bytes,
    Base64Str,
    Base64UrlBytes,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyInterface,
    Json,
    PostgresDsn,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from rstream import Event, RStream
from rstream.codec import ModelCodec, key_text, unpack_payload
from rstream.errors import ConfigError, EntryInvalid, EventInvalid
from rstream.schema import SchemaCodec
from tests.test_codec import EVERYTHING, Colour, Everything, Part


class Blob(Event):
    name: str
    data: bytes = b""


def stored(model: type[BaseModel], key: str | None = None) -> SchemaCodec:
    """The codec made from what a declaration stores, after its travel through Redis."""
    stream = RStream("redis://nowhere.invalid").stream("s", model, key=key)
    return SchemaCodec(json.loads(json.dumps(stream._schema)))


def through(model: type[BaseModel], given: Any) -> Any:
    """From the CLI's JSON to the model that a handler gets."""
    return ModelCodec(model).decode(stored(model).encode(given, 1))


def refusal(model: type[BaseModel], given: Any) -> str:
    with pytest.raises(EventInvalid) as caught:
        stored(model).encode(given, 1)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=150, deadline=None)
@given(EVERYTHING)
def test_the_json_of_an_event_becomes_that_event(event: Everything) -> None:
    given = json.loads(event.model_dump_json())
    assert ModelCodec(Everything).decode(CODEC.encode(given, 1)) == event


CODEC = stored(Everything)


def test_the_payload_is_the_one_that_the_model_writes() -> None:
    event = Blob(name="a", data=b"\xff\x00")
    assert stored(Blob).encode(json.loads(event.model_dump_json()), 3) == ModelCodec(Blob).encode(event, 3)


# -- what is refused, by field and reason


class Reading(Event):
    device: str
    value: float
    count: int = 1
    raw: bytes = b""
    at: datetime | None = None
    took: timedelta | None = None
    id: UUID | None = None
    colour: Colour = Colour.RED
    tags: list[str] = []
    extra: dict[str, int] = {}


GOOD = {"device": "d", "value": 1}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({**GOOD, "devcie": "x"}, ["unknown field 'devcie'", "device, value, count"]),
        ({"value": 1}, ["device: is missing"]),
        ({}, ["is missing"]),
        ({**GOOD, "device": 5}, ["device: ", "string"]),
        ({**GOOD, "device": None}, ["device: ", "string"]),
        ({**GOOD, "value": "1"}, ["value: ", "number"]),
        ({**GOOD, "value": True}, ["value: ", "number"]),
        ({**GOOD, "count": 1.5}, ["count: ", "integer"]),
        ({**GOOD, "count": "1"}, ["count: ", "integer"]),
        ({**GOOD, "raw": "é"}, ["raw: ", "base64"]),
        ({**GOOD, "raw": "A"}, ["raw: ", "base64"]),
        ({**GOOD, "raw": "a b="}, ["raw: ", "base64"]),
        ({**GOOD, "raw": [1]}, ["raw: ", "string"]),
        ({**GOOD, "at": "yesterday"}, ["at: ", "date-time"]),
        ({**GOOD, "at": "2026-13-01T00:00:00"}, ["at: "]),
        ({**GOOD, "took": "long"}, ["took: "]),
        ({**GOOD, "id": "123"}, ["id: "]),
        ({**GOOD, "colour": "green"}, ["colour: ", "red"]),
        ({**GOOD, "tags": "a"}, ["tags: ", "array"]),
        ({**GOOD, "tags": ["a", 1]}, ["tags.1: ", "string"]),
        ({**GOOD, "extra": {"a": "b"}}, ["extra.a: ", "integer"]),
        ([], ["JSON object", "list"]),
        ("text", ["JSON object", "str"]),
        (None, ["JSON object", "NoneType"]),
        (5, ["JSON object", "int"]),
    ],
)
def test_a_refusal_names_the_field(given: Any, told: list[str]) -> None:
    message = refusal(Reading, given)
    assert all(part in message for part in told), message


def test_a_number_that_no_payload_can_carry() -> None:
    assert "encoded" in refusal(Reading, {**GOOD, "count": 2**64})


def test_text_that_no_payload_can_carry() -> None:
    assert "encoded" in refusal(Reading, {**GOOD, "device": "\ud800"})


def test_a_refusal_is_short_however_long_the_value() -> None:
    assert len(refusal(Reading, {**GOOD, "raw": "é" * 1_000_000})) < 1000
    assert len(refusal(Reading, {**GOOD, "count": "x" * 1_000_000})) < 1000


# -- what is filled in and converted


def test_defaults_are_filled_in() -> None:
    class Defaults(Event):
        name: str
        raw: bytes = b"\xff\xfe"
        none: bytes | None = None
        took: timedelta = timedelta(hours=1)
        colour: Colour = Colour.BLUE
        part: Part = Part(name="p", data=b"\xfb")
        parts: list[Part] = [Part(name="q", data=b"\xfc")]

    payload = stored(Defaults).encode({"name": "a"}, 1)
    fields = unpack_payload(payload)[1]
    assert (fields["raw"], fields["none"], fields["part"]["data"]) == (b"\xff\xfe", None, b"\xfb")
    assert payload == ModelCodec(Defaults).encode(Defaults(name="a"), 1)
    assert ModelCodec(Defaults).decode(payload) == Defaults(name="a")
    assert through(Defaults, {"name": "a", "raw": "", "part": {"name": "z"}}) == Defaults(
        name="a", raw=b"", part=Part(name="z")
    )


@pytest.mark.parametrize("text", ["-_-_", "+/+/", "aGk=", "aGk", "aA==", "aA", ""])
def test_base64_in_either_alphabet_padded_or_not(text: str) -> None:
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    expected = base64.b64decode(plain + "=" * (-len(plain) % 4))
    assert through(Blob, {"name": "a", "data": text}).data == expected


class Boxes(Event):
    maybe: list[bytes | None] = []
    by_name: dict[str, dict[str, bytes]] = {}
    by_pattern: dict[Annotated[str, Field(pattern="^a")], bytes] = {}
    by_bytes: dict[bytes, bytes] = {}
    rows: list[list[bytes]] = []
    pair: tuple[int, bytes] = (0, b"")
    rest: tuple[bytes, ...] = ()
    either: int | Part | list[bytes] | None = None
    union: Part | Annotated[bytes, Field(max_length=1000)] | None = None


@pytest.mark.parametrize(
    "event",
    [
        Boxes(maybe=[None, b"\xff", b""]),
        Boxes(by_name={"a": {"b": b"\xff"}, "c": {}}),
        Boxes(by_pattern={"ab": b"\xff"}),
        Boxes(by_bytes={b"\xff": b"\xfe"}),
        Boxes(rows=[[b"\xff"], []]),
        Boxes(pair=(1, b"\xff"), rest=(b"\xff", b"")),
        Boxes(either=5),
        Boxes(either=Part(name="a", data=b"\xff")),
        Boxes(either=[b"\xff", b""]),
        Boxes(union=b"\xff"),
        Boxes(union=Part(name="a", data=b"\xff", parts=[Part(name="b", data=b"\xfe")])),
    ],
    ids=lambda event: ",".join(sorted(event.model_fields_set)),
)
def test_bytes_are_found_wherever_they_are(event: Boxes) -> None:
    assert through(Boxes, json.loads(event.model_dump_json())) == event


def test_text_that_looks_like_base64_stays_text_where_text_is_meant() -> None:
    class Texts(Event):
        word: str
        words: list[str | int]
        free: Any

    event = Texts(word="aGk=", words=["aGk=", 1], free={"a": "aGk="})
    assert through(Texts, json.loads(event.model_dump_json())) == event


class Node(Event):
    name: str
    data: bytes = b""
    left: Node | None = None
    kids: list[Node] = []


class Tree(Event):
    root: Node
    note: str = ""


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"name": "leaf", "data": "_w=="}
    for n in range(depth):
        found = {"name": str(n), "left": found, "kids": [{"name": "kid", "data": "_g=="}]}
    return found


def test_recursion_below_the_event() -> None:
    given = {"root": nested(4)}
    found = through(Tree, given)
    assert found == Tree.model_validate_json(json.dumps(given))
    assert found.root.left.left.kids[0].data == b"\xfe"
    wrong = {"root": {"name": "a", "left": {"name": "b", "kids": [{"name": 5}]}}}
    assert "root.left.kids.0.name: " in refusal(Tree, wrong)


def test_an_event_that_contains_its_own_kind() -> None:
    given = nested(3)
    assert through(Node, given) == Node.model_validate_json(json.dumps(given))
    assert "unknown field 'nmae': the stream's fields are name, data" in refusal(Node, {"nmae": "a"})
    assert stored(Node, key="name").key({"name": "a"}, "name") == "a"


def test_the_length_of_bytes_is_counted_in_bytes() -> None:
    class Image(Event):
        pixels: Annotated[bytes, Field(min_length=4, max_length=6)]

    assert through(Image, {"pixels": "AAAAAA=="}) == Image(pixels=b"\0" * 4)
    assert through(Image, {"pixels": "AAAAAAAA"}) == Image(pixels=b"\0" * 6)
    assert "pixels" in refusal(Image, {"pixels": "AAAAAAAAAA=="})
    assert "pixels" in refusal(Image, {"pixels": "AAAA"})


def test_names_not_aliases() -> None:
    class Inner(BaseModel):
        inside: int = Field(alias="in-side")

    class Aliased(Event):
        device: str = Field(alias="deviceId")
        inner: Inner

    found = through(Aliased, {"device": "d", "inner": {"inside": 1}})
    assert (found.device, found.inner.inside) == ("d", 1)


@pytest.mark.parametrize("base", [Event, BaseModel])
def test_base64_that_the_model_decodes_itself(base: type[BaseModel]) -> None:
    class Encoded(base):  # type: ignore[misc, valid-type]
        plain: Base64Bytes
        url: Base64UrlBytes
        text: Base64Str

    given = json.loads(Encoded(plain=b"aGk=", url=b"aGk=", text="aGk=").model_dump_json())
    assert through(Encoded, given) == Encoded.model_validate_json(json.dumps(given))


def test_a_plain_model_has_its_bytes_as_text() -> None:
    class Plain(BaseModel):
        raw: bytes

    assert through(Plain, {"raw": "héllo"}) == Plain(raw="héllo".encode())


def test_extra_fields_where_the_model_takes_them() -> None:
    class Open(Event):
        model_config = ConfigDict(extra="allow")
        name: str

    assert through(Open, {"name": "a", "more": [1]}).model_extra == {"more": [1]}


class Stamp(Event):
    id: UUID = Field(default_factory=uuid4)


class Made(Event):
    name: str
    tags: list[str] = Field(default_factory=list)
    stamp: Stamp | None = None
    stamps: list[Stamp] = []
    unwritten: object = object()


def test_a_default_that_is_made_in_python_has_to_be_given() -> None:
    """Made by the reader, it would be another on each attempt."""
    made = "made in Python: give it, or --app MODULE:APP"
    assert f"id: its default is {made}" in refusal(Stamp, {})
    assert f"unwritten: its default is {made}" in refusal(Made, {"name": "a"})
    assert f"stamps.0.id: its default is {made}" in refusal(Made, {"name": "a", "unwritten": 1, "stamps": [{}]})
    id = {"id": str(UUID(int=5))}
    found = through(Made, {"name": "a", "unwritten": 1, "stamp": id, "stamps": [id]})
    assert found.stamps == [found.stamp] == [Stamp(id=UUID(int=5))]
    assert found.tags == []  # an empty container is no secret


def test_what_may_be_left_out_may() -> None:
    class Sparse(TypedDict, total=False):
        a: int

    class Holder(Event):
        sparse: Sparse

    assert through(Holder, {"sparse": {}}) == Holder(sparse={})


def test_a_required_field_that_is_never_stored_is_refused_at_declaration() -> None:
    class Part(BaseModel):
        secret: str = Field(exclude=True)

    class Whole(Event):
        parts: list[Part]

    class Fine(Event):
        secret: str = Field(default="", exclude=True)

    for model in (Part, Whole):
        with pytest.raises(ConfigError, match=r"the field 'secret' is required and has exclude=True"):
            RStream("redis://nowhere.invalid").stream("s", model)
    assert through(Fine, {}) == Fine()


# -- formats and limits


class Formats(Event):
    link: AnyUrl | None = None
    dsn: PostgresDsn | None = None
    four: IPv4Address | None = None
    six: IPv6Network | None = None
    any: IPvAnyInterface | None = None
    id: UUID4 | None = None
    text: Json[list[int]] | None = None
    price: Annotated[Decimal, Field(gt=1, le=10)] | None = None
    pattern: re.Pattern[str] | None = None
    zone: ZoneInfo | None = None
    word: Annotated[str, Field(pattern=r"^\p{Lu}\w*$")] | None = None
    digits: Annotated[str, Field(pattern=r"^\d+$")] | None = None
    names: dict[Annotated[str, Field(pattern=r"^\p{Lu}")], int] = {}
    path: Path | None = None


GOOD_FORMATS: list[tuple[str, Any]] = [
    *(("link", "https://example.com/a?b=c"), ("dsn", "postgres://a:b@c:1,d:2/e"), ("four", "10.0.0.1")),
    *(("six", "2001:db8::/32"), ("any", "10.0.0.1/8"), ("id", "4ed5a4b8-8f2c-4ba0-a2ae-3ea12b6a9fc5")),
    *(("text", "[1, 2]"), ("price", "1.05"), ("price", 2), ("price", "1e1"), ("pattern", "a+"), ("zone", "UTC")),
    *(("word", "Ärger"), ("digits", "12"), ("names", {"Ä": 1}), ("path", "/nowhere/at all")),
]
BAD_FORMATS: list[tuple[str, Any]] = [
    *(("link", "example"), ("dsn", "c"), ("four", "10.0.0.256"), ("four", "::1"), ("six", "2001:db8::/129")),
    *(("any", "x"), ("id", "4ed5a4b8-8f2c-1ba0-a2ae-3ea12b6a9fc5"), ("text", "[1"), ("text", '["a"]')),
    *(("price", "much"), ("price", "1"), ("price", "10.5"), ("price", 11), ("price", "NaN"), ("pattern", "a(")),
    *(("zone", "Nowhere/Atall"), ("word", "ärger"), ("digits", "12\n"), ("digits", "1a"), ("names", {"ä": 1})),
    *(("names", {"Ä": "x"}),),
]


@pytest.mark.parametrize(("field", "value"), GOOD_FORMATS)
def test_a_format_is_taken_as_the_model_takes_it(field: str, value: Any) -> None:
    # repr: patterns and URLs of an equal text need not be equal
    assert repr(through(Formats, {field: value})) == repr(Formats.model_validate_json(json.dumps({field: value})))


@pytest.mark.parametrize(("field", "value"), BAD_FORMATS)
def test_what_the_format_does_not_allow_is_refused_as_by_the_model(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        Formats.model_validate_json(json.dumps({field: value}))
    assert field in refusal(Formats, {field: value})


def test_a_pattern_that_only_python_knows() -> None:
    class Ahead(Event):
        model_config = ConfigDict(regex_engine="python-re")
        word: str = Field(pattern="^(?=a)..$")

    assert through(Ahead, {"word": "ab"}) == Ahead(word="ab")
    assert "word: 'bb' does not match" in refusal(Ahead, {"word": "bb"})


# -- the key: an event goes to the same shard, whoever publishes it


class Keyed(Event):
    text: str = "unknown"
    number: int = 0
    real: float = 0.0
    id: UUID = UUID(int=0)
    at: datetime | None = None
    raw: bytes = b"x"
    colour: Colour = Colour.RED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", "ada"),
        ("number", 5),
        ("number", 5.0),
        ("real", 5),
        ("real", 0.1),
        ("id", "abcdef00-0000-0000-0000-000000000001"),
        ("id", "ABCDEF00-0000-0000-0000-000000000001"),
        ("at", "2026-11-20T09:30:00Z"),
        ("at", "2026-11-20T09:30:00+00:00"),
        ("raw", "aGk="),
        ("colour", "blue"),
    ],
)
def test_the_key_is_the_one_that_the_model_gives(field: str, value: Any) -> None:
    model = Keyed.model_validate_json(json.dumps({field: value}))
    key = stored(Keyed).key({field: value}, field)
    assert key_text(key, field) == key_text(ModelCodec(Keyed).key(model, field), field)


@pytest.mark.parametrize("field", ["text", "number", "real", "id", "raw", "colour"])
def test_a_key_that_is_left_out_is_the_default(field: str) -> None:
    key = stored(Keyed).key({}, field)
    assert key_text(key, field) == key_text(getattr(Keyed(), field), field)


class Changed(Event):
    low: Annotated[str, StringConstraints(to_lower=True)] = "a"
    bare: Annotated[str, StringConstraints(strip_whitespace=True)] = "a"
    up: Annotated[str, StringConstraints(to_upper=True)] | None = None
    before: Annotated[str, BeforeValidator(str.strip)] = "a"
    after: Annotated[str, AfterValidator(str.strip)] = "a"
    wrapped: str = "a"
    link: AnyUrl = AnyUrl("http://a")
    price: Decimal = Decimal(1)
    either: int | str = 1
    made: UUID = Field(default_factory=uuid4)

    @field_validator("wrapped", mode="wrap")
    @classmethod
    def changed(cls, value: Any, handler: Any) -> Any:
        return handler(value).lower()


@pytest.mark.parametrize("field", list(Changed.model_fields))
def test_a_key_that_is_computed_in_python_is_marked(field: str) -> None:
    """Only the model can say which shard its event goes to."""
    codec = stored(Changed, key=field)
    assert codec.key_is_computed
    assert not stored(Changed).key_is_computed
    with pytest.raises(EventInvalid, match=f"the key '{field}' is computed in Python"):
        codec.key({field: "A"}, field)


@pytest.mark.parametrize("field", list(Keyed.model_fields))
def test_a_plain_key_is_not(field: str) -> None:
    assert not stored(Keyed, key=field).key_is_computed


class Before(Event):
    key: str

    @model_validator(mode="before")
    @classmethod
    def check(cls, value: Any) -> Any:
        return value


class After(Event):
    key: str

    @model_validator(mode="after")
    def check(self) -> After:
        return self


class Late(Event):
    key: str

    def model_post_init(self, context: Any) -> None:
        self.key = self.key.lower()


class Lower(Event):
    model_config = ConfigDict(str_to_lower=True)
    key: str


class Hex(BaseModel):
    model_config = ConfigDict(ser_json_bytes="utf8", val_json_bytes="hex")
    key: bytes


class Again(Event):
    key: Annotated[str, AfterValidator(str.lower)]
    more: list[Again] = []


@pytest.mark.parametrize("model", [Before, After, Late, Lower, Hex, Again])
def test_a_model_that_may_change_its_key_is_marked(model: type[BaseModel]) -> None:
    assert stored(model, key="key").key_is_computed


# -- reading without a model


def test_fields_are_read_as_they_are_stored() -> None:
    payload = ModelCodec(Blob).encode(Blob(name="a", data=b"\xff"), 1)
    assert stored(Blob).decode(payload) == {"name": "a", "data": b"\xff"}
    with pytest.raises(EntryInvalid):
        stored(Blob).decode(payload[:-1])
