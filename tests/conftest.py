"""Fixtures: real servers, one of each kind per test process, and a namespace of its own for every test."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from zlib import crc32

import pytest
import redis
from hypothesis import HealthCheck, settings

from rstream import RStream
from tests.commands import Commands
from tests.fleets import Cluster, Sentinels
from tests.servers import KINDS, Server

# Where Python is told to keep no bytecode, as in many containers, each of the hundreds of processes that tests start
# would compile all of rstream anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What a script runs in the background has Ctrl-C ignored, and hands that down: a command on which a test presses it
# would not feel it. What is caught, and not ignored, is not handed down.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, lambda *_: None)

_count = itertools.count()
_servers: dict[str, Server] = {}
_fleets: dict[str, Cluster | Sentinels] = {}


def _start(kind: str, factory: pytest.TempPathFactory) -> Server:
    if kind not in _servers:
        _servers[kind] = Server(KINDS[kind], factory.mktemp(kind), tcp=True).start()
    return _servers[kind]


def pytest_configure(config: pytest.Config) -> None:
    """Examples are not timed: the machine may be busy. `make test` takes the same ones every time, whoever runs a file
    or the torture gets new ones.
    """
    same = config.getoption("markexpr") == "not torture"
    settings.register_profile("here", deadline=None, derandomize=same, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("here")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """On which kinds of server `make test` runs what: all on the first, and on one of the others, each test on the
    same one every time; what takes long on the first alone. `make torture` runs the rest.
    """
    first, *others = KINDS
    for item in items:
        kind = getattr(item, "callspec", None) and item.callspec.params.get("server")  # type: ignore[attr-defined]
        if kind and kind != first:
            whose = item.nodeid.partition("[")[0]
            if item.get_closest_marker("long") or kind != others[crc32(whose.encode()) % len(others)]:
                item.add_marker(pytest.mark.torture)


@pytest.fixture(params=list(KINDS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A running server, shared by the tests of a process; the test runs once for every kind there is."""
    return _start(request.param, tmp_path_factory)


@pytest.fixture
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The embedded kind, shared by the tests of a process."""
    return _start("embedded", tmp_path_factory)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that belongs to this test alone, to be frozen, killed, flushed and filled."""
    with Server(KINDS["embedded"], tmp_path / "server", tcp=True) as server:
        yield server


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[Server]:
    """Another one, for streams that are on two."""
    with Server(KINDS["embedded"], tmp_path / "other", tcp=True) as server:
        yield server


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """Three masters and their replicas, shared by the tests of a process: to be used, not to be broken."""
    if "cluster" not in _fleets:
        _fleets["cluster"] = Cluster(KINDS["embedded"], tmp_path_factory.mktemp("cluster")).start()
    return _fleets["cluster"]  # type: ignore[return-value]


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that belongs to this test alone."""
    with Cluster(KINDS["embedded"], tmp_path / "cluster") as cluster:
        yield cluster


@pytest.fixture
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Sentinels:
    """A master, its replicas and their sentinels, shared by the tests of a process: to be used, not to be broken."""
    if "sentinels" not in _fleets:
        _fleets["sentinels"] = Sentinels(KINDS["embedded"], tmp_path_factory.mktemp("sentinels")).start()
    return _fleets["sentinels"]  # type: ignore[return-value]


@pytest.fixture
def own_sentinels(tmp_path: Path) -> Iterator[Sentinels]:
    """Sentinels and servers that belong to this test alone."""
    with Sentinels(KINDS["embedded"], tmp_path / "sentinels") as sentinels:
        yield sentinels


@pytest.fixture
def namespace() -> str:
    return f"t{os.getpid()}x{next(_count)}"


@pytest.fixture
def app(server: Server, namespace: str) -> Iterator[RStream]:
    with RStream(server.url, namespace=namespace) as app:
        yield app


@pytest.fixture
async def one_app(one_server: Server, namespace: str) -> AsyncIterator[RStream]:
    """An app in the event loop, on the embedded kind."""
    async with RStream(one_server.url, namespace=namespace) as app:
        yield app


@pytest.fixture
def rs(tmp_path: Path, one_server: Server, namespace: str) -> Commands:
    """The command line, on the embedded kind."""
    return Commands(tmp_path, one_server.url, namespace)


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """redis-py, to look at what rstream did."""
    with redis.Redis.from_url(server.url) as client:
        yield client


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    wanted = ("embedded", "redis-7.0", "redis-8.2")
    missing = [kind for kind in wanted if kind not in KINDS]
    line = "servers: " + ", ".join(KINDS) + (f" (not on this machine: {', '.join(missing)})" if missing else "")
    terminalreporter.write_line(line)
