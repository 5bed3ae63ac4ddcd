"""Handlers in processes of their own: for CPU work, and for code that may crash.

- A child runs one handler at a time, in its main thread. It lives as long as the pool and is used again.
- One request, one answer, over a pipe that is nobody else's: what a handler prints, reads or starts cannot get between
  them. Where a pipe is out of step all the same, its child is killed: no answer is ever taken for another's.
- Every end of a child ends its call: an answer, its death, its time being up, or the worker going away.
- Whatever ends the worker ends its children; a signal to the whole group ends the worker only, which then decides.

`rstream.child` is what runs in the child.
"""

from __future__ import annotations

import inspect
import math
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker, util
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from rstream import logs, tracing
from rstream.batch import Batch
from rstream.blobs.meter import METER
from rstream.calling import Answer, Handler, name_of, takes_two
from rstream.child import GROUP_SIGNALS, Around, Reply, serve
from rstream.delivery import Delivery
from rstream.errors import ConfigError, HandlerDied, HandlerTimeout, one_line
from rstream.portable import dumps, unpack

T = TypeVar("T")

KILL_AFTER = 30.0
"""Seconds after its timeout at which a handler's process is killed, where no hard limit says otherwise: it was told to
end again and again, and may clean up."""

LOOK_EVERY = 1.0
"""Seconds between two looks at whether a child that was asked still lives: its end of the pipe closes with it, unless
a C library of the handler's forked and holds it open."""

PATIENCE = 5.0
"""Seconds that a process that was killed, or whose pipe broke, may take until the system has it off its list."""


class ProcessCall:
    """A `rstream.calling.Call` that runs its handler in at most `limit` child processes. Starts none until it is used.

    answers: whether a result matters; otherwise only the exceptions in a list that a handler returns come back.
    Raises `ConfigError` for a handler that another process could not find by its name.
    """

    def __init__(
        self,
        handler: Handler,
        limit: int,
        *,
        timeout: float | None = None,
        hard_timeout: float | None = None,
        batch: bool = False,
        answers: bool = False,
    ) -> None:
        module, name = getattr(handler, "__module__", None) or "", name_of(handler)
        of_an_object = inspect.ismethod(handler) and not inspect.isclass(handler.__self__)
        if not module or "<" in name or of_an_object:
            raise ConfigError(f"handler {name} cannot run in a process: define it by name at the top level of a module")
        self._two = takes_two(handler, "batch" if batch else "delivery")
        self._module, self._name, self._limit = module, name, limit
        self._timeout, self._answers = timeout, answers
        self._kill_at = math.inf if timeout is None else timeout + KILL_AFTER
        if hard_timeout is not None:
            self._kill_at = hard_timeout
        self._slots, self._threads = anyio.CapacityLimiter(limit), anyio.CapacityLimiter(limit)
        self._children: list[_Child] = []  # until they are buried
        self._free: list[_Child] = []  # the one that was used last at the end
        self._guard: object = None
        self._closed = False

    async def warm(self) -> None:
        """Start all children, and have them import the handler's module. Raises `ConfigError` where that fails."""
        failed: list[BaseException] = []

        async def start_one() -> None:
            async with self._slots:
                if self._closed or sum(not child.ended for child in self._children) >= self._limit:
                    return
                try:
                    child = await self._started()
                except Exception as error:
                    child = error
            if isinstance(child, _Child):
                self._free.append(child)
            else:
                failed.append(child)
                starting.cancel_scope.cancel()

        async with anyio.create_task_group() as starting:
            for _ in range(self._limit):
                starting.start_soon(start_one)
        if failed:
            raise ConfigError(f"handler {self} cannot run in a process: {one_line(failed[0])}") from failed[0]

    async def __call__(self, event: Any, given: Delivery | Batch | None) -> Answer:
        async with self._slots:
            try:
                return await self._call(event, given if self._two else None)
            except Exception as error:  # the system has no more processes, say
                return Answer(error=error)

    def close(self) -> None:
        """Kill all children, and see them gone."""
        self._closed = True
        self._free.clear()
        _kill(self._children, see_them_gone=True)

    def __str__(self) -> str:
        return f"{self._module}:{self._name}"

    async def _call(self, event: Any, given: Delivery | Batch | None) -> Answer:
        if self._closed:
            return Answer(error=HandlerDied(f"{self} was not called: its worker has ended its processes"))
        child = self._waiting() or await self._started()
        if isinstance(child, BaseException):
            return Answer(error=child)
        try:
            with anyio.move_on_after(self._kill_at):  # from here on: how long a child takes to start is its own affair
                answer = await self._in_thread(child.ask, event, given, self._timeout, self._answers)
                self._free.append(child)
                return answer
        except _Gone as gone:
            child.kill()
            return Answer(error=self._died(gone))
        except BaseException:  # cancelled: somebody else may start this delivery at once
            child.kill()
            raise
        child.kill()
        return Answer(error=HandlerTimeout(f"the handler ran on: its process was killed after {self._kill_at:g} s"))

    def _waiting(self) -> _Child | None:
        while self._free:
            child = self._free.pop()
            if child.waits():
                return child
            child.kill()
        return None

    async def _started(self) -> _Child | BaseException:
        """A new child that waits for its first request, or why there is none."""
        self._children[:] = [child for child in self._children if not child.gone(0)]
        if self._guard is None:
            # Runs where nobody called `close`: when the pool is dropped, and at exit before multiprocessing waits for
            # its processes, which would be for ever.
            self._guard = util.Finalize(self, _kill, (self._children,), exitpriority=100)
        # Here, not in a thread: Linux ends a child with the *thread* that started it.
        child = _Child(self._module, self._name)
        self._children.append(child)
        try:
            failed = await self._in_thread(child.first_reply)
        except _Gone as gone:
            failed = self._died(gone, " while it started")
        except BaseException:
            child.kill()
            raise
        if failed is None:
            return child
        child.kill()
        return failed

    def _died(self, gone: _Gone, when: str = "") -> HandlerDied:
        how = "was killed: its worker ended" if self._closed else f"{gone}{when}"
        return HandlerDied(f"the process that ran {self} {how}")

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await anyio.to_thread.run_sync(function, *arguments, abandon_on_cancel=True, limiter=self._threads)


class _Gone(Exception):
    """A child that will not answer any more, and how that came."""


class _Child:
    """A child process as the worker sees it. `ask` and `first_reply` block, in a thread; the rest is for the loop."""

    def __init__(self, module: str, name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, module, name, multiprocessing.get_start_method(), logs.chosen())
        # A daemonic one could not have children of its own, as data loaders have.
        self._process = context.Process(target=serve, args=arguments, name=f"rstream {module}:{name}", daemon=False)
        try:
            with _undisturbed():
                self._process.start()
        except BaseException:
            self._pipe.close()
            raise
        finally:
            theirs.close()
        self._using, self._killed = threading.Lock(), threading.Lock()
        self._undertaker = threading.Thread(target=self._bury, name="rstream undertaker", daemon=True)
        self._buried = threading.Event()

    def first_reply(self) -> BaseException | None:
        """Waits until it has started; what went wrong with that. Raises `_Gone`."""
        reply = self._exchange(None)
        return None if reply.error is None else unpack(reply.error)

    def ask(self, event: Any, given: Delivery | Batch | None, timeout: float | None, answers: bool) -> Answer:
        """Raises `_Gone`."""
        try:
            request = dumps((event, given, timeout, answers, Around(logs.current(), tracing.carried())))
        except Exception as error:
            return Answer(error=ConfigError(f"the event cannot be sent to another process: {one_line(error)}"))
        reply = self._exchange(request)
        if reply.spent and (meter := METER.get()) is not None:
            meter.spent(reply.spent)
        if isinstance(given, Batch):
            given.failures.update({index: unpack(failure) for index, failure in reply.failures.items()})
        if reply.error is not None:
            return Answer(error=unpack(reply.error))
        try:
            result: Any = None if reply.result is None else pickle.loads(reply.result)
        except Exception as error:
            return Answer(error=ConfigError(f"what the handler returned cannot be read here: {one_line(error)}"))
        for index, outcome in reply.outcomes.items():
            result[index] = unpack(outcome)
        return Answer(result)

    def _exchange(self, request: bytes | None) -> Reply:
        with self._using:
            try:
                if request is not None:
                    self._pipe.send_bytes(request)
                while not self._pipe.poll(LOOK_EVERY):
                    if self._process.exitcode is not None and not self._pipe.poll():
                        raise EOFError
                raw = self._pipe.recv_bytes()
            except (EOFError, OSError):
                raise _Gone(self._how_it_ended()) from None
        try:
            reply = pickle.loads(raw)
        except Exception:
            reply = None
        if not isinstance(reply, Reply):
            raise _Gone("answered what is no answer, and was killed")
        return reply

    def _how_it_ended(self) -> str:
        code = self._reaped(1.0)
        if code is None:
            return "closed its pipe, and was killed"
        return f"died with {f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'}"

    def waits(self) -> bool:
        """Whether it can be asked: it lives, and has nothing to say."""
        try:
            return not self._pipe.poll() and self._process.exitcode is None
        except (OSError, ValueError):
            return False

    @property
    def ended(self) -> bool:
        return self._killed.locked()

    def kill(self) -> None:
        """At once, and without waiting for it; whoever waits for its answer gets `_Gone`."""
        if not self._killed.acquire(blocking=False):
            return
        with suppress(OSError, ValueError):
            self._process.kill()
        # Processes that the handler forked may have the other end open still: so that is not waited for.
        with suppress(OSError), socket.socket(fileno=os.dup(self._pipe.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        try:
            self._undertaker.start()
        except RuntimeError:  # the interpreter is ending
            self._bury()

    def gone(self, patience: float) -> bool:
        """Whether nothing is left of it."""
        return self._buried.wait(patience)

    def _bury(self) -> None:
        self._reaped(PATIENCE)
        with self._using:
            self._pipe.close()
            self._process.join(0)  # multiprocessing forgets it, before it is closed
            with suppress(ValueError):  # the kernel does not let go of it
                self._process.close()
        self._buried.set()

    def _reaped(self, patience: float) -> int | None:
        """Its exit code. Not by its sentinel, which processes that it forked hold open."""
        until = time.monotonic() + patience
        while (code := self._process.exitcode) is None and time.monotonic() < until:
            time.sleep(0.002)
        return code


def _kill(children: list[_Child], see_them_gone: bool = False) -> None:
    for child in children:
        child.kill()
    if see_them_gone or util.is_exiting():  # then multiprocessing joins what is not
        until = time.monotonic() + PATIENCE
        for child in children:
            child.gone(max(0.0, until - time.monotonic()))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is started here gets no signal that is meant for the worker before it can decline it."""
    resource_tracker.ensure_running()  # now: when multiprocessing starts it, it lets signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
