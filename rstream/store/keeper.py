"""The keeper: a tiny process that is the parent of one embedded server, and ends it when nobody needs it.

It is run by path (`python -I -S keeper.py SERVER LOCK_FD`, in the data directory) and imports the standard
library only, so that it starts in some 20 ms. `embedded.py` is its only caller. What stands:

- LOCK_FD is `keeper.lock`, already locked by whoever started us. We hold it while we live: one keeper a
  directory.
- Every attached process holds a shared lock on `users.lock`. Once we get it exclusively, nobody is
  attached, and as long as we hold it nobody can attach: the server is ended with SIGTERM (its log flushed)
  and we go.
- The server inherits our lock on `server.lock`. So should we be killed, the next keeper waits until the old
  server has written its last byte: never two servers on one data directory.
- A server that ends while somebody is attached is started again, a little later each time; after several
  quick ends in a row we give up with a line in `server.log`.
- If we are killed, the server gets SIGTERM: from the kernel on Linux, elsewhere from a small shell that
  waits on a pipe of ours. On Linux, a server that cannot serve SIGTERM just then (an endless script)
  outlives us.

On stdout we tell the starter `+` when the directory is ours, and `-` when it is no use to wait: the server
ended by itself, or we give up. If that cannot be written, the starter has seen the server answer and has gone
on: from then on a server that ends is restarted. The end of the pipe without a `-` means that we were killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would cost a fifth of our start
    from collections.abc import Callable, Iterator
    from typing import Any

GRACE = 10.0  # seconds between SIGTERM and SIGKILL: the server may have much to flush
OLD_SERVER = 5.0  # seconds that we wait for a server whose keeper was killed
QUICK = 5.0  # a server that ends sooner than this did not run
QUICK_ENDS = 5  # so many in a row, and we give up
PR_SET_PDEATHSIG = 1

# Paths are relative: we run in the data directory, whose own path may be too long for a socket.
OPTIONS = {
    "port": "0",
    "unixsocket": "server.sock",
    "unixsocketperm": "700",
    "dir": "./",
    "logfile": "server.log",
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
}

# `read` succeeds when we say that the server has ended; at our death it meets the end of the pipe.
GUARD = 'read done || { kill -TERM "$0"; sleep 10; kill -KILL "$0"; } 2>/dev/null'


class Keeper:
    """Runs one server until nobody is attached, or until it cannot be kept running."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        self.server: subprocess.Popen[bytes] | None = None
        self.nobody = threading.Event()  # nobody is attached any more
        self.ended = threading.Event()  # no server runs and none will be started
        self.server_lock = os.open("server.lock", os.O_RDWR | os.O_CREAT, 0o600)

    def run(self) -> None:
        threading.Thread(target=self.end_when_unused, daemon=True).start()
        if self.wait_for_old_server():
            tell("+")
            self.keep()
            Path("server.sock").unlink(missing_ok=True)  # a server that was killed leaves it
        self.ended.set()

    def end_when_unused(self) -> None:
        """Wait, without polling, until nobody is attached; then end the server. The lock goes with us."""
        fcntl.flock(os.open("users.lock", os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)
        self.nobody.set()
        if self.server:
            self.server.terminate()
        if not self.ended.wait(GRACE) and self.server:
            say(f"the server did not end within {GRACE:g} s of SIGTERM: SIGKILL")
            self.server.kill()

    def wait_for_old_server(self) -> bool:
        limit = time.monotonic() + OLD_SERVER
        while not self.nobody.is_set():
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self.server_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if time.monotonic() > limit:
                pid = os.pread(self.server_lock, 20, 0).decode()
                say(f"the server whose keeper was killed, pid {pid}, still runs here; end it and try again")
                tell("-")
                return False
            time.sleep(0.01)
        return False

    def keep(self) -> None:
        quick = 0
        while not self.nobody.is_set():
            born = time.monotonic()
            code = self.serve()
            if self.nobody.is_set():
                return
            quick = quick + 1 if time.monotonic() - born < QUICK else 0
            if code >= 0 and tell("-"):  # it went on its own while its starter waits: trying again is no use
                return
            if quick > QUICK_ENDS:
                say(f"giving up: the server ended {quick} times within {QUICK:g} s of its start")
                tell("-")
                return
            say(f"the server {how(code)} while in use; starting it again")
            self.nobody.wait(0.05 * 2**quick)

    def serve(self) -> int:
        """Run the server until it ends: its exit code, or minus the signal that ended it."""
        # Must be called in the main thread: the kernel's "my parent died" means the thread that forked.
        options = [word for name, value in OPTIONS.items() for word in (f"--{name}", value)]
        self.server = subprocess.Popen(
            [self.binary, *options],
            stdin=subprocess.DEVNULL,
            stdout=2,  # server.log
            pass_fds=[self.server_lock],
            env=os.environ | {"LC_ALL": "C"},  # given a locale this machine lacks, some servers refuse
            preexec_fn=die_with(os.getpid()) if libc else None,
        )
        os.pwrite(self.server_lock, f"{self.server.pid:<19}".encode(), 0)
        if self.nobody.is_set():  # it became so while we forked
            self.server.terminate()
        with guarded(self.server.pid) if not libc else contextlib.nullcontext():
            return self.server.wait()


def load_libc() -> Any:
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        return ctypes.CDLL(None)
    except (ImportError, OSError):  # some small builds of Python have no ctypes
        return None


libc = load_libc()


def die_with(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the server: ask the kernel for SIGTERM at our death (Linux)."""

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # we died before the kernel knew
            os._exit(1)

    return prepare


@contextlib.contextmanager
def guarded(pid: int) -> Iterator[None]:
    """The same where the kernel does not offer it: a shell sees our end of a pipe close."""
    command = ["/bin/sh", "-c", GUARD, str(pid)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):
            guard.communicate(b"done\n")


def how(code: int) -> str:
    return f"exited with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"


def say(line: str) -> None:
    print(f"{os.getpid()}:keeper {time.strftime('%d %b %Y %H:%M:%S')} # {line}", file=sys.stderr, flush=True)


def tell(word: str) -> bool:
    """Tell the starter; False when it has gone on."""
    try:
        return os.write(1, word.encode()) > 0
    except OSError:
        return False


def main() -> None:
    binary, lock = sys.argv[1], int(sys.argv[2])
    if os.fork():  # the starter waits for this process; the keeper itself must not become its zombie
        os._exit(0)
    os.set_inheritable(lock, False)
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a starter that blocks SIGTERM must not hand that on
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Keeper(binary).run()
    except Exception as error:
        say(f"{type(error).__name__}: {error}")
        tell("-")
    os._exit(0)  # at once, and with every lock


if __name__ == "__main__":
    main()
