"""The command line as its users have it: processes, in a directory that holds their module."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rstream import Event

SHOP = """
import asyncio, pathlib
from rstream import Event, RStream

app = RStream()

class Order(Event):
    customer: str
    total: float
    scan: bytes = b""

class Note(Event):
    text: str

orders = app.stream("orders", Order, key="customer", shards=4)
notes = app.stream("notes", Note, shards=2)

def remember(line):
    with pathlib.Path("handled.txt").open("a") as file:
        file.write(line + "\\n")

@orders.consumer("billing", concurrency=4, lease=2.0)
async def bill(order: Order) -> None:
    remember(f"billing {order.customer} {order.total:g}")

@orders.consumer("shipping", lease=2.0)
def ship(order: Order) -> None:
    remember(f"shipping {order.customer} {order.total:g}")

@notes.consumer("slow", concurrency=2, lease=2.0)
async def slow(note: Note) -> None:
    remember(f"begin {note.text}")
    while not pathlib.Path("go.txt").exists():
        await asyncio.sleep(0.01)
    remember(f"end {note.text}")
"""


class Order(Event):
    """As in shop.py."""

    customer: str
    total: float
    scan: bytes = b""


class Commands:
    """Runs `rstream …` in a directory with shop.py, against one Redis and namespace."""

    def __init__(self, directory: Path, url: str, namespace: str) -> None:
        self.directory = directory
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RSTREAM_")}
        self.env |= {"RSTREAM_URL": url, "RSTREAM_NAMESPACE": namespace, "PYTHONUNBUFFERED": "1"}
        self.write("shop.py", SHOP)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def run(self, *arguments: str, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "rstream", *arguments],
            cwd=self.directory,
            env=self.env,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=60,
        )
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    def ok(self, *arguments: str, stdin: str | bytes = b"") -> str:
        """What it prints, once it has ended well."""
        done = self.run(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[Running]:
        with Running(self, arguments) as running:
            yield running

    @property
    def handled(self) -> list[str]:
        """What the handlers of shop.py wrote down."""
        path = self.directory / "handled.txt"
        return path.read_text().splitlines() if path.exists() else []


class Running:
    """A command that goes on; its output is in files, and it does not outlive the `with`."""

    def __init__(self, commands: Commands, arguments: tuple[str, ...]) -> None:
        self._out, self._err = (commands.directory / f"{arguments[0]}.{kind}" for kind in ("out", "err"))
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rstream", *arguments],
                cwd=commands.directory,
                env=commands.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def ended(self, timeout: float = 20) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
