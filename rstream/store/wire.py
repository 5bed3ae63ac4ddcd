"""One connection of a thread: `line.py` without an event loop. redis-py makes it; then its socket is written to and
read from here, which takes half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from rstream.store.line import CLOSED, NOTHING, READ_BYTES, broken, packed, reader
from rstream.store.scripts import Call

if TYPE_CHECKING:
    import socket

    import redis


class Wire:
    """Raises `OSError`, `TimeoutError` and redis-py's errors where it breaks; then it has to be closed."""

    def __init__(self, made: redis.Connection) -> None:
        connected: Any = made._sock
        self._made, self._socket = made, cast("socket.socket", connected)
        self._usual = self._socket.gettimeout()
        self._buffer, self._reader = bytearray(READ_BYTES), reader()

    def write(self, calls: Sequence[Call]) -> None:
        for piece in packed(calls):
            self._socket.sendall(piece)

    def read(self, count: int, timeout: float | None = None) -> list[Any]:
        """The replies to so many calls, errors among them as redis-py has them. timeout: seconds of silence, if not as
        long as usual.
        """
        if timeout is None:
            return self._read(count)
        self._socket.settimeout(timeout)
        replies = self._read(count)
        self._socket.settimeout(self._usual)
        return replies

    def _read(self, count: int) -> list[Any]:
        replies: list[Any] = []
        while True:
            while (reply := self._reader.gets()) is not NOTHING:
                if (type(reply) is list or isinstance(reply, Exception)) and broken(reply):
                    raise reply if isinstance(reply, Exception) else reply[0]
                replies.append(reply)
            if len(replies) >= count:
                break
            if not (size := self._socket.recv_into(self._buffer)):
                raise ConnectionError(CLOSED)
            self._reader.feed(self._buffer, 0, size)
        if len(replies) > count:
            raise ConnectionError("more came than was asked for")
        return replies

    def close(self) -> None:
        """At once."""
        self._made.disconnect()
