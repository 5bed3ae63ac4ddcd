"""One connection of an event loop. redis-py makes it (address, TLS, login, database); from then on what is written goes
straight to the transport, and what comes is parsed as it comes: the way over redis-py's streams takes three times as
long, and more turns of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from rstream.store.scripts import Call

if TYPE_CHECKING:
    import redis.asyncio

READ_BYTES = 256 * 1024
"""What one turn of the loop takes in: a page of some hundred entries, or its end would wait for the next turn."""
PIECE_BYTES = 32 * 1024
CLOSED = "Connection closed by server."

Outcome: TypeAlias = "list[Any] | BaseException"
"""The replies to what was sent, errors among them as redis-py has them; or why there are none."""


def packed(calls: Sequence[Call]) -> Iterable[bytes]:
    """What is written for these calls, in pieces: the server begins with the first while the next is made."""
    from hiredis import pack_command

    pack: Callable[[Any], bytes] = pack_command
    return (pack(calls[0]),) if len(calls) == 1 else _pieces(calls, pack)


def _pieces(calls: Sequence[Call], pack: Callable[[Any], bytes]) -> Iterator[bytes]:
    parts, size = [], 0
    for call in calls:
        parts.append(pack(call))
        size += len(parts[-1])
        if size >= PIECE_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def reader() -> Any:
    """What makes replies of bytes; it gives NOTHING where it has no whole one."""
    import hiredis
    from redis._parsers.base import BaseParser
    from redis.exceptions import InvalidResponse

    return hiredis.Reader(protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=NOTHING)


NOTHING = object()


def amiss(replies: Sequence[Any]) -> bool:
    """Whether an error is among them."""
    for reply in replies:  # noqa: SIM110 (any() takes three times as long where there is one reply: mostly there is)
        if isinstance(reply, Exception):
            return True
    return False


def broken(reply: Any) -> bool:
    """Whether a reply, or what one is made of, says that the connection cannot be used."""
    told = reply[0] if type(reply) is list and reply else reply
    if not isinstance(told, Exception):
        return False
    from redis.exceptions import BusyLoadingError, ConnectionError

    # To redis-py, that a server is loading is a broken connection, too; but it says that nothing was done.
    return isinstance(told, ConnectionError) and not isinstance(told, BusyLoadingError)


class Line(asyncio.BufferedProtocol):
    """Carries one exchange at a time: `begin` writes, and `done` is called with what comes of it.

    A line whose exchange does not end well (too late, given up, closed by the server) is closed: what might still come
    would belong to nobody.
    """

    def __init__(self, made: redis.asyncio.Connection) -> None:
        assert made._writer is not None
        self._made = made  # which would close the transport if it went
        self._transport = cast("asyncio.Transport", made._writer.transport)
        self._before = self._transport.get_protocol()
        self._loop = asyncio.get_running_loop()
        self._buffer, self._reader = bytearray(READ_BYTES), reader()
        self._space = memoryview(self._buffer)  # asyncio's TLS takes slices of it, which of a bytearray are copies
        self._done: Callable[[Outcome], None] | None = None
        self._replies: list[Any] = []
        self._wanted = 0
        self._deadline = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    @property
    def closed(self) -> bool:
        return self._transport.is_closing()

    def begin(self, calls: Sequence[Call], timeout: float, done: Callable[[Outcome], None]) -> None:
        """Write; `done` gets the outcome, at once where the line was closed. timeout: seconds for all of it."""
        self._done, self._replies, self._wanted = done, [], len(calls)
        if self.closed:
            self._end(ConnectionError("the connection was closed"))
            return
        if not calls:
            self._end([])
            return
        self._deadline = until = self._loop.time() + timeout
        if self._alarm is None or self._alarm.when() > until:
            self._wake(until)
        for piece in packed(calls):
            self._transport.write(piece)

    async def exchange(self, calls: Sequence[Call], timeout: float) -> list[Any]:
        """The replies. Raises `OSError`, `TimeoutError` and redis-py's errors where they do not come."""
        coming: asyncio.Future[Outcome] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if not coming.done():
                coming.set_result(outcome)

        try:
            self.begin(calls, timeout, done)
            outcome = await coming
        except BaseException:
            self.close()
            raise
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _end(self, outcome: Outcome) -> None:
        if isinstance(outcome, BaseException):
            self.close()
        done, self._done, self._replies, self._wanted = self._done, None, [], 0
        if done is not None:
            done(outcome)

    # One alarm for all exchanges of a busy line: most of them end long before it rings.

    def _wake(self, at: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._alarm = None
        if self._done is None:
            return
        if self._loop.time() < self._deadline:
            self._wake(self._deadline)
        else:
            self._end(TimeoutError())

    # -- called by the transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._space

    def buffer_updated(self, nbytes: int) -> None:
        replies, read = self._replies, self._reader
        try:
            read.feed(self._buffer, 0, nbytes)
            while (reply := read.gets()) is not NOTHING:
                if (type(reply) is list or isinstance(reply, Exception)) and broken(reply):
                    self._end(reply if isinstance(reply, Exception) else reply[0])
                    return
                replies.append(reply)
        except Exception as error:
            self._end(error)
            return
        if len(replies) >= self._wanted:
            # What nobody has asked for puts all replies out of step.
            out_of_step = self._done is None or len(replies) > self._wanted
            self._end(ConnectionError("more came than was asked for") if out_of_step else replies)

    def eof_received(self) -> None:
        self._end(ConnectionError(CLOSED))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._before.connection_lost(exc)  # redis-py waits for that when it disconnects
        self._end(exc or ConnectionError(CLOSED))

    # -- closing

    def close(self) -> None:
        """At once, without waiting for what is still to be written."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._made._close()

    async def aclose(self) -> None:
        """As `close`, and wait until it is."""
        await self._made.disconnect()
