"""What becomes of a delivery that did not end well: tried again, or set aside as a dead letter."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping

from rstream.delivery import Delivery
from rstream.errors import BlobAltered, BlobError, BlobMissing, full_text, one_line
from rstream.logs import about
from rstream.retry import Reject, Retry
from rstream.store.deliveries import Fetched, Outcome
from rstream.worker.hand import from_the_dead
from rstream.worker.run import ConsumerRun

ERROR_LETTERS = 1_000


def judge(run: ConsumerRun, entry: Fetched, delivery: Delivery, error: BaseException, took: float) -> Outcome:
    """The handler raised: the retry policy decides. took: seconds that the call lasted."""
    if issubclass(type(error), BlobMissing | BlobAltered):  # what a foreign error says of its class may raise
        assert isinstance(error, BlobMissing | BlobAltered)
        return set_aside(run, entry, delivery.attempt, error.reason, str(error))
    if issubclass(type(error), BlobError):
        assert isinstance(error, BlobError)
        return _wait_for_blobs(run, entry, delivery, error)
    run.tally.failed += 1
    extra = about({"duration_ms": round(took * 1000, 3)})
    delay = _delay(run, entry, delivery, error)
    if delay is None:
        return _bury(run, entry, delivery, error, extra)
    level = logging.INFO if issubclass(type(error), Retry) else logging.WARNING
    run.voice.say(
        "failed", level, "%s: entry %s failed attempt %d, next in %.1f s: %s",
        run.name, delivery.id, delivery.attempt, delay, one_line(error), extra=extra,
    )  # fmt: skip
    return Outcome(entry.shard, entry.id, delivery.attempt, "retry", int(delay * 1000))


def _wait_for_blobs(run: ConsumerRun, entry: Fetched, delivery: Delivery, error: BlobError) -> Outcome:
    """The blob store was away when the handler wanted something of it: that is not the event's fault, and the attempt
    does not count.
    """
    delay = run.loads.pause((entry.shard, entry.id))
    text = "%s: entry %s waits %.1f s for a blob: %s"
    run.voice.say("blob", logging.WARNING, text, run.name, delivery.id, delay, one_line(error))
    return Outcome(entry.shard, entry.id, delivery.attempt, "retry", int(delay * 1000), delivery.attempt - 1)


def may_retry(run: ConsumerRun, entry: Fetched, delivery: Delivery, error: BaseException) -> bool:
    """Whether `judge` would have it tried again."""
    return _delay(run, entry, delivery, error) is not None


def _delay(run: ConsumerRun, entry: Fetched, delivery: Delivery, error: BaseException) -> float | None:
    return run.consumer.policy.delay_after(delivery.attempt, error, age=run.age(entry.id), dice=random.random())


def _bury(
    run: ConsumerRun, entry: Fetched, delivery: Delivery, error: BaseException, extra: Mapping[str, object]
) -> Outcome:
    text, told = full_text(error), (run.name, delivery.id, delivery.attempt)
    if issubclass(type(error), Reject):
        line = one_line(error)
        run.voice.say("dead", logging.WARNING, "%s: entry %s rejected on attempt %d: %s", *told, line, extra=extra)
        return Outcome(entry.shard, entry.id, delivery.attempt, "dead", "rejected", line, text)
    run.voice.say("dead", logging.ERROR, "%s: entry %s failed attempt %d, the last:\n%s", *told, text, extra=extra)
    return Outcome(entry.shard, entry.id, delivery.attempt, "dead", "failed", one_line(error), text)


def set_aside(run: ConsumerRun, entry: Fetched, attempt: int, reason: str, error: str) -> Outcome:
    """An entry that the handler must not get."""
    where, told = entry.shard.entry_id(entry.id), {"rstream": run.about(entry)}  # a loader may be the one who says it
    text = "%s: entry %s set aside as %s: %s"
    run.voice.say("dead", logging.ERROR, text, run.name, where, reason, error, extra=told)
    return Outcome(entry.shard, entry.id, attempt, "dead", reason, error[:ERROR_LETTERS])


def used_up(run: ConsumerRun, entry: Fetched) -> bool:
    """Whether an entry that was taken over from a dead worker has had all its attempts."""
    return from_the_dead(entry) and entry.deliveries >= run.consumer.policy.max_attempts


def expired(run: ConsumerRun, entry: Fetched, attempt: int) -> Outcome:
    """An event that is worthless by now: acked and counted."""
    run.tally.expired += 1
    run.voice.say(
        "expired", logging.WARNING, "%s: entry %s is older than %g s and was not started; %d so far",
        run.name, entry.shard.entry_id(entry.id), run.consumer.expires, run.tally.expired,
        extra={"rstream": run.about(entry)},
    )  # fmt: skip
    return Outcome(entry.shard, entry.id, attempt, "expired")
