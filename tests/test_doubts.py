"""Whatever leaves an owner unsure of what is pending in a shard, the steps of a key stay in order: lost answers, calls
that are done when nobody waits for them any more, shards that are lost and given up.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from rstream import Delivery, RetryPolicy, RStream, Stream
from rstream.errors import StoreUnavailable
from rstream.store import keys
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.link import Op
from rstream.store.owners import OwnerOps
from rstream.worker import adopt, order, park
from rstream.worker.worker import Worker
from tests.steps import Step, many
from tests.test_worker import working
from tests.waiting import eventually_async

KEYS, EACH = 6, 80


@pytest.fixture
async def app(server: Any, namespace: str) -> AsyncIterator[RStream]:
    async with RStream(server.url, namespace=namespace) as app:
        yield app


def stream(app: RStream, shards: int = 1) -> Stream[Step]:
    return app.stream("steps", Step, key="key", shards=shards)


def lose_answers(monkeypatch: pytest.MonkeyPatch, ops: type[Any], name: str, dice: random.Random) -> list[int]:
    """Redis does what it is asked, and every fourth time nobody hears of it. Says how often, in a list of one."""
    real, lost = getattr(ops, name), [0]

    def asked(*args: Any, **options: Any) -> Op[Any]:
        op: Op[Any] = real(*args, **options)
        if dice.random() > 0.25:
            return op

        def parse(replies: list[Any]) -> Any:
            lost[0] += 1
            raise StoreUnavailable("the answer was lost")

        return Op(op.calls, parse)

    monkeypatch.setattr(ops, name, asked)
    return lost


def crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have much put aside."""
    for name, value in (("KEEP", 3), ("BACKLOG", 12)):
        monkeypatch.setattr(order, name, value)
    monkeypatch.setattr(park, "KEEP", 3)
    monkeypatch.setattr(park, "STILL", 0.002)


async def bump_term(worker: Worker, app: RStream) -> None:
    worker.runs[0].lease.term += 1  # as if it had run out and been renewed since


async def lose_shard(worker: Worker, app: RStream) -> None:
    shard = worker.runs[0].layout.every[0]
    with redis.Redis.from_url(app.settings.url or "") as raw:
        raw.delete(shard.owner("g"))


async def nothing(worker: Worker, app: RStream) -> None: ...


TROUBLE: dict[str, tuple[tuple[type[Any], str] | None, Callable[[Worker, RStream], Any]]] = {
    "fetch": ((GroupOps, "fetch"), nothing),
    "recover": ((GroupOps, "recover"), nothing),
    "unpark": ((OwnerOps, "unpark"), nothing),
    "own": ((OwnerOps, "own"), lose_shard),
    "inherit": ((OwnerOps, "inherit"), lose_shard),
    "the lease": (None, bump_term),
    "the shard": (None, lose_shard),
}
"""Whose answers are lost, and what happens besides."""


@pytest.mark.parametrize("trouble", TROUBLE)
@pytest.mark.parametrize("seed", [1])
async def test_the_steps_of_a_key_stay_in_order_whatever_is_lost(
    app: RStream, monkeypatch: pytest.MonkeyPatch, trouble: str, seed: int
) -> None:
    crowd(monkeypatch)
    dice = random.Random(seed)
    steps = stream(app)
    seen: defaultdict[str, list[int]] = defaultdict(list)

    @steps.consumer("g", concurrency=3, lease=3, retry=RetryPolicy(initial_delay=0.01, jitter=0, max_attempts=1000))
    async def handle(event: Step, delivery: Delivery) -> None:
        await asyncio.sleep(event.seconds)
        if dice.random() < event.fails:
            raise ValueError
        seen[event.key].append(event.n)

    await steps.publish_many(many(KEYS, EACH, dice, seconds=0.003, fails=0.05))
    silent, strike = TROUBLE[trouble]
    lost = lose_answers(monkeypatch, *silent, dice) if silent else [1]
    async with working(app) as worker:
        while sum(map(len, seen.values())) < KEYS * EACH:
            if worker.runs and worker.runs[0].own.open:
                await strike(worker, app)
            before = sum(map(len, seen.values()))
            await eventually_async(lambda at=before: sum(map(len, seen.values())) > at, 20)
    assert lost[0] > 0
    assert {key: numbers for key, numbers in seen.items() if numbers != list(range(EACH))} == {}


async def test_a_call_by_an_older_token_does_nothing(app: RStream) -> None:
    """It may have waited in a socket until its shard was taken anew."""
    steps = stream(app)
    await steps.publish_many([Step(key="a", n=n) for n in range(6)])
    layout = await steps.layout()
    (shard,) = layout.every
    ops = GroupOps(layout, "g", "me")
    owner, run = OwnerOps(ops), app.link.run
    await run(ops.create("0"))
    first = await run(owner.own({shard: 0}, 5000))
    a, b, c = (await run(ops.fetch(3, [shard], first))).entries
    await run(
        ops.settle([Outcome(shard, a.id, 1, "park", 0, b"a"), Outcome(shard, b.id, 1, "release", 0, "~released")])
    )
    second = await run(owner.own({shard: 0}, 5000))
    assert second != first

    assert await run(ops.fetch(3, [shard], first)) == ([], [shard], False)
    assert (await run(ops.recover(3, 0, [shard], first))).claimed == []
    assert await run(owner.unpark(shard, first[shard], b"a", 3)) is None
    assert await run(owner.holders([(shard, each.id) for each in (a, b, c)])) == ["~parked", "~released", "me"]

    back = await run(owner.unpark(shard, second[shard], b"a", 3))
    assert back is not None and [each.id for each in back.entries] == [a.id]
    assert [each.id for each in (await run(ops.recover(3, 0, [shard], second))).claimed] == [b.id]
    assert len((await run(ops.fetch(3, [shard], second))).entries) == 3


@pytest.mark.parametrize("ordered", [True, False])
async def test_what_a_call_brings_after_it_was_given_up_is_found(
    app: RStream, monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    monkeypatch.setattr(adopt, "EVERY", 0.2)
    steps = stream(app)
    seen: list[int] = []

    @steps.consumer("g", ordered=ordered)
    async def handle(event: Step) -> None:
        seen.append(event.n)

    (shard,) = (await steps.layout()).every
    with redis.Redis.from_url(app.settings.url or "") as raw:
        async with working(app) as worker:
            await steps.publish(Step(key="a", n=1))
            await eventually_async(lambda: seen == [1])
            ((_, copy),) = raw.xrange(shard.stream)
            # The worker does not wait for what this call brings.
            late = raw.pipeline(transaction=True)
            late.xadd(shard.stream, {"e": copy[b"e"], "k": "a"})
            late.xreadgroup("g", worker.id, {shard.stream: ">"})
            late.execute()
            await eventually_async(lambda: seen == [1, 1])
            await eventually_async(lambda: not raw.xpending(shard.stream, "g")["pending"])


async def test_nobody_holds_anything_in_a_shard_that_was_removed(app: RStream) -> None:
    layout = await stream(app).layout()
    (shard,) = layout.every
    with redis.Redis.from_url(app.settings.url or "") as raw:
        raw.delete(shard.stream)
    owner = OwnerOps(GroupOps(layout, "g", "me"))
    assert await app.link.run(owner.holders([(shard, b"1-1"), (shard, b"1-2")])) == ["", ""]


async def test_a_worker_that_waited_for_room_does_not_read_a_shard_it_gave_up_meanwhile(
    app: RStream, server: Any, namespace: str
) -> None:
    seen: list[tuple[str, str, int]] = []
    gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    def consumer(app: RStream, who: str) -> Stream[Step]:
        steps = stream(app, 2)

        @steps.consumer("g", concurrency=1, lease=6, prefetch=0)
        async def handle(event: Step) -> None:
            seen.append((who, event.key, event.n))
            if event.n == 0:
                await gates[event.key].wait()

        return steps

    async with RStream(server.url, namespace=namespace) as other:
        steps = consumer(app, "first")
        consumer(other, "second")
        async with working(app) as first:
            await eventually_async(lambda: first.runs and len(first.runs[0].own.open) == 2)
            await steps.publish(Step(key="busy", n=0))
            await eventually_async(lambda: seen == [("first", "busy", 0)])
            run = first.runs[0]
            await eventually_async(lambda: run.intake.locked())  # its reader waits for room
            async with working(other) as second:
                await eventually_async(lambda: second.runs and len(second.runs[0].own.open) == 1)
                await eventually_async(lambda: len(run.own.open) == 1)
                (moved,) = second.runs[0].own.open
                key = next(key for n in range(99) if keys.number_of(key := f"key{n}", 2) == moved.number)
                await steps.publish_many([Step(key=key, n=n) for n in range(6)])
                await eventually_async(lambda: ("second", key, 0) in seen)
                gates["busy"].set()
                await eventually_async(lambda: not run.in_hand)
                await eventually_async(lambda: run.intake.locked() or run.own.open)
                gates[key].set()
                await eventually_async(lambda: len(seen) == 7)
    assert [each for each in seen if each[1] == key] == [("second", key, n) for n in range(6)]


async def test_a_retry_that_is_claimed_back_before_its_answer_came_is_run(
    app: RStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With "skip" its key does not wait for it; the delivery must not be forgotten with that."""
    steps = stream(app)
    attempts: list[int] = []

    @steps.consumer("g", on_retry="skip", retry=RetryPolicy(initial_delay=0, jitter=0))
    async def handle(event: Step, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt == 1:
            raise ValueError

    async with working(app) as worker:
        await eventually_async(lambda: worker.runs and worker.runs[0].own.open)
        run, real = worker.runs[0], worker.runs[0].link.run

        async def slow(op: Op[Any], **options: Any) -> Any:
            answer = await real(op, **options)
            if run.plain.waiting or answer != []:  # no settle without a refusal
                return answer
            run.look_in(0)
            await eventually_async(lambda: run.hand.back or len(attempts) > 1)
            return answer

        monkeypatch.setattr(run.link, "run", slow)
        await steps.publish(Step(key="a", n=0))
        await eventually_async(lambda: attempts == [1, 2])


async def test_a_new_owner_has_keys_pass_what_waits_for_a_retry_where_that_is_wanted(app: RStream) -> None:
    steps = stream(app)
    done: list[int] = []

    @steps.consumer("g", on_retry="skip", retry=RetryPolicy(initial_delay=3600))
    async def handle(event: Step) -> None:
        if event.n == 0:
            raise ValueError
        done.append(event.n)

    await steps.publish(Step(key="a", n=0))
    async with working(app) as worker:
        await eventually_async(lambda: worker.counts.failed == 1 and not worker.runs[0].in_hand)
    await steps.publish(Step(key="a", n=1))
    async with working(app):
        await eventually_async(lambda: done == [1])
