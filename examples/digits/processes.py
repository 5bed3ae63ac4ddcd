"""The demo's child processes: started with a log each, waited for with a deadline, killed at the end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]  # where `examples.digits` can be imported from
POLL = 0.05
TAIL = 15


class Failed(Exception):
    """The demo did not show what it should; the message is one line that says what is missing."""


class Child:
    """One Python process, its output in a log."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.ended_as_told = False

    @property
    def pid(self) -> int:
        return self.process.pid

    def freeze(self) -> None:
        """Stop it between two instructions, so that it can be looked at."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL: no goodbye, no cleaning up."""
        self.ended_as_told = True
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float) -> None:
        """SIGTERM; it must drain and exit 0 in time."""
        self.ended_as_told = True
        self.process.terminate()
        self.expect_success(seconds)

    def expect_success(self, seconds: float) -> None:
        """Wait for its end. Raises `Failed` unless that is exit 0, in time."""
        self.ended_as_told = True
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} was still running after {seconds:.0f} s") from None
        if code != 0:
            raise Failed(f"{self.name} exited with {code}, expected 0")

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").splitlines() or ["(nothing)"]
        return "\n".join([f"--- last lines of {self.name}", *lines[-TAIL:]])


class Children:
    """All of them. A context manager: whatever happens, none is left running."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._children: list[Child] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            if child.process.poll() is None:
                child.kill()

    def start(self, name: str, *arguments: str, show: bool = False) -> Child:
        """Run `python -m …`. With `show`, what it prints goes to our terminal, and only errors to its log."""
        log = self._directory / f"{name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,  # `-m` puts it on the import path
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=None if show else file,
                stderr=file,
            )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def output(self, name: str, *arguments: str, seconds: float) -> str:
        """What `python -m …` prints, once it has ended well."""
        child = self.start(name, *arguments)
        child.expect_success(seconds)
        self._children.remove(child)
        return child.log.read_text()

    def wait_until(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Ask until it is so. Raises `Failed` at the deadline, or once a child has ended that should not."""
        deadline = time.monotonic() + seconds
        while not condition():
            for child in self._children:
                code = child.process.poll()
                if code and not child.ended_as_told:
                    raise Failed(f"{child.name} exited with {code} while waiting until {what}")
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds:.0f} s, but not: {what}")
            time.sleep(POLL)

    def tails(self) -> str:
        """What everyone said last, for whoever has to find out what went wrong."""
        return "\n".join(child.tail() for child in self._children)
