"""Waiting on conditions. A test that sleeps and hopes is slow on a good day and wrong on a bad one."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY = 0.005


def eventually(predicate: Callable[[], Any], timeout: float = 20.0) -> Any:
    """The first true value of `predicate()`; fails the test when there is none in time."""
    limit = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < limit, _never(predicate, timeout, value)
        time.sleep(EVERY)
    return value


async def eventually_async(predicate: Callable[[], Any], timeout: float = 20.0) -> Any:
    """The same inside an event loop; `predicate` may be a coroutine function."""
    limit = time.monotonic() + timeout
    while not (value := await _called(predicate)):
        assert time.monotonic() < limit, _never(predicate, timeout, value)
        await asyncio.sleep(EVERY)
    return value


async def _called(predicate: Callable[[], Any]) -> Any:
    value = predicate()
    return await value if inspect.isawaitable(value) else value


def _never(predicate: Callable[[], Any], timeout: float, value: Any) -> str:
    try:
        text = inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        text = repr(predicate)
    return f"not within {timeout:g} s (last value {value!r}): {text}"
