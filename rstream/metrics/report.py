"""What a process of a supervisor answers it, see merge.py: a thread, so that a blocked event loop does not keep it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack

from rstream.metrics.collector import Readiness, snapshot
from rstream.worker.supervisor import PIPE
from rstream.worker.worker import Worker

EVERY = 1.0
"""Seconds after which the numbers are told unasked."""


class Reporter(threading.Thread):
    """Answers from `start` on; `close` tells the last numbers."""

    def __init__(self, pipe: socket.socket, worker: Worker) -> None:
        super().__init__(name="rstream-metrics", daemon=True)
        self._pipe, self._worker, self._ready = pipe, worker, Readiness(worker)
        self._asked: Counter[str] = Counter(m=0, r=0)
        self._sending = threading.Lock()

    def run(self) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone, and so will this process be
            self._tell("m", self._numbers)
            while True:
                asked = self._pipe.recv(4096) if select.select([self._pipe], [], [], EVERY)[0] else b"-"
                if not asked:
                    return
                self._asked.update(asked.decode())
                self._tell("m", self._numbers)
                if b"r" in asked:
                    self._tell("r", partial(list, map(list, self._ready())))

    def _numbers(self) -> list[Any]:
        return [[series, value] for series, value in snapshot(self._worker).items()]

    def _tell(self, kind: str, body: Callable[[], Any]) -> None:
        """body: is asked for in here, so that no older numbers come after newer ones."""
        with self._sending:
            frame = msgpack.packb([kind, self._asked[kind], body()])
            self._pipe.sendall(len(frame).to_bytes(4, "big") + frame)

    def close(self) -> None:
        """Before the process ends. Does not wait for a supervisor that does not read."""
        self._pipe.settimeout(EVERY)
        with contextlib.suppress(OSError):
            self._tell("m", self._numbers)


def inherited() -> socket.socket | None:
    """The pipe of this process, if it has one; programs that it starts do not get it."""
    number = os.environ.pop(PIPE, "")
    if not number:
        return None
    pipe = socket.socket(fileno=int(number))
    pipe.set_inheritable(False)
    return pipe
