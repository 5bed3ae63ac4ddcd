"""Where incidents take place: a server, a shop, its workers; and the command line, as somebody types it."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgpack
import redis

from rstream import RStream
from rstream.event import new_event_id
from rstream.store.keys import Shard
from tests.servers import KINDS, Server, free_port
from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
HOST = "w1"
FIRST_LINES, LAST_LINES = 9, 7
"""Of a log, in the page."""

SHOP = """
import os, pathlib, time
from rstream import Delivery, Event, Retention, RetryPolicy, RStream

app = RStream()

class Order(Event):
    customer: str
    item: str

orders = app.stream("orders", Order, key="customer", shards={shards}{stream})

@orders.consumer("billing", lease=2.0{consumer})
def bill(order: Order, delivery: Delivery) -> None:
{body}
"""


class Stage(contextlib.ExitStack):
    """directory: that in which all runs · env: what commands get · workers: those that were started, in their order."""

    def __init__(self, directory: Path, kind: str = "embedded") -> None:
        super().__init__()
        self.directory, self._kind = directory, kind
        self.server: Server
        self.workers: list[Worker] = []
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("RSTREAM_")}
        self.env |= {"PYTHONUNBUFFERED": "1", "COLUMNS": "140"}
        self.env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{self.env.get('PATH', '')}"
        self.names = {str(directory): "/srv/shop", str(ROOT): "/srv", sys.base_prefix: "/usr"}
        self.names |= {f"{getpass.getuser()}@{socket.gethostname()}": f"ada@{HOST}", socket.gethostname(): HOST}

    def serve(self, *args: str) -> Server:
        """Start the server."""
        args = ("--maxmemory", "1gb", *args)
        self.server = self.enter_context(Server(KINDS[self._kind], self.directory / "server", args=args, tcp=True))
        self.env["RSTREAM_URL"] = self.server.url
        self.names[f"127.0.0.1:{self.server.port}"] = "redis:6379"
        self.names[f"'127.0.0.1', {self.server.port}"] = "'redis', 6379"
        return self.server

    def shop(
        self,
        body: str,
        *,
        stream: str = "",
        consumer: str = "",
        more: str = "",
        shards: int = 2,
    ) -> None:
        """Write shop.py. body: of the handler."""
        lines = "\n".join(f"    {line}".rstrip() for line in body.strip().splitlines())
        text = SHOP.format(body=lines, stream=stream, consumer=consumer, shards=shards) + more
        (self.directory / "shop.py").write_text(text)

    @property
    def raw(self) -> redis.Redis:
        return self.enter_context(redis.Redis.from_url(self.server.url, decode_responses=True))

    @property
    def app(self) -> RStream:
        return self.enter_context(RStream(self.server.url, blobs=self.env.get("RSTREAM_BLOBS")))

    def run(self, line: str) -> str:
        """What a command prints, as the page has it: names of this machine are others there."""
        if (worker := next((w for w in self.workers if w.line == line), None)) is not None:
            return self.said(_cut(worker.news()))
        if scrape := _SCRAPE.fullmatch(line):
            address = next(real for real, name in self.names.items() if name == scrape["address"])
            with urlopen(f"http://{address}/metrics", timeout=20) as answer:
                (self.directory / "metrics.txt").write_bytes(answer.read())
            line = f"grep {scrape['grep']} metrics.txt"
        done = subprocess.run(
            line, shell=True, cwd=self.directory, env=self.env, timeout=60, encoding="utf-8", stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return self.said(done.stdout)

    def said(self, text: str) -> str:
        worker = re.compile(re.escape(socket.gethostname()) + r"(-\d+-[0-9a-f]{8})( (?= ))?")
        host = HOST[: len(socket.gethostname())]
        spare = " " * (len(socket.gethostname()) - len(host))  # tables stay tables
        text = worker.sub(lambda found: f"{host}{found[1]}{spare + found[2] if found[2] else ''}", text)
        for name, shown in self.names.items():
            text = text.replace(name, shown)
        text = re.sub(r"[^\S\n]+$", "", text, flags=re.M)
        return text if text.endswith("\n") or not text else text + "\n"

    def work(self, line: str = "rstream worker shop:app") -> Worker:
        """Start a worker that runs until the end, or until it is killed."""
        worker = Worker(self, line)
        self.workers.append(worker)
        self.callback(worker.kill)
        return worker

    def publish(self, *orders: tuple[str, str], ago: float = 0.0) -> None:
        """Orders of (customer, item). ago: seconds; then it is as if they had been published that long ago, which
        works for the first ones of a shard.
        """
        if not ago:
            lines = "".join(f'{{"customer": "{customer}", "item": "{item}"}}\n' for customer, item in orders)
            subprocess.run(
                ["rstream", "publish", "orders", "--app", "shop:app", "--file", "-"], cwd=self.directory, env=self.env,
                input=lines.encode(), check=True, timeout=60, stdout=subprocess.PIPE,
            )  # fmt: skip
            return
        self.declare()
        at = int(time.time() * 1000 - ago * 1000)
        for n, (customer, item) in enumerate(orders):
            fields = {"e": msgpack.packb([1, {"customer": customer, "item": item}]), "k": customer, "i": new_event_id()}
            self.raw.xadd(self.shard(customer).stream, fields, id=f"{at + n}-0")  # type: ignore[arg-type]

    def declare(self) -> None:
        """Have the streams of shop.py stored."""
        script = "import shop\nfor stream in shop.app.streams.values(): stream.sync.layout()"
        subprocess.run([sys.executable, "-c", script], cwd=self.directory, env=self.env, check=True, timeout=60)

    def shard(self, key: str) -> Shard:
        return self.app.open("orders").sync.layout().shard(key)

    def wait(self, worker: Worker, text: str) -> None:
        """Until its log has this."""
        eventually(lambda: text in worker.log or worker.process.poll() is not None, 40)
        assert text in worker.log, worker.log


class Worker:
    def __init__(self, stage: Stage, line: str) -> None:
        self.line = line
        self._path = stage.directory / f"worker{len(stage.workers)}.log"
        self._told = 0
        port = free_port()
        stage.names[f"127.0.0.1:{port}"] = f"{HOST}:{9400 + len(stage.workers)}"
        env = stage.env | {"RSTREAM_METRICS_PORT": str(port)}
        with self._path.open("w") as out:
            self.process = subprocess.Popen(
                line.split(), cwd=stage.directory, env=env, stdin=subprocess.DEVNULL, stdout=out,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._path.read_text("utf-8", "replace")

    def news(self) -> str:
        """What it said since this was asked before."""
        text = self.log
        new, self._told = text[self._told :], len(text)
        return "".join(line for line in new.splitlines(keepends=True) if not line.startswith(_STACKS))

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if "--processes" in self.line:  # these are in groups of their own
            for _ in range(2):
                self.process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


_STACKS = ("Thread 0x", "Current thread", "  File ", "Extension modules", "\n")
_SCRAPE = re.compile(r"curl -s (?P<address>[\w:]+)/metrics \| grep (?P<grep>.*)")
"""Done without curl, which is not everywhere."""


def _cut(text: str) -> str:
    """The beginning and the end of what is long."""
    lines = text.splitlines(keepends=True)
    left = len(lines) - FIRST_LINES - LAST_LINES
    if left < 2:
        return text
    return "".join([*lines[:FIRST_LINES], f"[… {left} lines]\n", *lines[-LAST_LINES:]])


@contextlib.contextmanager
def played(incident: Any, directory: Path) -> Iterator[tuple[Stage, Any]]:
    """(stage, function that lets it go on to a turn)."""
    with Stage(directory) as stage:
        turns, at = incident(stage), -1

        def go_to(turn: int) -> None:
            nonlocal at
            while at < turn:
                at += 1
                next(turns)

        yield stage, go_to
