"""Procedures of several operations: generators that yield an operation and are sent its result. They are written once,
and gone through in an event loop or in a thread.

While Redis is away, an operation is tried for `within` seconds; what it raises ends the procedure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any, Generic, TypeVar

from rstream.store.link import Link, Op, SyncLink

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

Steps = Generator[Op[Any], Any, R]
"""Yields operations, is sent their results, returns what came of it all."""

Paced = Generator[Op[Any] | float, Any, R]
"""Yields also seconds to wait."""

Finding = Generator[Op[Any] | float | list[T], Any, None]
"""Yields also lists of what it has found."""


class Course(Generic[S, R]):
    """A generator on its way. step: what it yielded last, None at its end · result: what it has returned then."""

    result: R

    def __init__(self, steps: Generator[S, Any, R]) -> None:
        self._steps = steps
        self.go_on(None)

    def go_on(self, came: Any) -> None:
        """came: of the step."""
        try:
            self.step: S | None = self._steps.send(came)
        except StopIteration as end:
            self.step, self.result = None, end.value


async def drive(link: Link, steps: Paced[R], within: float) -> R:
    """Go through the steps; what they return."""
    course = Course(steps)
    while (step := course.step) is not None:
        course.go_on(await _take(link, step, within))
    return course.result


async def flow(link: Link, steps: Finding[T], within: float) -> AsyncIterator[list[T]]:
    """Go through the steps; what they find on the way."""
    course = Course(steps)
    while (step := course.step) is not None:
        if isinstance(step, list):
            yield step
            course.go_on(None)
        else:
            course.go_on(await _take(link, step, within))


async def _take(link: Link, step: Op[Any] | float, within: float) -> Any:
    if isinstance(step, Op):
        return await link.run(step, within=within)
    return await asyncio.sleep(step)


def drive_sync(link: SyncLink, steps: Paced[R], within: float) -> R:
    """As `drive`, in a thread."""
    course = Course(steps)
    while (step := course.step) is not None:
        course.go_on(_take_sync(link, step, within))
    return course.result


def flow_sync(link: SyncLink, steps: Finding[T], within: float) -> Iterator[list[T]]:
    """As `flow`, in a thread."""
    course = Course(steps)
    while (step := course.step) is not None:
        if isinstance(step, list):
            yield step
            course.go_on(None)
        else:
            course.go_on(_take_sync(link, step, within))


def _take_sync(link: SyncLink, step: Op[Any] | float, within: float) -> Any:
    return link.run(step, within=within) if isinstance(step, Op) else time.sleep(step)
