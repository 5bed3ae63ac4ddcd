"""The rawest things redis-py can do: what is left when validation, leases, fences and retries are left out.

Not queues that one could use: nothing is retried, nobody takes over, what is read and not acked is lost. They are the
ceiling of what a Python client can reach on this server. The bytes are those that rstream stores of the same event.
`python -m benchmarks.contestants.raw MODE` is the worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence

import redis
import redis.asyncio

from benchmarks import side

STREAM, GROUP, PAGE = "raw", "g", 1000
SCRIPT = "for i = 1, #ARGV do redis.call('XADD', KEYS[1], '*', 'e', ARGV[i]) end return #ARGV"

sync = redis.Redis.from_url(side.URL)
fast = redis.asyncio.Redis.from_url(side.URL, socket_timeout=None)


def encoded() -> bytes:
    from benchmarks.contestants import ours

    return ours.events.codec.encode(ours.make(0), 1)


BYTES: bytes = b""


def make(n: int, seconds: float | None = None) -> bytes:
    """The same bytes for all; where the handler needs the time, its own."""
    global BYTES
    BYTES = BYTES or encoded()
    return BYTES if seconds is None or seconds == 0.0421 else json.dumps(side.event(n, seconds)).encode()


def publish_sync(handler: str, event: bytes) -> None:
    sync.xadd(STREAM, {"e": event})


async def publish(handler: str, event: bytes) -> None:
    await fast.xadd(STREAM, {"e": event})


def pipeline(handler: str, events: Sequence[bytes]) -> None:
    for at in range(0, len(events), PAGE):
        pipe = sync.pipeline(transaction=False)
        for event in events[at : at + PAGE]:
            pipe.xadd(STREAM, {"e": event})
        pipe.execute()


def script(handler: str, events: Sequence[bytes]) -> None:
    digest = sync.script_load(SCRIPT)
    for at in range(0, len(events), PAGE):
        sync.evalsha(digest, 1, STREAM, *events[at : at + PAGE])


class Batcher:
    """Publishes that come while one call is under way go out together in the next."""

    def __init__(self) -> None:
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._sending: asyncio.Task[None] | None = None
        self._digest = ""

    async def add(self, event: bytes) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((event, done))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        await done

    async def _send(self) -> None:
        self._digest = self._digest or await fast.script_load(SCRIPT)
        while self._waiting:
            batch, self._waiting = self._waiting, []
            await fast.evalsha(self._digest, 1, STREAM, *(event for event, _ in batch))
            for _, done in batch:
                done.set_result(None)


_batcher = Batcher()


async def batched(handler: str, event: bytes) -> None:
    await _batcher.add(event)


# -- workers


def sync500() -> None:
    """The limit: XREADGROUP COUNT 500 and one XACK; nothing is decoded, nothing is called."""
    while True:
        for _, entries in sync.xreadgroup(GROUP, "c", {STREAM: ">"}, count=500, block=1000) or ():
            side.count(len(entries))
            sync.xack(STREAM, GROUP, *[id for id, _ in entries])


async def async500() -> None:
    while True:
        for _, entries in await fast.xreadgroup(GROUP, "c", {STREAM: ">"}, count=500, block=1000) or ():
            side.count(len(entries))
            await fast.xack(STREAM, GROUP, *[id for id, _ in entries])


async def loop100() -> None:
    """The shortest async worker one can write: read 100, a task each, one XACK."""

    async def handle(fields: object) -> None:
        side.count()

    while True:
        for _, entries in await fast.xreadgroup(GROUP, "c", {STREAM: ">"}, count=100, block=1000) or ():
            await asyncio.gather(*(handle(fields) for _, fields in entries))
            await fast.xack(STREAM, GROUP, *[id for id, _ in entries])


async def stamp() -> None:
    """The same one, blocked on an empty stream: what a single event waits for at least."""
    while True:
        for _, entries in await fast.xreadgroup(GROUP, "c", {STREAM: ">"}, count=100, block=1000) or ():
            for _, fields in entries:
                side.stamp(json.loads(fields[b"e"])["seconds"])
            await fast.xack(STREAM, GROUP, *[id for id, _ in entries])


def main() -> None:
    with contextlib.suppress(redis.ResponseError):  # there it is
        sync.xgroup_create(STREAM, GROUP, "0", mkstream=True)
    if sys.argv[1] == "sync500":
        sync500()
    else:
        asyncio.run({"async500": async500, "loop100": loop100, "stamp": stamp}[sys.argv[1]]())


if __name__ == "__main__":
    main()
