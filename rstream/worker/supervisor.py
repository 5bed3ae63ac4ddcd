"""Many worker processes as one: starts them, passes signals on, starts those again that crash or are recycled.

No threads: the kernel ends the children when the *thread* that started them ends. The children are in process groups
of their own, so that a Ctrl-C in the terminal reaches them once, through us.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

log = logging.getLogger("rstream")

PARENT, CHECK_ONLY = "RSTREAM_SUPERVISOR", "RSTREAM_CHECK_ONLY"
"""Set for children: the supervisor's pid; and that they shall only see whether the app and its groups load."""
NUMBER, PIPE = "RSTREAM_PROCESS", "RSTREAM_METRICS_PIPE"
"""Also: which of several they are; and the descriptor on which they are asked how they are."""
RECYCLED = 79
"""Exit code of a child that ended well, before its time: start another. (The first one after those of sysexits.h.)"""
FIRST_DELAY, LONGEST_DELAY, LONG_LIFE = 1.0, 30.0, 60.0
ECHO = 0.5
"""Seconds within which children take a second signal for the first one, told twice: by us, and by whoever signals all
processes of a service at once, as systemd does. A second signal that we get is passed on after that.
"""
PR_SET_PDEATHSIG = 1
FORWARDED = (signal.SIGTERM, signal.SIGINT)


class Desk(Protocol):
    """Where the processes say how they are. Numbered from 1."""

    def begins(self, number: int) -> socket.socket:
        """What a process that is about to be started inherits, and is told of by PIPE."""

    def ended(self, number: int) -> None: ...


def supervise(arguments: Sequence[str], processes: int, desk: Desk | None = None) -> int:
    """Run `rstream ARGUMENTS` in many processes until all have ended; the exit code."""
    command = [sys.executable, "-m", "rstream", *arguments]
    environ = _environ() | {CHECK_ONLY: "1"}
    check = subprocess.run(command, stdin=subprocess.DEVNULL, env=environ, check=False)
    if check.returncode:  # it said why; starting it again and again would not help
        return check.returncode if check.returncode > 0 else 128 - check.returncode
    return Supervisor(command, processes, desk).run()


def _environ() -> dict[str, str]:
    return os.environ | {PARENT: str(os.getpid())}


@dataclass
class Child:
    """One of the processes, through all its lives."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    delay: float = FIRST_DELAY
    restart_at: float | None = None
    ended_well: bool = False


class Supervisor:
    """Keeps `processes` children that run `command`."""

    def __init__(self, command: Sequence[str], processes: int, desk: Desk | None = None) -> None:
        self._command, self._desk = list(command), desk
        self._children = [Child(number) for number in range(1, processes + 1)]
        self._signals: list[int] = []
        self._stopping = False
        self._next_at = 0.0

    def run(self) -> int:
        """Blocks until all children have ended; 0 if all ended well."""
        with self._listening() as pipe:
            for child in self._children:
                self._start(child)
            while any(child.process or child.restart_at is not None for child in self._children):
                self._wait(pipe)
                self._forward()
                self._reap()
                self._restart()
        return 0 if all(child.ended_well for child in self._children) else 1

    @contextlib.contextmanager
    def _listening(self) -> Iterator[int]:
        """A pipe that becomes readable with every signal: the wait for one must not miss it."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        before = {number: signal.signal(number, self._signalled) for number in (*FORWARDED, signal.SIGCHLD)}
        wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            yield read
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(read)
            os.close(write)

    def _signalled(self, number: int, frame: object) -> None:
        if number in FORWARDED:
            self._signals.append(number)

    def _wait(self, pipe: int) -> None:
        due = [child.restart_at for child in self._children if child.restart_at is not None]
        if self._signals:
            due.append(self._next_at)
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        if select.select([pipe], [], [], timeout)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(pipe, 4096)

    def _forward(self) -> None:
        while self._signals and time.monotonic() >= self._next_at:
            number = self._signals.pop(0)
            self._stopping, self._next_at = True, time.monotonic() + ECHO + 0.1
            for child in self._children:
                if child.restart_at is not None:  # it was to be started again: there is nothing to end
                    child.restart_at, child.ended_well = None, True
                if child.process is not None:
                    child.process.send_signal(number)

    def _start(self, child: Child) -> None:
        child.restart_at, child.ended_well, child.started = None, False, time.monotonic()
        environ, pipe = _environ(), self._desk.begins(child.number) if self._desk is not None else None
        if len(self._children) > 1:
            environ[NUMBER] = str(child.number)
        if pipe is not None:
            environ[PIPE] = str(pipe.fileno())
        try:
            child.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, env=environ, process_group=0,
                pass_fds=[] if pipe is None else [pipe.fileno()],
            )  # fmt: skip
        finally:
            if pipe is not None:
                pipe.close()
        log.info("process %d of %d started: pid %d", child.number, len(self._children), child.process.pid)

    def _reap(self) -> None:
        for child in self._children:
            if child.process is not None and (code := child.process.poll()) is not None:
                child.process = None
                if self._desk is not None:
                    self._desk.ended(child.number)
                # By the signal itself dies whoever had not begun to listen for it: it had nothing to finish.
                child.ended_well = code in (0, RECYCLED) or (self._stopping and -code in FORWARDED)
                if not child.ended_well:
                    self._crashed(child, code)
                elif code == RECYCLED and not self._stopping:
                    self._recycled(child)

    def _recycled(self, child: Child) -> None:
        """Start its successor at once; only that nothing, a limit far too low say, makes us start one in a loop."""
        child.delay = FIRST_DELAY
        child.restart_at = max(time.monotonic(), child.started + FIRST_DELAY)

    def _crashed(self, child: Child, code: int) -> None:
        how = f"exit code {code}" if code > 0 else f"signal {-code}"
        if self._stopping:
            log.error("process %d ended with %s", child.number, how)
            return
        now = time.monotonic()
        if now - child.started >= LONG_LIFE:
            child.delay = FIRST_DELAY
        log.error("process %d ended with %s, is started again in %g s", child.number, how, child.delay)
        child.restart_at = now + child.delay
        child.delay = min(LONGEST_DELAY, 2 * child.delay)

    def _restart(self) -> None:
        for child in self._children:
            if child.restart_at is not None and child.restart_at <= time.monotonic():
                self._start(child)


def follow_parent() -> bool:
    """True in a child of a supervisor, which then gets SIGTERM when that dies, however it dies."""
    parent = int(os.environ.pop(PARENT, 0))  # and do not hand it on to what the handlers start
    if not parent:
        return False
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        sys.exit("the supervisor has gone already")
    return True


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
