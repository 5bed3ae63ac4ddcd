"""The connections of a process's threads: `lines.py` without an event loop. What is said there holds here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from rstream.errors import StoreError, StoreUnavailable
from rstream.store.cluster import SURVEY, SURVEY_TIMEOUT, Atlas, Part, Round
from rstream.store.connect import Endpoint, deposed
from rstream.store.line import amiss
from rstream.store.lines import fill_in, reloading, unloaded
from rstream.store.scripts import Call
from rstream.store.url import CONNECTIONS, Address
from rstream.store.wire import Wire

if TYPE_CHECKING:
    import redis


class Posted:
    """Calls that are on their way. Either has to be called: `replies` waits for the replies, as `exchange` gives them;
    `drop` has them belong to nobody. whole: all were written; else, `replies` says what came in the way.
    """

    def __init__(self, replies: Callable[[], list[Any]], drop: Callable[[], None], whole: bool = True) -> None:
        self.replies, self.drop, self.whole = replies, drop, whole


class SyncLines:
    """As `Lines`. timeout: seconds to wait for a reply (default: the endpoint's)."""

    def __init__(self, endpoint: Endpoint, timeout: float | None = None, address: Address | None = None) -> None:
        self._endpoint, self._timeout, self._address = endpoint, timeout, address
        self._idle: list[Wire] = []
        self._kwargs: dict[str, Any] | None = None
        self._greeted = False
        self._pid = os.getpid()
        self._lost = 0

    def exchange(self, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        """As `Lines.exchange`."""
        return self._told(self.receive(self.send(calls), calls, timeout))

    def post(self, calls: Sequence[Call]) -> Posted:
        """The first half of `exchange`."""
        try:
            connection = self.send(calls)
        except StoreError as error:
            return Posted(partial(_raise, error), lambda: None, whole=False)
        return Posted(lambda: self._told(self.receive(connection, calls)), connection.close)

    def _told(self, replies: list[Any]) -> list[Any]:
        return self._endpoint.meanings(replies) if amiss(replies) else replies

    def send(self, calls: Sequence[Call]) -> Wire:
        """Write only; `receive` must follow, or the connection be closed."""
        connection = self._connection()
        self._write(connection, calls)
        return connection

    def receive(self, connection: Wire, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        """The replies to what was sent, with errors as redis-py has them."""
        replies = self._read(connection, calls, timeout)
        if amiss(replies):
            if missing := unloaded(calls, replies):
                again = reloading(calls, missing)
                fill_in(replies, missing, self._roundtrip(connection, again))
            if any(isinstance(reply, Exception) and deposed(reply) for reply in replies):
                connection.close()
                self._break()
                return replies
        self._idle.append(connection)
        return replies

    def _connection(self) -> Wire:
        if self._pid != os.getpid():  # forked: the sockets are the parent's
            self._idle, self._pid = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        kwargs = self._kwargs  # another thread, which cannot connect, may forget them meanwhile
        if kwargs is None or self._endpoint.watched:
            kwargs = self._endpoint.kwargs(self._address)
            if self._timeout is not None:
                kwargs |= {"socket_timeout": self._timeout, "socket_connect_timeout": self._timeout}
            self._kwargs = kwargs
        connection, lost = Wire(self._connect(kwargs)), self._lost
        if calls := self._endpoint.greeting(known=self._greeted):
            try:
                self._endpoint.check_greeting(self._roundtrip(connection, calls))
            except StoreError as error:
                connection.close()
                error.sent = False  # what the connection was wanted for
                self._lost = lost
                raise
            self._greeted = True
        if self._lost > 0:
            self._lost -= 1
            self._endpoint.reconnected()
        return connection

    def _connect(self, kwargs: dict[str, Any]) -> redis.Connection:
        from redis import connection as kinds
        from redis import exceptions as redis_errors
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        made = getattr(kinds, CONNECTIONS[self._endpoint.transport])
        connection: redis.Connection = made(**kwargs, retry=Retry(NoBackoff(), 0))
        try:
            connection.connect()
        except (redis_errors.AuthenticationError, redis_errors.ResponseError) as error:
            connection.disconnect()
            raise self._endpoint.reply_error(error) from None
        except (redis_errors.RedisError, OSError) as error:
            connection.disconnect()
            self._kwargs = None  # an embedded server may have to be started again
            raise self._endpoint.unavailable(error, at=self._address) from None
        return connection

    def _roundtrip(self, connection: Wire, calls: Sequence[Call]) -> list[Any]:
        self._write(connection, calls)
        return self._read(connection, calls)

    def _write(self, connection: Wire, calls: Sequence[Call]) -> None:
        try:
            connection.write(calls)
        except BaseException as error:
            raise self._broken(connection, error) from None

    def _read(self, connection: Wire, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        try:
            return connection.read(len(calls), timeout)
        except BaseException as error:
            raise self._broken(connection, error) from None

    def _broken(self, connection: Wire, error: BaseException) -> BaseException:
        from redis import exceptions as redis_errors

        connection.close()
        self._break()
        if isinstance(error, redis_errors.RedisError | OSError):
            return self._endpoint.unavailable(error, sent=True, at=self._address)
        return error

    def _break(self) -> None:
        """When one line broke the others mostly did too."""
        self._lost += 1 + len(self._idle)
        self.close()

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()


_Sent: TypeAlias = "tuple[SyncLines, Wire]"


class SyncClusterLines:
    """As `ClusterLines`."""

    def __init__(self, endpoint: Endpoint, timeout: float | None = None) -> None:
        self._endpoint, self._timeout = endpoint, timeout
        self._atlas = Atlas(endpoint)
        self._nodes: dict[Address, SyncLines] = {}

    def exchange(self, calls: Sequence[Call]) -> list[Any]:
        """As `ClusterLines.exchange`: everything is written first, so that the nodes work at the same time."""
        if self._atlas.doubted:
            self._survey()
        way = Round(calls, self._atlas, self._endpoint)
        return self._finish(way, (parts := way.parts()), self._send_all(parts))

    def post(self, calls: Sequence[Call]) -> Posted | None:
        """The first half of `exchange`, where nothing has to be asked before."""
        if self._atlas.doubted:
            return None
        way = Round(calls, self._atlas, self._endpoint)
        sent = self._send_all(parts := way.parts())
        whole = not any(isinstance(each, StoreError) for each in sent)
        return Posted(lambda: self._finish(way, parts, sent), lambda: _close(sent), whole)

    def _finish(self, way: Round, parts: list[Part], sent: list[_Sent | StoreError]) -> list[Any]:
        while parts:
            for part, answer in zip(parts, _receive_all(parts, sent), strict=True):
                way.take(part, answer)
            parts = way.parts()
            sent = self._send_all(parts)
        return way.replies()

    def masters(self) -> dict[Address, SyncLines]:
        """As any node tells them. Raises `StoreError`."""
        if self._atlas.doubted:
            self._survey()
        return {address: self._node(address) for address in self._atlas.topology.masters}

    def owner(self, slot: int) -> Address | None:
        return self._atlas.topology.owner(slot)

    def _send_all(self, parts: list[Part]) -> list[_Sent | StoreError]:
        sent: list[_Sent | StoreError] = []
        try:
            for part in parts:
                sent.append(self._send(part))
        except BaseException:  # a signal: what would still come belongs to nobody
            _close(sent)
            raise
        return sent

    def _send(self, part: Part) -> _Sent | StoreError:
        lines = self._node(part.address)
        try:
            return lines, lines.send(part.calls)
        except StoreError as error:
            return error

    def _node(self, address: Address) -> SyncLines:
        if address not in self._nodes:
            self._nodes[address] = SyncLines(self._endpoint, self._timeout, address)
        return self._nodes[address]

    def _survey(self) -> None:
        for address in self._atlas.witnesses():
            if self._atlas.hear(address, self._ask(address)):
                break
        else:
            raise self._atlas.unheard()
        for address in set(self._nodes) - self._atlas.nodes:
            if (lines := self._nodes.pop(address, None)) is not None:  # else another thread was faster
                lines.close()

    def _ask(self, address: Address) -> Any:
        try:
            (reply,) = self._node(address).exchange([SURVEY], SURVEY_TIMEOUT)
        except StoreUnavailable as error:
            return error
        return reply

    def close(self) -> None:
        """Close all idle connections."""
        for lines in list(self._nodes.values()):
            lines.close()


def _receive_all(parts: list[Part], sent: list[_Sent | StoreError]) -> list[list[Any] | StoreError]:
    answers: list[list[Any] | StoreError] = []
    try:
        for part, each in zip(parts, sent, strict=True):
            answers.append(each if isinstance(each, StoreError) else _receive(part, *each))
    except BaseException:
        _close(sent[len(answers) :])
        raise
    return answers


def _close(sent: list[_Sent | StoreError]) -> None:
    for each in sent:
        if not isinstance(each, StoreError):
            each[1].close()


def _raise(error: StoreError) -> list[Any]:
    raise error


def _receive(part: Part, lines: SyncLines, connection: Wire) -> list[Any] | StoreError:
    try:
        return lines.receive(connection, part.calls)
    except StoreError as error:
        return error
