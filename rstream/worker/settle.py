"""Ends deliveries: whatever was finished since the last answer goes out in one fenced call a shard.

A settle whose answer never came is sent again, for as long as it takes: the fence makes that harmless, and decides.
What emits is settled by a loop of its own: where memory is full it has to wait, and the others must not.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from rstream.errors import GroupMissing, LeaseLost, ShardSealed, StoreError, StoreUnavailable, StreamFull
from rstream.store.deliveries import BARE, LOST, PSEUDO, STAYS, Outcome, Refusal
from rstream.store.keys import Shard
from rstream.store.link import backoff
from rstream.worker.adopt import lost
from rstream.worker.order import Now, Place
from rstream.worker.outcomes import Outcomes
from rstream.worker.own import tell
from rstream.worker.run import ConsumerRun

log = logging.getLogger("rstream")


async def settle_loop(run: ConsumerRun, outcomes: Outcomes) -> None:
    """Runs until `run.finished`. Cancelling it in mid-flush loses what it holds: only its deadline may."""
    while not run.finished or outcomes.waiting:
        await outcomes.wanted.wait()
        await flush(run, outcomes)


async def flush(run: ConsumerRun, outcomes: Outcomes) -> None:
    """Settle all that is waiting to be settled."""
    batch = outcomes.take()
    if not batch:
        return
    free = bool(run.hand.returning) and any(_is_free(run, outcome) for outcome in batch)
    refused = await _send(run, batch)
    run.flushes += 1
    if not run.lease.holds():
        run.tally.unheld += len(batch)
    acked = []
    for outcome in batch:
        place = outcome[:2]
        if outcome.c == BARE and place not in refused:
            acked.append(place)
            continue
        if place not in refused:
            run.tally.ends(outcome, place not in run.hand.returning)
        run.let_go(*place, _now(run, outcome) if place not in refused else "elsewhere")
        if outcome.kind == "retry":
            run.look_in(int(outcome.a) / 1000)
    run.tally.settled["ack"] += len(acked)
    run.let_all_go(acked)
    if free or (
        run.order is not None and any(_others_wait(run, shard) for shard in {outcome.shard for outcome in batch})
    ):
        await tell(run)


def _now(run: ConsumerRun, outcome: Outcome) -> Now:
    """What has become of an entry by this outcome."""
    if outcome.kind not in STAYS:
        return "ended"
    if outcome.kind == "retry" and run.consumer.on_retry == "skip":
        return "passed"
    return "aside" if outcome.kind == "park" else "elsewhere"


def _is_free(run: ConsumerRun, outcome: Outcome) -> bool:
    """Whether others may start the entry as soon as this is settled."""
    at_once = outcome.kind == "release" or (outcome.kind == "retry" and outcome.a == 0)
    return at_once and (outcome.shard, outcome.id) in run.hand.returning


def _others_wait(run: ConsumerRun, shard: Shard) -> bool:
    """Whether an outcome there may be what other workers wait for: where the shard is another one's by now, and where
    nothing is left to do in an older generation.
    """
    if shard not in run.lease.owned:
        return True
    return shard.generation < run.layout.generation and not run.hand.holds_of(shard)


async def _send(run: ConsumerRun, batch: list[Outcome], *, resent: bool = False) -> set[Place]:
    """Which of the outcomes were refused. resent: they were sent before, and may have been done."""
    sealed = False
    for pause in backoff():
        try:
            if sealed:
                batch, sealed = await _moved(run, batch), False
            refusals = await run.link.run(replace(run.ops.settle(batch, again=resent), replicas=run.replicas))
        except GroupMissing as error:
            if len(parts := _by_shard(batch)) > 1:  # the others need not be lost with it
                return {place for part in parts for place in await _send(run, part, resent=True)}
            # The fetch loop meets the same error and heals the group; these will be read again, or are gone.
            log.warning("%s: %d outcomes have nothing to settle any more: %s", run.name, len(batch), error)
            return {(outcome.shard, outcome.id) for outcome in batch}
        except ShardSealed:
            resent = sealed = True
            await asyncio.sleep(pause)
            continue
        except StreamFull as error:
            resent = True
            log.warning("%s: what %d outcomes emit waits for room: %s", run.name, len(batch), error)
            assert run.emitter is not None
            await run.emitter.make_room(record for outcome in batch for _, record in outcome.emits)
            await asyncio.sleep(pause)
            continue
        except StoreError as error:
            # A refused call may have been one of several, and the others were done.
            resent = resent or error.sent or not isinstance(error, StoreUnavailable)
            log.warning("%s: %d outcomes wait: %s", run.name, len(batch), error)
            await asyncio.sleep(pause)
            continue
        refusals = [refusal for refusal in refusals if not (resent and _looks_done(refusal))]
        for refusal in refusals:
            if refusal.owner == LOST:
                lost(run, refusal.outcome.shard, refusal.outcome.id)
            else:
                _tell(run, refusal)
        return {(refusal.outcome.shard, refusal.outcome.id) for refusal in refusals}
    raise AssertionError("backoff never ends")


def _by_shard(batch: list[Outcome]) -> list[list[Outcome]]:
    parts: dict[Shard, list[Outcome]] = {}
    for outcome in batch:
        parts.setdefault(outcome.shard, []).append(outcome)
    return [*parts.values()]


async def _moved(run: ConsumerRun, batch: list[Outcome]) -> list[Outcome]:
    """The stream that they emit to was resharded: the same for its new shards. Raises `StoreError`."""
    assert run.emitter is not None
    await run.emitter.follow()
    moved = [run.emitter.moved(outcome) for outcome in batch]
    apart = [outcome for outcome in moved if not run.emitter.fits(outcome)]
    if not apart:
        return moved
    # On a cluster the new shards may have left the slot of a delivery: then its events go before its ack.
    holders = await run.link.run(run.owners.holders([(outcome.shard, outcome.id) for outcome in apart]))
    ours = [outcome for outcome, holder in zip(apart, holders, strict=True) if holder == run.ops.worker]
    if any(await run.emitter.store([[record for _, record in outcome.emits] for outcome in ours])):
        raise ShardSealed("the stream that is emitted to was resharded once more")
    return [outcome if run.emitter.fits(outcome) else outcome._replace(emits=()) for outcome in moved]


def _tell(run: ConsumerRun, refusal: Refusal) -> None:
    if run.hand.is_cancelled(refusal.outcome[:2]):
        return  # that was said
    run.tally.fenced += 1
    outcome = refusal.outcome
    if refusal.owner == run.ops.worker:
        run.adopt()  # another delivery of it is this worker's, which it does not have in hand
    holder = f"pending for {refusal.owner}" if refusal.owner else "settled by another"
    lost = LeaseLost(
        f"{outcome.kind} of entry {outcome.shard.entry_id(outcome.id)}, attempt {outcome.attempt}, was refused "
        f"and changed nothing: the lease ran out and the entry is {holder} (deliveries: {refusal.deliveries})"
    )
    extra = run.about.place(outcome.shard, outcome.id, outcome.attempt)
    run.voice.say("refused", logging.WARNING, "%s: LeaseLost: %s", run.name, lost, extra=extra)


def _looks_done(refusal: Refusal) -> bool:
    """Whether an earlier sending of this outcome did it, and only its answer was lost."""
    return refusal.owner in PSEUDO if refusal.outcome.kind in STAYS else refusal.owner == ""
