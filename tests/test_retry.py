"""How long a failed delivery waits, and when it waits no more."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from rstream import RetryPolicy

seconds = st.floats(0, 365 * 86_400)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 10**9),
    initial_delay=seconds,
    factor=st.floats(1, 100),
    max_delay=seconds,
)


def test_the_default_doubles_twice() -> None:
    policy = RetryPolicy()
    assert [policy.delay_after(n) for n in range(1, 5)] == [1.0, 2.0, None, None]


def test_delays_grow_by_the_factor_up_to_the_limit() -> None:
    policy = RetryPolicy(max_attempts=7, initial_delay=0.5, factor=3, max_delay=20)
    assert [policy.delay_after(n) for n in range(1, 8)] == [0.5, 1.5, 4.5, 13.5, 20, 20, None]


def test_one_attempt_means_no_retry() -> None:
    assert RetryPolicy(max_attempts=1).delay_after(1) is None


def test_no_delay_stays_none() -> None:
    policy = RetryPolicy(max_attempts=100, initial_delay=0)
    assert {policy.delay_after(n) for n in range(1, 100)} == {0.0}


def test_a_limit_below_the_first_delay_holds_from_the_start() -> None:
    assert RetryPolicy(initial_delay=10, max_delay=1).delay_after(1) == 1.0


@settings(deadline=None)
@given(policies, st.integers(1, 10**9))
def test_a_delay_is_bounded_and_exists_until_the_last_attempt(policy: RetryPolicy, attempt: int) -> None:
    delay = policy.delay_after(attempt)
    assert (delay is None) == (attempt >= policy.max_attempts)
    if delay is not None:
        assert isinstance(delay, float) and math.isfinite(delay) and 0 <= delay <= policy.max_delay


@settings(deadline=None)
@given(policies, st.integers(1, 10**9))
def test_delays_never_shrink(policy: RetryPolicy, attempt: int) -> None:
    sooner, later = policy.delay_after(attempt), policy.delay_after(attempt + 1)
    assert later is None or (sooner is not None and sooner <= later)


@pytest.mark.parametrize(
    "options",
    [
        *({"max_attempts": 0}, {"max_attempts": -1}, {"initial_delay": -1}, {"factor": 0.5}, {"max_delay": -1}),
        *({"initial_delay": math.nan}, {"factor": math.nan}, {"max_delay": math.nan}, {"attempts": 3}),
        *({"max_attempts": 1.5}, {"max_attempts": None}, {"initial_delay": math.inf}, {"factor": math.inf}),
        *({"factor": 101}, {"initial_delay": 1e300}, {"max_delay": 1e300}, {"max_delay": math.inf}),
    ],
    ids=str,
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        RetryPolicy(**options)


def test_a_policy_does_not_change() -> None:
    with pytest.raises(ValidationError):
        RetryPolicy().max_attempts = 5
    assert RetryPolicy() == RetryPolicy() and hash(RetryPolicy()) == hash(RetryPolicy())
