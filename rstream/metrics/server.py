"""`/metrics`, `/healthz` and `/readyz` over HTTP, for a worker and for `rstream metrics`.

In threads of its own: where the event loop is blocked it answers all the same, and shows that. Whoever can reach the
port may be anybody: a request has `PATIENCE` seconds in all, line by line 64 KiB, and of connections there are at most
`CONNECTIONS`, the oldest of which has to go for a new one. Nothing that is sent there is kept, logged or acted on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.metrics_core import Metric

from rstream.errors import ConfigError
from rstream.process import clock

log = logging.getLogger("rstream")

HOST = "127.0.0.1"
PATIENCE = 10.0
"""Seconds that a connection may take, from its beginning to its end."""
CONNECTIONS = 16
LOOK = 0.25
"""Seconds between two looks at what has been going on for too long."""
TEXT = "text/plain; charset=utf-8"
INDEX = "/metrics  what Prometheus scrapes\n/healthz  whether this process is alive\n/readyz   whether it can work\n"


class Check(NamedTuple):
    """Something that was looked at, whether it is well, and why, in a few words."""

    name: str
    well: bool
    why: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.well else 'FAIL'} {self.name}: {self.why}"


Collect = Callable[[], Iterable[Metric]]
Probe = Callable[[], Iterable[Check]]
"""Both are called in a thread of the server, by several at once, and must not take long."""


def alive() -> list[Check]:
    """What every process can say that says anything."""
    return [Check("alive", True, "it answers")]


class MetricsServer:
    """Serves from `start` to `close`; the port is taken when it is made, so that nothing has begun where that fails.

    port: 0 = any; `port` says which · host: loopback by default, for there is no password. Raises `ConfigError` where
    it cannot listen there.
    """

    def __init__(
        self, port: int, collect: Collect, *, host: str = HOST, healthy: Probe = alive, ready: Probe = alive
    ) -> None:
        registry = CollectorRegistry()
        registry.register(_Collector(collect))
        self._server = _listen(host, port)
        self._server.pages = {
            "/metrics": make_wsgi_app(registry),
            "/healthz": _verdict(healthy),
            "/readyz": _verdict(ready),
            "/": _index,
        }
        self._thread = threading.Thread(target=self._server.serve_forever, args=(LOOK,), daemon=True)
        self._thread.name = "rstream-metrics"
        self.host, self.port = host, int(self._server.server_address[1])

    def start(self) -> MetricsServer:
        self._thread.start()
        log.info("metrics on http://%s:%d/metrics", f"[{self.host}]" if ":" in self.host else self.host, self.port)
        return self

    def close(self) -> None:
        """Those that wait for an answer are cut off."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> MetricsServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


class _Collector:
    """A function as prometheus_client wants it."""

    def __init__(self, collect: Collect) -> None:
        self.collect = collect


def _listen(host: str, port: int) -> _Server:
    if not 0 <= port < 65536:
        raise ConfigError(f"metrics cannot be served on {host}:{port}: ports are numbers up to 65535")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return _Server(family, address)
    except OSError as error:
        raise ConfigError(f"metrics cannot be served on {host}:{port}: {_why(error, port)}") from None


def _why(error: OSError, port: int) -> str:
    number = error.errno
    if number == errno.EADDRINUSE:
        return (
            "the port is taken. Two workers on one machine need two ports (or `--processes`, which needs one); "
            f"`ss -ltnp 'sport = :{port}'` shows who has it"
        )
    if number == errno.EACCES:
        return "ports below 1024 are root's. Take a higher one"
    if number == errno.EADDRNOTAVAIL:
        return "this machine has no such address. 127.0.0.1 is for this machine only, 0.0.0.0 for all networks"
    return str(error)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Not http.server's own: that asks the DNS for the name of its host, which may take for ever."""

    daemon_threads, block_on_close = True, False
    allow_reuse_address = True
    request_queue_size = 64
    pages: dict[str, Any]

    def __init__(self, family: int, address: Any) -> None:
        self.address_family = family
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Request)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            oldest = next(iter(self._open), None) if len(self._open) >= CONNECTIONS else None
            self._open[request] = clock() + PATIENCE
        if oldest is not None:
            self._cut(oldest)
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Is called every `LOOK` seconds."""
        now = clock()
        with self._lock:
            late = [request for request, until in self._open.items() if until < now]
        for request in late:
            self._cut(request)

    def _cut(self, request: socket.socket) -> None:
        """Its thread, wherever it waits, meets the end of the connection."""
        with self._lock:
            self._open.pop(request, None)
        with contextlib.suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            left = [*self._open]
        for request in left:
            self._cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("metrics: a request failed", exc_info=True)


class _Request(BaseHTTPRequestHandler):
    """One request; the connection ends with it."""

    server: _Server
    timeout = PATIENCE
    server_version, sys_version = "rstream", ""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        page = self.server.pages.get(path)
        if page is None:
            self._answer(HTTPStatus.NOT_FOUND, f"There is no {path[:100]!r} here:\n{INDEX}")
            return
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "SERVER_PROTOCOL": "HTTP/1.0",
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
        }
        told: list[Any] = []
        try:
            body = b"".join(page(environ, lambda status, headers, *_: told.extend((status, headers))))
        except Exception as error:
            log.warning("metrics: %s failed: %s", path, error, exc_info=True)
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}; the log has more\n")
            return
        status, headers = told
        self._send(HTTPStatus(int(status.split()[0])), body, headers)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: HTTPStatus, text: str) -> None:
        self._send(status, text.encode(), [("Content-Type", TEXT)])

    def _send(self, status: HTTPStatus, body: bytes, headers: list[tuple[str, str]]) -> None:
        self.send_response(status)
        for name, value in [*headers, ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what was asked is anybody's text."""


def _verdict(probe: Probe) -> Any:
    """A page: what was looked at, a line each; 503 where something is not well."""

    def page(environ: dict[str, str], start_response: Callable[..., Any]) -> list[bytes]:
        checks = [*probe()]
        well = all(check.well for check in checks)
        start_response("200 OK" if well else "503 Service Unavailable", [("Content-Type", TEXT)])
        return ["".join(f"{check}\n" for check in checks).encode()]

    return page


def _index(environ: dict[str, str], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", TEXT)])
    return [INDEX.encode()]
