"""Encrypted streams, against real servers: what lies there, who reads it, and what becomes of what is forged."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import redis

from rstream import Blob, Delivery, Event, Keyring, RetryPolicy, RStream, Stream
from rstream import crypto as cryptos
from rstream.archive.archive import Archive
from rstream.crypto import Seal, key_id
from rstream.errors import ConfigError, EntryInvalid, EventTooLarge, MemoInvalid, Undecryptable, UnknownStream
from rstream.replay import as_group, into_group, replay
from rstream.store import keys
from rstream.store import layout as layouts
from tests.archives import Log
from tests.servers import Server
from tests.test_worker import drain, working
from tests.waiting import eventually_async

SECRET = "the patient is called Ada"
OLD, NEW = os.urandom(32), os.urandom(32)


class Note(Event):
    who: str
    text: str
    n: int = 0


def note(who: str, n: int = 0) -> Note:
    return Note(who=who, text=SECRET, n=n)  # a default would lie in the stored schema: the page says so


class Scan(Event):
    who: str
    pixels: Blob = Blob(b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture
async def app(server: Server, namespace: str) -> AsyncIterator[RStream]:
    """On every kind of server; all its streams are encrypted."""
    async with RStream(server.url, namespace=namespace, encrypt=Keyring({"new": NEW, "old": OLD})) as app:
        yield app


@pytest.fixture
async def large(one_server: Server, namespace: str, folder: Path) -> AsyncIterator[RStream]:
    """With a blob store."""
    ring, blobs = Keyring({"new": NEW, "old": OLD}), f"file://{folder}"
    async with RStream(one_server.url, namespace=namespace, encrypt=ring, blobs=blobs) as app:
        yield app


@pytest.fixture
def one_raw(one_server: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(one_server.url) as client:
        yield client


def lies_in_redis(raw: redis.Redis, app: RStream, *words: bytes) -> list[bytes]:
    """The keys of the app's namespace in whose name or value one of these is, of whatever type."""
    found = []
    for key in raw.scan_iter(f"*{app.settings.namespace}*", count=10_000):
        value: Any = {
            b"string": raw.get,
            b"hash": raw.hgetall,
            b"stream": raw.xrange,
            b"zset": lambda key: raw.zrange(key, 0, -1),
            b"set": raw.smembers,
            b"list": lambda key: raw.lrange(key, 0, -1),
        }[raw.type(key)](key)
        if any(word in key or repr(word)[2:-1] in repr(value) for word in words):
            found.append(key)
    return found


def lies_in_files(folder: Path, *words: bytes) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(word in path.read_bytes() for word in words)]


def copied(raw: redis.Redis, shard: keys.Shard, id: str) -> dict[bytes, bytes]:
    ((_, fields),) = raw.xrange(shard.stream, id, id)
    return dict(fields)


KEY_MATERIAL = [part for key in (OLD, NEW) for part in (key, base64.b64encode(key))]


# -- nothing of it is in Redis


async def test_all_ways_to_publish_are_encrypted_and_read(app: RStream, raw: redis.Redis) -> None:
    notes = app.stream("notes", Note, key="who", shards=3)
    loose = app.stream("loose", Note, shards=2)
    events = [note(f"w{n % 5}", n) for n in range(40)]
    await notes.publish(events[0])
    await notes.publish_many(events[1:20])
    await notes.publish_many([*events[20:30], {"who": "dict", "text": SECRET}])
    await asyncio.to_thread(notes.sync.publish, events[30], headers={"a": "b"})
    await asyncio.to_thread(notes.sync.publish_many, iter(events[31:]))
    await loose.publish(events[0])
    await loose.publish(events[0], key="given")
    await loose.publish_many(events, key="given")
    assert lies_in_redis(raw, app, SECRET.encode(), *KEY_MATERIAL) == []
    read = [entry async for entry in notes.read()]
    assert sorted(entry.event.n for entry in read) == sorted([*range(40), 0])
    assert {entry.event.text for entry in read} == {SECRET} and {key_id(e.payload) for e in read} == {"new"}
    assert [e.event.n for e in await asyncio.to_thread(lambda: list(notes.sync.read(key="w1")))] == [*range(1, 40, 5)]
    assert len([entry.event async for entry in loose.read()]) == 42


async def test_nothing_that_comes_of_handling_lies_there_in_the_open(app: RStream, raw: redis.Redis) -> None:
    """Checkpoints, steps, emitted events, dead letters."""
    notes = app.stream("notes", Note, key="who", shards=2)
    others = app.stream("others", Note, key="who", shards=2)
    seen: list[Any] = []

    @notes.consumer("g", retry=RetryPolicy(initial_delay=0, max_attempts=2), emits=others)
    async def handle(event: Note, delivery: Delivery) -> Note:
        seen.append(delivery.checkpoint_value)
        await delivery.checkpoint({"at": event.text})
        seen.append(await delivery.step("look", lambda: event.text))
        seen.append(lies_in_redis(raw, app, SECRET.encode()))
        seen.append(len(raw.keys(f"*{app.settings.namespace}*:memo:*")))
        if delivery.attempt == 1 or event.n:
            raise ValueError("not now")
        return event

    await notes.publish(note("ada"))
    await drain(app)
    assert seen == [None, SECRET, [], 1, {"at": SECRET}, SECRET, [], 1]
    await notes.publish(note("bob", 1))
    await drain(app)
    (letter,) = [letter async for letter in notes.dead("g").read()]
    assert letter.event.text == SECRET and key_id(letter.payload) == "new"
    (emitted,) = [entry async for entry in others.read()]
    assert emitted.event == note("ada") and emitted.key == "ada"
    assert lies_in_redis(raw, app, SECRET.encode(), *KEY_MATERIAL) == []


async def test_large_payloads_and_blobs_are_encrypted_in_the_blob_store(
    large: RStream, one_raw: redis.Redis, folder: Path, tmp_path: Path
) -> None:
    notes = large.stream("notes", Note, key="who", shards=1)
    scans = large.stream("scans", Scan, key="who", shards=1)
    path = tmp_path / "scan"
    path.write_bytes(SECRET.encode() * 9_000)
    await notes.publish(Note(who="ada", text=SECRET * 5_000))
    await scans.publish(Scan(who="small", pixels=Blob(SECRET.encode())))
    await scans.publish(Scan(who="bytes", pixels=Blob(SECRET.encode() * 9_000)))
    await scans.publish(Scan(who="file", pixels=Blob.file(path)))
    await asyncio.to_thread(scans.sync.publish, Scan(who="sync", pixels=Blob.file(path)))
    assert lies_in_files(folder, SECRET.encode(), *KEY_MATERIAL) == []
    assert lies_in_redis(one_raw, large, SECRET.encode()) == []
    sizes: dict[str, int] = {}

    @scans.consumer("g")
    async def handle(event: Scan) -> None:
        sizes[event.who] = len(await event.pixels.read())

    texts: list[str] = []

    @notes.consumer("g")
    async def read(event: Note) -> None:
        texts.append(event.text)

    await drain(large)
    whole = len(SECRET) * 9_000
    assert sizes == {"small": len(SECRET), "bytes": whole, "file": whole, "sync": whole}
    assert texts == [SECRET * 5_000]


async def test_a_blob_of_another_stream_is_taken_into_an_encrypted_event(large: RStream, folder: Path) -> None:
    plain = large.stream("plain", Scan, key="who", shards=1, encrypt=False)
    sealed = large.stream("sealed", Scan, key="who", shards=1)

    @plain.consumer("g", emits=sealed)
    async def forward(event: Scan) -> Scan:
        return event

    await plain.publish(Scan(who="ada", pixels=Blob(b"x" * 100_000)))
    await drain(large)
    (entry,) = [entry async for entry in sealed.read()]
    assert await entry.event.pixels.read() == b"x" * 100_000
    assert len(lies_in_files(folder, b"")) >= 2  # the plain one, and the encrypted event as a whole
    assert len(lies_in_files(folder, b"x" * 1000)) == 1


async def test_a_blob_that_is_too_large_to_be_encrypted_as_a_whole_is_refused(large: RStream, tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(257 * 1024 * 1024)
    with pytest.raises(EventTooLarge, match="in an encrypted stream it is encrypted with its event"):
        await large.stream("scans", Scan, key="who").publish(Scan(who="ada", pixels=Blob.file(path)))


def test_the_archive_holds_what_was_encrypted_as_it_is(
    one_server: Server, namespace: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = Keyring({"new": NEW})
    with RStream(one_server.url, namespace=namespace, blobs=f"file://{folder}", encrypt=ring) as app:
        log = Log(app)
        log.publish(200, pad=0)
        before = {entry.id: entry.payload for entry in log.stream.sync.read()}
        log.archive()
        assert log.trim() > 150 and isinstance(log.past, Archive)
        after = [*log.stream.sync.read()]
        assert [entry.id for entry in after] == log.ids
        assert {entry.id: entry.payload for entry in after} == before
        assert sorted(entry.event.n for entry in after) == [*range(200)]
        assert {entry.event.device for entry in log.stream.sync.read(key="device3")} == {"device3"}
    other = Keyring({"new": NEW})
    with RStream(one_server.url, namespace=namespace, blobs=f"file://{folder}", encrypt=other) as app:
        assert sorted(entry.event["n"] for entry in app.open("readings").sync.read()) == [*range(200)]


# -- what is forged


class Notes:
    """A stream that is handled to its end. handled: texts, in the order of handling."""

    def __init__(self, app: RStream, name: str = "notes") -> None:
        self.app, self.handled = app, list[str]()
        self.stream: Stream[Note] = app.stream(name, Note, key="who", shards=1)

        @self.stream.consumer("g", lease=2.0)
        async def handle(note: Note) -> None:
            self.handled.append(note.text)

    async def shard(self) -> keys.Shard:
        return (await self.stream.layout()).current[0]

    async def drain(self) -> dict[str, int]:
        await drain(self.app)
        return await self.stream.dead("g").count()


async def test_an_entry_in_the_open_is_refused(
    app: RStream, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes(app)
    forged = {"e": msgpack.packb([1, {"who": "ada", "text": "forged", "n": 0}]), "k": "ada", "i": b"\0" * 16}
    raw.xadd((await notes.shard()).stream, forged)  # type: ignore[arg-type]
    await notes.stream.publish(Note(who="ada", text="real"))
    assert await notes.drain() == {"plaintext": 1} and notes.handled == ["real"]
    assert "set aside as plaintext: the payload is not encrypted, and everything of stream" in caplog.text
    (letter,) = [letter async for letter in notes.stream.dead("g").read(reason="plaintext")]
    with pytest.raises(EntryInvalid, match="is not encrypted"):
        letter.event  # noqa: B018


async def test_an_entry_cannot_be_moved_to_another_key_stream_or_namespace(app: RStream, raw: redis.Redis) -> None:
    notes, others = Notes(app), Notes(app, "others")
    shard = await notes.shard()
    fields = copied(raw, shard, (await notes.stream.publish(Note(who="ada", text="a"))).redis)
    raw.xadd(shard.stream, fields | {b"k": b"bob"})  # type: ignore[arg-type]
    raw.xadd(shard.stream, {b"e": fields[b"e"], b"i": fields[b"i"]})
    raw.xadd((await others.shard()).stream, fields)  # type: ignore[arg-type]
    raw.xadd(shard.stream, fields)  # type: ignore[arg-type]
    assert await notes.drain() == {"undecryptable": 2}
    assert notes.handled == ["a", "a"]  # what was published can be published again: the page says so
    assert await others.stream.dead("g").count() == {"undecryptable": 1} and others.handled == []


@pytest.mark.parametrize("how", ["flipped", "cut", "longer", "another key id", "noise"])
async def test_an_altered_entry_is_set_aside(app: RStream, raw: redis.Redis, how: str) -> None:
    notes = Notes(app)
    shard = await notes.shard()
    fields = copied(raw, shard, (await notes.stream.publish(Note(who="ada", text="a"))).redis)
    payload = fields[b"e"]
    changed = {
        "flipped": payload[:-1] + bytes([payload[-1] ^ 1]),
        "cut": payload[:-5],
        "longer": payload + b"x",
        "another key id": payload.replace(b"new", b"old"),
        "noise": b"\x94" + os.urandom(50),
    }[how]
    raw.xadd(shard.stream, fields | {b"e": changed})  # type: ignore[arg-type]
    found = await notes.drain()
    assert sum(found.values()) == 1 and found.keys() <= {"undecryptable", "undecodable"}
    assert notes.handled == ["a"]


async def test_a_checkpoint_that_is_forged_or_moved_never_reaches_the_handler(app: RStream, raw: redis.Redis) -> None:
    notes = app.stream("notes", Note, key="who", shards=1)
    raised: list[str] = []
    moved: dict[bytes, bytes] = {}

    @notes.consumer("g", retry=RetryPolicy(initial_delay=0, max_attempts=2))
    async def handle(event: Note, delivery: Delivery) -> None:
        if delivery.attempt == 1:
            await delivery.checkpoint(event.n)
            (key,) = raw.keys(f"*{app.settings.namespace}*:memo:*{delivery.id.redis}")
            if event.n == 0:
                moved.update(raw.hgetall(key))
                raw.hset(key, "c", msgpack.packb([1, {"v": "forged"}]))
            elif event.n == 1:
                raw.hset(key, "c", moved[b"c"])
            raise ValueError("again")
        try:
            raised.append(str(delivery.checkpoint_value))
        except MemoInvalid as error:
            raised.append(str(error))

    for n in range(3):
        await notes.publish(note("ada", n))
    await drain(app)
    assert raised[0].startswith("the checkpoint that was stored cannot be read: it is not encrypted")
    assert "it was altered, or is not of this entry" in raised[1]
    assert raised[2] == "2"


# -- rotation, and moving in


async def test_keys_rotate_under_live_workers(
    one_server: Server, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new key is told to all before it encrypts; the old one goes when nothing is left that needs it."""
    monkeypatch.setattr(cryptos, "ASK_AGAIN", 0.0)
    ring: list[str] = []
    path = tmp_path / "keys"

    def write() -> None:
        (tmp_path / "next").write_text("\n".join(ring))
        (tmp_path / "next").rename(path)

    def key(id: int) -> str:
        return f"k{id}:{base64.b64encode(bytes([id]) * 32).decode()}"

    ring.append(key(0))
    write()
    handled: list[int] = []
    async with (
        RStream(one_server.url, namespace=namespace) as app,
        RStream(one_server.url, namespace=namespace) as other,
    ):
        for each in (app, other):
            notes = each.stream("notes", Note, key="who", shards=4, encrypt=Keyring.file(path, refresh=0.0))

            @notes.consumer("g", lease=5.0)
            async def handle(event: Note) -> None:
                handled.append(event.n)

        async def publish() -> None:
            first = len(published)
            published.extend(range(first, first + 50))
            await notes.publish_many([note(f"w{n % 7}", n) for n in published[first:]])

        published: list[int] = []
        async with working(app), working(other):
            for turn in range(1, 6):
                ring.insert(1, key(turn))
                write()
                await publish()
                ring.reverse()
                write()
                await eventually_async(lambda: newest(notes) == ring[0].partition(":")[0])
                await publish()
                await eventually_async(lambda: len(handled) == len(published))
                del ring[1]
                write()
            assert await notes.dead("g").count() == {}
        used = [key_id(entry.payload) async for entry in notes.read()]
    assert sorted(handled) == published and set(used) == {f"k{turn}" for turn in range(6)}


def newest(stream: Stream[Any]) -> str:
    assert stream.claims.seal is not None
    return stream.claims.seal.ring.newest.id


async def test_a_dropped_key_is_a_dead_letter_that_can_be_redriven(one_server: Server, namespace: str) -> None:
    async with RStream(one_server.url, namespace=namespace, encrypt=Keyring({"old": OLD})) as app:
        await Notes(app).stream.publish(Note(who="ada", text="of old"))
    async with RStream(one_server.url, namespace=namespace, encrypt=Keyring({"new": NEW})) as app:
        notes = Notes(app)
        await notes.stream.publish(Note(who="ada", text="of new"))
        assert await notes.drain() == {"undecryptable": 1} and notes.handled == ["of new"]
        (letter,) = [letter async for letter in notes.stream.dead("g").read()]
        assert letter.error == "the payload is encrypted with key 'old', which is not here: there are new"
        with pytest.raises(Undecryptable):
            letter.event  # noqa: B018
    async with RStream(one_server.url, namespace=namespace, encrypt=Keyring({"new": NEW, "old": OLD})) as app:
        notes = Notes(app)
        assert (await notes.stream.dead("g").redrive(reason="undecryptable")).done == 1
        assert await notes.drain() == {} and notes.handled == ["of old"]


async def test_a_stream_is_moved_into_encryption_while_it_is_used(one_server: Server, namespace: str) -> None:
    async with RStream(one_server.url, namespace=namespace) as app:
        await Notes(app).stream.publish(Note(who="ada", text="before"))
    ring = Keyring({"new": NEW}, accept_plaintext=True)
    async with RStream(one_server.url, namespace=namespace, encrypt=ring) as app:
        notes = Notes(app)
        await notes.stream.publish(Note(who="ada", text="after"))
        assert await notes.drain() == {} and notes.handled == ["before", "after"]
        assert [key_id(entry.payload) async for entry in notes.stream.read()] == [None, "new"]
    async with RStream(one_server.url, namespace=namespace, encrypt=Keyring({"new": NEW})) as app:
        read = [entry async for entry in Notes(app).stream.read()]
        with pytest.raises(EntryInvalid, match="is not encrypted"):
            read[0].event  # noqa: B018
        assert read[1].event.text == "after"


async def test_a_worker_without_its_keys_does_not_start(
    one_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would set aside all that comes."""
    monkeypatch.delenv("RSTREAM_KEYS", raising=False)
    async with RStream(one_server.url, namespace=namespace, encrypt=Keyring.env()) as app:
        notes = Notes(app)
        with pytest.raises(ConfigError, match="RSTREAM_KEYS is not set"):
            await drain(app)
        with pytest.raises(ConfigError, match="RSTREAM_KEYS is not set"):
            await notes.stream.publish(note("ada"))
        assert await notes.stream.dead("g").count() == {}


# -- replays


async def test_replays_of_all_kinds_open_what_they_need(app: RStream, namespace: str) -> None:
    notes = Notes(app)
    await notes.stream.publish_many([Note(who=f"w{n}", text=f"t{n}", n=n) for n in range(10)])
    assert await notes.drain() == {}
    seen: list[str] = []

    async def again(note: Note) -> None:
        seen.append(note.text)

    result = await replay(notes.stream, again, None, None, where=["n=3"])
    assert (result.handled, result.skipped, seen) == (1, 9, ["t3"])
    notes.handled.clear()
    given = await into_group(notes.stream, "g", None, None, where=["n=4"])
    assert given.given == 1 and await notes.drain() == {} and notes.handled == ["t4"]
    await as_group(notes.stream, "fresh", "earliest")


# -- who has no model, who has no keys


async def test_a_stream_is_opened_with_the_keys_there_are(
    one_server: Server, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RSTREAM_KEYS", raising=False)
    async with RStream(one_server.url, namespace=namespace, encrypt=Keyring({"new": NEW})) as app:
        await Notes(app).stream.publish(note("ada"))
    async with RStream(one_server.url, namespace=namespace) as app:
        opened = await asyncio.to_thread(app.open, "notes")
        (entry,) = [entry async for entry in opened.read()]
        with pytest.raises(Undecryptable, match="is encrypted with key 'new', and RSTREAM_KEYS is not set"):
            entry.event  # noqa: B018
        with pytest.raises(ConfigError, match="RSTREAM_KEYS is not set"):
            await opened.publish({"who": "bob", "text": "a"})
    monkeypatch.setenv("RSTREAM_KEYS", f"new:{base64.b64encode(NEW).decode()}")
    async with RStream(one_server.url, namespace=namespace) as app:
        opened = await asyncio.to_thread(app.open, "notes")
        await opened.publish({"who": "bob", "text": "by hand"})
        assert [entry.event["text"] async for entry in opened.read()] == [SECRET, "by hand"]
        with pytest.raises(UnknownStream):
            await asyncio.to_thread(app.open, "others")
    async with RStream(one_server.url, namespace=namespace) as app:  # whoever declares it without keys
        (first, _) = [entry async for entry in app.stream("notes", Note, key="who").read()]
        with pytest.raises(Undecryptable, match="there are no keys here: give the stream, or its app, encrypt=Keyring"):
            first.event  # noqa: B018


async def test_that_a_stream_is_encrypted_is_stored_and_outlives_a_loss(own_server: Server, namespace: str) -> None:
    async with RStream(own_server.url, namespace=namespace, encrypt=Keyring({"new": NEW})) as app:
        notes = Notes(app)

        async def told() -> bool:
            layout = await app.link.run(layouts.load(namespace, "notes"))
            return layout is not None and layout.encrypted

        async with working(app):
            await notes.stream.publish(Note(who="ada", text="a"))
            await eventually_async(lambda: notes.handled == ["a"])
            assert await told()
            with redis.Redis.from_url(own_server.url) as raw:
                raw.flushall()
            await eventually_async(told)


async def test_one_stream_of_an_app_may_be_left_open(app: RStream, raw: redis.Redis) -> None:
    await app.stream("open", Note, encrypt=False).publish(note("ada"))
    assert len(lies_in_redis(raw, app, SECRET.encode())) == 1


# -- secrets


async def test_keys_are_in_no_log_line(app: RStream, raw: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    notes = Notes(app)
    await notes.stream.publish(note("ada"))
    raw.xadd((await notes.shard()).stream, {"e": b"\x94x"})
    await notes.drain()
    text = caplog.text + repr(app) + repr(vars(app)) + repr(notes.stream) + repr(app.settings)
    for key in (OLD, NEW):
        assert base64.b64encode(key).decode() not in text and repr(key)[2:-1] not in text and key.hex() not in text
    assert SECRET not in caplog.text


def test_a_seal_of_an_app_is_that_of_its_stream(one_server: Server, namespace: str) -> None:
    with RStream(one_server.url, namespace=namespace, encrypt=Keyring({"new": NEW})) as app:
        mine = app.stream("mine", Note, encrypt=Keyring({"mine": OLD})).claims.seal
        assert isinstance(mine, Seal) and mine.ring.ids == ["mine"]
