"""Runs contestants: each in a process, and a virtual environment, of its own.

A `Player` publishes on orders; a `WorkerProcess` handles, and is killed with everything it started. What a contestant
prints is kept for the moment in which it fails: `Failed` carries its last line.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.entrants import Contestant
from benchmarks.server import Server
from benchmarks.side import MARKS
from benchmarks.table import Mark

ROOT = Path(__file__).parent.parent
PATIENCE = 60.0
"""Seconds without a mark after which a contestant has failed."""


class Failed(Exception):
    """A contestant did not do what it was asked; the text says what it did instead."""


class Process:
    """A process group with its output in a file."""

    def __init__(self, command: list[str], environ: dict[str, str], folder: Path, *, talks: bool = False) -> None:
        self._log = tempfile.NamedTemporaryFile(dir=folder, suffix=".log", delete=False)  # noqa: SIM115
        pipe = subprocess.PIPE if talks else subprocess.DEVNULL
        self.popen = subprocess.Popen(
            command,
            env=os.environ | environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            cwd=ROOT,
            stdin=pipe,
            stdout=pipe if talks else self._log,
            stderr=self._log,
            start_new_session=True,
            text=talks,
        )

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def last_line(self) -> str:
        lines = [line for line in Path(self._log.name).read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else "it said nothing"

    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL, to all of the group."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()
        self._log.close()

    def cpu(self) -> float:
        """CPU seconds that the process group has used so far."""
        return sum(_cpu(pid) for pid in group(self.popen.pid))

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def group(leader: int) -> list[int]:
    """The processes of a group, by /proc; elsewhere only its leader is known."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader:
            found.append(int(path.parent.name))
    return found


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Player(Process):
    """Publishes as a contestant does; see `benchmarks.play`."""

    def do(self, order: str, **arguments: Any) -> dict[str, Any]:
        assert self.popen.stdin is not None and self.popen.stdout is not None
        self.tell(order, **arguments)
        return self.answer(order)

    def tell(self, order: str, **arguments: Any) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(json.dumps({"do": order, **arguments}) + "\n")
        self.popen.stdin.flush()

    def answer(self, order: str) -> dict[str, Any]:
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            self.popen.wait()
            raise Failed(f"{order} failed: {self.last_line()}")
        return json.loads(line)  # type: ignore[no-any-return]


class Bench:
    """One workload: its server, and a folder for notes and logs."""

    def __init__(self, server: Server, folder: Path, *, quiet: bool = False) -> None:
        self.server, self.folder, self.quiet = server, folder, quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def player(self, contestant: Contestant, **environ: str) -> Player:
        command = [contestant.python, "-m", "benchmarks.play", contestant.module]
        return Player(command, self._environ(contestant, environ), self.folder, talks=True)

    def worker(self, contestant: Contestant, mode: str, **environ: str) -> Process:
        command, of_mode = contestant.worker(mode)
        return Process([contestant.python, *command], self._environ(contestant, {**of_mode, **environ}), self.folder)

    def _environ(self, contestant: Contestant, environ: dict[str, str]) -> dict[str, str]:
        return {
            "BENCH_URL": self.server.url,
            "RSTREAM_URL": self.server.url,
            "BENCH_FOLDER": str(self.folder),
            "BENCH_NAME": contestant.module,
            **environ,
        }

    def marks(self, worker: Process, count: int, patience: float = PATIENCE) -> list[Mark]:
        """Wait until `count` were handled. Raises `Failed` where the worker ends, or handles none for too long."""
        raw, seen, limit = self.server.raw, 0, time.monotonic() + patience
        while True:
            last = raw.lindex(MARKS, -1)
            total = int(last.split()[2]) if last else 0
            if total >= count:
                return [Mark.parse(line.decode()) for line in raw.lrange(MARKS, 0, -1)]
            if total > seen:
                seen, limit = total, time.monotonic() + patience
            if not worker.running:
                raise Failed(f"its worker ended after {total:,} of {count:,}: {worker.last_line()}")
            if time.monotonic() > limit:
                raise Failed(f"it handled {total:,} of {count:,}, then nothing for {patience:g} s")
            time.sleep(0.02)

    def notes(self, name: str) -> list[list[str]]:
        """What the processes of a contestant wrote down."""
        paths = sorted(self.folder.glob(f"{name}.*.notes"))
        return [line.split() for path in paths for line in path.read_text().splitlines()]

    def forget(self, name: str) -> None:
        for path in self.folder.glob(f"{name}.*.notes"):
            os.truncate(path, 0)


@contextmanager
def bench(*, quiet: bool = False) -> Iterator[Bench]:
    with Server() as server, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Bench(server, Path(folder), quiet=quiet)
