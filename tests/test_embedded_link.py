"""An app on the embedded server: it starts it, shares it, and outlives the loss of its keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import redis

from rstream import Event, RStream
from tests.waiting import eventually


class Item(Event):
    n: int


def test_no_url_means_the_embedded_server_of_the_user(tmp_path: Path) -> None:
    code = (
        "from rstream import *\n"
        "class Item(Event):\n    n: int\n"
        "items = RStream().stream('items', Item)\n"
        "items.sync.publish(Item(n=1))\n"
        "print([entry.event.n for entry in items.sync.read()])\n"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RSTREAM_")} | {"RSTREAM_HOME": str(tmp_path)}
    runs = [subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True) for _ in "12"]
    assert [run.stdout.strip() for run in runs] == ["[1]", "[1, 1]"], runs


def test_a_directory_with_special_characters_can_be_reached(tmp_path: Path) -> None:
    with RStream(f"embedded:{tmp_path / 'a b#c?d%41'}") as app:
        app.stream("items", Item).sync.publish(Item(n=1))
    assert (tmp_path / "a b#c?d%41" / "server.sock").exists()


def test_a_publish_goes_on_after_keeper_and_server_were_killed(tmp_path: Path) -> None:
    with RStream(f"embedded:{tmp_path / 'data'}") as app:
        items = app.stream("items", Item)
        items.sync.publish(Item(n=1))
        with redis.Redis(unix_socket_path=app.endpoint.kwargs()["path"]) as raw:
            server = psutil.Process(raw.info("server")["process_id"])
        mine = [keeper for keeper in [server.parent()] if keeper] + [server]
        for process in mine:
            process.send_signal(signal.SIGKILL)
        eventually(lambda: not any(process.is_running() and process.status() != "zombie" for process in mine))
        items.sync.publish(Item(n=2))
        assert 2 in [entry.event.n for entry in items.sync.read()]
