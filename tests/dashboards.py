"""The dashboard as its users have it: a process that was started by the command line, asked over its socket."""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from rstream import RStream, Stream
from tests.commands import Commands, Order, Running
from tests.waiting import eventually

OPERATOR, VIEWER = "o" * 20 + "-operator", "v" * 20 + "-viewer"

_CSRF = re.compile(r'name="csrf" value="(\w+)"')


@dataclass
class Dashboard:
    """One that runs. url: without a slash at its end."""

    url: str
    running: Running

    @property
    def log(self) -> str:
        return self.running.err

    @contextlib.contextmanager
    def client(self, token: str | None = None) -> Iterator[httpx.Client]:
        """A browser of somebody's own; with a token it has logged in."""
        headers = {"Origin": self.url}
        with httpx.Client(base_url=self.url, timeout=30, follow_redirects=True, headers=headers) as client:
            if token is not None:
                assert client.post("/login", data={"token": token}).status_code == 200
            yield client


@contextlib.contextmanager
def dashboard(rs: Commands, *options: str, tokens: bool = False) -> Iterator[Dashboard]:
    more = {"RSTREAM_DASHBOARD_TOKEN": OPERATOR, "RSTREAM_DASHBOARD_VIEWER_TOKEN": VIEWER} if tokens else {}
    rs.env |= more
    try:
        with rs.started("dashboard", "--port", "0", *options) as running:
            found = eventually(lambda: re.search(r"http://\S+", running.err) or running.process.poll() is not None)
            assert found is not True, running.err
            url = found[0].replace("0.0.0.0", "127.0.0.1")
            eventually(lambda: answers(url))
            yield Dashboard(url, running)
            assert "Traceback" not in running.err, running.err
    finally:
        for name in more:
            del rs.env[name]


@contextlib.contextmanager
def shop(rs: Commands) -> Iterator[Stream[Order]]:
    """The orders of shop.py."""
    with RStream(rs.env["RSTREAM_URL"], namespace=rs.env["RSTREAM_NAMESPACE"]) as app:
        yield app.stream("orders", Order, key="customer", shards=4)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def csrf(page: httpx.Response) -> str:
    """The token in a page's forms."""
    found = _CSRF.search(page.text)
    assert found, page.text
    return found[1]


def text(page: httpx.Response) -> str:
    """What somebody reads there."""
    main = page.text[page.text.index("<main") :] if "<main" in page.text else page.text
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", main)).split())
