"""The connections of one event loop: `Lines` to one server, `ClusterLines` to all masters of a cluster.

A connection is used by one exchange at a time. Cost of an exchange: one write and one read; in a cluster one of each
for every master concerned, at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from rstream.errors import StoreError, StoreUnavailable
from rstream.store.cluster import ASKING, SURVEY, SURVEY_TIMEOUT, Atlas, Part, Round
from rstream.store.connect import Endpoint, deposed
from rstream.store.line import Line, Outcome, amiss
from rstream.store.scripts import BY_SHA, Call
from rstream.store.url import CONNECTIONS, Address

if TYPE_CHECKING:
    import redis.asyncio


def unloaded(calls: Sequence[Call], replies: list[Any]) -> list[int]:
    """The calls to send once more because Redis lacked a script: those that it could not run (they changed nothing),
    and what belongs to them.
    """
    from redis.exceptions import NoScriptError

    found = [n for n, reply in enumerate(replies) if isinstance(reply, NoScriptError) and calls[n][1] in BY_SHA]
    if found and calls[-1][0] == "WAIT":
        found.append(len(calls) - 1)
    return sorted({*found, *(n - 1 for n in found if n and calls[n - 1] == ASKING)})


def reloading(calls: Sequence[Call], missing: list[int]) -> list[Call]:
    """What is sent then: the scripts, and in the same write, so that nobody takes them away in between, the calls."""
    shas = dict.fromkeys(calls[n][1] for n in missing if calls[n][0] == "EVALSHA")
    return [*(("SCRIPT", "LOAD", BY_SHA[str(sha)].source) for sha in shas), *(calls[n] for n in missing)]


def fill_in(replies: list[Any], missing: list[int], again: list[Any]) -> None:
    """Take the replies to that. Where a script is still missing, why it could not be loaded is what is told."""
    from redis.exceptions import NoScriptError

    loaded = again[: -len(missing)]
    refusal = next((reply for reply in loaded if isinstance(reply, Exception)), None)
    for n, reply in zip(missing, again[-len(missing) :], strict=True):
        replies[n] = refusal if refusal is not None and isinstance(reply, NoScriptError) else reply


class Lines:
    """The connections to one server: to the node of a cluster at `address`, else to whom the endpoint names."""

    def __init__(self, endpoint: Endpoint, address: Address | None = None) -> None:
        self._endpoint, self._address = endpoint, address
        self._idle: list[Line] = []
        self._kwargs: dict[str, Any] | None = None
        self._greeted = False
        self._closed = False
        self._lost = 0  # connections that broke, and were not replaced yet

    async def exchange(self, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        """The replies to `calls`, errors among them as values. Raises `StoreError` if the line breaks."""
        return self._endpoint.meanings(await self.send(calls, timeout))

    async def send(self, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        """As `exchange`, with errors as redis-py has them."""
        line = await self._line()
        return await self._complete(line, calls, await self._roundtrip(line, calls, timeout), timeout)

    def post(self, calls: Sequence[Call], done: Callable[[list[Any] | Coroutine[Any, Any, list[Any]]], None]) -> bool:
        """As `exchange`, without a task where all goes well: what is to be sent is written now, if a line is idle, and
        `done` called with the replies when they are there. Where there is more to it than to read them, with what has
        to be awaited for them instead. False where no line is idle.
        """
        line = self._spare()
        if line is None:
            return False

        def came(outcome: Outcome) -> None:
            if type(outcome) is list and not amiss(outcome):
                self._release(line)
                done(outcome)
            else:
                done(self._sort_out(line, calls, outcome))

        try:
            line.begin(calls, self._endpoint.patience, came)
        except BaseException:
            line.close()
            raise
        return True

    async def _sort_out(self, line: Line, calls: Sequence[Call], outcome: Outcome) -> list[Any]:
        if isinstance(outcome, BaseException):
            raise self._broken(outcome) from None
        return self._endpoint.meanings(await self._complete(line, calls, outcome, None))

    async def _complete(
        self, line: Line, calls: Sequence[Call], replies: list[Any], timeout: float | None
    ) -> list[Any]:
        """Load what scripts were missing; let the line go."""
        if amiss(replies):
            if missing := unloaded(calls, replies):
                again = reloading(calls, missing)
                fill_in(replies, missing, await self._roundtrip(line, again, timeout))
            if any(isinstance(reply, Exception) and deposed(reply) for reply in replies):
                line.close()
                self._lost += 1
                self._drop_idle()
                return replies
        self._release(line)
        return replies

    def _release(self, line: Line) -> None:
        if self._closed:
            line.close()
        else:
            self._idle.append(line)

    def _spare(self) -> Line | None:
        """An idle one. That the server has closed others, which nobody used for long, does not say that it is away."""
        while self._idle:
            if not (line := self._idle.pop()).closed:
                return line
            self._lost += 1
        return None

    async def _line(self) -> Line:
        if (spare := self._spare()) is not None:
            return spare
        if self._kwargs is None or self._endpoint.watched:
            # Starting the embedded server blocks for a moment, and so does asking sentinels.
            self._kwargs = await asyncio.to_thread(self._endpoint.kwargs, self._address)
        line, lost = Line(await self._connect(self._kwargs)), self._lost
        if calls := self._endpoint.greeting(known=self._greeted):
            try:
                self._endpoint.check_greeting(await self._roundtrip(line, calls, None))
            except StoreError as error:
                line.close()
                error.sent = False  # what the connection was wanted for
                self._lost = lost  # it had not been one yet
                raise
            self._greeted = True
        if self._lost:
            self._lost -= 1
            self._endpoint.reconnected()
        return line

    async def _connect(self, kwargs: dict[str, Any]) -> redis.asyncio.Connection:
        from redis import exceptions as redis_errors
        from redis.asyncio import connection as kinds

        # Our own deadline covers a whole exchange.
        made = getattr(kinds, CONNECTIONS[self._endpoint.transport])
        connection: redis.asyncio.Connection = made(**(kwargs | {"socket_timeout": None}))
        try:
            async with asyncio.timeout(self._endpoint.patience):
                await connection.connect()
        except (redis_errors.AuthenticationError, redis_errors.ResponseError) as error:
            connection._close()
            raise self._endpoint.reply_error(error) from None
        except (redis_errors.RedisError, OSError, TimeoutError) as error:
            connection._close()
            self._kwargs = None  # an embedded server may have to be started again
            raise self._endpoint.unavailable(error, at=self._address) from None
        except BaseException:
            connection._close()
            raise
        return connection

    async def _roundtrip(self, line: Line, calls: Sequence[Call], timeout: float | None) -> list[Any]:
        try:
            return await line.exchange(calls, self._endpoint.patience if timeout is None else timeout)
        except BaseException as error:
            raise self._broken(error) from None

    def _broken(self, error: BaseException) -> BaseException:
        """What it means that a line broke."""
        from redis.exceptions import RedisError

        if not isinstance(error, asyncio.CancelledError):
            self._lost += 1
            self._drop_idle()
        if isinstance(error, RedisError | OSError | TimeoutError):
            return self._endpoint.unavailable(error, sent=True, at=self._address)
        return error

    def _drop_idle(self) -> None:
        """When one line broke the others mostly did too: each would cost one more failed try."""
        self._lost += len(self._idle)
        while self._idle:
            self._idle.pop().close()

    def retire(self) -> None:
        """Close all idle connections at once; those in use close when they come back."""
        self._closed = True
        self._drop_idle()

    async def aclose(self) -> None:
        """As `retire`, and wait until they are closed."""
        self._closed = True
        while self._idle:
            await self._idle.pop().aclose()


class ClusterLines:
    """The connections to the masters of a cluster."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._atlas = Atlas(endpoint)
        self._nodes: dict[Address, Lines] = {}
        self._surveying = asyncio.Lock()
        self._failures = 0

    async def exchange(self, calls: Sequence[Call], timeout: float | None = None) -> list[Any]:
        """The replies to `calls`, errors among them as values: also those of nodes that do not answer. Raises
        `StoreError` where no node at all does.
        """
        if self._atlas.doubted:
            await self._survey()
        way = Round(calls, self._atlas, self._endpoint)
        while parts := way.parts():
            sending = [self._send(part, timeout) for part in parts]
            answers = await asyncio.gather(*sending) if len(parts) > 1 else [await sending[0]]
            for part, answer in zip(parts, answers, strict=True):
                way.take(part, answer)
        return way.replies()

    async def _send(self, part: Part, timeout: float | None) -> list[Any] | StoreError:
        try:
            return await self._node(part.address).send(part.calls, timeout)
        except StoreError as error:
            return error

    def _node(self, address: Address) -> Lines:
        if address not in self._nodes:
            self._nodes[address] = Lines(self._endpoint, address)
        return self._nodes[address]

    async def _survey(self) -> None:
        """Learn the topology from any node that tells it: one task does, for all."""
        failures = self._failures
        async with self._surveying:
            if self._atlas.doubted and failures == self._failures:
                for address in self._atlas.witnesses():
                    if self._atlas.hear(address, await self._ask(address)):
                        break
                else:
                    self._failures += 1
            if self._atlas.doubted:
                raise self._atlas.unheard()
            for address in self._nodes.keys() - self._atlas.nodes:
                self._nodes.pop(address).retire()

    async def _ask(self, address: Address) -> Any:
        try:
            async with asyncio.timeout(SURVEY_TIMEOUT):
                (reply,) = await self._node(address).exchange([SURVEY])
        except StoreUnavailable as error:
            return error
        except TimeoutError:
            return self._endpoint.unavailable(f"silent for {SURVEY_TIMEOUT:g} s", at=address)
        return reply

    async def aclose(self) -> None:
        """Close all idle connections; those in use close when they come back."""
        for lines in list(self._nodes.values()):
            await lines.aclose()
