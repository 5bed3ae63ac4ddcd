"""Events on their way to a producer: encoded, and sorted by the shards that they go to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rstream.codec import ModelCodec, key_bytes, key_bytes_of_all, pack_headers
from rstream.errors import EventInvalid
from rstream.event import new_event_id, new_event_ids
from rstream.reference import Uploads
from rstream.store.keys import Shard, hash_of
from rstream.store.layout import Layout
from rstream.store.record import FLUSH_ENTRIES, Parts, Record

if TYPE_CHECKING:
    from rstream.stream import Stream

E = TypeVar("E")

PART = 1024
"""Events that are encoded at once."""

GROUP = FLUSH_ENTRIES * 7 // 8
"""Events that are sent at once, of each shard: with so many on average, few shards get more than one flush takes."""


_record = partial(tuple.__new__, Record)


def by_shard(
    places: Sequence[Shard], payloads: Sequence[bytes], keys: Sequence[bytes], ids: Sequence[bytes], headers: bytes
) -> dict[Shard, list[Record]]:
    """Records, in the order of the events."""
    records: dict[Shard, list[Record]] = {shard: [] for shard in dict.fromkeys(places)}
    for shard, parts in zip(places, zip(payloads, keys, ids, repeat(headers)), strict=True):
        records[shard].append(_record(parts))
    return records


def flat_by_shard(
    places: Sequence[Shard], payloads: Sequence[bytes], keys: Sequence[bytes], ids: Sequence[bytes], headers: bytes
) -> dict[Shard, list[bytes]]:
    """The parts of the records of each shard, one record after the other, in the order of the events."""
    flat: dict[Shard, list[bytes]] = {shard: [] for shard in dict.fromkeys(places)}
    for shard, payload, key, id in zip(places, payloads, keys, ids, strict=True):
        flat[shard] += (payload, key, id, headers)
    return flat


def flattened(records: Mapping[Shard, Sequence[Record]]) -> dict[Shard, list[bytes]]:
    """The same, of records that are made."""
    return {shard: [*chain.from_iterable(batch)] for shard, batch in records.items()}


class Preparing(Generic[E]):
    """Makes records of a stream's events. Raises `EventInvalid`, `EventTooLarge`, `KeyMissing`."""

    def __init__(self, stream: Stream[E]) -> None:
        self._stream = stream
        self._turn = 0

    def all(
        self,
        layout: Layout,
        events: Iterable[E | Mapping[str, Any]],
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        ids: Sequence[bytes] | None = None,
        uploads: Uploads | None = None,
    ) -> tuple[dict[Shard, list[Record]], list[Shard]]:
        """(records by shard, the shard of each event). ids: the events' ids, where they are not new ones · uploads:
        gets what has to be stored before these records are; without it, nothing goes to the blob store.
        """
        payloads, keys = self._encode(layout, events, key, uploads)
        if ids is None:
            places, ids = self._places(layout, keys), new_event_ids(len(payloads))
        else:  # the same event goes to the same shard, whoever publishes it again
            places = [layout.shard(key or id.hex()) for key, id in zip(keys, ids, strict=True)]
        return by_shard(places, payloads, keys, ids, pack_headers(headers)), places

    def groups(
        self,
        layout: Layout,
        events: Iterable[E | Mapping[str, Any]],
        key: str | None,
        headers: Mapping[str, str] | None,
    ) -> tuple[Iterator[dict[Shard, list[bytes]]], list[Shard]]:
        """As `all`, where there is no blob store: all are encoded, and their records made (flat) when they are asked
        for, so many at a time that each shard gets about one flush of them.
        """
        packed = pack_headers(headers)
        payloads, keys = self._encode(layout, events, key, None)
        size = layout.shards * GROUP
        parts = [slice(at, at + size) for at in range(0, len(payloads), size)]
        places = [self._places(layout, keys[part]) for part in parts]
        groups = (
            flat_by_shard(mine, payloads[part], keys[part], new_event_ids(len(mine)), packed)
            for part, mine in zip(parts, places, strict=True)
        )
        return groups, [*chain.from_iterable(places)]

    def _encode(
        self, layout: Layout, events: Iterable[E | Mapping[str, Any]], key: str | None, uploads: Uploads | None
    ) -> tuple[list[bytes], list[bytes]]:
        """The payloads, and the keys."""
        if key is not None and self._stream.key is not None:
            raise self._has_key()
        given = b"" if key is None else key_bytes(key, "key")
        payloads: list[bytes] = []
        keys: list[bytes] = []

        def add(part: Sequence[Any]) -> None:
            encoded = self._encode_all(part, layout.version, given) if len(part) > 1 else None
            encoded = encoded or self._encode_each(part, layout.version, given, uploads)
            payloads.extend(encoded[0])
            keys.extend(encoded[1])

        if isinstance(events, list | tuple):
            for at in range(0, len(events), PART):
                add(events[at : at + PART])
        else:
            for event in events:  # whoever generates them may say at which one it was refused
                add((event,))
        return payloads, keys

    def _encode_all(
        self, events: Sequence[Any], version: int, given: bytes
    ) -> tuple[Sequence[bytes], Sequence[bytes]] | None:
        """Payloads and keys, where nothing is special about any of them: then that takes a third of the time."""
        stream, seal = self._stream, self._stream.claims.seal
        payloads = stream.codec.encode_all(events, version) if isinstance(stream.codec, ModelCodec) else None
        if payloads is None:
            return None
        if stream.key is None:
            keys: Sequence[bytes] | None = [given] * len(events)
        else:
            keys = key_bytes_of_all([*map(attrgetter(stream.key), events)])
        if keys is not None and seal is not None:
            payloads = seal.seal_all(payloads, keys)
        return None if keys is None or not stream.claims.inline(payloads) else (payloads, keys)

    def _encode_each(
        self, events: Sequence[Any], version: int, given: bytes, uploads: Uploads | None
    ) -> tuple[list[bytes], list[bytes]]:
        """The same, whatever they are."""
        encoded = [self._encode_one(event, version, given, uploads) for event in events]
        return [payload for payload, _ in encoded], [key for _, key in encoded]

    def _encode_one(self, event: Any, version: int, given: bytes, uploads: Uploads | None) -> tuple[bytes, bytes]:
        stream, seal = self._stream, self._stream.claims.seal
        payload = stream.codec.encode(event, version, uploads)
        if seal is None:
            payload = stream.claims.check(payload, version, uploads)
        key = given if stream.key is None else key_bytes(stream.codec.key(event, stream.key), stream.key)
        if seal is not None:
            payload = stream.claims.check(seal.seal(payload, key), version, uploads)
        return payload, key

    def one(
        self, layout: Layout, event: E | Mapping[str, Any], key: str | None, headers: Mapping[str, str] | None
    ) -> tuple[Shard, Parts]:
        """As `all`, for a new event where there is no blob store."""
        field = self._stream.key
        if key is not None and field is not None:
            raise self._has_key()
        given = b"" if key is None else key_bytes(key, "key")
        payload, raw = self._encode_one(event, layout.version, given, None)
        if raw:
            shard = layout.current[hash_of(raw) * layout.shards >> 32]
        else:
            (shard,) = self._places(layout, (raw,))
        return shard, (payload, raw, new_event_id(), pack_headers(headers) if headers else b"")

    def _has_key(self) -> EventInvalid:
        return EventInvalid(
            f"stream {self._stream.name!r} takes its key from the field {self._stream.key!r}: leave out key="
        )

    def _places(self, layout: Layout, keys: Sequence[bytes]) -> list[Shard]:
        """The shard of each event. Without keys, shards take turns, in runs so that few are touched."""
        if keys and keys[0]:  # then all have one
            return layout.places(keys)
        run = -(-len(keys) // layout.shards)
        turn = self._turn
        self._turn += 1
        return [layout.current[(turn + n // run) % layout.shards] for n in range(len(keys))]
