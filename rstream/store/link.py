"""Sending operations to Redis: `Link` for an event loop, `SyncLink` for threads. One `Op` serves both.

Every operation may be sent twice without harm (publishes carry a sequence number, settles are fenced), so a link
may resend one whose answer never came, for as long as `within` says.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rstream.errors import StoreError, StoreUnavailable
from rstream.store.connect import COMMAND_TIMEOUT, GREETING, Endpoint
from rstream.store.scripts import BY_SHA, Call

if TYPE_CHECKING:
    import redis
    import redis.asyncio

T = TypeVar("T")

log = logging.getLogger("rstream")


@dataclass(frozen=True, slots=True)
class Op(Generic[T]):
    """Commands that go out in one write, and what their replies mean.

    With `partial`, replies may contain errors as values, and `parse` deals with them; otherwise the first
    error is raised. A Redis that is not ready (loading, failing over) is never a value: it is asked again.
    """

    calls: Sequence[Call]
    parse: Callable[[list[Any]], T]
    partial: bool = False


def first(replies: list[Any]) -> Any:
    return replies[0]


def together(ops: Sequence[Op[T]]) -> Op[list[T]]:
    """Several operations in one write; the first error is raised."""
    ends = list(itertools.accumulate((len(op.calls) for op in ops), initial=0))

    def parse(replies: list[Any]) -> list[T]:
        return [op.parse(replies[start:end]) for op, (start, end) in zip(ops, itertools.pairwise(ends), strict=True)]

    return Op([call for op in ops for call in op.calls], parse)


def backoff(cap: float = 1.0) -> Iterator[float]:
    """Seconds to wait before each new try: doubling from 20 ms to `cap`, with jitter against stampedes."""
    delay = 0.02
    while True:
        yield delay * random.uniform(0.5, 1.0)
        delay = min(cap, delay * 2)


def _judge(op: Op[T], replies: list[Any], sent: bool) -> T:
    """`sent`: the answer to an earlier sending was lost, so that a refusal now does not mean that nothing was done."""
    errors = [reply for reply in replies if isinstance(reply, StoreError)]
    for error in errors:
        error.sent = sent
        if isinstance(error, StoreUnavailable) or not op.partial:
            raise error
    return op.parse(replies)


def _unloaded(calls: Sequence[Call], replies: list[Any]) -> list[int]:
    """The calls that Redis could not run because it lacks the script: they changed nothing."""
    from redis.exceptions import NoScriptError

    return [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError) and calls[n][1] in BY_SHA]


def _loads(calls: Sequence[Call], missing: list[int]) -> list[Call]:
    shas = dict.fromkeys(calls[n][1] for n in missing)
    return [("SCRIPT", "LOAD", BY_SHA[str(sha)].source) for sha in shas]


class Link:
    """The connections of one event loop. A connection is used by one exchange at a time."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._idle: list[redis.asyncio.Connection] = []
        self._kwargs: dict[str, Any] | None = None
        self._patience = COMMAND_TIMEOUT
        self._greeted = False
        self._closed = False

    async def run(self, op: Op[T], *, within: float = 0.0, timeout: float | None = None) -> T:
        """Send `op` and parse its replies; while Redis is away, try again for `within` seconds.

        `timeout`: seconds to wait for the replies (default: the endpoint's). Raises `StoreUnavailable`,
        `StoreRefused`, `MemoryFull`, `GroupMissing`, and what `op.parse` raises.
        """
        deadline = time.monotonic() + within
        sent = waiting = False
        for delay in backoff():
            try:
                return _judge(op, await self.exchange(op.calls, timeout), sent)
            except StoreError as error:
                sent = error.sent = error.sent or sent
                if not isinstance(error, StoreUnavailable):
                    raise
                if time.monotonic() + delay > deadline:
                    raise
                if not waiting:
                    log.warning("%s. Waiting for it, at most %g s", error, within)
                waiting = True
            await asyncio.sleep(delay)
        raise AssertionError("backoff never ends")

    async def exchange(self, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        """The replies to `calls`, errors among them as values. Raises `StoreUnavailable` if the line breaks."""
        connection = await self._connection()
        replies = await self._roundtrip(connection, calls, timeout)
        if missing := _unloaded(calls, replies):
            await self._roundtrip(connection, _loads(calls, missing), timeout)
            again = await self._roundtrip(connection, [calls[n] for n in missing], timeout)
            for n, reply in zip(missing, again, strict=True):
                replies[n] = reply
        self._release(connection)
        return [self.endpoint.reply_error(r) if isinstance(r, Exception) else r for r in replies]

    def _release(self, connection: redis.asyncio.Connection) -> None:
        if self._closed:
            connection._close()
        else:
            self._idle.append(connection)

    async def _connection(self) -> redis.asyncio.Connection:
        if self._idle:
            return self._idle.pop()
        if self._kwargs is None:
            # Starting the embedded server blocks for a moment.
            self._kwargs = await asyncio.to_thread(self.endpoint.kwargs)
            self._patience = float(self._kwargs["socket_timeout"])
        connection = self._make(self._kwargs)
        await self._connect(connection)
        if not self._greeted:
            self.endpoint.check_server(await self._roundtrip(connection, GREETING, None))
            self._greeted = True
        return connection

    def _make(self, kwargs: dict[str, Any]) -> redis.asyncio.Connection:
        from redis.asyncio import connection as kinds

        made: Any = {
            "tcp": kinds.Connection,
            "tls": kinds.SSLConnection,
            "unix": kinds.UnixDomainSocketConnection,
        }[self.endpoint.transport]
        # Our own deadline covers a whole exchange; redis-py's would arm a timer for every single reply.
        return made(**(kwargs | {"socket_timeout": None}))  # type: ignore[no-any-return]

    async def _connect(self, connection: redis.asyncio.Connection) -> None:
        from redis import exceptions as redis_errors

        try:
            async with asyncio.timeout(self._patience):
                await connection.connect()
        except (redis_errors.AuthenticationError, redis_errors.ResponseError) as error:
            connection._close()
            raise self.endpoint.reply_error(error) from None
        except (redis_errors.RedisError, OSError, TimeoutError) as error:
            connection._close()
            self._kwargs = None  # an embedded server may have to be started again
            raise self.endpoint.unavailable(error) from None
        except BaseException:
            connection._close()
            raise

    async def _roundtrip(
        self, connection: redis.asyncio.Connection, calls: Sequence[Call], timeout: float | None
    ) -> list[Any]:
        from redis import exceptions as redis_errors

        replies: list[Any] = []
        try:
            async with asyncio.timeout(self._patience if timeout is None else timeout):
                if connection._writer is None or connection._writer.is_closing():
                    # Python 3.12 and later fail with an AttributeError where they are asked to write to such a one.
                    raise ConnectionError("the connection was closed")
                await connection.send_packed_command(connection.pack_commands(calls), check_health=False)
                for _ in calls:
                    try:
                        replies.append(await connection.read_response(True, math.inf))
                    except redis_errors.ResponseError as error:
                        replies.append(error)
        except BaseException as error:
            # Whatever is still on the wire belongs to nobody: the connection cannot be used again.
            connection._close()
            if not isinstance(error, asyncio.CancelledError):
                self._drop_idle()
            if isinstance(error, redis_errors.RedisError | OSError | TimeoutError):
                raise self.endpoint.unavailable(error, sent=True) from None
            raise
        return replies

    def _drop_idle(self) -> None:
        """When one line broke the others mostly did too: each would cost one more failed try."""
        while self._idle:
            self._idle.pop()._close()

    async def aclose(self) -> None:
        """Close all idle connections; those in use close when they come back."""
        self._closed = True
        while self._idle:
            await self._idle.pop().disconnect()


class SyncLink:
    """The connections of one process's threads. A connection is used by one exchange at a time.

    timeout: seconds to wait for a reply (default: the endpoint's).
    """

    def __init__(self, endpoint: Endpoint, timeout: float | None = None) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._idle: list[redis.Connection] = []
        self._kwargs: dict[str, Any] | None = None
        self._greeted = False
        self._pid = os.getpid()

    def run(self, op: Op[T], *, within: float = 0.0) -> T:
        """As `Link.run`."""
        deadline = time.monotonic() + within
        sent = waiting = False
        for delay in backoff():
            try:
                return _judge(op, self.exchange(op.calls), sent)
            except StoreError as error:
                sent = error.sent = error.sent or sent
                if not isinstance(error, StoreUnavailable):
                    raise
                if time.monotonic() + delay > deadline:
                    raise
                if not waiting:
                    log.warning("%s. Waiting for it, at most %g s", error, within)
                waiting = True
            time.sleep(delay)
        raise AssertionError("backoff never ends")

    def exchange(self, calls: Sequence[Call]) -> list[Any]:
        """As `Link.exchange`."""
        connection = self._connection()
        replies = self._roundtrip(connection, calls)
        if missing := _unloaded(calls, replies):
            self._roundtrip(connection, _loads(calls, missing))
            again = self._roundtrip(connection, [calls[n] for n in missing])
            for n, reply in zip(missing, again, strict=True):
                replies[n] = reply
        self._idle.append(connection)
        return [self.endpoint.reply_error(r) if isinstance(r, Exception) else r for r in replies]

    def _connection(self) -> redis.Connection:
        if self._pid != os.getpid():  # forked: the sockets are the parent's
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        if self._kwargs is None:
            self._kwargs = self.endpoint.kwargs()
            if self._timeout is not None:
                self._kwargs |= {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
        connection = self._connect(self._kwargs)
        if not self._greeted:
            self.endpoint.check_server(self._roundtrip(connection, GREETING))
            self._greeted = True
        return connection

    def _connect(self, kwargs: dict[str, Any]) -> redis.Connection:
        from redis import connection as kinds
        from redis import exceptions as redis_errors
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        made: Any = {
            "tcp": kinds.Connection,
            "tls": kinds.SSLConnection,
            "unix": kinds.UnixDomainSocketConnection,
        }[self.endpoint.transport]
        connection: redis.Connection = made(**kwargs, retry=Retry(NoBackoff(), 0))
        try:
            connection.connect()
        except (redis_errors.AuthenticationError, redis_errors.ResponseError) as error:
            connection.disconnect()
            raise self.endpoint.reply_error(error) from None
        except (redis_errors.RedisError, OSError) as error:
            connection.disconnect()
            self._kwargs = None  # an embedded server may have to be started again
            raise self.endpoint.unavailable(error) from None
        return connection

    def _roundtrip(self, connection: redis.Connection, calls: Sequence[Call]) -> list[Any]:
        from redis import exceptions as redis_errors

        replies: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(calls), check_health=False)
            for _ in calls:
                try:
                    replies.append(connection.read_response(disable_decoding=True))
                except redis_errors.ResponseError as error:
                    replies.append(error)
        except BaseException as error:
            connection.disconnect()
            self.close()  # when one line broke the others mostly did too
            if isinstance(error, redis_errors.RedisError | OSError):
                raise self.endpoint.unavailable(error, sent=True) from None
            raise
        return replies

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().disconnect()
