"""Handlers at the top level of a module, as `run_in="process"` wants them."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rstream import Batch, Blob, Delivery, Event, Reject, Retry
from tests.waiting import eventually


class Work(Event):
    n: int
    kind: str = "ok"
    seconds: float = 0.0
    folder: str = ""


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.trouble = lambda: None


def note(event: Work, delivery: Delivery) -> None:
    with open(f"{event.folder}/history", "a") as out:  # noqa: PTH123
        out.write(f"{event.n} {delivery.attempt} {os.getpid()}\n")


def in_process(event: Work, delivery: Delivery) -> None:
    note(event, delivery)
    print("to be seen on stdout, and no harm to the answers")
    until = time.process_time() + event.seconds
    while time.process_time() < until:  # holds the GIL of its own process only
        pass
    raising: dict[str, Any] = {
        "value": ValueError("a plain one"),
        "unpicklable": Unpicklable(1, 2),
        "exit": SystemExit(3),
        "reject": Reject("no such thing"),
        "retry": Retry(after=0.01),
    }
    if event.kind == "die":
        os._exit(7)
    if event.kind in raising:
        raise raising[event.kind]


async def async_in_process(event: Work) -> None:
    """Only to be declared."""


def checkpointing(event: Work, delivery: Delivery) -> None:
    if delivery.attempt == 1:
        delivery.sync.checkpoint(event.n)
        raise ValueError("the next attempt goes on from here")
    Path(event.folder, "resumed").write_text(str(delivery.checkpoint_value))


# What follows is called by `tests.test_processes`, with an `Order`.


class Order(Event):
    n: int = 0
    kind: str = ""
    folder: str = ""


def pid(event: Order) -> int:
    return os.getpid()


async def pid_async(event: Order) -> int:
    await asyncio.sleep(0)
    return os.getpid()


def begun(folder: Path) -> dict[int, int]:
    """The pids of calls of `until_told`, by order number."""
    return {int(path.stem): int(path.read_text()) for path in folder.glob("*.begun")}


def until_told(event: Order) -> int:
    """Runs until a file named `go` is there. Writes down who runs it, and how many do at once."""
    folder = Path(event.folder)
    written = folder / f"{event.n}.tmp"
    written.write_text(str(os.getpid()))
    written.rename(folder / f"{event.n}.begun")
    eventually((folder / "go").exists, 60)
    return event.n


class BadAddress(Exception):
    def __init__(self, address: str, code: int) -> None:
        super().__init__(f"{address}: {code}")
        self.address = address


class Slotted(BadAddress):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        super().__init__("slots", code)
        self.code = code


class Missing(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(2, "no such thing", path)
        self.note = "of my own"


@dataclass(frozen=True)
class Frozen(Exception):
    what: str


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("I have no text")


class Mute(Exception):
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return Mute, (self.number + 1,)


def only_there() -> Exception:
    """Of a class that no other process can import."""
    sys.modules["only_there"] = types.ModuleType("only_there")
    kind: Any = type("OnlyThere", (Exception,), {"__module__": "only_there"})
    sys.modules["only_there"].OnlyThere = kind  # type: ignore[attr-defined]
    return kind("and not here")


def local() -> Exception:
    class Local(Exception):
        pass

    return Local("a local one")


ERRORS: dict[str, Callable[[], BaseException]] = {
    "retry": lambda: Retry(after=8),
    "reject": lambda: Reject("no such thing"),
    "address": lambda: BadAddress("x", 1),
    "slotted": lambda: Slotted(7),
    "missing": lambda: Missing("a/b"),
    "frozen": lambda: Frozen("ice"),
    "mute": lambda: Mute(1),
    "unprintable": Unprintable,
    "group": lambda: ExceptionGroup("two", [Retry(after=8), BadAddress("y", 2)]),
    "unicode": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    "exit": lambda: SystemExit(3),
    "interrupt": KeyboardInterrupt,
    "cancelled": asyncio.CancelledError,
    "unpicklable": lambda: Unpicklable(1, 2),
    "there": only_there,
    "local": local,
}


def raising(event: Order) -> None:
    deep(event.kind)


def deep(kind: str) -> None:
    raise ERRORS[kind]()


def failing_batch(events: list[Order], batch: Batch) -> list[Any]:
    batch.fail(0, BadAddress("told", 0))
    if events[0].kind == "raise":
        raise Retry(after=8)
    return [None, BadAddress("returned", 1), "an answer", ERRORS[events[3].kind]()]


def returning(event: Order) -> Any:
    return (lambda: None) if event.kind == "lambda" else {"kind": event.kind}


def swallowing(event: Order) -> int:
    """Catches what tells it that its time is over, three times."""
    for _ in range(3 if event.kind == "swallow" else 0):
        try:
            signal.pause()
        except Exception:
            Path(event.folder, "told").touch()
    return os.getpid()


async def hanging_async(event: Order) -> None:
    await asyncio.Event().wait()


def deaf(event: Order) -> int:
    """Cannot be told that its time is over, as a call into C that does not return."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    return until_told(event)


def noisy(event: Order) -> str:
    for n in range(100):
        print(f"line {n:3} of a log " + "." * 74)
    os.write(1, b"past Python's buffers\n")
    said = subprocess.run(["cat"], check=True, capture_output=True, timeout=20).stdout.decode()
    subprocess.run(["ls", "-d", "/"], check=True)
    subprocess.run("cat; echo from a shell", check=True, shell=True, timeout=20)
    return f"cat said {said!r}, stdin said {sys.stdin.read()!r}"


def with_own_children(event: Order) -> Any:
    """As data loaders have them, and as whoever runs a program; all of them can be terminated."""
    with multiprocessing.Pool(1) as pool:
        squares = pool.map(int.bit_length, [1, 2, 4])
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    process.terminate()
    process.join(20)
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    return squares, process.exitcode, program.wait(20), multiprocessing.get_start_method()


def forking(event: Order) -> int:
    """Its fork returns from the handler, too."""
    if forked := os.fork():
        os.waitpid(forked, 0)
    return os.getpid()


def leaving_a_fork_behind(event: Order) -> int:
    """With all that is open. It may come from a C library, of which Python learns nothing."""
    libc = ctypes.PyDLL(None)
    if forked := libc.fork() if event.kind.endswith("in C") else os.fork():
        Path(event.folder, "fork").write_text(str(forked))
        if event.kind.startswith("die"):
            os._exit(5)
        return until_told(event)
    while True:
        libc.pause()


def garbling(event: Order) -> int:
    """Gets hold of the pipe, and sends what is no answer."""
    if event.kind:
        (pipe,) = (each for each in gc.get_objects() if type(each) is Connection)
        pipe.send_bytes({"garbage": b"garbage", "pickle": b"N."}[event.kind])
        if event.kind == "pickle":
            eventually(lambda: False, 60)
    return os.getpid()


tenant = contextvars.ContextVar("tenant", default="nobody")


def tenants(event: Order) -> str:
    before = tenant.get()
    tenant.set("acme")
    return before


class Holder:
    def method(self, event: Order) -> int:
        return os.getpid()

    @classmethod
    def of_the_class(cls, event: Order) -> int:
        return os.getpid()


holder = Holder()


# What follows is called by `tests.test_claims`.


class Media(Event):
    who: str
    note: str = ""
    audio: Blob = Blob(b"")


def sizes(event: Media) -> dict[str, Any]:
    with event.audio.sync.open() as file:
        return {"who": event.who, "n": len(file.read())}


class Scan(Event):
    who: str
    n: int = 0
    pixels: bytes = b""
