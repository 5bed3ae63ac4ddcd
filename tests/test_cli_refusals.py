"""What the command line refuses: one line naming the thing and the remedy, exit code 1, nothing half-published."""

from __future__ import annotations

from pathlib import Path

import pytest

from rstream import Event, RStream, Stream
from tests.commands import Commands, Order
from tests.servers import Server
from tests.waiting import eventually

GOOD = '{"customer": "c1", "total": 2.5}'


class Visit(Event):
    user: str | None = None


@pytest.fixture
def orders(one_server: Server, namespace: str) -> Stream[Order]:
    """The stream of shop.py, declared."""
    stream = RStream(one_server.url, namespace=namespace).stream("orders", Order, key="customer", shards=4)
    stream.sync.layout()
    return stream


def refused(rs: Commands, *arguments: str, stdin: str | bytes = b"", code: int = 1) -> str:
    """The one line that it says."""
    done = rs.run(*arguments, stdin=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    if code == 1:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    return line


BAD_EVENTS = [
    ("{nope", "not JSON"),
    ('{"customer": "c1", "total": 1e999}', "1e999"),
    ("[1]", "JSON object"),
    ('"text"', "JSON object"),
    ('{"customer": "c1", "total": NaN}', "NaN"),
    ('{"customer": "c1", "total": 1, "colour": "red"}', "colour"),
    ('{"customer": "c1", "total": "much"}', "total"),
    ('{"customer": "c1", "total": 1, "scan": "*"}', "scan"),
    ('{"total": 1}', "customer"),
    ('{"customer": "", "total": 1}', "'customer'"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("event", "named"), BAD_EVENTS, ids=[event[:30] for event, _ in BAD_EVENTS])
def test_a_bad_event(rs: Commands, orders: Stream[Order], event: str, named: str) -> None:
    lines = f"{GOOD}\n\n{event}\n{GOOD}\n"
    for app in ([], ["--app", "shop:app"]):
        line = refused(rs, "publish", "orders", "-", *app, stdin=lines)
        assert "stdin line 3: " in line
        assert named in line
        assert "Nothing was published" in line
    assert list(orders.sync.read()) == []


def test_a_bad_event_given_as_json_or_in_a_file(rs: Commands, orders: Stream[Order]) -> None:
    path = rs.write("orders.jsonl", f"{GOOD}\n{{}}\n")

    assert "--json: not JSON" in refused(rs, "publish", "orders", "--json", "{nope")
    for blank in ("", " \n"):
        assert "--json: not JSON: it is empty. Nothing" in refused(rs, "publish", "orders", "--json", blank)
    assert "orders.jsonl line 2: customer: is missing" in refused(rs, "publish", "orders", "--file", path.name)
    assert "not UTF-8" in refused(rs, "publish", "orders", "-", stdin=GOOD.encode() + b'\n{"customer": "\xff"}')
    assert "nowhere.jsonl" in refused(rs, "publish", "orders", "--file", "nowhere.jsonl")
    assert list(orders.sync.read()) == []


def test_a_bad_event_declares_no_stream(rs: Commands) -> None:
    refused(rs, "publish", "orders", "--app", "shop:app", "--json", "{}")

    assert rs.ok("streams", "--json").strip() == "[]"


def test_an_event_above_the_size_limit(rs: Commands, orders: Stream[Order]) -> None:
    big = f'{{"customer": "c1", "total": 1, "scan": "{"A" * 2_000_000}"}}'

    line = refused(rs, "publish", "orders", "-", stdin=f"{GOOD}\n{big}\n{GOOD}")

    assert "stdin line 2: " in line
    assert "1,048,576" in line and "max_event_bytes" in line
    assert list(orders.sync.read()) == []


def test_an_event_without_its_key(rs: Commands, one_server: Server, namespace: str) -> None:
    visits = RStream(one_server.url, namespace=namespace).stream("visits", Visit, key="user")
    visits.sync.layout()

    line = refused(rs, "publish", "visits", "-", stdin='{"user": "u1"}\n{}\n')

    assert "stdin line 2: " in line and "'user'" in line and "set it" in line
    assert list(visits.sync.read()) == []


def test_a_key_where_the_stream_takes_it_from_a_field(rs: Commands, orders: Stream[Order]) -> None:
    assert "'customer'" in refused(rs, "publish", "orders", "--json", GOOD, "--key", "k", code=2)
    assert list(orders.sync.read()) == []


def test_a_key_that_is_empty(rs: Commands) -> None:
    rs.ok("publish", "notes", "--app", "shop:app", "--json", '{"text": "a"}')
    assert "--key is empty" in refused(rs, "publish", "notes", "--json", '{"text": "b"}', "--key", "", code=2)


LOWER = """
from typing import Annotated
from pydantic import StringConstraints
from rstream import Event, RStream

app = RStream()

class Login(Event):
    user: Annotated[str, StringConstraints(to_lower=True)]

logins = app.stream("logins", Login, key="user")
"""


def test_a_key_that_is_computed_in_python(rs: Commands) -> None:
    rs.write("lower.py", LOWER)
    rs.ok("publish", "logins", "--app", "lower:app", "--json", '{"user": "Ada"}')

    line = refused(rs, "publish", "logins", "--json", '{"user": "Ada"}')

    assert "the key of stream 'logins' is computed in Python: give --app MODULE:APP" in line
    (entry,) = rs.ok("read", "logins", "--json").splitlines()
    assert '"key": "ada"' in entry


def test_a_header_that_is_no_pair(rs: Commands, orders: Stream[Order]) -> None:
    assert "NAME=VALUE" in refused(rs, "publish", "orders", "--json", GOOD, "--header", "nope", code=2)
    assert list(orders.sync.read()) == []


@pytest.mark.parametrize("command", [["read", "orderz"], ["groups", "orderz"], ["publish", "orderz", "--json", GOOD]])
def test_an_unknown_stream(rs: Commands, orders: Stream[Order], command: list[str]) -> None:
    line = refused(rs, *command)
    assert "'orderz'" in line
    assert "there are orders" in line


def test_a_stream_that_the_app_does_not_declare(rs: Commands) -> None:
    line = refused(rs, "publish", "orderz", "--app", "shop:app", "--json", GOOD)
    assert "'orderz'" in line and "orders, notes" in line


@pytest.mark.parametrize("where", ["--from", "--to"])
def test_a_position_that_does_not_parse(rs: Commands, orders: Stream[Order], where: str) -> None:
    line = refused(rs, "read", "orders", where, "teatime")
    assert "'teatime'" in line and "2h ago" in line


def test_a_window_that_ends_before_it_begins(rs: Commands, orders: Stream[Order]) -> None:
    line = refused(rs, "read", "orders", "--from", "now", "--to", "1h ago")
    assert "the window from 'now' to '1h ago' ends before it begins" in line


@pytest.mark.parametrize(
    "command",
    [
        ["read", "orders"],
        ["groups", "orders"],
        ["streams"],
        ["publish", "orders", "--json", GOOD],
        ["publish", "orders", "--json", GOOD, "--app", "shop:app"],
    ],
    ids=lambda command: " ".join(command[:5:4]),
)
def test_a_url_that_does_not_answer(rs: Commands, command: list[str]) -> None:
    line = refused(rs, *command, "--url", "redis://127.0.0.1:1/0")
    assert "redis://127.0.0.1:1/0" in line and "running" in line


def test_a_url_that_is_none(rs: Commands) -> None:
    assert "embedded:DIR" in refused(rs, "streams", "--url", "somewhere")
    assert "'localhost:6379' is no URL" in refused(rs, "streams", "--url", "localhost:6379")
    assert "'a b'" in refused(rs, "streams", "--namespace", "a b")


def test_a_url_that_the_app_does_not_follow(rs: Commands) -> None:
    rs.write("fixed.py", "from rstream import RStream\napp = RStream('redis://elsewhere')\n")
    line = refused(rs, "worker", "fixed:app", "--url", "redis://here")
    assert "redis://here" in line and "redis://elsewhere" in line


MODULES = {
    "broken.py": 'import json\n\nsettings = json.loads("{nope")\n',
    "syntax.py": "x = 1\ndef f(:\n",
    "needs.py": "import nowhere_to_be_found\n",
    "exits.py": "raise SystemExit('bye')\n",
    "wrong.py": "from rstream import Event, RStream\napp = RStream()\nnotes = app.stream('a b', Event)\n",
    "idle.py": "from rstream import RStream\napp = RStream()\n",
    "plain.py": "app = 1\n",
}

BAD_APPS = [
    ("shop", "write shop:app"),
    ("shop.py:app", "write shop:app"),
    ("./shop.py", "write shop:app"),
    (":app", "MODULE:NAME"),
    ("nowhere:app", "no module 'nowhere'"),
    ("shop.sub:app", "no module 'shop.sub'"),
    ("shop:ap", "did you mean app?"),
    ("shop:orders", "write shop:app"),
    ("plain:app", "app = RStream()"),
    ("broken:app", 'broken.py:3: settings = json.loads("{nope")'),
    ("syntax:app", "syntax.py:2: def f(:"),
    ("needs:app", "needs.py:1: import nowhere_to_be_found"),
    ("exits:app", "exits.py:1: "),
    ("wrong:app", "wrong.py:3: "),
    ("idle:app", "declares no consumer"),
]


@pytest.mark.parametrize(("spec", "remedy"), BAD_APPS, ids=[spec for spec, _ in BAD_APPS])
def test_an_app_that_cannot_be_loaded(rs: Commands, spec: str, remedy: str) -> None:
    for name, text in MODULES.items():
        rs.write(name, text)
    assert remedy in refused(rs, "worker", spec)


def test_an_unknown_group(rs: Commands) -> None:
    for processes in ("1", "2"):
        line = refused(rs, "worker", "shop:app", "--group", "biling", "--processes", processes)
        assert "'biling'" in line and "orders/billing" in line


def test_a_server_that_stops_answering_ends_a_publish_in_bounded_time(
    tmp_path: Path, own_server: Server, namespace: str
) -> None:
    rs = Commands(tmp_path, f"{own_server.url}?socket_timeout=0.5", namespace)
    rs.ok("publish", "notes", "--app", "shop:app", "--json", '{"text": "a"}')
    own_server.pause()

    line = refused(rs, "publish", "notes", "--json", '{"text": "b"}')

    assert "does not answer" in line
    own_server.resume()
    eventually(lambda: len(rs.ok("read", "notes").splitlines()) == 1, 20)
