"""Object storage for tests: moto's server as a process of its own, over real HTTP, and a proxy that breaks requests."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.servers import _die_with_us, _libc, free_port

os.environ.setdefault("AWS_ACCESS_KEY_ID", "test")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "test")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

OTHER = os.environ.get("RSTREAM_TEST_S3")
"""The endpoint of another S3, with credentials in the environment."""

_buckets = itertools.count()
_moto: list[str] = []


def moto() -> str:
    """The endpoint of moto's server, started once for a test process."""
    if not _moto:
        port = free_port()
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=_die_with_us if _libc else None,
        )
        limit = time.monotonic() + 60
        while not _answers(port):
            assert process.poll() is None and time.monotonic() < limit, "moto's server did not start"
            time.sleep(0.05)
        _moto.append(f"http://127.0.0.1:{port}")
    return _moto[0]


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    return False


def client(endpoint: str) -> Any:
    import boto3

    return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name="us-east-1")


def bucket(endpoint: str) -> str:
    """A new one."""
    name = f"rstream-test-{os.getpid()}-{next(_buckets)}"
    client(endpoint).create_bucket(Bucket=name)
    return name


class Objects:
    """moto behind a proxy. faults: (method, kind) and for how many requests of blobs they last.

    Kinds: "503"; "403"; "404"; "stray": a 404 of a balancer; "altered": one byte is another; "cut": half of the answer;
    "lost": done, and no answer; "hang": no answer until `release`.
    """

    def __init__(self) -> None:
        self.upstream = urlsplit(moto())
        self.bucket = bucket(moto())
        self.requests: Counter[str] = Counter()
        self.hanging = 0
        self._faults: dict[tuple[str, str], int] = {}
        self._released = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/some/prefix?endpoint={self.endpoint}&patience=1"

    @property
    def direct(self) -> Any:
        """boto3, around the proxy."""
        return client(moto())

    def keys(self) -> list[str]:
        """Of blobs; not the marks of whose they are."""
        found = self.direct.list_objects_v2(Bucket=self.bucket).get("Contents", ())
        return [each["Key"] for each in found if "/owners/" not in each["Key"]]

    def fail(self, method: str, kind: str, times: int = 1_000_000) -> None:
        self._faults[method, kind] = times
        self._released.clear()

    def heal(self) -> None:
        self._faults.clear()
        self._released.set()

    def stop(self) -> None:
        self.heal()
        self._server.shutdown()
        self._server.server_close()

    def due(self, method: str) -> str:
        self.requests[method] += 1
        for (wanted, kind), left in self._faults.items():
            if wanted == method and left > 0:
                self._faults[wanted, kind] = left - 1
                return kind
        return ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def _handler(objects: Objects) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fault = objects.due(self.command)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if fault == "hang":
                objects.hanging += 1
                objects._released.wait(30)
                objects.hanging -= 1
                self.close_connection = True
                return
            if fault == "stray":
                self.reply(404, {}, b"")
                return
            if fault.isdigit():
                code = {"503": "ServiceUnavailable", "403": "AccessDenied", "404": "NoSuchKey"}[fault]
                self.reply(int(fault), {}, f"<Error><Code>{code}</Code></Error>".encode())
                return
            status, headers, answer = self.forward(body)
            if fault == "lost":
                self.close_connection = True
                return
            if fault == "altered":
                answer = bytes([answer[0] ^ 1]) + answer[1:]
            self.reply(status, headers, answer, len(answer) // 2 if fault == "cut" else None)

        do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815

        def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            connection = http.client.HTTPConnection(objects.upstream.hostname or "", objects.upstream.port or 0)
            with contextlib.closing(connection):
                headers = {n: v for n, v in self.headers.items() if n.lower() not in ("expect", "connection")}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                return answer.status, dict(answer.getheaders()), answer.read()

        def reply(self, status: int, headers: dict[str, str], body: bytes, most: int | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            size = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", size or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[:most])
            if most is not None:
                self.close_connection = True

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                super().handle()

        def log_message(self, *_: object) -> None: ...

    return Handler
