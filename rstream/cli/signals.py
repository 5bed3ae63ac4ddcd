"""SIGTERM as an exception, for what has nothing to lose."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """Raised in the main thread by a signal; a BaseException, so that no `except Exception` holds it up."""


@contextmanager
def raising(*numbers: signal.Signals) -> Iterator[list[Stopped]]:
    """Within, each of these signals raises `Stopped`; after it, they do what they did before. Yields a list of what was
    raised: what runs just then may swallow it, as finalizers and the callbacks of an event loop do.
    """
    raised: list[Stopped] = []

    def stop(number: int, frame: FrameType | None) -> None:
        for each in numbers:  # once is enough: a second one would break the cleaning up
            signal.signal(each, signal.SIG_IGN)
        raised.append(Stopped())
        raise raised[0]

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield raised
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
