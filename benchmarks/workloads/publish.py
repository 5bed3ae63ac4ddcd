"""Publishing: one by one, 100 at once, many in a call. Each contestant in one process that lives through all rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

from benchmarks.entrants import ALL_PEERS, FASTSTREAM, OURS, RAW, STREAQ
from benchmarks.harness import Bench, Failed, Player
from benchmarks.table import Rate, Series, Table
from benchmarks.workloads.rounds import Entrant, Plan, missing, take_turns

ONE = [
    Entrant("redis.asyncio XADD", RAW, 1_500, by="publish"),
    Entrant("rstream, async", OURS, 1_500, by="publish"),
    Entrant("redis-py XADD, sync", RAW, 1_500, by="publish_sync"),
    Entrant("rstream, sync", OURS, 1_500, by="publish_sync"),
    *(Entrant(peer.name, peer, 500, by="publish") for peer in ALL_PEERS),
]
CONCURRENT = [
    Entrant("bare batcher, no validation", RAW, 15_000, by="batched"),
    Entrant("rstream", OURS, 10_000, by="publish"),
    *(Entrant(peer.name, peer, 1_000, by="publish") for peer in ALL_PEERS),
]
MANY = [
    Entrant("redis-py pipeline(1000) of XADDs", RAW, 20_000, by="pipeline"),
    Entrant("one EVALSHA with 1,000 XADDs", RAW, 20_000, by="script"),
    Entrant("rstream, sync", OURS, 20_000, by="publish_many_sync"),
    Entrant("rstream, async", OURS, 20_000, by="publish_many"),
    Entrant("streaQ, enqueue_many", STREAQ, 2_000, by="publish_many"),
    Entrant("FastStream, pipeline of 1,000", FASTSTREAM, 3_000, by="publish_many"),
]
NO_CALL = "Celery, dramatiq, arq and taskiq have no call that publishes many: with them it is one by one."


def publish(bench: Bench, plan: Plan) -> list[Table]:
    with ExitStack() as players:
        at_work: dict[str, Player] = {}
        for entrant in plan.chosen([*ONE, *CONCURRENT, *MANY]):
            contestant = entrant.contestant
            if contestant.installed and contestant.module not in at_work:
                at_work[contestant.module] = players.enter_context(bench.player(contestant))
        one = compare(bench, plan, at_work, "one", ONE)
        concurrent = compare(bench, plan, at_work, "concurrent", CONCURRENT)
        many = compare(bench, plan, at_work, "many", MANY)
    return [
        Table("publish", "Publish one by one", "events/s", one),
        Table("concurrent", "100 concurrent publishes", "events/s", concurrent),
        Table("many", "Publish many: events that are made and validated before", "events/s", many,
              notes=[NO_CALL] if plan.peers else []),
    ]  # fmt: skip


def compare(
    bench: Bench, plan: Plan, at_work: dict[str, Player], order: str, entrants: Sequence[Entrant]
) -> list[Series]:
    entrants = plan.chosen(entrants)
    failed = missing(entrants)
    rounds: dict[Entrant, Callable[[], Rate]] = {}
    for entrant in entrants:
        if not entrant.contestant.installed:
            continue
        player = at_work[entrant.contestant.module]
        try:
            player.do(order, by=entrant.by, count=100)  # connects, loads its scripts
        except Failed as error:
            failed.append(Series(entrant.name, entrant.contestant.kind, failed=str(error)))
            continue
        rounds[entrant] = partial(once, player, order, entrant.by, plan.count(entrant.count))
    found = {series.name: series for series in [*failed, *take_turns(bench, plan, rounds)]}
    bench.server.raw.flushall()
    return [found[entrant.name] for entrant in entrants]


def once(player: Player, order: str, by: str, count: int) -> Rate:
    took = player.do(order, by=by, count=count)
    return Rate(count / took["seconds"], took["cpu"] / count * 1e6)
