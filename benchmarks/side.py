"""What every contestant uses, whatever library it runs on: the event, the counter, the notes, the clock.

Standard library alone: each contestant runs in the virtual environment of its own library. Handlers count the same
way, at the same cost: `count` adds to a list in memory, and a thread tells Redis every 10 ms how many there were, at
what time, after how much CPU time of this process. So a rate is measured between two marks of one clock, and neither
the start of a worker nor the polling of the harness is in it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from itertools import repeat
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

URL = os.environ.get("BENCH_URL", "")
FOLDER = os.environ.get("BENCH_FOLDER", ".")
MARKS = "bench:marks"
"""The list that the counting threads write to: `time cpu count`, in seconds of the machine's monotonic clock."""

EVERY = 0.01


def event(n: int, seconds: float = 0.0421) -> dict[str, object]:
    """Ten fields, about 180 bytes encoded. `size` is its number; `seconds` is what a handler has to know."""
    return {
        "user": f"user-{n % 1000:06}",
        "session": "b3f1c2d4e5f60718",
        "kind": "page_view",
        "path": "/products/42/reviews?sort=recent",
        "status": 200,
        "seconds": seconds,
        "size": n,
        "cached": False,
        "agent": "Mozilla/5.0 (X11; Linux x86_64)",
        "region": "eu-central-1",
    }


_seen: list[None] = []
_lock = threading.Lock()
_telling: threading.Thread | None = None


def count(many: int = 1) -> None:
    """So many were handled. From any thread."""
    if not _seen:
        _begin()
    if many == 1:
        _seen.append(None)  # atomic, unlike +=
    else:
        _seen.extend(repeat(None, many))


def _begin() -> None:
    """Start telling Redis; not at import, for some workers fork after it."""
    global _telling
    with _lock:
        if _telling is None:
            _telling = threading.Thread(target=_tell, daemon=True)
            _telling.start()


def _tell() -> None:
    address = urlsplit(URL)
    with socket.create_connection((address.hostname or "", address.port or 6379)) as redis:
        told = -1
        while True:
            total = len(_seen)
            if total != told:
                redis.sendall(command("RPUSH", MARKS, f"{time.monotonic()} {time.process_time()} {total}"))
                redis.recv(64)
                told = total
            time.sleep(EVERY)


def command(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in words)


_notes: int | None = None


def note(*words: object) -> None:
    """A line into a file of this process: it survives SIGKILL, and unlike Redis it has no queue of its own."""
    global _notes
    if _notes is None:
        path = Path(FOLDER, f"{os.environ.get('BENCH_NAME', '')}.{os.getpid()}.notes")
        _notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(_notes, (" ".join(map(str, words)) + "\n").encode())


def stamp(published: float) -> None:
    """A handler of the latency test has begun: how many seconds after its event was published?"""
    note(time.monotonic() - published)


def begun(number: int, seconds: float) -> None:
    """A handler of the mix has begun."""
    note("begin", number, seconds, time.monotonic(), os.getpid())


def ended(number: int, seconds: float) -> None:
    note("end", number, seconds, time.monotonic(), os.getpid())


class Clock:
    """Seconds, and CPU seconds of this process, that the block took."""

    def __enter__(self) -> Clock:
        self.seconds, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds, self.cpu = time.perf_counter() - self.seconds, time.process_time() - self.cpu
