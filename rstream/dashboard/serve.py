"""Runs the dashboard: one process, one event loop, until it is told to end."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable

import uvicorn

from rstream.app import RStream
from rstream.dashboard.app import make_app
from rstream.dashboard.auth import Role
from rstream.errors import ConfigError

GRACE = 5
"""Seconds for requests that are being answered."""


def serve(
    app: RStream,
    *,
    host: str,
    port: int,
    operator: str | None,
    viewer: str | None,
    open: Role,
    hosts: Iterable[str] = (),
    say: Callable[[str], object] = print,
) -> None:
    """The arguments are those of `make_app`. say: is told where it is, in a line. Raises `ConfigError`."""
    made = make_app(app, host=host, operator=operator, viewer=viewer, open=open, hosts=hosts)
    listener = _listener(host, port)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # No access log: addresses of pages may hold what somebody filtered by.
    config = uvicorn.Config(
        made, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=GRACE, lifespan="on",
        timeout_keep_alive=30,
    )  # fmt: skip
    name = f"[{host}]" if ":" in host else host
    role = "a token is needed" if operator or viewer else f"everybody on this machine is {open}"
    say(f"dashboard of {app.endpoint.label}: http://{name}:{listener.getsockname()[1]} ({role})")
    with listener:
        uvicorn.Server(config).run([listener])


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"the dashboard cannot listen at {host}:{port}: {error.strerror}. Give another --port"
        ) from None
    return listener
