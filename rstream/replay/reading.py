"""Reads the window of a replay, page by page, the next one while the one before is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from rstream.event import Decode, Entry, EntryId
from rstream.store.layout import Layout
from rstream.store.log import Cursor

if TYPE_CHECKING:
    from rstream.stream import Stream

T = TypeVar("T")

Page = list[Entry[Any]]


async def pages(
    stream: Stream[Any],
    layout: Layout,
    start: EntryId,
    end: EntryId,
    key: str | None,
    decode: Decode[Any],
    trimmed: Callable[[EntryId], None] | None = None,
    *,
    seen: bool = False,
) -> AsyncGenerator[Page, None]:
    """The entries from `start` to `end`, in id order. trimmed, seen: see `Cursor`. Raises `StoreError`s."""
    cursor = Cursor(layout, start, end, decode, key, trimmed=trimmed, seen=seen)
    while op := cursor.op():
        await stream.app.link.run(op, within=stream.app.settings.publish_timeout)
        if page := cursor.ready():
            yield page


async def ahead(source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """The same, the next one being got meanwhile: so one more of them is in memory."""
    coming = asyncio.ensure_future(anext(source, None))
    try:
        while (page := await coming) is not None:
            coming = asyncio.ensure_future(anext(source, None))
            yield page
    finally:
        coming.cancel()
        await asyncio.wait([coming])
        await source.aclose()


def chunks(page: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for at in range(0, len(page), size):
        yield page[at : at + size]
