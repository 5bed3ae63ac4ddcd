"""One connection: nothing that belongs to an earlier exchange reaches a later one."""

from __future__ import annotations

import asyncio

import pytest
import redis
from redis._parsers.base import BaseParser

from rstream import Event, RStream
from rstream.errors import PublishUncertain, StoreRefused, StoreUnavailable
from rstream.store.connect import Endpoint
from rstream.store.line import broken
from rstream.store.scripts import PUBLISH
from tests.servers import Server
from tests.waiting import eventually_async

parse_error = BaseParser.parse_error


class Note(Event):
    text: str


def opened(server: Server, namespace: str) -> RStream:
    return RStream(server.url, namespace=namespace)


async def test_an_exchange_of_nothing_ends_at_once(server: Server, namespace: str) -> None:
    async with opened(server, namespace) as app:
        assert await app.link.exchange([]) == []
        assert app.sync_link.exchange([]) == []
        assert await app.link.exchange([("PING",)]) == app.sync_link.exchange([("PING",)]) == [b"PONG"]


async def test_replies_of_any_size_come_whole_and_in_order(server: Server, namespace: str) -> None:
    async with opened(server, namespace) as app:
        texts = [b"%d" % n * size for n, size in enumerate([0, 1, 70_000, 5, 3_000_000, 65_536])]
        calls = [("ECHO", text) for text in texts]
        for _ in range(3):
            assert await app.link.exchange(calls) == texts
            assert app.sync_link.exchange(calls) == texts


async def test_what_is_given_up_is_not_taken_for_the_next_reply(server: Server, namespace: str) -> None:
    async with opened(server, namespace) as app:
        slow = asyncio.create_task(app.link.exchange([("BLPOP", f"{namespace}:none", "0")]))
        raw = redis.Redis.from_url(server.url)
        await eventually_async(lambda: raw.info("clients")["blocked_clients"] > 0)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        raw.rpush(f"{namespace}:none", "late")
        raw.close()
        assert await app.link.exchange([("PING",)]) == [b"PONG"]


async def test_a_reply_that_is_late_is_not_taken_for_the_next_one(server: Server, namespace: str) -> None:
    async with opened(server, namespace) as app:
        await app.link.exchange([("PING",)])
        with pytest.raises(StoreUnavailable, match="TimeoutError") as caught:
            await app.link.exchange([("BLPOP", f"{namespace}:none", "1")], 0.05)
        assert caught.value.sent
        assert await app.link.exchange([("PING",)]) == [b"PONG"]


async def test_each_exchange_has_its_own_time(server: Server, namespace: str) -> None:
    async with opened(server, namespace) as app:
        waiting = ("BLPOP", f"{namespace}:none", "0.3")
        assert await app.link.exchange([("PING",)], 0.1) == [b"PONG"]
        assert await app.link.exchange([waiting], 5.0) == [None]  # the first one's time is up meanwhile
        with pytest.raises(StoreUnavailable, match="TimeoutError"):
            await app.link.exchange([waiting], 0.1)  # and the second one's is not


async def test_a_line_that_says_what_nobody_asked_is_not_used_again(server: Server, namespace: str) -> None:
    async with opened(server, namespace) as app:
        assert await app.link.exchange([("MONITOR",)]) == [b"OK"]
        (line,) = app.link._lines._idle
        with redis.Redis.from_url(server.url) as raw:
            raw.ping()
        await eventually_async(lambda: line.closed)
        assert await app.link.exchange([("PING",)]) == [b"PONG"]
        assert line not in app.link._lines._idle


async def test_that_a_server_closed_idle_lines_does_not_say_that_it_is_away(
    own_server: Server, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with RStream(own_server.url, namespace=namespace, publish_timeout=0.1) as app:
        notes = app.stream("notes", Note)
        await notes.publish(Note(text="a"))
        (line,) = app.link._lines._idle
        with redis.Redis.from_url(own_server.url) as raw:
            raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # as `timeout` in redis.conf does
        await eventually_async(lambda: line.closed)
        await notes.publish(Note(text="b"))
        assert not caplog.records

        (line,) = app.link._lines._idle
        own_server.kill()
        await eventually_async(lambda: line.closed)
        with pytest.raises(StoreUnavailable) as caught:
            await notes.publish(Note(text="c"))
        assert not caught.value.sent and not isinstance(caught.value, PublishUncertain)  # it went nowhere


@pytest.mark.parametrize("face", ["sync", "async"])
async def test_why_a_script_could_not_be_loaded_is_told(own_server: Server, namespace: str, face: str) -> None:
    with redis.Redis.from_url(own_server.url) as raw:
        raw.execute_command("ACL", "SETUSER", "ada", "on", ">pass", "~*", "&*", "+@all", "-script|load")
    async with RStream(own_server.url.replace("//", "//ada:pass@"), namespace=namespace) as app:
        call = PUBLISH([f"{namespace}:a", f"{namespace}:b"], 1, 1000, b"")
        for _ in range(2):
            (reply,) = app.sync_link.exchange([call]) if face == "sync" else await app.link.exchange([call])
            assert isinstance(reply, StoreRefused) and "permission" in str(reply)


def test_a_script_that_is_gone_again_is_asked_for_once_more_and_a_server_that_loads_has_done_nothing() -> None:
    endpoint = Endpoint("redis://nowhere")
    assert isinstance(endpoint.reply_error(parse_error("NOSCRIPT No matching script.")), StoreUnavailable)
    assert not broken(parse_error("LOADING Redis is loading the dataset in memory"))
    assert broken(parse_error("ERR max number of clients reached"))


async def test_lines_are_closed_with_the_app(server: Server, namespace: str) -> None:
    async with opened(server, namespace) as app:
        await asyncio.gather(*(app.link.exchange([("PING",)]) for _ in range(5)))
        lines = [*app.link._lines._idle]
        assert len(lines) == 5
    assert all(line._transport.is_closing() for line in lines)
