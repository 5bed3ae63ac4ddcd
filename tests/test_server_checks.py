"""Which servers are refused, which are warned of, and what is told of those that do not let us in."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from rstream import Event, RStream
from rstream.errors import ServerTooOld, StoreRefused, StoreUnavailable
from rstream.store.connect import GREETING, Endpoint
from tests.servers import KINDS, Server

SECRET = "s3cr3t"


class Seen(Event):
    device: str


def greeting(raw: redis.Redis) -> list[bytes]:
    """What the server really answers to a greeting: its INFO text, as bytes."""
    connection = raw.connection_pool.get_connection()
    try:
        connection.send_packed_command(connection.pack_commands(GREETING))
        return [connection.read_response(disable_decoding=True) for _ in GREETING]
    finally:
        connection.disconnect()


def claiming(replies: list[bytes], version: str) -> list[bytes]:
    """The same answer from a server of another version."""
    changed = [re.sub(rb"redis_version:[\d.]+", f"redis_version:{version}".encode(), reply) for reply in replies]
    assert changed != replies
    return changed


@contextmanager
def special(directory: Path, *args: str, kind: str = "embedded") -> Iterator[Server]:
    with Server(KINDS[kind], directory / "special", args=args, tcp=True) as server:
        yield server


def at(server: Server, user: str = "") -> str:
    return f"redis://{user and user + '@'}127.0.0.1:{server.port}/0"


def ends(app: RStream, face: str) -> None:
    """Publish one event and read it back, as threads or as coroutines do."""
    seen = app.stream("seen", Seen, key="device", shards=2)

    async def on_the_loop() -> None:
        async with app:
            await seen.publish(Seen(device="d"))
            assert [entry.event.device async for entry in seen.read()] == ["d"]

    if face == "async":
        anyio.run(on_the_loop)
    else:
        with app:
            seen.sync.publish(Seen(device="d"))
            assert [entry.event.device for entry in seen.sync.read()] == ["d"]


faces = pytest.mark.parametrize("face", ["sync", "async"])


# -- versions


def test_the_servers_here_are_new_enough(raw: redis.Redis, server: Server) -> None:
    Endpoint(server.url).check_server(greeting(raw))


def test_an_old_server_is_refused_by_name(raw: redis.Redis) -> None:
    for version in ("6.2.14", "6.0.0", "5.0.7", "2.8", "0.9"):
        with pytest.raises(ServerTooOld) as caught:
            Endpoint(f"redis://ada:{SECRET}@example:6379").check_server(claiming(greeting(raw), version))
        message = str(caught.value)
        assert f"version {version}:" in message and "needs Redis 7.0 or newer" in message
        assert "redis://example:6379" in message and SECRET not in message and "\n" not in message


def test_others_are_not(raw: redis.Redis) -> None:
    for version in ("7.0.0", "7.2.99", "8.2.99", "9.1.99", "10.0.0", "255.255.255", "unstable"):
        Endpoint("redis://example").check_server(claiming(greeting(raw), version))


@pytest.mark.parametrize("replies", [[], [b"", b""], [b"\xff:\xff\r\n:::\r\nredis_version"], [ValueError("no"), None]])
def test_a_server_that_does_not_say_is_trusted(replies: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    Endpoint("redis://example").check_server(replies)
    assert not caplog.records


# -- eviction


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@faces
@pytest.mark.parametrize(
    ("policy", "victims"),
    [("allkeys-lru", "whole streams"), ("allkeys-random", "whole streams"), ("volatile-lru", "leases")],
)
def test_a_policy_that_deletes_is_warned_of_and_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: str, victims: str, face: str
) -> None:
    with special(tmp_path, "--maxmemory-policy", policy) as server:
        ends(RStream(at(server)), face)
        (told,) = warnings(caplog)  # once, not for every connection
        assert f"maxmemory-policy {policy}" in told and victims in told and "noeviction" in told
        assert at(server) in told


@faces
def test_a_policy_that_keeps_is_not(
    server: Server, namespace: str, caplog: pytest.LogCaptureFixture, face: str
) -> None:
    ends(RStream(server.url, namespace=namespace), face)
    assert warnings(caplog) == []


# -- rights


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The default user needs a password; `ada` may do all, `bob` only read, `eve` nothing of what is needed."""
    users = {"ada": ["~*", "&*", "+@all"], "bob": ["~*", "+@read", "+@connection"], "eve": ["~other:*", "+@all"]}
    with special(tmp_path_factory.mktemp("guarded")) as server, redis.Redis.from_url(server.url) as admin:
        for user, rights in users.items():
            admin.execute_command("ACL", "SETUSER", user, "on", f">{SECRET}", *rights)
        admin.config_set("requirepass", SECRET)
        yield server


def refusal(url: str, face: str) -> str:
    """Must come at once: waiting does not make a password right."""
    with pytest.raises(StoreRefused) as caught:
        ends(RStream(url, publish_timeout=60), face)
    return str(caught.value)


@faces
@pytest.mark.timeout(20)
@pytest.mark.parametrize("user", [":wr0ng", "ada:wr0ng", "nobody:wr0ng", "wr0ng", ""])
def test_who_may_not_come_in_is_told_so(guarded: Server, user: str, face: str) -> None:
    message = refusal(at(guarded, user), face)
    assert f"Redis at {at(guarded)} refused: " in message and "Check user, password and rights" in message
    assert "wr0ng" not in message and SECRET not in message and "\n" not in message


@faces
@pytest.mark.timeout(20)
@pytest.mark.parametrize("user", ["bob", "eve"])
def test_who_may_not_write_is_told_so(guarded: Server, user: str, face: str) -> None:
    message = refusal(at(guarded, f"{user}:{SECRET}"), face)
    assert at(guarded) in message and "permission" in message and SECRET not in message


@faces
@pytest.mark.parametrize("user", [f":{SECRET}", f"ada:{SECRET}", f"default:{SECRET}"])
def test_who_may_does(guarded: Server, user: str, face: str) -> None:
    ends(RStream(at(guarded, user), namespace=f"{face}-{user[:2].strip(':') or 'anonymous'}"), face)


@faces
@pytest.mark.timeout(20)
def test_a_database_that_is_not_there_is_refused(one_server: Server, face: str) -> None:
    assert "refused" in refusal(f"redis://127.0.0.1:{one_server.port}/9999", face)


# -- nobody there


@faces
def test_nothing_at_the_port(face: str) -> None:
    with socket.socket() as free:  # bound and not listening: nobody else gets the port meanwhile
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(StoreUnavailable) as caught:
            ends(RStream(f"redis://ada:{SECRET}@{address}", publish_timeout=0.1), face)
    message = str(caught.value)
    assert f"Redis at redis://{address} does not answer: " in message
    assert SECRET not in message and "\n" not in message and not caught.value.sent


@faces
def test_no_socket_at_the_path(tmp_path: Path, face: str) -> None:
    with pytest.raises(StoreUnavailable, match=re.escape(f"unix://{tmp_path}/none")):
        ends(RStream(f"unix://{tmp_path}/none", publish_timeout=0.1), face)


@faces
def test_no_such_host(face: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"redis://nowhere\.invalid"):
        ends(RStream(f"redis://:{SECRET}@nowhere.invalid", publish_timeout=0.1), face)


@faces
def test_something_else_at_the_port(face: str) -> None:
    """It takes the connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(StoreUnavailable, match=re.escape(url)):
            ends(RStream(f"{url}?socket_timeout=0.1", publish_timeout=0.1), face)
