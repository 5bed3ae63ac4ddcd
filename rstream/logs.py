"""What a log line says of the delivery that it is about: in JSON, one object a line, or as attributes of the record.

`telling` says how the running task's lines are described (set once a task), `subject` what they are about: an entry, or
the entries of a batch (set once a call of the handler, which costs 40 ns; it is described when a line is written). Both
are context variables: what a handler logs has them too, in its thread or process.

A line never holds a key, a payload or a password. Keys are told as `key_hash`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

from rstream.errors import masked

Fields = Mapping[str, object]

Format = Literal["text", "json"]
FORMATS: tuple[Format, ...] = ("text", "json")

FIELDS = (
    "stream", "group", "entry", "entries", "batch", "key_hash", "attempt", "worker", "duration_ms", "trace_id",
    "span_id",
)  # fmt: skip
"""What a line may say beside time, level, logger, process, message, error and traceback."""

TEXT = "%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"

telling: ContextVar[Callable[[Any], Fields] | None] = ContextVar("rstream_telling", default=None)
subject: ContextVar[Any] = ContextVar("rstream_subject", default=None)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
spans: list[Callable[[], Fields]] = []
"""Who knows the ids of the trace that the running code belongs to; see `rstream.tracing`."""


def current() -> dict[str, object]:
    """What the running code works on: some of FIELDS; nothing outside of handlers and workers."""
    tell = telling.get()
    found: dict[str, object] = {} if tell is None else {**tell(subject.get())}
    for of_span in spans:
        found |= of_span()
    return found


@contextmanager
def told_by(tell: Callable[[Any], Fields]) -> Iterator[None]:
    """What is started meanwhile has its lines described so."""
    token = telling.set(tell)
    try:
        yield
    finally:
        telling.reset(token)


def about(fields: Fields) -> dict[str, Fields]:
    """For the `extra` of a line that is about something else than what its task works on."""
    return {"rstream": fields}


def key_hash(key: str | bytes) -> str:
    """The 16 hex digits that stand for a key in log lines: its BLAKE2b; keyed by RSTREAM_LOG_SECRET, where that is set:
    without the secret nobody can find out whose lines they are by trying all likely keys.
    """
    raw = key.encode(errors="replace") if isinstance(key, str) else key
    return hashlib.blake2b(raw, digest_size=8, key=_secret(os.environ.get("RSTREAM_LOG_SECRET", ""))).hexdigest()


@cache
def _secret(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=32).digest() if text else b""


def trace_of(headers: Mapping[str, str]) -> dict[str, object]:
    """The trace that an entry belongs to, by its W3C header."""
    found = _TRACEPARENT.match(headers.get("traceparent", ""))  # whoever publishes writes there what they like
    return {"trace_id": found[1]} if found else {}


# -- formatting

_OWN = frozenset(logging.LogRecord("", 0, "", 0, "", (), None).__dict__) | {"message", "asctime", "taskName", "rstream"}


def _told(record: logging.LogRecord) -> dict[str, object]:
    """What the record says, and what was known where it was made, or else is here."""
    known = record.__dict__.get("_rstream")
    return {**(current() if known is None else known), **record.__dict__.get("rstream", {})}


class DeliveryFilter(logging.Filter):
    """Gives every record the FIELDS as attributes ("" where there is none), for formats as `%(entry)s`. It lets all
    records pass.

    Also for what is formatted in another thread: put on a `QueueHandler`, it remembers what the line was about.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        told = record.__dict__["_rstream"] = _told(record)
        for name in FIELDS:
            record.__dict__.setdefault(name, told.get(name, ""))
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, process, message; FIELDS, as far as they are known;
    what the caller gave as `extra`; error and traceback, where there are some.
    """

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.partition(".")[0] == "rstream"
        message = record.getMessage()
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": masked(message) if ours else message,
        }
        told = _told(record)
        filled = "_rstream" in record.__dict__  # then its attributes are not the caller's
        for name, value in record.__dict__.items():
            if name not in _OWN and not name.startswith("_") and not (filled and name in FIELDS and value == ""):
                told[name] = value
        line |= {name: value for name, value in told.items() if name not in line}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__qualname__
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["traceback"] = masked(record.exc_text)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return _json(line)


def _json(line: Mapping[str, object]) -> str:
    try:
        text = json.dumps(line, ensure_ascii=False, allow_nan=False, default=_text)
        text.encode()  # lone surrogates cannot be written
    except (ValueError, TypeError, RecursionError):
        return json.dumps({name: _text(value) for name, value in line.items()})
    return text


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}>"


# -- setting up

_chosen: tuple[str, str] | None = None


def chosen() -> tuple[str, str] | None:
    """The level and format that `to_stderr` was called with here: a child process takes them over."""
    return _chosen


def to_stderr(level: str, format: str = "text", *, handler: logging.Handler | None = None, text: str = TEXT) -> None:
    """Have all log lines of this process written to stderr; nothing, where the root logger has a handler already.
    level: "info" and so on · format: "json" or "text" · text: what the latter looks like.
    """
    global _chosen
    _chosen = (level, format)
    if format == "json":
        logging.captureWarnings(True)
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler])


# -- lines of which there may be very many

WINDOW, MOST = 10.0, 50
"""Seconds, and lines of a kind in so many."""


class Voice:
    """Says what happens to single entries, which may be thousands a second: of each kind so many lines within WINDOW
    seconds, and how many more there were in one line after that. Where the logger is at DEBUG, all of them.
    """

    def __init__(self, log: logging.Logger, name: str, kinds: Mapping[str, str], most: int = MOST) -> None:
        """name: whose lines they are · kinds: what happened to those that are only counted, by kind."""
        self._log, self._name, self._kinds, self._most = log, name, kinds, most
        self.each = log.isEnabledFor(logging.DEBUG)  # whether also what ended well is told
        self._since = dict.fromkeys(kinds, float("-inf"))
        self._said = dict.fromkeys(kinds, 0)

    def say(self, kind: str, level: int, text: str, *args: object, extra: Mapping[str, object] | None = None) -> None:
        if self._open(kind):
            self._log.log(level, text, *args, extra=extra, stacklevel=2)

    def _open(self, kind: str) -> bool:
        """Whether this one is to be told in a line of its own."""
        now = time.monotonic()
        if now - self._since[kind] > WINDOW:
            self._sum_up(kind, now)
            self._since[kind] = now
        self._said[kind] += 1
        return self._said[kind] <= self._most or self._log.isEnabledFor(logging.DEBUG)

    def rest(self, *, all: bool = True) -> None:
        """Say how many were only counted; with all=False, where a window is over."""
        now = time.monotonic()
        for kind in self._kinds:
            if all or now - self._since[kind] > WINDOW:
                self._sum_up(kind, now)

    def _sum_up(self, kind: str, now: float) -> None:
        more, self._said[kind] = self._said[kind] - self._most, 0
        if more > 0 and not self._log.isEnabledFor(logging.DEBUG):
            self._log.warning(
                "%s: %s more %s in the last %.0f s", self._name, f"{more:,}", self._kinds[kind], now - self._since[kind]
            )
