"""A terminal for tests: a real pty, with a process that has it as its own, and what a person would see on it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from types import TracebackType

import pyte

from tests.commands import Commands
from tests.waiting import eventually


class Screen:
    """Runs `rstream …` in a terminal of so many rows and columns. written: all bytes that it wrote."""

    def __init__(self, commands: Commands, *arguments: str, rows: int = 24, cols: int = 80) -> None:
        self._screen = pyte.Screen(cols, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.written = b""
        self._master, slave = pty.openpty()
        self._set_size(rows, cols)
        self.modes = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rstream", *arguments],
            cwd=commands.directory,
            env=commands.env | {"TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _set_size(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError as error:
                assert error.errno in (errno.EIO, errno.EBADF)
                return
            if not data:
                return
            with self._lock:
                self.written += data
                self._stream.feed(data.replace(b"\x1b[?2026h", b"").replace(b"\x1b[?2026l", b""))

    @property
    def lines(self) -> list[str]:
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def line(self, *texts: str) -> str:
        """The one that has all of these; "" where none has."""
        return next((line for line in self.lines if all(text in line for text in texts)), "")

    @property
    def selected(self) -> str:
        """The line in reverse."""
        with self._lock:
            for number in range(self._screen.lines):
                if self._screen.buffer[number][0].reverse:
                    return self._screen.display[number].rstrip()
        return ""

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, rows: int, cols: int) -> None:
        with self._lock:
            self._screen.resize(rows, cols)
            self._set_size(rows, cols)  # the kernel tells the process

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def shows(self, *texts: str, timeout: float = 20.0) -> None:
        """Wait until all of these are to be seen."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: all(text in self.text for text in texts), timeout)
        assert all(text in self.text for text in texts), f"no {texts} in\n{self.text}"

    def shows_no(self, text: str, timeout: float = 20.0) -> None:
        with contextlib.suppress(AssertionError):
            eventually(lambda: text not in self.text, timeout)
        assert text not in self.text, self.text

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was before."""
        return termios.tcgetattr(self._slave)[3] == self.modes[3]

    def ended(self, timeout: float = 20) -> int:
        return self.process.wait(timeout)

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._slave)
        self._reader.join(5)
        os.close(self._master)
