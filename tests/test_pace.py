"""The pace of a replay: what may go, and when, whatever the clock does. No clock, no servers."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rstream.errors import ConfigError
from rstream.replay.pace import RATE_SLACK, SPEED_SLACK, Pace, Rate, Speed, pace

PAUSES = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.05), st.floats(0, 30)), max_size=80)


def went(kept: Pace, times: list[int], pauses: list[float]) -> list[float]:
    """When each of those that may went, by a caller that waits as it is told, and then longer."""
    now, at, ends = 100.0, 0, list[float]()
    for pause in [*pauses, *[0.0] * 3 * len(times)]:
        if at == len(times):
            break
        number, wait = kept.grant(times[at:], now)
        assert 0 <= number <= len(times) - at
        assert wait >= 0 and (wait > 0 or at + number == len(times))
        ends += [now] * number
        at += number
        now += wait + pause
    return ends


@given(st.floats(0.01, 5000), st.integers(1, 200), PAUSES)
@example(10.0, 3, [0.1])
def test_at_a_rate_no_span_of_time_has_more_than_its_share(per_second: float, count: int, pauses: list[float]) -> None:
    ends = went(Rate(per_second), [0] * count, pauses)
    for n, began in enumerate(ends):
        for m in range(n, len(ends)):
            assert m - n <= (ends[m] - began + RATE_SLACK) * per_second + 1.001


@given(st.floats(0.01, 5000), st.integers(1, 200))
def test_at_a_rate_who_is_there_in_time_is_not_held_up(per_second: float, count: int) -> None:
    ends = went(Rate(per_second), [0] * count, [])
    assert len(ends) == count
    assert ends[-1] - ends[0] == pytest.approx((count - 1) / per_second, abs=1e-6 * count)


def test_after_a_stall_there_is_no_burst() -> None:
    kept = Rate(100)
    assert kept.grant([0] * 1000, 0.0) == (1, 0.01)
    number, _ = kept.grant([0] * 1000, 3600.0)
    assert number == math.floor(RATE_SLACK * 100) + 1


SPANS = st.lists(st.integers(0, 100_000), min_size=1, max_size=60).map(sorted)


@given(st.floats(0.01, 1000), SPANS, PAUSES)
def test_at_a_speed_nothing_comes_before_its_time_and_gaps_stay(
    factor: float, times: list[int], pauses: list[float]
) -> None:
    ends = went(Speed(factor), times, pauses)
    for n, end in enumerate(ends):
        for m in range(n, len(ends)):
            apart = (times[m] - times[n]) / 1000 / factor
            assert ends[m] - end >= apart - SPEED_SLACK - 1e-3 / factor - 1e-6


@given(st.floats(0.01, 1000), SPANS)
def test_at_a_speed_who_is_there_in_time_is_exact(factor: float, times: list[int]) -> None:
    ends = went(Speed(factor), times, [])
    assert len(ends) == len(times)
    for end, ms in zip(ends, times, strict=True):
        assert end - ends[0] == pytest.approx((ms - times[0]) / 1000 / factor, abs=1e-5 / factor + 1e-6)


@pytest.mark.parametrize(
    ("told", "per_second"),
    [("200/s", 200), ("30/m", 0.5), ("36 / h", 0.01), ("2.5/s", 2.5), ("7", 7), (12, 12), (0.5, 0.5)],
)
def test_rates_as_people_write_them(told: str | float, per_second: float) -> None:
    kept = pace(told, None)
    assert isinstance(kept, Rate) and kept.per_second == pytest.approx(per_second)
    assert kept.seconds(101, 0) == pytest.approx(100 / per_second)


@pytest.mark.parametrize(("told", "factor"), [("10x", 10), ("0.5X", 0.5), ("3", 3), (2, 2)])
def test_speeds_as_people_write_them(told: str | float, factor: float) -> None:
    kept = pace(None, told)
    assert isinstance(kept, Speed) and kept.factor == factor
    assert kept.seconds(5, 60_000) == pytest.approx(60 / factor)


@pytest.mark.parametrize(
    ("rate", "speed", "says"),
    [
        ("fast", None, "rate 'fast' cannot be read: write 200/s"),
        ("10/d", None, "write 200/s, 30/m or 10/h"),
        ("0/s", None, "a number of entries a second between"),
        (-1, None, "rate is -1"),
        (True, None, "rate is True"),
        (math.nan, None, "rate is nan"),
        (None, "x", "speed 'x' cannot be read: write 10x"),
        (None, 0, "speed is 0, it must be a number of times the original pace"),
        ("1/s", "1x", "give one of them"),
    ],
)
def test_what_is_no_pace_is_refused(rate: str | float | None, speed: str | float | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pace(rate, speed)
    assert pace(None, None) is None
