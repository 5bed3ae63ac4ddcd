"""The terminal: keys in, lines out. Only lines that changed are written, so that nothing flickers, also over ssh."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import shutil
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from typing import Any

ENTER = "\x1b[?1049h\x1b[?25l"  # another screen, no cursor
LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
BEGIN, DONE = "\x1b[?2026h", "\x1b[?2026l"  # terminals that know it show what is in between at once

ESCAPE_WAIT = 0.05
"""Seconds after which a lone escape is a key, and not the beginning of one."""

_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O[A-Za-z])")
_KEYS = {
    "A": "up", "B": "down", "C": "right", "D": "left", "H": "home", "F": "end",
    "1~": "home", "4~": "end", "5~": "pageup", "6~": "pagedown", "7~": "home", "8~": "end",
}  # fmt: skip
_PLAIN = {"\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x1b": "escape", "\x0c": "redraw"}


class Keys:
    """Turns what a terminal sends into keys. Pure but for what it remembers."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._left = ""

    def feed(self, data: bytes) -> list[str]:
        self._left += self._decoder.decode(data)
        found = []
        while self._left:
            if (sequence := _SEQUENCE.match(self._left)) is not None:
                self._left = self._left[sequence.end() :]
                if (key := _KEYS.get(sequence[0].lstrip("\x1b[O"))) is not None:
                    found.append(key)
            elif self._left[0] == "\x1b" and (len(self._left) == 1 or self._left[1] in "[O"):
                break  # the rest of it may come
            else:
                letter, self._left = self._left[0], self._left[1:]
                found.append(_PLAIN.get(letter, letter))
        return [key for key in found if len(key) > 1 or key.isprintable()]

    def rest(self) -> list[str]:
        """What was no more than it seemed: an escape, and what was typed behind it."""
        left, self._left = self._left, ""
        return [_PLAIN.get(letter, letter) for letter in left]

    @property
    def waits(self) -> bool:
        return bool(self._left)


class Terminal:
    """Takes the terminal over while it is `open`. pressed: is called with every key."""

    def __init__(self, pressed: Callable[[str], object]) -> None:
        self._pressed, self._keys = pressed, Keys()
        self._shown: list[str] = []
        self._before: list[Any] | None = None
        self._escape: asyncio.TimerHandle | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        found = shutil.get_terminal_size()
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(sys.stdout.fileno())
        return max(3, found.lines), max(20, found.columns)

    def open(self) -> None:
        self._before = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        self._shown = []
        _write(ENTER)
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._read)

    def close(self) -> None:
        if self._before is None:
            return
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        _write(LEAVE)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)
        self._before = None

    def forget(self) -> None:
        """Nothing of what was written is there any more."""
        self._shown = []

    def show(self, lines: Sequence[str]) -> None:
        out = "" if self._shown and len(self._shown) == len(lines) else "\x1b[2J"
        shown = [] if out else self._shown
        for number, line in enumerate(lines):
            if number >= len(shown) or shown[number] != line:
                out += f"\x1b[{number + 1};1H{line}\x1b[0m\x1b[K"
        self._shown = [*lines]
        if out:
            _write(BEGIN + out + DONE)

    def _read(self) -> None:
        try:
            data = os.read(sys.stdin.fileno(), 1024)
        except BlockingIOError:
            return
        if not data:  # the terminal is gone
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._pressed("q")
            return
        if self._escape is not None:
            self._escape.cancel()
        for key in self._keys.feed(data):
            self._pressed(key)
        if self._keys.waits:
            self._escape = asyncio.get_running_loop().call_later(ESCAPE_WAIT, self._timeout)

    def _timeout(self) -> None:
        for key in self._keys.rest():
            self._pressed(key)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
