"""What runs in a child process of `rstream.processes`: it finds the handler and calls it for one request after another.

A child has the worker's stdout and stderr, and no stdin. It dies when the worker does, however that dies.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import importlib
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from rstream import logs, tracing
from rstream.batch import Batch
from rstream.blobs.meter import Notes, Spent, metered
from rstream.calling import AGAIN_AFTER, Answer, Handler
from rstream.delivery import Delivery
from rstream.errors import ConfigError, HandlerTimeout, one_line
from rstream.portable import Packed, dumps, pack

GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What terminals and supervisors send to the worker and all its children at once."""

PR_SET_PDEATHSIG = 1


class Reply(NamedTuple):
    """What a child sends: once when it has started, and then one for every request.

    error: what was raised · failures: what its batch was told · outcomes: exceptions in the list that was returned, by
    index · result: what was returned, pickled, without those · spent: on the blob store.
    """

    error: Packed | None
    failures: dict[int, Packed]
    outcomes: dict[int, Packed]
    result: bytes | None
    spent: Spent = []  # noqa: RUF012 - nobody adds to it


class Around(NamedTuple):
    """What a request brings along for what surrounds its handler. fields: of its log lines · trace: its context."""

    fields: logs.Fields
    trace: dict[str, str]


def serve(pipe: Connection, module: str, name: str, start_method: str, logging: tuple[str, str] | None) -> None:
    """The child's life. logging: level and format, where the worker's were chosen by its command line."""
    _settle_in(pipe, start_method)
    if logging is not None:
        logs.to_stderr(*logging)
    handler: Handler | None = None
    try:
        handler = _found(module, name)
        reply = Reply(None, {}, {}, None)
    except BaseException as error:
        reply = _failed(error)
    with suppress(
        EOFError, OSError
    ):  # the worker is gone, or this is a fork of the child that came back from a handler
        while True:
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):
                    stream.flush()  # whoever kills a child does not
            pipe.send_bytes(dumps(reply))
            reply = _work(handler, pipe.recv_bytes())
    os._exit(0)


def _settle_in(pipe: Connection, start_method: str) -> None:
    parent: Any = multiprocessing.parent_process()
    os.set_inheritable(pipe.fileno(), False)
    if 0 not in (pipe.fileno(), parent.sentinel):  # they may have got it where the worker has no stdin
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)  # programs inherit it, unlike what multiprocessing put there
    multiprocessing.set_start_method(start_method, force=True)  # as the worker has it: "spawn" is for this child only
    _let_forks_be_ordinary(pipe)
    _decline_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, GROUP_SIGNALS)
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if not parent.is_alive():
        os._exit(1)


def _end_with(parent: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they must wake the thread of the handler
    parent.join()
    os._exit(1)


def _decline_signals() -> None:
    for number in GROUP_SIGNALS:
        # Not SIG_IGN, which programs that the handler starts would inherit, and could not be terminated.
        signal.signal(number, _declined)
        signal.siginterrupt(number, False)


def _declined(number: int, frame: object) -> None:
    """The worker got it too, and decides."""


def _let_forks_be_ordinary(pipe: Connection) -> None:
    """What the handler forks has no part in the conversation, and can be terminated from its first moment on."""
    masks = threading.local()

    def before() -> None:
        masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    def in_child() -> None:
        pipe.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _found(module: str, name: str) -> Handler:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f"module {module} has no {name} where it is imported by another process")
    return found  # type: ignore[no-any-return]


def _work(handler: Any, request: bytes) -> Reply:
    given, notes = None, Notes()
    try:
        event, given, timeout, answers, around = pickle.loads(request)
        _decline_signals()  # again: what was imported may have wishes of its own
        with metered(notes):
            call = partial(contextvars.copy_context().run, _called, handler, event, given, around)
        result, error = _Alarm(timeout).over(call)
        if error is None:
            return _reply(result, given, answers)._replace(spent=notes.notes)
    except BaseException as raised:
        error = raised
    return _failed(error, given)._replace(spent=notes.notes)


def _called(handler: Handler, event: Any, given: Delivery | Batch | None, around: Around) -> Any:
    logs.telling.set(lambda _: around.fields)
    tracing.go_on(around.trace)
    result = handler(event) if given is None else handler(event, given)
    return asyncio.run(_itself(result)) if inspect.isawaitable(result) else result


async def _itself(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _failed(error: BaseException, given: Any = None) -> Reply:
    return Reply(pack(error), _failures(given), {}, None)


def _failures(given: Any) -> dict[int, Packed]:
    return {index: pack(error) for index, error in given.failures.items()} if isinstance(given, Batch) else {}


def _reply(result: Any, given: Any, answers: bool) -> Reply:
    outcomes = {}
    if isinstance(result, list | tuple):
        outcomes = {n: pack(item) for n, item in enumerate(result) if issubclass(type(item), BaseException)}
    if outcomes:
        result = [item if answers and n not in outcomes else None for n, item in enumerate(result)]
    try:
        pickled = dumps(result) if answers or outcomes else None
    except Exception as error:
        raise ConfigError(f"what the handler returned cannot be sent from its process: {one_line(error)}") from error
    return Reply(None, _failures(given), outcomes, pickled)


class _Alarm:
    """Raises `HandlerTimeout` in this process's main thread, which runs the handler, when the time is over."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._rang: HandlerTimeout | None = None
        self._over = False

    def over(self, call: Callable[[], Any]) -> Answer:
        answer = Answer()
        try:
            if self._timeout is not None:
                signal.signal(signal.SIGALRM, self._ring)
                signal.setitimer(signal.ITIMER_REAL, self._timeout, AGAIN_AFTER)
            try:
                answer = Answer(call())
            except BaseException as error:
                answer = Answer(error=error)
            self._over = True
        except HandlerTimeout:  # it rang when the handler had just ended
            self._over = True
        if self._timeout is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        # What overran has failed, also where it caught this and went on, or raised something else.
        return answer if self._rang is None else Answer(error=self._rang)

    def _ring(self, number: int, frame: object) -> None:
        if not self._over:
            self._rang = HandlerTimeout(f"the handler was interrupted after {self._timeout:g} s")
            raise self._rang
