"""The command line with keys, and without; and handlers in processes, which get no keys sent."""

from __future__ import annotations

import base64
import json
import os

import pytest
import redis

from rstream.store.keys import shard
from tests.commands import Commands
from tests.servers import Server

SEALED = """
from rstream import Delivery, Event, Keyring, RStream

app = RStream(encrypt=Keyring.env("SHOP_KEYS"))

class Order(Event):
    customer: str
    total: float

orders = app.stream("orders", Order, key="customer", shards=1)

@orders.consumer("billing", run_in="process", concurrency=1, lease=2.0)
def bill(order: Order, delivery: Delivery) -> None:
    if delivery.attempt == 1:
        delivery.sync.checkpoint({"was": order.customer})
        raise ValueError("again")
    with open("handled.txt", "a") as file:
        file.write(f"{delivery.checkpoint_value} {order.total:g}\\n")
    raise ValueError("never")
"""
KEY = f"k1:{base64.b64encode(os.urandom(32)).decode()}"


@pytest.fixture
def sealed(rs: Commands) -> Commands:
    """Two orders, of which the second is a forged one, in the open; both are dead letters."""
    rs.write("sealed.py", SEALED)
    rs.env["SHOP_KEYS"] = KEY
    rs.ok("publish", "orders", "--app", "sealed:app", "--json", '{"customer": "ada", "total": 1}')
    rs.ok("worker", "sealed:app", "--burst")
    return rs


@pytest.fixture
def forged(sealed: Commands, one_server: Server) -> Commands:
    import msgpack

    fields = {"e": msgpack.packb([1, {"customer": "eve", "total": 2.0}]), "k": "eve", "i": bytes(16)}
    with redis.Redis.from_url(one_server.url) as raw:
        raw.xadd(shard(sealed.env["RSTREAM_NAMESPACE"], "orders", 1, 0, 1).stream, fields)  # type: ignore[arg-type]
    sealed.ok("worker", "sealed:app", "--burst")
    return sealed


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_handler_in_a_process_has_its_checkpoint(sealed: Commands, one_server: Server) -> None:
    assert set(sealed.handled) == {"{'was': 'ada'} 1"}
    (letter,) = rows(sealed.ok("dead", "list", "orders", "--group", "billing", "--json"))
    assert letter["reason"] == "failed"


def test_without_keys_it_is_said_which_one_is_missing(forged: Commands) -> None:
    told = "is encrypted with key 'k1', and RSTREAM_KEYS is not set: give it the keys, newest first, as id:base64"
    first, second = forged.ok("read", "orders").splitlines()
    assert f"!! undecryptable: the payload {told}" in first
    assert "!! plaintext: the payload is not encrypted" in second and '"customer": "eve"' in second
    assert forged.run("export", "orders").returncode == 1
    assert told in forged.ok("show", "orders", first.split()[0])
    (letter,) = rows(forged.ok("dead", "show", "orders", "--group", "billing", "--reason", "failed", "--json"))
    assert letter["event"] is None and told in str(letter["problem"])
    refused = forged.run("publish", "orders", "--json", '{"customer": "bob", "total": 3}')
    assert refused.returncode == 1 and "RSTREAM_KEYS is not set" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_with_keys_all_is_shown(forged: Commands) -> None:
    forged.env["RSTREAM_KEYS"] = KEY
    first, second = rows(forged.ok("read", "orders", "--json"))
    assert first["event"] == {"customer": "ada", "total": 1.0} and "error" not in first
    assert second["event"] == {"customer": "eve", "total": 2.0} and str(second["error"]).startswith("plaintext: ")
    shown = rows(forged.ok("show", "orders", str(first["id"]), "--json"))[0]
    assert shown["event"] == {"customer": "ada", "total": 1.0}
    shown = rows(forged.ok("show", "orders", str(second["id"]), "--json"))[0]
    assert "plaintext" in json.dumps(shown)
    exported = forged.run("export", "orders")
    assert exported.returncode == 1 and [row["customer"] for row in rows(exported.stdout)] == ["ada"]
    assert "plaintext" in exported.stderr
    one = ("dead", "show", "orders", "--group", "billing", "--json", "--reason")
    letters = [row for reason in ("failed", "plaintext") for row in rows(forged.ok(*one, reason))]
    assert [(row["reason"], row["event"]) for row in letters] == [
        ("failed", {"customer": "ada", "total": 1.0}),
        ("plaintext", {"customer": "eve", "total": 2.0}),
    ]
    assert str(letters[1]["problem"]).startswith("plaintext: ")
    forged.ok("publish", "orders", "--json", '{"customer": "bob", "total": 3}')
    assert rows(forged.ok("read", "orders", "--key", "bob", "--json"))[0]["event"] == {"customer": "bob", "total": 3.0}


def test_a_worker_without_keys_says_so_and_ends(sealed: Commands) -> None:
    del sealed.env["SHOP_KEYS"]
    done = sealed.run("worker", "sealed:app", "--burst")
    assert done.returncode == 1 and "SHOP_KEYS is not set" in done.stderr and "Traceback" not in done.stderr
