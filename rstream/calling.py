"""How a handler is called: on the loop, in a thread, or in a process of its own; and how long it may take.

- loop: for `async def`. A timeout cancels it.
- thread: for `def`. A timeout raises `HandlerTimeout` in the thread, at its next bytecode: a call into C that does not
  return is not interrupted, and the delivery stays this worker's as long as the thread runs.
- process: for CPU work, and for code that may crash. The processes stay warm: each imports the handler's module once. A
  timeout raises in the process's handler, and kills the process if that does not end it; a worker that stops kills it;
  one that dies fails its delivery and nothing else. Event and delivery are pickled; checkpoints and steps are stored
  from there over connections of its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import inspect
import os
import pickle
import re
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import anyio
import anyio.to_process
import anyio.to_thread

from rstream.batch import Batch
from rstream.errors import ConfigError, HandlerDied, HandlerTimeout

if TYPE_CHECKING:
    from rstream.delivery import Delivery

Handler = Callable[..., Any]
RunIn = Literal["loop", "thread", "process"]
Call = Callable[[Any, "Delivery | Batch"], Awaitable[Any]]
"""Calls a handler with an event and its delivery, or with a list of events and their batch; what it returned."""

PR_SET_PDEATHSIG = 1

KILL_AFTER = 30.0
"""Seconds past its timeout after which a process is killed: a new one may have to import its module first."""


def caller(
    handler: Handler,
    limit: int,
    *,
    run_in: RunIn | None = None,
    timeout: float | None = None,
    batch: bool = False,
    answers: bool = False,
) -> Call:
    """How to call a handler with (event, delivery) or, where it takes one argument (or its second is an option of its
    own), with the event alone; in at most `limit` threads or processes.

    batch: it is called with (events, batch) · answers: what it returns matters; otherwise a process sends back no more
    than exceptions. Raises `ConfigError`.
    """
    two = _takes_two(handler, "batch" if batch else "delivery")
    is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)
    if run_in == "process":
        return _in_process(handler, two, limit, timeout, answers)
    if run_in == "loop" and not is_async:
        raise ConfigError(f"handler {_name(handler)} is a plain def: on the loop it would block all others")
    if run_in == "thread" and is_async:
        raise ConfigError(f"handler {_name(handler)} is async: it cannot run in a thread")
    return _on_loop(handler, two, timeout) if is_async else _in_thread(handler, two, limit, timeout)


def _name(handler: Handler) -> str:
    return str(getattr(handler, "__qualname__", repr(handler)))


def _on_loop(handler: Handler, two: bool, timeout: float | None) -> Call:
    if timeout is None:
        return handler if two else lambda event, given: handler(event)

    async def timed(event: Any, given: Delivery | Batch) -> Any:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                return await (handler(event, given) if two else handler(event))
        except TimeoutError:
            if limit.expired():
                raise HandlerTimeout(f"the handler was cancelled after {timeout:g} s") from None
            raise

    return timed


def _in_thread(handler: Handler, two: bool, limit: int, timeout: float | None) -> Call:
    limiter = anyio.CapacityLimiter(limit)

    async def in_thread(event: Any, given: Delivery | Batch) -> Any:
        call = _Interruptible(partial(handler, event, given) if two else partial(handler, event), timeout)
        timer = None if timeout is None else asyncio.get_running_loop().call_later(timeout, call.interrupt)
        try:
            # Only a worker that stops cancels; a thread cannot be, so then it is left behind.
            result = await anyio.to_thread.run_sync(call, limiter=limiter, abandon_on_cancel=True)
        finally:
            if timer is not None:
                timer.cancel()
        # a plain function around an async one: without the await, the work would be acked and not done
        return await result if inspect.isawaitable(result) else result

    return in_thread


class _Interruptible:
    """A call that runs in a thread, and that another thread can have raise `HandlerTimeout`."""

    def __init__(self, call: Callable[[], Any], timeout: float | None) -> None:
        self._call, self._timeout = call, timeout
        self._lock, self._thread = threading.Lock(), 0

    def __call__(self) -> Any:
        self._thread = threading.get_ident()
        try:
            return self._call()
        except HandlerTimeout as error:
            if error.args:
                raise  # the handler's own
            raise HandlerTimeout(f"the handler was interrupted after {self._timeout:g} s") from None
        finally:
            with self._lock:  # from here on this thread is not the handler's any more
                self._thread = 0

    def interrupt(self) -> None:
        with self._lock:
            if self._thread:
                thread, error = ctypes.c_ulong(self._thread), ctypes.py_object(HandlerTimeout)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)


def _in_process(handler: Handler, two: bool, limit: int, timeout: float | None, answers: bool) -> Call:
    module, name = getattr(handler, "__module__", ""), _name(handler)
    if not module or "<" in name:
        raise ConfigError(f"handler {name} cannot run in a process: define it by name at the top level of a module")
    limiter = anyio.CapacityLimiter(limit)

    async def in_process(event: Any, given: Delivery | Batch) -> Any:
        call = partial(_run_here, module, name, event, given if two else None, timeout, answers)
        try:
            async with asyncio.timeout(timeout and timeout + KILL_AFTER) as deadline:
                answer = await anyio.to_process.run_sync(call, cancellable=True, limiter=limiter)
        except TimeoutError:
            if deadline.expired():
                raise HandlerTimeout(f"the handler's process was killed: it did not end after {timeout:g} s") from None
            raise
        except anyio.BrokenWorkerProcess:
            raise HandlerDied(f"the process that ran {module}:{name} died") from None
        if isinstance(given, Batch):
            given.failures.update(answer.failures)
        if answer.error is not None:
            raise answer.error
        return answer.result

    return in_process


class _Answer(NamedTuple):
    """What comes back from another process, exceptions in a form that can travel."""

    result: Any
    failures: dict[int, BaseException]
    error: BaseException | None


class _Remote(Exception):
    """Carries the traceback of another process, as the cause of its exception."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _run_here(
    module: str, name: str, event: Any, given: Delivery | Batch | None, timeout: float | None, answers: bool
) -> _Answer:
    """Runs in the child."""
    _settle_in()
    result, error = None, None
    try:
        handler: Any = importlib.import_module(module)
        for part in name.split("."):
            handler = getattr(handler, part)
        with _alarm(timeout):
            result = handler(event) if given is None else handler(event, given)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
    except BaseException as raised:
        result, error = None, _portable(raised)
    failures = given.failures if isinstance(given, Batch) else {}
    return _Answer(_reduced(result, answers), {n: _portable(failed) for n, failed in failures.items()}, error)


def _reduced(result: Any, answers: bool) -> Any:
    """A result as it travels: without `answers` all of it but exceptions stays here."""
    if isinstance(result, list | tuple) and any(isinstance(item, BaseException) for item in result):
        return [_portable(item) if isinstance(item, BaseException) else item if answers else None for item in result]
    return result if answers else None


@contextmanager
def _alarm(timeout: float | None) -> Iterator[None]:
    """Raise in this process's main thread, which runs the handler, when the time is over."""
    if timeout is None:
        yield
        return

    def ring(number: int, frame: object) -> None:
        raise HandlerTimeout(f"the handler was interrupted after {timeout:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


_settled = False


def _settle_in() -> None:
    """Once in a child: its life ends with the worker's, Ctrl-C is the worker's business, and what it prints is seen."""
    global _settled
    if _settled:
        return
    _settled = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.stdout = sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # the real stdout carries the answers


def _portable(error: BaseException) -> BaseException:
    text = "".join(traceback.format_exception(error))
    try:
        travelled: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        line = " ".join("".join(traceback.format_exception_only(error)).split())
        travelled = RuntimeError(f"{line} (it could not be pickled)")
    travelled.__cause__ = _Remote(text)
    return travelled


def _takes_two(handler: Handler, wish: str) -> bool:
    """Whether the handler wants its delivery, or its batch, beside its event or events."""
    name, first = _name(handler), "events" if wish == "batch" else "event"
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


def _second_is(signature: inspect.Signature, wish: str) -> bool:
    """An option of the handler's own is no place for a delivery: it must be required, or say that it is one."""
    places = [
        each
        for each in signature.parameters.values()
        if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if len(places) < 2:  # *args
        return True
    second = places[1]
    said = second.name == wish or re.search(rf"\b{wish.capitalize()}\b", str(second.annotation))
    return second.default is second.empty or bool(said)
