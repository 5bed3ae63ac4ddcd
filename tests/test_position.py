"""What people type for a point in a stream, and the bounds it becomes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstream.errors import PositionError
from rstream.event import MAX_PART, EntryId
from rstream.position import Position, bound

NOW = 1_763_630_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

starts = EntryId(0, 0, 0, 0)
ends = EntryId(MAX_PART, MAX_PART, MAX_PART, MAX_PART)


@pytest.fixture
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[ZoneInfo]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield ZoneInfo("America/New_York")
    time.tzset()


def both(at: Position) -> tuple[EntryId, EntryId]:
    return bound(at, "start", NOW), bound(at, "end", NOW)


def at_ms(ms: int) -> tuple[EntryId, EntryId]:
    return EntryId(ms, 0, 0, 0), EntryId(ms, MAX_PART, MAX_PART, MAX_PART)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("7", (7, 0, 0, 0), (7, MAX_PART, MAX_PART, MAX_PART)),
        ("7-3", (7, 3, 0, 0), (7, 3, MAX_PART, MAX_PART)),
        ("7-3@1.5", (7, 3, 1, 5), (7, 3, 1, 5)),
        ("  7-3@1.5\n", (7, 3, 1, 5), (7, 3, 1, 5)),
        ("0-0", (0, 0, 0, 0), (0, 0, MAX_PART, MAX_PART)),
        (f"{MAX_PART}-{MAX_PART}", (MAX_PART, MAX_PART, 0, 0), ends),
        ("1763630000000-0", (NOW, 0, 0, 0), (NOW, 0, MAX_PART, MAX_PART)),
    ],
)
def test_an_id_is_filled_towards_the_outside(text: str, start: tuple[int, ...], end: tuple[int, ...]) -> None:
    assert both(text) == (start, end)


def test_an_entry_id_is_taken_as_it_is() -> None:
    id = EntryId(7, 3, 1, 5)
    assert both(id) == both(str(id)) == (id, id)


@pytest.mark.parametrize("text", ["-", "earliest", "beginning"])
def test_earliest(text: str) -> None:
    assert both(text) == at_ms(0)


@pytest.mark.parametrize("text", ["+", "latest"])
def test_latest(text: str) -> None:
    assert both(text) == at_ms(MAX_PART)


def test_no_bound_is_everything() -> None:
    assert both(None) == (starts, ends)
    assert bound("earliest", "start", NOW) == starts and bound("latest", "end", NOW) == ends


@pytest.mark.parametrize(
    ("text", "back"),
    [
        ("now", 0),
        ("0s ago", 0),
        ("250ms ago", 250),
        ("90s ago", 90_000),
        ("-90s", 90_000),
        ("- 90 s", 90_000),
        ("2m ago", 120_000),
        ("2h ago", 7_200_000),
        ("2hago", 7_200_000),
        ("1.5h ago", 5_400_000),
        ("1.001s ago", 1001),
        ("1d 2h 3m ago", 93_780_000),
        ("-1d2h", 93_600_000),
        ("2w ago", 1_209_600_000),
        ("90 s  ago", 90_000),
    ],
)
def test_a_span_counts_back_from_redis_now(text: str, back: int) -> None:
    assert both(text) == at_ms(NOW - back)


def test_a_timedelta_is_a_span_whatever_its_sign() -> None:
    assert both(timedelta(milliseconds=1001)) == at_ms(NOW - 1001)
    assert both(timedelta(hours=2)) == both(timedelta(hours=-2)) == both("2h ago")


@pytest.mark.parametrize("at", [timedelta.max, timedelta.min, "9999w ago", "9" * 400 + "d ago", "9" * 30 + "ms ago"])
def test_before_the_epoch_is_the_beginning(at: Position) -> None:
    assert both(at) == at_ms(0)


def test_a_datetime_without_an_offset_is_local(new_york: ZoneInfo) -> None:
    naive = datetime(2026, 7, 1, 9, 30, 0, 123_000)
    local = naive.replace(tzinfo=new_york)
    assert local.utcoffset() == timedelta(hours=-4)
    expected = at_ms((local - EPOCH) // timedelta(milliseconds=1))
    assert both(naive) == both(naive.isoformat()) == both(local) == both(local.isoformat()) == expected
    assert both("2026-07-01T09:30:00.123") == both("2026-07-01 09:30:00.123") == expected
    assert both("2026-07-01T13:30:00.123Z") == both("2026-07-01T15:30:00.123+02:00") == expected
    midnight = at_ms((datetime(2026, 7, 1, tzinfo=new_york) - EPOCH) // timedelta(milliseconds=1))
    assert both("2026-07-01") == both("2026-07-01T00:00") == midnight


def test_a_datetime_is_exact_to_the_millisecond() -> None:
    for ms in range(2_168_655_705_000, 2_168_655_705_500):  # floats lose some of these
        assert both(EPOCH + timedelta(milliseconds=ms)) == at_ms(ms)


def test_a_datetime_before_the_epoch_is_the_beginning() -> None:
    assert both(datetime(1923, 1, 1, tzinfo=UTC)) == both("1923-01-01T00:00Z") == at_ms(0)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "x", "yesterday", "2h", "ago", " ago", "2x ago", "h ago", "2h 3 ago", "-2", "--2h", "2h ago ago"),
        *("1-", "-1-2", "1-2@", "1-2@3", "1@", "1-2@3.4.5", "1.5", "2026-13-01", "2026-02-30", "2026-11-20T25:00"),
        *("2026-11-20T09:30+99:00", "0001-01-01", "1e3", "١٢", "12 34", "9" * 21, "2 hours ago"),
    ],
)
@pytest.mark.parametrize("side", ["start", "end"])
def test_what_is_no_point_says_what_would_be(text: str, side: Any) -> None:
    with pytest.raises(PositionError) as caught:
        bound(text, side, NOW)
    message = str(caught.value)
    assert message.startswith(f"{text.strip()!r} is neither an id nor a time: give an id (")
    assert "2h ago" in message and "ISO time" in message and "\n" not in message


@pytest.mark.parametrize("text", [str(MAX_PART + 1), f"1-{MAX_PART + 1}", f"{MAX_PART + 1}-0@1.1"])
def test_an_id_that_redis_could_not_have_is_refused(text: str) -> None:
    with pytest.raises(PositionError, match=f"its parts are at most {MAX_PART}"):
        bound(text, "start", NOW)


@pytest.mark.parametrize("at", [NOW, 1.5, date(2026, 11, 20), (1, 2, 3, 4), b"1-2", datetime.min])
def test_other_things_are_refused_too(at: Any) -> None:
    with pytest.raises(PositionError, match="give an id"):
        bound(at, "start", NOW)


@settings(max_examples=500, deadline=None)
@given(st.text() | st.from_regex(r"-?[0-9.]{0,25} ?(ms|s|m|h|d|w|ago|-|@|\.)[0-9]{0,5}( ago)?", fullmatch=True))
def test_any_text_is_a_bound_or_refused(text: str) -> None:
    try:
        found = both(text)
    except PositionError as error:
        assert "\n" not in str(error)
    else:
        assert starts <= found[0] <= found[1] <= ends


moments = st.integers(0, 4_000_000_000_000)
small = st.integers(0, 2**40)


@st.composite
def named(draw: st.DrawFn) -> tuple[EntryId, Position, int]:
    """(an entry, a name for its place that is as exact as a millisecond or more, now)."""
    entry = EntryId(draw(moments), draw(small), draw(st.integers(0, 9)), draw(st.integers(0, 1023)))
    now = entry.ms + draw(small)
    zone = timezone(timedelta(minutes=draw(st.integers(-1439, 1439))))
    when = (EPOCH + timedelta(milliseconds=entry.ms)).astimezone(zone)
    inside = when + timedelta(microseconds=draw(st.integers(0, 999)))
    names: list[Position] = [
        *(entry, str(entry), entry.redis, str(entry.ms), inside, inside.isoformat(), when.astimezone().isoformat()),
        *(timedelta(milliseconds=now - entry.ms), f"{now - entry.ms}ms ago", f"-{now - entry.ms} ms"),
    ]
    return entry, draw(st.sampled_from(names)), now


@settings(max_examples=1000, deadline=None)
@given(named())
def test_the_bounds_of_a_place_hold_the_entry_and_no_other_millisecond(case: tuple[EntryId, Position, int]) -> None:
    entry, name, now = case
    start, end = bound(name, "start", now), bound(name, "end", now)
    assert start <= entry <= end
    assert start.ms == end.ms == entry.ms
