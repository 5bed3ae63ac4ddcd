"""The chaos proxy does what it is told: a test that trusts a broken proxy proves nothing."""

from __future__ import annotations

import random
import socket
import time
from typing import TYPE_CHECKING

import pytest
import redis

from tests.proxy import ChaosProxy
from tests.servers import KINDS, Server
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    binary = next(iter(KINDS.values()))
    with Server(binary, tmp_path / "data", tcp=request.param == "tcp") as running:
        yield running


@pytest.fixture
def proxy(server: Server) -> Iterator[ChaosProxy]:
    with ChaosProxy(server.upstream) as running:
        yield running


@pytest.fixture
def direct(server: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


class Line:
    """A raw connection, on which nothing is retried and every way to end can be told apart."""

    def __init__(self, proxy: ChaosProxy, timeout: float = 5.0) -> None:
        self.raw = socket.create_connection(("127.0.0.1", proxy.port), timeout)
        self.read = self.raw.makefile("rb")

    def ask(self, command: str) -> bytes:
        self.raw.sendall(command.encode() + b"\r\n")
        return self.read.readline()

    def close(self) -> None:
        self.read.close()
        self.raw.close()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_forwards_in_both_directions(proxy: ChaosProxy, direct: redis.Redis) -> None:
    with redis.Redis.from_url(proxy.url) as client, client.pipeline(transaction=False) as pipe:
        blob = random.Random(1).randbytes(3_000_000)  # enough to fill every buffer on the way
        client.set("blob", blob)
        assert client.get("blob") == blob
        for n in range(20_000):
            pipe.xadd("log", {"n": n})
        assert len(pipe.execute()) == 20_000
    assert direct.xlen("log") == 20_000


def test_cuts_as_often_as_told_and_what_it_forwarded_is_executed(proxy: ChaosProxy, direct: redis.Redis) -> None:
    proxy.cut_after_request(60, random.Random(7), mean_bytes=100)
    ends = {"answered": 0, "reset": 0, "fin": 0, "part": 0}
    line = Line(proxy)
    for _ in range(3000):
        try:
            answer = line.ask("INCR n")
            end = "answered" if answer.endswith(b"\r\n") else "part" if answer else "fin"
        except ConnectionError:
            end = "reset"
        ends[end] += 1
        if end != "answered":
            line.close()
            line = Line(proxy)
        if proxy.cuts == 60:
            break
    line.close()
    eventually(lambda: direct.info("clients")["connected_clients"] == 1)  # Redis has read all it was sent
    executed = int(direct.get("n"))
    failed = sum(ends.values()) - ends["answered"]
    assert proxy.cuts == failed == 60
    assert all(ends.values()), ends  # it ended in every way
    assert ends["answered"] < executed < ends["answered"] + failed  # some unanswered ones took effect, some did not
    with Line(proxy) as line:
        assert all(line.ask("PING") == b"+PONG\r\n" for _ in range(100))  # the plan is used up


def test_a_black_hole_swallows_and_closes_nothing(proxy: ChaosProxy, direct: redis.Redis) -> None:
    with Line(proxy) as silent, Line(proxy) as talking:
        assert silent.ask("PING") == talking.ask("PING") == b"+PONG\r\n"
        talking.raw.settimeout(0.1)
        proxy.blackhole(True)
        with pytest.raises(TimeoutError):
            talking.ask("SET swallowed 1")
        with Line(proxy, timeout=0.1) as fresh, pytest.raises(TimeoutError):
            fresh.ask("PING")
        proxy.blackhole(False)
        assert silent.ask("PING") == b"+PONG\r\n"
        talking.raw.sendall(b"SET swallowed 2\r\n")
        with pytest.raises(TimeoutError):
            talking.raw.recv(1)
        with Line(proxy) as fresh:
            assert fresh.ask("PING") == b"+PONG\r\n"
    assert direct.get("swallowed") is None


def test_redis_does_not_see_a_client_leave_through_a_black_hole(proxy: ChaosProxy, direct: redis.Redis) -> None:
    def blocked() -> bool:
        return direct.info("clients")["blocked_clients"] == 1

    with Line(proxy) as line:
        line.raw.sendall(b"BLPOP list 0\r\n")
        eventually(blocked)
        proxy.blackhole(True)
    eventually(lambda: any(pair.client.ended for pair in list(proxy.pairs)))  # the proxy does know
    assert blocked()
    proxy.blackhole(False)
    eventually(lambda: not blocked())


def test_refuses(proxy: ChaosProxy) -> None:
    with Line(proxy) as line:
        assert line.ask("PING") == b"+PONG\r\n"
        proxy.refuse(True)
        with pytest.raises(ConnectionError):
            line.ask("PING")
    with pytest.raises(ConnectionError), Line(proxy) as line:
        line.ask("PING")
    proxy.refuse(False)
    with Line(proxy) as line:
        assert line.ask("PING") == b"+PONG\r\n"


def test_delays_replies_and_keeps_their_order(proxy: ChaosProxy) -> None:
    proxy.delay_replies(0.1)
    with Line(proxy) as line:
        started = time.monotonic()
        assert line.ask("PING") == b"+PONG\r\n"
        assert time.monotonic() - started >= 0.1
        line.raw.sendall(b"".join(b"ECHO %d\r\n" % n for n in range(1000)))
        proxy.delay_replies(0)
        said = [line.read.readline() for _ in range(2000)]
    assert [int(text) for text in said[1::2]] == list(range(1000))


def test_upstream_that_is_down_resets_the_client_and_the_address_stays(proxy: ChaosProxy, server: Server) -> None:
    url = proxy.url
    server.kill()
    with pytest.raises(ConnectionError), Line(proxy) as line:
        line.ask("PING")
    server.start()
    proxy.stop()
    proxy.start()
    assert proxy.url == url
    with Line(proxy) as line:
        assert line.ask("PING") == b"+PONG\r\n"
