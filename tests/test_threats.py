"""What docs/security.md says of somebody who can write to Redis or to the blob store: each is done."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from rstream import Event, Retention, RStream, Stream
from rstream.errors import StreamMismatch
from rstream.store import keys
from rstream.store.deliveries import GroupOps, Outcome
from rstream.worker.worker import Worker
from tests.orders import member
from tests.servers import Server

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Note(Event):
    text: str
    number: int = 0


@pytest.fixture
def raw(one_server: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(one_server.url) as client:
        yield client


class Notes:
    """A stream that is handled to its end. handled: texts, in the order of handling."""

    def __init__(self, app: RStream) -> None:
        self.app, self.handled = app, list[str]()
        self.stream: Stream[Note] = app.stream("notes", Note, shards=1)

        @self.stream.consumer("g", lease=2.0)
        async def handle(note: Note) -> None:
            self.handled.append(note.text)

    async def shard(self) -> keys.Shard:
        return (await self.stream.layout()).current[0]

    async def drain(self) -> dict[str, int]:
        """The dead letters, by reason."""
        await Worker(self.app, burst=True).serve(signals=False)
        return await self.stream.dead("g").count()


def event(**fields: Any) -> dict[str, bytes]:
    return {"e": msgpack.packb([1, fields]), "i": b"\0" * 16}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"e": b"\x80\x04\x95cos\nsystem\n(S'touch pwned'\ntR."}, "undecodable"),  # a pickle is nothing but bytes
        ({"e": b""}, "undecodable"),
        ({"x": b"1"}, "undecodable"),
        (event(text=["no", "text"]), "invalid"),
        (event(text="a", number="many"), "invalid"),
        ({"e": msgpack.packb({"a": 1})}, "undecodable"),
        ({"e": msgpack.packb(msgpack.ExtType(1, b"x" * 44))}, "undecodable"),
        ({"e": b"\xdd\xff\xff\xff\xff"}, "undecodable"),  # an array of 4 billion
    ],
)
async def test_forged_garbage_does_not_reach_the_handler(
    one_app: RStream, raw: redis.Redis, fields: dict[str, bytes], reason: str, tmp_path: Path
) -> None:
    notes = Notes(one_app)
    raw.xadd((await notes.shard()).stream, fields)  # type: ignore[arg-type]
    await notes.stream.publish(Note(text="real"))
    assert await notes.drain() == {reason: 1} and notes.handled == ["real"]


async def test_a_forged_event_that_fits_is_handled(one_app: RStream, raw: redis.Redis) -> None:
    """Only an ACL, or a signature, stops it: the page says so."""
    notes = Notes(one_app)
    raw.xadd((await notes.shard()).stream, event(text="forged"))  # type: ignore[arg-type]
    assert await notes.drain() == {} and notes.handled == ["forged"]


async def test_a_forged_ack_is_believed_and_a_deleted_entry_is_counted(
    one_app: RStream, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes(one_app)
    acked, deleted, _ = [await notes.stream.publish(Note(text=text)) for text in ("acked", "deleted", "kept")]
    shard = await notes.shard()
    ops = member(notes.stream, "g", "gone")  # type: ignore[arg-type]
    notes.app.sync_link.run(ops.fetch(2))
    raw.xack(shard.stream, "g", acked.redis)
    raw.xdel(shard.stream, deleted.redis)
    await notes.drain()
    assert notes.handled == ["kept"]
    assert f"entry {deleted} was trimmed before it was processed: it is lost" in caplog.text
    assert str(acked) not in caplog.text


async def test_a_delivery_that_was_taken_away_cannot_be_settled(one_app: RStream, raw: redis.Redis) -> None:
    notes = Notes(one_app)
    await notes.stream.publish(Note(text="a"))
    shard, ops = await notes.shard(), member(notes.stream, "g", "w1")  # type: ignore[arg-type]
    (entry,) = notes.app.sync_link.run(ops.fetch(1)).entries
    raw.xclaim(shard.stream, "g", "eve", 0, [entry.id])
    (refused,) = notes.app.sync_link.run(ops.settle([Outcome(shard, entry.id, 1, "ack")]))
    assert refused and raw.xpending(shard.stream, "g")["pending"] == 1
    assert await notes.drain() == {} and notes.handled == ["a"]  # eve has no lease


async def test_whoever_knows_worker_and_attempt_can_settle(one_app: RStream, raw: redis.Redis) -> None:
    notes = Notes(one_app)
    await notes.stream.publish(Note(text="a"))
    shard, ops = await notes.shard(), member(notes.stream, "g", "w1")  # type: ignore[arg-type]
    (entry,) = notes.app.sync_link.run(ops.fetch(1)).entries
    liar = GroupOps(ops.layout, "g", raw.xpending_range(shard.stream, "g", "-", "+", 1)[0]["consumer"].decode())
    assert not notes.app.sync_link.run(liar.settle([Outcome(shard, entry.id, 1, "ack")]))


@pytest.mark.parametrize(
    ("field", "value"), [("key", "text"), ("schema:1", '{"properties":{"text":{"type":"array"}}}')]
)
async def test_a_rewritten_declaration_is_refused(
    one_app: RStream, one_server: Server, namespace: str, raw: redis.Redis, field: str, value: str
) -> None:
    await Notes(one_app).stream.layout()
    stored = keys.stream(namespace, "notes")
    raw.hset(stored, field, value)
    if field != "key":
        for name in [name for name in raw.hkeys(stored) if name.startswith(b"version:")]:
            raw.hdel(stored, name)
    async with RStream(one_server.url, namespace=namespace) as other:
        with pytest.raises(StreamMismatch):
            await other.stream("notes", Note, shards=1).publish(Note(text="a"))


async def test_a_rewritten_retention_is_obeyed_and_what_it_drops_is_told(
    one_app: RStream, raw: redis.Redis, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes(one_app)
    member(notes.stream, "other", "w1")  # type: ignore[arg-type]
    for n in range(300):
        await notes.stream.publish(Note(text=str(n)))
    drops = Retention(entries=1, unprocessed="drop").to_json()
    raw.hset(keys.stream(namespace, "notes"), "retention", drops)
    from rstream.store import layout as layouts
    from rstream.store.steps import drive
    from rstream.store.trim import tidy

    with caplog.at_level(logging.WARNING):
        layout = await one_app.link.run(layouts.load(namespace, "notes"))
        assert layout is not None and layout.retention is not None
        await drive(one_app.link, tidy(layout, layout.retention), 5.0)
    assert "were dropped before they were processed" in caplog.text


@pytest.mark.parametrize(("data", "reason"), [(b"another" * 20_000, "blob altered"), (None, "blob missing")])
async def test_a_blob_that_was_exchanged(
    one_server: Server, namespace: str, tmp_path: Path, data: bytes | None, reason: str
) -> None:
    async with RStream(one_server.url, namespace=namespace, blobs=f"file://{tmp_path}") as app:
        notes = Notes(app)
        await notes.stream.publish(Note(text="x" * 100_000))
        exchange(tmp_path, data)
        assert await notes.drain() == {reason: 1} and notes.handled == []


def exchange(directory: Path, data: bytes | None) -> None:
    (blob,) = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size > 50_000]
    if data is None:
        blob.unlink()
    else:
        blob.write_bytes(data)
