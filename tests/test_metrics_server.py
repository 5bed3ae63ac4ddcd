"""The HTTP server of metrics and probes, over real sockets."""

from __future__ import annotations

import gzip
import http.client
import socket
import threading
from collections.abc import Iterator

import pytest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from rstream.errors import ConfigError
from rstream.metrics import server
from rstream.metrics.server import Check, MetricsServer
from tests.waiting import eventually


def collect() -> list[Metric]:
    family = GaugeMetricFamily("rstream_up", "Whether it is.", labels=["stream"])
    family.add_metric(['odd "name"\n'], 1)
    return [family]


@pytest.fixture
def served() -> Iterator[MetricsServer]:
    with MetricsServer(
        0, collect, ready=lambda: [Check("redis", True, "it answers"), Check("loop", False, "stalled")]
    ) as it:
        yield it


def get(
    served: MetricsServer, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply, reply.read()
    finally:
        connection.close()


def test_metrics_in_the_old_format_and_in_openmetrics(served: MetricsServer) -> None:
    reply, body = get(served, "/metrics")
    assert reply.status == 200 and (reply.getheader("Content-Type") or "").startswith("text/plain; version=0.0.4")
    (family,) = read_text(body.decode())
    assert family.samples[0].labels == {"stream": 'odd "name"\n'} and family.samples[0].value == 1
    wanted = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    reply, body = get(served, "/metrics", Accept=wanted, Accept_Encoding="gzip")
    assert (reply.getheader("Content-Type") or "").startswith("application/openmetrics-text")
    assert reply.getheader("Content-Encoding") == "gzip"
    (family,) = read_openmetrics(gzip.decompress(body).decode())
    assert family.name == "rstream_up"


def test_a_verdict_is_a_status_and_reasons(served: MetricsServer) -> None:
    reply, body = get(served, "/healthz")
    assert (reply.status, body) == (200, b"ok   alive: it answers\n")
    reply, body = get(served, "/readyz")
    assert (reply.status, body) == (503, b"ok   redis: it answers\nFAIL loop: stalled\n")


def test_what_is_not_there_says_what_is(served: MetricsServer) -> None:
    reply, body = get(served, "/nothing?x=1")
    assert reply.status == 404 and b"/metrics" in body and b"/readyz" in body
    assert b"/healthz" in get(served, "/")[1]
    reply, body = get(served, "/metrics", method="HEAD")
    assert reply.status == 200 and body == b"" and int(reply.getheader("Content-Length") or 0) > 10
    assert get(served, "/metrics", method="POST")[0].status == 501


def test_a_collector_that_fails_costs_one_answer(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> list[Metric]:
        raise RuntimeError("secret")

    with MetricsServer(0, fail) as served:
        reply, body = get(served, "/metrics")
        assert reply.status == 500 and b"RuntimeError" in body and b"secret" not in body
        assert get(served, "/healthz")[0].status == 200
    assert "/metrics failed" in caplog.text


def test_a_port_that_is_taken_says_what_to_do(served: MetricsServer) -> None:
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{served.port}: the port is taken.*--processes.*ss -ltnp"):
        MetricsServer(served.port, collect)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0: this machine has no such address.*0\.0\.0\.0"):
        MetricsServer(0, collect, host="192.0.2.1")
    with pytest.raises(ConfigError, match="70000: ports are numbers"):
        MetricsServer(70000, collect)


def test_a_port_can_be_used_again_at_once() -> None:
    with MetricsServer(0, collect) as first:
        assert get(first, "/healthz")[0].status == 200
    with MetricsServer(first.port, collect) as second:
        assert get(second, "/healthz")[0].status == 200


def test_ipv6_where_the_machine_has_it() -> None:
    try:
        served = MetricsServer(0, collect, host="::1")
    except ConfigError as error:
        pytest.skip(str(error))
    with served:
        connection = http.client.HTTPConnection("::1", served.port, timeout=10)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()


def test_who_sends_a_request_for_ever_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.3)
    with MetricsServer(0, collect) as served, socket.create_connection(("127.0.0.1", served.port)) as slow:
        slow.settimeout(10)
        slow.sendall(b"GET /metrics HTTP/1.0\r\n")
        with pytest.raises(OSError):
            while True:  # a header line every 20 ms keeps it busy: no single wait is a long one
                slow.settimeout(0.02)
                try:
                    assert slow.recv(100) == b""
                    raise ConnectionResetError
                except TimeoutError:
                    slow.sendall(b"X: y\r\n")


def test_who_holds_many_connections_does_not_keep_others_out(served: MetricsServer) -> None:
    held = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(3 * server.CONNECTIONS)]
    try:
        assert get(served, "/healthz")[0].status == 200
        threads = lambda: sum("process_request" in thread.name for thread in threading.enumerate())  # noqa: E731
        eventually(lambda: threads() <= server.CONNECTIONS)
    finally:
        for each in held:
            each.close()


def test_garbage_is_refused(served: MetricsServer) -> None:
    for sent in (
        b"\x16\x03\x01\x02\x00\r\n",
        b"GET " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + b"a: b\r\n" * 500,
    ):
        with socket.create_connection(("127.0.0.1", served.port), timeout=10) as line:
            try:
                line.sendall(sent)
                assert b" 4" in line.recv(100) or sent.startswith(b"\x16")
            except ConnectionError:
                pass
    assert get(served, "/healthz")[0].status == 200


def test_its_end_cuts_off_those_that_wait() -> None:
    begun, go = threading.Event(), threading.Event()

    def wait() -> list[Check]:
        begun.set()
        go.wait(20)
        return []

    served = MetricsServer(0, collect, ready=wait).start()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as line:
        line.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert begun.wait(10)
        served.close()
        assert line.recv(100) == b""
        go.set()
