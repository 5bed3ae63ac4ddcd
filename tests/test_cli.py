"""The command line: publish, read, streams, groups, dev, help. What it refuses is in test_cli_refusals.py."""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import redis

from rstream import RStream, Stream
from tests.commands import Commands, Order
from tests.servers import Server
from tests.waiting import eventually

ORDER = '{"customer": "c1", "total": 2.5}'
SCAN = bytes(range(256))


@pytest.fixture
def orders(one_server: Server, namespace: str) -> Stream[Order]:
    """The stream of shop.py, declared."""
    stream = RStream(one_server.url, namespace=namespace).stream("orders", Order, key="customer", shards=4)
    stream.sync.layout()
    return stream


def rows(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# -- help


@pytest.mark.parametrize("arguments", [["--help"], ["worker", "--help"], ["publish", "--help"], ["groups", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    script = f"""
import sys
sys.argv = ["rstream", *{arguments!r}]
from rstream.cli.main import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"redis", "boto3", "jsonschema", "prometheus_client"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Examples:" in done.stdout or "Commands:" in done.stdout


@pytest.mark.parametrize("command", ["dev", "worker", "publish", "read", "streams", "groups"])
def test_the_help_of_every_command_has_examples(rs: Commands, command: str) -> None:
    assert f"rstream {command}" in rs.ok(command, "--help").partition("Examples:")[2]


def test_wrong_usage_ends_with_2_and_names_the_help(rs: Commands) -> None:
    for arguments in (["nonsense"], ["read"], ["publish", "orders"], ["publish", "orders", "-", "--json", ORDER]):
        done = rs.run(*arguments)
        assert done.returncode == 2, arguments
        assert "--help" in done.stderr


# -- publish


def test_the_first_publish_declares_the_stream_with_the_models_of_the_app(rs: Commands, orders: Stream[Order]) -> None:
    event = {"customer": "c1", "total": 2.5, "scan": base64.b64encode(SCAN).decode()}

    id = rs.ok("publish", "orders", "--app", "shop:app", "--json", json.dumps(event)).strip()

    (entry,) = orders.sync.read()
    assert (str(entry.id), entry.key) == (id, "c1")
    assert entry.event == Order(customer="c1", total=2.5, scan=SCAN)


def test_publish_checks_and_routes_by_what_is_stored(rs: Commands, orders: Stream[Order]) -> None:
    events = [{"customer": f"c{n}", "total": n, "scan": base64.b64encode(SCAN).decode()} for n in range(20)]
    lines = "\n".join(json.dumps(event) for event in events)

    ids = rs.ok("publish", "orders", "-", "--header", "from=test", "--header", "empty=", stdin=lines).splitlines()

    found = {str(entry.id): entry for entry in orders.sync.read()}
    assert [found[id].event for id in ids] == [Order(customer=f"c{n}", total=n, scan=SCAN) for n in range(20)]
    assert all(entry.headers == {"from": "test", "empty": ""} for entry in found.values())
    for n, id in enumerate(ids):
        assert orders.sync.publish(Order(customer=f"c{n}", total=0)).shard == found[id].id.shard


def test_publish_a_file_tells_how_many_and_between_which_ids(rs: Commands, orders: Stream[Order]) -> None:
    rs.write("orders.jsonl", "﻿" + "\n\n".join(f'{{"customer": "ü{n}", "total": {n}}}' for n in range(300)))

    summary = rs.ok("publish", "orders", "--file", "orders.jsonl")

    entries = list(orders.sync.read())
    assert summary == f"published 300 events to orders: first id {entries[0].id}, last id {entries[-1].id}\n"
    assert {entry.key for entry in entries} == {f"ü{n}" for n in range(300)}


def test_publish_prints_ids_as_asked(rs: Commands, orders: Stream[Order]) -> None:
    rs.write("orders.jsonl", f"{ORDER}\n{ORDER}\n")

    ids = rs.ok("publish", "orders", "--file", "orders.jsonl", "--output", "ids").splitlines()
    as_json = rows(rs.ok("publish", "orders", "--json", ORDER, "--output", "json"))
    summary = rs.ok("publish", "orders", "-", "--output", "summary", stdin=ORDER)

    stored = [str(entry.id) for entry in orders.sync.read()]
    assert ids + [row["id"] for row in as_json] == stored[:3]
    assert summary == f"published 1 event to orders: first id {stored[3]}, last id {stored[3]}\n"


def test_publish_of_nothing_is_no_error(rs: Commands, orders: Stream[Order]) -> None:
    rs.write("empty.jsonl", "")
    for source in (["--file", "-"], ["-"], ["--file", "empty.jsonl"]):
        done = rs.run("publish", "orders", *source, stdin="\n \n")
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("published 0 events to orders")
    assert list(orders.sync.read()) == []


def test_a_stream_without_a_key_field_takes_the_key_of_the_option(rs: Commands) -> None:
    rs.ok("publish", "notes", "--app", "shop:app", "--json", '{"text": "a"}', "--key", "k1")
    rs.ok("publish", "notes", "--json", '{"text": "b"}', "--key", "k1")
    rs.ok("publish", "notes", "--json", '{"text": "c"}')

    found = rows(rs.ok("read", "notes", "--json"))

    assert [(row["key"], row["event"]["text"]) for row in found] == [("k1", "a"), ("k1", "b"), (None, "c")]
    assert len({row["id"].partition("@")[2] for row in found[:2]}) == 1


def test_url_and_namespace_may_stand_before_or_after_the_command(rs: Commands, namespace: str) -> None:
    url = rs.env.pop("RSTREAM_URL")
    del rs.env["RSTREAM_NAMESPACE"]
    target = ["--url", url, "--namespace", namespace]

    rs.ok(*target, "publish", "notes", "--app", "shop:app", "--json", '{"text": "a"}')
    assert len(rows(rs.ok("read", "notes", "--json", *target))) == 1


# -- read


def test_read_as_json_gives_everything_and_can_be_published_again(rs: Commands, orders: Stream[Order]) -> None:
    id = orders.sync.publish(Order(customer="c1", total=2.5, scan=SCAN), headers={"trace": "t1"})
    (entry,) = orders.sync.read()

    (row,) = rows(rs.ok("read", "orders", "--json"))

    assert row["id"] == str(id)
    assert (row["key"], row["headers"]) == ("c1", {"trace": "t1"})
    assert uuid.UUID(row["event_id"]).bytes == entry.event_id
    assert row["time"].endswith("Z")
    assert len(rows(rs.ok("read", "orders", "--json", "--from", row["time"], "--to", row["time"]))) == 1
    rs.ok("publish", "orders", "--json", json.dumps(row["event"]))
    assert [entry.event.scan for entry in orders.sync.read()] == [SCAN, SCAN]


def test_read_takes_a_window_a_key_and_a_limit(rs: Commands, orders: Stream[Order]) -> None:
    orders.sync.publish_many(Order(customer=f"c{n % 3}", total=n) for n in range(30))
    stored = [str(entry.id) for entry in orders.sync.read()]

    window = rows(rs.ok("read", "orders", "--json", "--from", stored[5], "--to", stored[9]))
    of_key = rows(rs.ok("read", "orders", "--json", "--key", "c1", "--limit", "4"))

    assert [row["id"] for row in window] == stored[5:10]
    assert [row["event"]["total"] for row in of_key] == [1, 4, 7, 10]


def test_what_json_cannot_say_is_read_as_text(rs: Commands, orders: Stream[Order]) -> None:
    for total in (float("inf"), float("-inf"), float("nan")):
        orders.sync.publish(Order(customer="c", total=total))

    found = [json.loads(line, parse_constant=pytest.fail) for line in rs.ok("read", "orders", "--json").splitlines()]

    assert [row["event"]["total"] for row in found] == ["Infinity", "-Infinity", "NaN"]


def test_read_as_a_table_has_one_line_an_entry(rs: Commands, orders: Stream[Order]) -> None:
    id = orders.sync.publish(Order(customer="c\n\x1b[31m", total=2.5))

    (line,) = rs.ok("read", "orders").splitlines()

    assert line.startswith(str(id))
    assert '"total": 2.5' in line
    assert "\x1b" not in line


def test_entries_that_cannot_be_decoded_are_shown_and_end_nothing(
    rs: Commands, orders: Stream[Order], one_server: Server
) -> None:
    id = orders.sync.publish(Order(customer="c1", total=1))
    shard = orders.sync.layout().current[id.shard]
    with redis.Redis.from_url(one_server.url) as raw:
        raw.xadd(shard.stream, {"e": b"\xc1\xff", "i": b"short"})
        raw.xadd(shard.stream, {"something": "else"})
        raw.xadd(shard.stream, {"e": b"\x92\x01\x80", "h": b"\xc1"})
    orders.sync.publish(Order(customer="c1", total=2))

    as_json, table = rs.run("read", "orders", "--json"), rs.run("read", "orders")

    found = rows(as_json.stdout)
    assert [row.get("event", {}).get("total") for row in found] == [1, None, None, None, 2]
    assert all("undecodable" in row["error"] for row in found[1:4])
    assert found[1]["event_id"] is None
    assert len(table.stdout.splitlines()) == 5
    for done in (as_json, table):
        assert done.returncode == 0
        assert "3 of 5 entries could not be decoded" in done.stderr


def test_a_reader_that_has_seen_enough_ends_it_quietly(rs: Commands, orders: Stream[Order]) -> None:
    orders.sync.publish_many(Order(customer="c", total=n, scan=SCAN) for n in range(3000))

    with subprocess.Popen(
        [sys.executable, "-m", "rstream", "read", "orders", "--json"],
        cwd=rs.directory,
        env=rs.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


# -- replay


def test_a_handler_that_names_no_model_is_told_to_get_dicts(rs: Commands, orders: Stream[Order]) -> None:
    rs.write("free.py", "def show(event):\n    print(type(event).__name__)\n")
    orders.sync.publish(Order(customer="c1", total=1))
    window = ["replay", "orders", "--from", "1h ago", "--to", "now"]

    free, known = rs.run(*window, "--handler", "free:show"), rs.run(*window, "--handler", "shop:bill")

    assert (free.returncode, known.returncode) == (0, 0), free.stderr + known.stderr
    assert free.stdout.startswith("dict\n")
    assert "free:show names no model" in free.stderr
    assert "names no model" not in known.stderr


# -- streams


def test_streams_tells_what_to_do_where_there_are_none(rs: Commands) -> None:
    assert "rstream publish" in rs.ok("streams")
    assert rs.ok("streams", "--json").strip() == "[]"


def test_streams_lists_what_is_stored(rs: Commands, orders: Stream[Order]) -> None:
    rs.ok("publish", "notes", "--app", "shop:app", "--json", '{"text": "a"}')
    orders.sync.publish_many(Order(customer=f"c{n}", total=n) for n in range(50))

    notes, found = json.loads(rs.ok("streams", "--json"))
    table = rs.ok("streams").splitlines()

    entries = list(orders.sync.read())
    assert notes["name"] == "notes"
    assert (found["name"], found["key"], found["shards"], found["entries"]) == ("orders", "customer", 4, 50)
    assert (found["first_id"], found["last_id"]) == (str(entries[0].id), str(entries[-1].id))
    assert sum(shard["entries"] for shard in found["per_shard"]) == 50
    assert table[0].split() == ["STREAM", "ENTRIES", "SHARDS", "KEY", "FROM", "TO", "GROUPS"]
    assert table[2].split()[:4] == ["orders", "50", "4", "customer"]


def test_a_declaration_that_redis_lost_is_named(rs: Commands, orders: Stream[Order], one_server: Server) -> None:
    with redis.Redis.from_url(one_server.url) as raw:
        raw.delete(f"{orders.app.settings.namespace}:stream:orders")

    done = rs.run("streams", "--json")

    assert json.loads(done.stdout) == []
    assert "'orders'" in done.stderr


# -- dev


def test_dev_serves_until_sigterm_and_prints_how_to_get_there(rs: Commands) -> None:
    home = rs.directory / "server data"
    with rs.started("dev", "--dir", str(home)) as dev:
        eventually(lambda: "export" in dev.out, 15)
        embedded, unix, export = dev.out.splitlines()
        assert embedded == f"embedded:{home.resolve()}"
        assert shlex.split(export) == ["export", f"RSTREAM_URL={embedded}"]
        rs.env["RSTREAM_URL"] = embedded
        rs.ok("publish", "notes", "--app", "shop:app", "--json", '{"text": "a"}')
        rs.env["RSTREAM_URL"] = unix
        assert len(rows(rs.ok("read", "notes", "--json"))) == 1
        dev.process.send_signal(signal.SIGTERM)
        assert dev.ended() == 0
    assert "Traceback" not in dev.err


def test_dev_ends_with_ctrl_c(rs: Commands) -> None:
    with rs.started("dev", "--dir", "d") as dev:
        eventually(lambda: "export" in dev.out, 15)
        os.kill(dev.process.pid, signal.SIGINT)
        assert dev.ended() == 0
    assert "Traceback" not in dev.err
