"""Retention's arithmetic: pure."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstream import Retention
from rstream.errors import ConfigError
from rstream.retention import (
    PENDING,
    SLOWEST,
    YIELD,
    Held,
    allocated,
    current_limits,
    grain,
    older_limits,
    roomy,
    size_text,
    slowdown,
    text_of,
)


def test_times_and_sizes_may_be_text() -> None:
    kept = Retention(age="7d", bytes="1.5GiB", group_ttl="12h")
    assert kept.age == timedelta(days=7)
    assert kept.cap == 3 * 2**29
    assert kept.group_ttl == timedelta(hours=12)
    assert Retention(bytes="100MB").cap == Retention(bytes="100 mb").cap == Retention(bytes="100M").cap == 10**8
    assert Retention(age=timedelta(seconds=90)) == Retention(age="90s") == Retention(age="1.5m")
    assert str(Retention(age="7d", entries=10**6, bytes="100MB")) == (
        "age 7d, entries 1,000,000, bytes 100 MB; unprocessed keep, group_ttl 7d, soft 0.8"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"age": "soon"}, {"age": "-1d"}, {"age": "0s"}, {"age": "20000d"}, {"age": 7}, {"entries": 0},
        {"entries": "many"}, {"bytes": 0}, {"bytes": "100 apples"}, {"bytes": -1}, {"unprocessed": "maybe"},
        {"group_ttl": "never"}, {"soft": 0}, {"soft": 1.5}, {"soft": "half"}, {"bytes": True},
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"retention: {next(iter(wrong))}"):
        Retention(**wrong)  # type: ignore[arg-type]


RETENTIONS = st.builds(
    Retention,
    age=st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=3000)),
    entries=st.none() | st.integers(1, 10**12),
    bytes=st.none() | st.integers(1, 10**15),
    unprocessed=st.sampled_from(["keep", "drop"]),
    group_ttl=st.timedeltas(timedelta(seconds=1), timedelta(days=3000)),
    soft=st.floats(0.01, 1),
)


@given(RETENTIONS)
def test_what_is_stored_is_read_again(kept: Retention) -> None:
    assert Retention.from_json(kept.to_json()) == kept


@pytest.mark.parametrize("text", ["", "[]", "7", '{"age": "x"}', '{"entries": 0}', '{"unprocessed": 3}'])
def test_what_is_stored_and_wrong_says_so(text: str) -> None:
    with pytest.raises(ConfigError, match="retention"):
        Retention.from_json(text)
    assert Retention.from_json("null") is None
    assert Retention.from_json('{"bytes": 5, "a later version": 1}') == Retention(bytes=5)


@given(st.integers(16, 10**9))
def test_an_allocation_is_the_next_of_four_steps_between_powers_of_two(size: int) -> None:
    given = allocated(size)
    assert size <= given <= size * 1.25 + 1
    assert allocated(given) == given


@pytest.mark.parametrize(
    ("payload", "entries", "packs", "nodes", "memory"),
    [  # as measured with jemalloc, bytes of used_memory for each listpack
        (30, 100_000, 1_700, 2_614, 4_167), (100, 100_000, 3_451, 4_404, 4_157), (1_024, 19_531, 6_511, 6_771, 3_611),
        (1_500, 13_333, 6_667, 6_897, 3_611), (2_500, 8_000, 8_000, 8_165, 3_099), (5_000, 4_000, 4_000, 4_118, 5_148),
        (50_000, 400, 400, 464, 57_466),
    ],
)  # fmt: skip
def test_memory_is_what_redis_says(payload: int, entries: int, packs: int, nodes: int, memory: int) -> None:
    held = Held(entries, entries * (payload + 9 + 16 + 16), packs, nodes, 0)
    assert held.memory == pytest.approx(memory * packs, rel=0.05)


HELD = st.builds(
    Held,
    entries=st.integers(0, 10**6),
    counted=st.integers(0, 10**9),
    packs=st.integers(0, 10**5),
    nodes=st.integers(0, 10**5),
    pending=st.integers(0, 10**4),
)


@given(HELD)
def test_the_factor_is_bounded(held: Held) -> None:
    assert 1.0 <= held.factor <= 4.0
    assert held.memory >= held.pending * PENDING


@given(RETENTIONS, st.lists(HELD, min_size=1, max_size=4), st.lists(st.lists(HELD, min_size=1, max_size=3), max_size=3))
def test_what_all_shards_may_hold_is_what_the_stream_may(
    kept: Retention, current: list[Held], older: list[list[Held]]
) -> None:
    beside = older_limits(kept, current, older)
    assert [len(generation) for generation in beside] == [len(generation) for generation in older]
    flat = [held for generation in older for held in generation]
    limits = current_limits(kept, current, flat, len(current))
    if kept.entries is not None:
        assert sum(limit.entries or 0 for limit in limits) <= max(len(current), kept.entries)
        left = [h.entries if li.entries is None else li.entries for g, hs in zip(beside, older, strict=True)
                for li, h in zip(g, hs, strict=True)]  # fmt: skip
        assert sum(left) <= max(0, kept.entries * (1 - YIELD) - sum(held.entries for held in current)) or not left
    if kept.cap is not None:
        memory = sum((li.bytes or 0) * h.factor + h.pending * PENDING for li, h in zip(limits, current, strict=True))
        pending = sum(held.pending * PENDING for held in current)
        assert memory <= max(pending, kept.cap) * 1.0001 + pending
    else:
        assert all(limit.bytes is None for limit in limits)


def test_the_newest_generation_keeps_what_the_older_ones_lose() -> None:
    kept = Retention(entries=1000)
    now = [Held(500, -1, 1, 1, 0)]
    first, second = [Held(300, -1, 1, 1, 0)], [Held(300, -1, 1, 1, 0), Held(0, -1, 1, 1, 0)]
    beside = older_limits(kept, now, [first, second])
    assert [limit.entries for limit in beside[1]] == [None, None]  # 300 of the 375 that are left
    assert [limit.entries for limit in beside[0]] == [75]


def test_a_limit_leaves_room_for_what_is_waiting() -> None:
    assert roomy(None, 5, loses=True) is None
    assert roomy(1600, 5, loses=True) == 1500
    assert roomy(1600, 300, loses=True) == 1300
    assert roomy(100, 300, loses=True) == 0
    assert roomy(1600, 5, loses=False) == 1595, "what is processed goes as far as it has to"
    assert roomy(100, 300, loses=False) == 0


@given(st.integers(0, 1000), st.floats(0.01, 1))
def test_producers_are_slowed_from_the_soft_limit_on(level: int, soft: float) -> None:
    wait = slowdown(level, soft)
    assert 0 <= wait <= SLOWEST
    assert (wait == 0) or level / 1000 > soft
    assert wait <= slowdown(min(1000, level + 50), soft)


def test_a_full_shard_is_the_slowest() -> None:
    assert slowdown(800, 0.8) == 0
    assert slowdown(1000, 0.8) == pytest.approx(SLOWEST)


def test_marks_lie_closer_in_small_shards() -> None:
    from rstream.retention import Limits

    assert grain(Limits(100, None)) == 65_536
    assert grain(Limits(None, 640_000)) == 10_000
    assert grain(Limits(None, 10)) == 1024


@pytest.mark.parametrize(("number", "text"), [(5, "5 B"), (12_500_000, "12.5 MB"), (2e9, "2 GB"), (5e12, "5,000 GB")])
def test_sizes_read_well(number: float, text: str) -> None:
    assert size_text(number) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "0.25s"), (90, "1.5m"), (7 * 86_400, "7d"), (3600, "1h")])
def test_times_read_well(seconds: float, text: str) -> None:
    assert text_of(seconds) == text
