"""How totals that are looked at now and then become minutes and hours, and come back from bytes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstream.buckets import (
    COUNTED,
    DAY,
    GROUP,
    HOUR,
    KEPT,
    MINUTE,
    STREAM,
    Bucket,
    GroupCounts,
    Sample,
    State,
    advance,
    buckets,
    outdated,
    unpack,
)

START = 1_764_374_400_000  # midnight
NOON = START + 12 * HOUR


class Book:
    """What Redis keeps."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}
        self.state: bytes = b""
        self.resets = 0

    def add(self, sample: Sample, forgotten: Sequence[str] = (), *, prune: bool = False) -> bool:
        """Whether a reset was noticed."""
        done = advance(unpack(self.state), sample, self.resets, forgotten)
        self.state = done.state.pack()
        for name, record in done.closed.items():
            self.fields[name] = self.fields.get(name, b"") + record
        if prune:
            for name in outdated(self.fields, sample.now, [*sample.groups]):
                del self.fields[name]
        before, self.resets = self.resets, done.resets
        return done.resets > before

    def read(self, start: int, end: int, step: int) -> list[Bucket]:
        return buckets(self.fields, unpack(self.state), start, end, step)


def sample(now: int, published: int = 0, behind: int = 0, **kinds: int) -> Sample:
    """Of one shard and one group."""
    return Sample(now, 0, {"1.0": published}, {"g": [kinds.get(kind, 0) for kind in COUNTED]}, {"g": behind})


def only(found: Sequence[Bucket]) -> dict[int, Bucket]:
    """Those of which something is known, by their start in ms."""
    return {int(bucket.start.timestamp() * 1000): bucket for bucket in found if bucket}


def test_what_lies_between_two_looks_is_in_the_minute_of_the_second() -> None:
    book = Book()
    book.add(sample(NOON + 1000, published=5, acked=2, behind=700))
    book.add(sample(NOON + 30_000, published=8, acked=7, behind=100))
    book.add(sample(NOON + 2 * MINUTE, published=9, acked=7, dead=1))
    found = only(book.read(NOON, NOON + 3 * MINUTE, MINUTE))
    at = datetime.fromtimestamp(NOON / 1000, UTC)
    later = datetime.fromtimestamp((NOON + 2 * MINUTE) / 1000, UTC)
    assert found == {
        NOON: Bucket(at, 60, 8, 0, {"g": GroupCounts(acked=7, behind=0.7)}),
        NOON + 2 * MINUTE: Bucket(later, 60, 1, 0, {"g": GroupCounts(dead=1)}),
    }
    assert len(book.read(NOON, NOON + 3 * MINUTE, MINUTE)) == 3
    (hour,) = only(book.read(NOON, NOON + HOUR, HOUR)).values()
    assert hour == Bucket(at, 3600, 9, 0, {"g": GroupCounts(acked=7, dead=1, behind=0.7)})
    (day,) = book.read(START, NOON + 1, DAY)
    assert (day.published, day.groups["g"].acked) == (9, 7)


def test_nothing_that_happens_costs_nothing() -> None:
    book = Book()
    book.add(sample(NOON, published=5))
    for minute in range(1, 300):
        book.add(sample(NOON + minute * MINUTE, published=5))
    assert len(book.fields) == 2  # the minute and the hour in which something happened
    state = unpack(book.state)
    assert state is not None and state.minute.rows == state.hour.rows == {}


def test_a_group_that_only_waits_is_seen_to_wait() -> None:
    book = Book()
    for minute in range(10):
        book.add(sample(NOON + minute * MINUTE, published=1, behind=minute * 60_000))
    found = book.read(NOON, NOON + 10 * MINUTE, MINUTE)
    assert [bucket.groups["g"].behind if bucket.groups else 0.0 for bucket in found] == [60.0 * n for n in range(10)]


@pytest.mark.parametrize("what", ["published", "acked", "lost"])
def test_a_total_that_went_back_is_a_reset_and_nothing_else(what: str) -> None:
    book = Book()
    book.add(sample(NOON, published=100, acked=100, lost=100))
    assert book.add(sample(NOON + 1000, **{"published": 100, "acked": 100, "lost": 100, what: 90}))
    assert not book.add(sample(NOON + 2000, **{"published": 101, "acked": 101, "lost": 101, what: 91}))
    (found,) = only(book.read(NOON, NOON + 1, MINUTE)).values()
    assert (found.published, found.resets, found.groups["g"].acked, found.groups["g"].lost) == (101, 1, 101, 101)


def test_one_shard_that_went_back_is_found_although_the_sum_rose() -> None:
    book = Book()
    book.add(Sample(NOON, 0, {"1.0": 100, "1.1": 100}, {}, {}))
    assert book.add(Sample(NOON + 1, 0, {"1.0": 0, "1.1": 300}, {}, {}))
    assert book.read(NOON, NOON + 1, MINUTE)[0].published == 400


def test_a_reset_that_somebody_else_noticed_is_in_the_minute_of_the_next_sample() -> None:
    book = Book()
    book.add(sample(NOON, published=1))
    book.resets = 1
    assert not book.add(sample(NOON + 1, published=2))
    assert book.read(NOON, NOON + 1, MINUTE)[0].resets == 1
    fresh = Book()  # all of it was lost, and who remembers told so first: 7 times by now
    fresh.resets = 7
    fresh.add(sample(NOON, published=1))
    assert fresh.read(NOON, NOON + 1, MINUTE)[0].resets == 1
    assert fresh.resets == 7


def test_a_generation_that_is_removed_moves_no_total() -> None:
    book = Book()
    book.add(Sample(NOON, 0, {"1.0": 10, "1.1": 20, "2.0": 5}, {}, {}))
    assert not book.add(Sample(NOON + MINUTE, 33, {"2.0": 6}, {}, {}))  # three more came before it was gone
    assert [bucket.published for bucket in book.read(NOON, NOON + 2 * MINUTE, MINUTE)] == [35, 4]


def test_a_group_that_was_removed_counts_anew_and_one_that_is_only_missing_does_not() -> None:
    book = Book()
    book.add(sample(NOON, acked=100))
    book.add(Sample(NOON + 1, 0, {"1.0": 0}, {}, {}))
    assert not book.add(sample(NOON + 2, acked=101))
    assert not book.add(sample(NOON + 3, acked=4), forgotten=["g"])
    (found,) = only(book.read(NOON, NOON + 1, MINUTE)).values()
    assert found.groups["g"].acked == 105


def test_what_another_version_wrote_begins_anew_and_what_is_no_record_is_passed_over() -> None:
    assert unpack(b"") is None and unpack(b"\xc1") is None and unpack(msgpack.packb([2, "x"])) is None
    assert unpack(msgpack.packb([1, 0, 0, {}, {"g": 5}, [0, {}], [0, {}]])) is None
    longer = msgpack.packb([3, *range(1, 20)]) + msgpack.packb("text") + msgpack.packb([4, "x"]) + b"\xc1\x01"
    hour = NOON // HOUR
    fields = {f"m{hour}:g": longer, f"m{hour}:": msgpack.packb([3, 8]), "mx:g": b"", "seq": b"5", "gone:g": b"1"}
    (found,) = only(buckets(fields, None, NOON, NOON + HOUR, MINUTE)).values()
    assert found.published == 8
    assert found.groups == {"g": GroupCounts(**dict(zip(COUNTED, range(1, 10), strict=True)), behind=0.01)}


# -- any course of things --------------------------------------------------------------------------------------------

STEPS = st.tuples(
    st.sampled_from([1, 5_000, 5_000, 59_000, MINUTE, HOUR, -3_000, -HOUR, 3 * DAY, -2 * DAY]),  # of the clock
    st.integers(0, 2),  # published
    st.lists(st.integers(0, 300), min_size=len(COUNTED), max_size=len(COUNTED)),
    st.sampled_from(["g", "other", "1"]),
)


@given(st.lists(STEPS, max_size=40))
def test_the_buckets_add_up_to_the_totals_whatever_the_clock_does(course: list[Any]) -> None:
    book, now, published = Book(), NOON + 30 * DAY, 0
    groups: dict[str, list[int]] = {}
    for jump, more, counts, group in course:
        now, published = max(0, now + jump), published + more
        before = groups.get(group, [0] * len(COUNTED))
        groups[group] = [a + b for a, b in zip(before, counts, strict=True)]
        assert not book.add(Sample(now, 0, {"1.0": published}, dict(groups), {}))
        state = unpack(book.state)
        assert state is not None and state.pack() == book.state
    for step in (MINUTE, HOUR):
        found = book.read(NOON - 100 * DAY, NOON + 200 * DAY, step) if step == HOUR else by_minutes(book)
        assert sum(bucket.published for bucket in found) == published
        for group, counts in groups.items():
            for n, kind in enumerate(COUNTED):
                told = sum(getattr(bucket.groups[group], kind) for bucket in found if group in bucket.groups)
                assert told == counts[n], (group, kind)


def by_minutes(book: Book) -> list[Bucket]:
    """Of the hours that there are: a list of all minutes in between would be long."""
    state = unpack(book.state)
    hours = {int(name[1:].partition(":")[0]) for name in book.fields if name[0] == "m"}
    hours |= {state.minute.number // 60} if state is not None else set()
    return [bucket for hour in hours for bucket in book.read(hour * HOUR, (hour + 1) * HOUR, MINUTE)]


# -- what is kept ----------------------------------------------------------------------------------------------------

STATED = {"group": 65_000, "stream": 11_000}
"""Bytes of one where everything happens 500,000 times a second, as docs/history.md says."""


def full(days: int, per_minute: int) -> Book:
    """After so many days in each minute of which something happened."""
    book = Book()
    for minute in range(days * 24 * 60):
        total = (minute + 1) * per_minute
        now = NOON + minute * MINUTE
        made = Sample(now, 0, {"1.0": total}, {"g": [total] * len(COUNTED)}, {"g": per_minute})
        book.add(made, prune=minute % 60 == 1)  # a field has begun
    return book


def test_minutes_of_six_hours_and_hours_of_thirty_days_are_kept_and_no_more() -> None:
    book = full(40, 500_000 * 60)
    now = NOON + 40 * DAY
    assert len(book.fields) == 2 * (KEPT["m"] + KEPT["h"])
    minutes = book.read(now - 6 * HOUR, now, MINUTE)
    assert len(minutes) == 360 and all(bucket.published == 500_000 * 60 for bucket in minutes)
    hours = book.read(now - 30 * DAY, now, HOUR)
    assert len(hours) == 720 and all(bucket.groups["g"].acked == 500_000 * 3600 for bucket in hours)
    size = {"group": 0, "stream": 0}
    for name, packed in book.fields.items():
        size["stream" if name.endswith(":") else "group"] += len(packed)
    assert size["group"] < STATED["group"] and size["stream"] < STATED["stream"]


def test_what_is_outdated_is_what_is_farthest_from_now() -> None:
    hour = NOON // HOUR
    fields = [f"m{number}:g" for number in range(hour - 10, hour + 1)]
    assert sorted(outdated(fields, NOON, ["g"])) == sorted(fields[:4])
    ahead = [*fields[4:], f"m{hour + 9000}:g"]
    assert outdated(ahead, NOON, ["g"]) == [f"m{hour + 9000}:g"]
    assert outdated(fields[4:], NOON + 9000 * HOUR, ["g"]) == []  # the clock is far ahead: that makes none of them old
    assert sorted(outdated(fields, NOON, [])) == sorted(fields[:4])
    assert sorted(outdated(fields, NOON + 9000 * HOUR, [])) == sorted(fields)  # of a group that is gone it does
    assert outdated(["seq", "state", "gone:g", "birth", "m:g", "hx:g"], NOON, []) == []


def test_the_stream_itself_is_always_there() -> None:
    day = NOON // DAY
    fields = [f"h{number}:" for number in range(day - 40, day + 1)]
    assert sorted(outdated(fields, NOON, [])) == sorted(fields[:10])


def test_the_open_buckets_are_there_at_once() -> None:
    book = Book()
    assert book.read(NOON, NOON + MINUTE, MINUTE) == [Bucket(datetime.fromtimestamp(NOON / 1000, UTC), 60)]
    book.add(sample(NOON, published=3, acked=1))
    assert book.fields == {}
    assert book.read(NOON, NOON + 1, MINUTE)[0].published == book.read(NOON, NOON + 1, HOUR)[0].published == 3
    state = unpack(book.state)
    assert isinstance(state, State) and len(GROUP) == len(COUNTED) + 1 and STREAM == ("published", "resets")
