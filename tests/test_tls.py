"""Connections by TLS: what comes in several records at once is read whole, and publishing is as exact."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rstream import Event, RStream
from rstream.errors import StoreRefused, StoreUnavailable
from rstream.store import roles
from rstream.worker.worker import Worker
from tests.proxy import ChaosProxy
from tests.servers import Server
from tests.tls import Door, certify

MANY = 10_000


class Seen(Event):
    device: str
    n: int


@pytest.fixture
def door(one_server: Server, tmp_path: Path) -> Iterator[Door]:
    upstream = one_server.upstream
    assert isinstance(upstream, tuple)
    with Door(upstream, certify(tmp_path / "door.pem")) as door:
        yield door


async def test_replies_of_many_records_come_whole_and_in_order(door: Door, namespace: str) -> None:
    async with RStream(door.url(), namespace=namespace) as app:
        texts = [random.Random(n).randbytes(size) for n, size in enumerate([0, 1, 70_000, 5, 3_000_000, 65_536])]
        calls = [("ECHO", text) for text in texts]
        for _ in range(3):
            assert await app.link.exchange(calls) == texts
            assert app.sync_link.exchange(calls) == texts


async def test_publishing_is_exact_through_broken_connections(door: Door, namespace: str) -> None:
    with ChaosProxy(("127.0.0.1", door.port)) as proxy:
        async with RStream(door.url(proxy.port), namespace=namespace) as app:
            seen = app.stream("seen", Seen, key="device", shards=2)
            proxy.cut_after_request(5, random.Random(5), mean_bytes=60_000)
            ids = await seen.publish_many([Seen(device=f"d{n % 7}", n=n) for n in range(MANY)])
            proxy.cut_after_request(0, random.Random(0), mean_bytes=1)
            found = {entry.id: entry.event.n async for entry in seen.read()}
    assert proxy.cuts >= 3
    assert found == {id: n for n, id in enumerate(ids)}


async def test_a_server_that_nobody_has_certified_is_not_talked_to(door: Door, namespace: str) -> None:
    url = door.url().partition("?")[0]
    async with RStream(url, namespace=namespace, publish_timeout=0.1) as app:
        with pytest.raises(StoreUnavailable, match="certificate verify failed"):
            await app.stream("seen", Seen, key="device").publish(Seen(device="a", n=0))


async def test_users_of_an_acl_come_in_by_tls_and_with_no_more_rights(
    door: Door, one_server: Server, namespace: str
) -> None:
    with redis.Redis.from_url(one_server.url) as raw:
        for role, secret in (("producer", "pr0d"), ("worker", "w0rk")):
            rules = roles.rules(role, namespace, ["seen"], declares=role == "producer")  # type: ignore[arg-type]
            raw.execute_command("ACL", "SETUSER", f"{namespace}-{role}", "on", f">{secret}", *rules)

    def url(role: str, secret: str) -> str:
        return door.url().replace("//", f"//{namespace}-{role}:{secret}@")

    try:
        async with (
            RStream(url("producer", "pr0d"), namespace=namespace) as producer,
            RStream(url("worker", "w0rk"), namespace=namespace) as working,
            RStream(url("worker", "wr0ng"), namespace=namespace, publish_timeout=0.1) as wrong,
        ):
            published = producer.stream("seen", Seen, key="device", shards=2)
            ids = await published.publish_many([Seen(device=f"d{n}", n=n) for n in range(100)])
            handled: list[int] = []
            seen = working.stream("seen", Seen, key="device", shards=2)

            @seen.consumer("g")
            async def handle(event: Seen) -> None:
                handled.append(event.n)

            await Worker(working, burst=True).serve(signals=False)
            assert sorted(handled) == [*range(100)] and len(ids) == 100
            with pytest.raises(StoreRefused, match="rstream acl --help"):
                _ = [entry async for entry in published.read()]
            with pytest.raises(StoreRefused, match="rstream acl --help"):
                await seen.publish(Seen(device="a", n=0))
            with pytest.raises(StoreRefused) as caught:
                await wrong.stream("seen", Seen, key="device").publish(Seen(device="a", n=0))
            assert "wr0ng" not in str(caught.value)
    finally:
        with redis.Redis.from_url(one_server.url) as raw:
            for role in ("producer", "worker"):
                raw.execute_command("ACL", "DELUSER", f"{namespace}-{role}")
