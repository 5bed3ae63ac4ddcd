"""Commands on async functions: an app for as long as one runs, and spans of time as people write them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rstream.cli.target import stored_app

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.stream import Stream

T = TypeVar("T")

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def with_app(work: Callable[[RStream], Awaitable[T]]) -> T:
    """What it comes to, with the app of what is stored."""
    import asyncio

    async def main() -> T:
        async with stored_app() as app:
            return await work(app)

    return asyncio.run(main())


def with_stream(name: str, work: Callable[[Stream[Any]], Awaitable[T]]) -> T:
    """The same with a stream that is stored. Raises `UnknownStream`."""

    async def open_first(app: RStream) -> T:
        return await work(app.open(name))  # asked for in this thread: nothing else is in the loop yet

    return with_app(open_first)


class Span(click.ParamType[float]):
    """Seconds, written as 90s, 10m, 2h, 1d."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no span of time: write 90s, 10m, 2h or 1d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


def since(seconds: float) -> str:
    """How long ago, in two units at most: 3m 20s."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    left, parts = int(seconds), []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
