"""A lone publish goes past the queue where nothing is in it, with the numbers of the same outbox."""

from __future__ import annotations

import pytest

from rstream import EntryId, Event, RStream, Stream
from rstream.errors import ShardLimited, ShardSealed, StoreUnavailable, StreamFull
from rstream.store.outbox import Outbox
from rstream.store.parcel import Parcel, Slip
from tests.servers import Server


class Seen(Event):
    device: str
    n: int


def declare(app: RStream) -> Stream[Seen]:
    return app.stream("seen", Seen, key="device", shards=3)


def parcel_of(stream: Stream[Seen], n: int, device: str = "a") -> Parcel:
    shard, record = stream.preparing.one(stream.sync.layout(), Seen(device=device, n=n), None, None)
    return Parcel(shard, record, Slip(), 100)


def numbers(stream: Stream[Seen]) -> list[int]:
    return [entry.event.n for entry in stream.sync.read()]


def test_its_flushes_are_numbered_with_all_others(app: RStream) -> None:
    seen = declare(app)
    outbox, parcels = Outbox(seen.sync.layout()), [parcel_of(seen, n) for n in range(6)]
    for parcel in parcels:
        if parcel is parcels[2] or parcel is parcels[3]:
            outbox.add((parcel,))
            op = outbox.take()
        else:
            op = outbox.take_alone(parcel)
        assert op is not None
        app.sync_link.run(op)
        app.sync_link.exchange(op.calls)  # once more, as after a broken connection: its first answer comes again
    assert numbers(seen) == list(range(6))
    assert [promised(parcel) for parcel in parcels] == [entry.id for entry in seen.sync.read()]


def promised(parcel: Parcel) -> EntryId:
    assert isinstance(parcel.promise, Slip) and parcel.promise.error is None
    (id,) = parcel.promise.result
    assert isinstance(id, EntryId)
    return id


def test_it_does_not_go_past_what_waits_or_is_on_its_way(app: RStream) -> None:
    seen = declare(app)
    outbox, lone = Outbox(seen.sync.layout()), parcel_of(seen, 9)
    outbox.add((parcel_of(seen, 1),))
    assert outbox.take_alone(lone) is None  # it waits
    op = outbox.take()
    assert op is not None and outbox.take_alone(lone) is None  # it is on its way
    app.sync_link.run(op)
    op = outbox.take_alone(lone)
    assert op is not None
    app.sync_link.run(op)
    assert numbers(seen) == [1, 9]


@pytest.mark.parametrize("refusal", [ShardSealed("sealed"), StreamFull("full"), ShardLimited("limited")])
def test_nor_past_what_was_refused(app: RStream, refusal: Exception) -> None:
    seen = declare(app)
    outbox = Outbox(seen.sync.layout())
    op = outbox.take_alone(parcel_of(seen, 1))
    assert op is not None
    op.parse([refusal])
    assert outbox.take_alone(parcel_of(seen, 2)) is None
    assert outbox.take_alone(parcel_of(seen, 3, device="elsewhere")) is None
    outbox.fail(StoreUnavailable("gone"))
    assert outbox.take_alone(parcel_of(seen, 4)) is not None


@pytest.mark.parametrize("face", ["sync", "async"])
async def test_one_that_a_sealed_shard_refuses_goes_where_the_stream_went(
    server: Server, namespace: str, face: str
) -> None:
    async with RStream(server.url, namespace=namespace) as app, RStream(server.url, namespace=namespace) as other:
        seen = declare(app)

        async def publish(n: int) -> EntryId:
            event = Seen(device="a", n=n)
            return seen.sync.publish(event) if face == "sync" else await seen.publish(event)

        ids = [await publish(0), await publish(1)]
        await declare(other).reshard(5)
        ids += [await publish(2), await publish(3)]
        assert [id.generation for id in ids] == [1, 1, 2, 2]
        assert [(entry.id, entry.event.n) async for entry in seen.read()] == list(zip(ids, range(4), strict=True))
