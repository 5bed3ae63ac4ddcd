"""How a handler is called: on the loop, in a thread, or in a process of its own; and how long it may take.

- loop: for `async def`, as a task of its own: what it leaves in context variables, or does to its task, ends with it. A
  timeout cancels it.
- thread: for `def`. A timeout raises `HandlerTimeout` in the thread at its next bytecode, again every second: a call
  into C that does not return is not interrupted, and the delivery stays this worker's as long as the thread runs.
- process: for CPU work, and for code that may crash; see `rstream.processes`.

What took longer than its timeout has failed, also where the handler caught the exception and went on.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import inspect
import logging
import re
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import anyio
import anyio.to_thread

from rstream.errors import ConfigError, HandlerTimeout

if TYPE_CHECKING:
    from rstream.batch import Batch
    from rstream.delivery import Delivery

Handler = Callable[..., Any]
RunIn = Literal["loop", "thread", "process"]

log = logging.getLogger("rstream")

AGAIN_AFTER = 1.0
"""Seconds after which a thread that caught its `HandlerTimeout` and went on gets another."""

CANCEL_PATIENCE = 5.0
"""Seconds that a cancelled handler may take to end, before it is left to itself."""


LEFT: set[asyncio.Task[Any]] = set()
"""Handlers that did not heed it. A loop that waits for its tasks would wait for ever for these."""


class Answer(NamedTuple):
    """What a handler returned, or what it raised. Whatever that is: it never ends who called."""

    result: Any = None
    error: BaseException | None = None


Call = Callable[[Any, "Delivery | Batch | None"], Answer | Awaitable[Answer]]
"""Calls a handler with an event and its delivery, or with a list of events and their batch: the answer of one that
never had to wait, else what to await for it. That raises `CancelledError` where the caller is cancelled, nothing else.
One that takes events alone may get None beside them.
"""


async def answered(answer: Answer | Awaitable[Answer]) -> Answer:
    """The answer, for whoever has nothing else to do meanwhile."""
    return answer if isinstance(answer, Answer) else await answer


def caller(
    handler: Handler,
    limit: int,
    *,
    run_in: RunIn | None = None,
    timeout: float | None = None,
    batch: bool = False,
) -> Call:
    """How to call a handler with (event, delivery) or, where it takes one argument (or its second is an option of its
    own), with the event alone; with `batch`, (events, batch) or the events alone. In at most `limit` threads. Raises
    `ConfigError`.
    """
    two = takes_two(handler, "batch" if batch else "delivery")
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
    if run_in == "loop" and not is_async:
        raise ConfigError(f"handler {name_of(handler)} is a plain def: on the loop it would block all others")
    if run_in == "thread" and is_async:
        raise ConfigError(f"handler {name_of(handler)} is async: it cannot run in a thread")
    return _on_loop(handler, two, timeout) if is_async else _in_thread(handler, two, limit, timeout)


def name_of(handler: Handler) -> str:
    return str(getattr(handler, "__qualname__", repr(handler)))


def _on_loop(handler: Handler, two: bool, timeout: float | None) -> Call:
    if timeout is not None:

        def in_time(event: Any, given: Delivery | Batch | None) -> Answer | Awaitable[Answer]:
            return _in_task(_timed(partial(handler, event, given) if two else partial(handler, event), timeout))

        return in_time

    def on_loop(event: Any, given: Delivery | Batch | None) -> Answer | Awaitable[Answer]:
        return _in_task(_guarded(handler, event, given) if two else _guarded(handler, event))

    return on_loop


async def _guarded(handler: Handler, *arguments: Any) -> Answer:
    """Nothing but an answer comes out: a task that raised SystemExit, say, would end the loop."""
    try:
        return Answer(await handler(*arguments))
    except BaseException as error:
        return Answer(error=error)


async def _timed(handler: Handler, timeout: float) -> Answer:
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            answer = Answer(await handler())
    except BaseException as error:
        answer = Answer(error=error)
    # Asked also after a return: the handler may have caught its cancellation.
    return Answer(error=HandlerTimeout(f"the handler was cancelled after {timeout:g} s")) if limit.expired() else answer


if sys.version_info >= (3, 12):

    def _task(work: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        # Runs at once up to its first wait: one that never waits costs no turn of the loop.
        return asyncio.Task(work, loop=asyncio.get_running_loop(), eager_start=True)

else:

    def _task(work: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        # The same by hand, for a loop that keeps what it has to run as asyncio's own does: the task's first step is
        # taken out of there. (Another thread may have put something behind it; then it stays where it is.)
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        task: asyncio.Task[Answer] = asyncio.Task(work, loop=loop, context=context)
        ready: Any = getattr(loop, "_ready", None)
        if not ready or ready[-1]._context is not context:
            return task
        if (handle := ready.pop())._context is not context:
            ready.append(handle)
            return task
        caller = asyncio.current_task(loop)
        if caller is not None:
            asyncio.tasks._leave_task(loop, caller)
        try:
            handle._run()
        finally:
            if caller is not None:
                asyncio.tasks._enter_task(loop, caller)
        return task


class OnLoop(Awaitable[Answer]):
    """The answer of a handler that is at work on the loop. It can be cancelled: then that is its answer, unless it says
    something else.
    """

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[Answer]) -> None:
        self._task = task

    def __await__(self) -> Generator[Any, None, Answer]:
        return _ended(self._task).__await__()

    def cancel(self) -> None:
        self._task.cancel()


def _in_task(work: Coroutine[Any, Any, Answer]) -> Answer | Awaitable[Answer]:
    task = _task(work)
    return _answer_of(task) if task.done() else OnLoop(task)


def _answer_of(task: asyncio.Task[Answer]) -> Answer:
    # Who cancels its own task, and then waits for nothing, ends as cancelled however it returns.
    return Answer(error=asyncio.CancelledError("the handler was cancelled")) if task.cancelled() else task.result()


async def _ended(task: asyncio.Task[Answer]) -> Answer:
    """The answer. Whoever is cancelled here cancels the handler, and does not wait for ever until it heeds that."""
    ended = asyncio.get_running_loop().create_future()
    task.add_done_callback(partial(_wake, ended))
    try:
        await ended
    except asyncio.CancelledError:
        task.cancel()
        with anyio.move_on_after(CANCEL_PATIENCE, shield=True):
            await asyncio.wait([task])
        if not task.done():
            LEFT.add(task)
            log.error("a handler was cancelled %g s ago and goes on: it is left to itself", CANCEL_PATIENCE)
        raise
    return _answer_of(task)


def _wake(waiter: asyncio.Future[None], task: asyncio.Task[Answer]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _in_thread(handler: Handler, two: bool, limit: int, timeout: float | None) -> Call:
    limiter = anyio.CapacityLimiter(limit)

    async def in_thread(event: Any, given: Delivery | Batch | None) -> Answer:
        call = _ThreadCall(partial(handler, event, given) if two else partial(handler, event), timeout)
        try:
            # Only a worker that stops cancels; a thread cannot be, so then it is left behind.
            answer = await anyio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)
        finally:
            call.disarm()
        if not inspect.isawaitable(answer.result):
            return answer
        # A plain function around an async one: without the await, the work would be acked and not done.
        rest = partial(_itself, answer.result)
        return await answered(_in_task(_guarded(rest) if timeout is None else _timed(rest, timeout)))

    return in_thread


async def _itself(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class _ThreadCall:
    """A call that runs in a thread, and in which the loop has `HandlerTimeout` raised when its time is over."""

    def __init__(self, call: Callable[[], Any], timeout: float | None) -> None:
        self._call, self._timeout = call, timeout
        self._lock, self._thread = threading.Lock(), 0
        self._interrupted = False
        self._timer: asyncio.TimerHandle | None = None
        if timeout is not None:
            self._arm(timeout)

    def __call__(self) -> Answer:
        self._thread = threading.get_ident()
        answer = Answer()
        try:
            try:
                answer = Answer(self._call())
            except BaseException as error:
                answer = Answer(error=error)
            self._ended()
        except HandlerTimeout:  # it struck when the handler had just ended
            self._ended()
        if self._interrupted:
            return Answer(error=HandlerTimeout(f"the handler was interrupted after {self._timeout:g} s"))
        return answer

    def _ended(self) -> None:
        with self._lock:  # from here on this thread is not the handler's any more
            self._thread = 0

    def _arm(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._interrupt)

    def _interrupt(self) -> None:
        with self._lock:
            if self._thread:
                self._interrupted = True
                thread, error = ctypes.c_ulong(self._thread), ctypes.py_object(HandlerTimeout)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)
        self._arm(AGAIN_AFTER)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def takes_two(handler: Handler, wish: str) -> bool:
    """Whether the handler wants its delivery, or its batch, beside its event or events."""
    name, first = name_of(handler), "events" if wish == "batch" else "event"
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        raise ConfigError(f"handler {name} cannot be called as handler({first}, {wish})") from None
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigError(f"handler {name} is a generator: calling it would not run it. Remove its yield")
    for arguments in ((None, None), (None,)):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2 and _second_is(signature, wish)
    raise ConfigError(f"handler {name}{signature} cannot be called: it must take ({first}, {wish}) or ({first})")


def wants_batch(handler: Handler) -> bool:
    """Whether the handler says by itself that it takes (events, batch)."""
    try:
        second = _second(inspect.signature(handler))
    except (TypeError, ValueError):
        return False
    return second is not None and _says(second, "batch")


def _second(signature: inspect.Signature) -> inspect.Parameter | None:
    places = [
        each
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    return places[1] if len(places) > 1 else None


def _says(place: inspect.Parameter, wish: str) -> bool:
    return place.name == wish or bool(re.search(rf"\b{wish.capitalize()}\b", str(place.annotation)))


def _second_is(signature: inspect.Signature, wish: str) -> bool:
    """An option of the handler's own is no place for a delivery: it must be required, or say that it is one."""
    second = _second(signature)
    return second is None or second.default is second.empty or _says(second, wish)  # None: *args
