"""What lies between taking entries and calling their handler: whether they may be started, as what, as which attempt.

Cost: nothing for fresh entries, unless their consumer has a dedupe key; else a round trip a question, for all together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from rstream.codec import key_text, unpack_headers
from rstream.delivery import Delivery, later
from rstream.errors import EntryInvalid, KeyMissing, LeaseLost, StoreError, one_line
from rstream.process import clock
from rstream.store.deliveries import Fetched, Outcome, Tokens, new
from rstream.store.link import Op, together
from rstream.store.memo import StoredMemo
from rstream.worker import failures
from rstream.worker.adopt import lost
from rstream.worker.owned import epoch_of
from rstream.worker.run import ConsumerRun

T = TypeVar("T")


class Started(NamedTuple):
    """A delivery to be handed to the handler. given: what a handler that wants more than the event gets; None where it
    does not, and nothing is kept of it · marker: its dedupe key, "" where the consumer has none · attempt: as in the
    delivery, which need not be looked at for it.
    """

    entry: Fetched
    event: Any
    given: Delivery | None
    marker: str
    attempt: int


def start_fresh(run: ConsumerRun, entry: Fetched, now: float) -> Started | None:
    """`start` for an entry that nothing has to be asked about: one that was just read, without a dedupe key. (A way of
    its own because it is everybody's.)
    """
    return _open(run, entry) if _held(run, entry, now) else None


async def start(run: ConsumerRun, entries: Sequence[Fetched]) -> list[Started]:
    """Those of the entries that may be handled now; the others are settled, or let go."""
    asked = False
    held = run.startable(entries, clock())
    if len(held) < len(entries):
        ours = {entry[:2] for entry in held}
        for entry in entries:
            if entry[:2] not in ours:
                run.give_up(entry)
    if any(entry.source is not None for entry in held):
        asked, held = True, await _begin(run, held)
    started = [each for entry in held if (each := _open(run, entry)) is not None]
    if any(each.attempt > 1 for each in started):
        asked, started = True, await _recall(run, started)
    if run.consumer.once is not None and started:
        asked, started = True, await _drop_doubles(run, started)
    if asked:  # that took time
        now = clock()
        started = [each for each in started if _held(run, each.entry, now)]
    return started


def _held(run: ConsumerRun, entry: Fetched, now: float) -> bool:
    if run.may_start(entry, now):
        return True
    run.give_up(entry)
    return False


async def _ask(run: ConsumerRun, entries: Iterable[Fetched], ops: Sequence[Op[T]]) -> list[T] | None:
    """Redis's answers; None where it does not answer in time, and the entries cannot be started."""
    try:
        return await run.link.run(together(ops), within=run.consumer.lease)
    except StoreError as error:
        for entry in entries:
            where, told = entry.shard.entry_id(entry.id), {"rstream": run.about(entry)}
            run.voice.say("late", logging.WARNING, "%s: entry %s not started: %s", run.name, where, error, extra=told)
            run.give_up(entry)
        return None


async def _begin(run: ConsumerRun, entries: list[Fetched]) -> list[Fetched]:
    """Burn an attempt of those that were taken over before they are run, fenced."""
    fresh = [entry for entry in entries if entry.source is None]
    taken = []
    for entry in entries:
        if entry.source is None:
            continue
        if not failures.used_up(run, entry):
            taken.append(entry)
            continue
        count = entry.deliveries
        why = f"every worker that ran it died, {count} of them" if count > 1 else "the worker that had it died"
        run.settle(failures.set_aside(run, entry, count, "crashed", why))
    begun = await _ask(run, taken, [run.ops.begin(entry) for entry in taken]) if taken else []
    if begun is None:
        return fresh
    for entry, ours in zip(taken, begun, strict=True):
        if ours:
            fresh.append(entry)
        elif ours is None:
            lost(run, entry.shard, entry.id)
            run.let_go(entry.shard, entry.id, "ended")
        else:
            _refused(run, entry)
    return fresh


def _refused(run: ConsumerRun, entry: Fetched) -> None:
    run.tally.astray += 1
    where = entry.shard.entry_id(entry.id)
    refused = LeaseLost(f"entry {where} was taken over by another worker before it was started here")
    told = {"rstream": run.about(entry)}
    run.voice.say("refused", logging.WARNING, "%s: LeaseLost: %s", run.name, refused, extra=told)
    run.give_up(entry)


def _open(run: ConsumerRun, entry: Fetched) -> Started | None:
    """The event, validated, and its delivery; None where the handler must not get it."""
    attempt = entry.deliveries if entry.source is None else entry.deliveries + 1
    try:
        event, given = _unpack(run, entry, attempt)
        marker = "" if run.consumer.once is None else _marker(run, run.consumer.once, event)
    except EntryInvalid as error:
        run.settle(failures.set_aside(run, entry, attempt, error.reason, str(error)))
        return None
    except BaseException as error:  # a validator may raise what is no Exception: a panic of pydantic's Rust, or an exit
        run.settle(failures.set_aside(run, entry, attempt, "invalid", one_line(error)))
        return None
    if run.consumer.expires is not None and run.age(entry.id) > run.consumer.expires and _never_started(entry):
        run.settle(failures.expired(run, entry, attempt))
        return None
    return new(Started, (entry, event, given, marker, attempt))


def _never_started(entry: Fetched) -> bool:
    """Whether this surely is the first start, and nobody asked for it: only then is an event worthless when late. What
    was started may have done half its work, and ends as handled or as a dead letter; a redrive wants it whatever
    its age. Nobody knows what a dead worker had started: that counts as started.
    """
    return entry.source is None or (entry.source == "~released" and entry.deliveries == 0)


def _unpack(run: ConsumerRun, entry: Fetched, attempt: int) -> tuple[Any, Delivery | None]:
    """The event, and its delivery where somebody will want it. Raises `EntryInvalid`."""
    flat = entry.flat
    key: bytes | None
    if len(flat) == 6 and flat[0] == b"e" and flat[2] == b"k" and flat[4] == b"i":  # as rstream writes most
        payload, key, headers = flat[1], flat[3], None
    else:
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        if b"e" not in fields:
            raise EntryInvalid("undecodable", f"it has no field 'e', only {[*fields][:5]}: rstream did not write it")
        payload, key, headers = fields[b"e"], fields.get(b"k"), unpack_headers(fields.get(b"h"))
    if not run.tells and attempt == 1:
        return run.decode(payload, key), None
    return run.decode(payload, key), _delivery(run, entry, attempt, headers)


def _delivery(run: ConsumerRun, entry: Fetched, attempt: int, headers: dict[str, str] | None) -> Delivery:
    lease = run.lease
    return later(partial(_fields, run, entry, attempt, headers, lease.owned, lease.term))


def delivery_of(run: ConsumerRun, started: Started) -> Delivery:
    """The delivery, for whoever has to know of it what the handler was not told: how it failed, say."""
    if started.given is not None:
        return started.given
    entry = started.entry
    fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=True))
    return _delivery(run, entry, started.attempt, unpack_headers(fields.get(b"h")))


def _fields(
    run: ConsumerRun, entry: Fetched, attempt: int, headers: dict[str, str] | None, owned: Tokens, term: int
) -> tuple[Any, ...]:
    """What a delivery says, in the order of its fields. owned, term: the lease's when it was started."""
    fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=True))
    key, stream = fields.get(b"k"), run.consumer.stream
    return (
        entry.shard.entry_id(entry.id),
        run.layout.name,
        run.ops.group,
        None if key is None else key.decode(errors="replace"),
        fields.get(b"i", b""),
        headers or {},
        attempt,
        run.ops.worker,
        epoch_of(owned.get(entry.shard)),
        StoredMemo(stream.app, run.lease, term, run.ops, entry.shard, entry.id, attempt, stream.claims.seal),
    )


def _marker(run: ConsumerRun, field: str, event: Any) -> str:
    """The event's dedupe key. Raises `EntryInvalid`."""
    try:
        return key_text(run.consumer.stream.codec.key(event, field), field)
    except KeyMissing:
        raise EntryInvalid(
            "invalid", f"it has no usable {field!r}, the dedupe key of group {run.ops.group!r}"
        ) from None


async def _recall(run: ConsumerRun, started: list[Started]) -> list[Started]:
    """Have those that are begun again know what their earlier attempts kept."""
    again = [each for each in started if each.attempt > 1]
    memos: list[Any] = [delivery_of(run, each)._memo for each in again]
    kept = await _ask(run, (each.entry for each in again), [memo.place.load() for memo in memos])
    if kept is None:
        return [each for each in started if each.attempt == 1]
    for memo, found in zip(memos, kept, strict=True):
        memo.kept = found
    return started


async def _drop_doubles(run: ConsumerRun, started: list[Started]) -> list[Started]:
    """Ack those whose dedupe key has succeeded already, by another entry."""
    by = await _ask(
        run, (each.entry for each in started), [run.ops.succeeded(each.entry.shard, each.marker) for each in started]
    )
    if by is None:
        return []
    first = []
    for each, id in zip(started, by, strict=True):
        if id in (None, each.entry.id):
            first.append(each)
        else:
            where, told = each.entry.shard.entry_id(each.entry.id), {"rstream": run.about(each.entry)}
            text = "%s: entry %s was not started: its %s has succeeded already, by entry %s"
            first_one = each.entry.shard.entry_id(id)
            run.voice.say("skipped", logging.INFO, text, run.name, where, run.consumer.once, first_one, extra=told)
            run.settle(Outcome(each.entry.shard, each.entry.id, each.attempt, "skipped"))
    return first
