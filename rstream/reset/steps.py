"""How a group is reset: generators that yield operations and are sent their results. No I/O.

Shards are gone through side by side: each has its own generator, and what they all want next goes out in one write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from rstream.errors import ConfigError, GroupLive
from rstream.event import EntryId
from rstream.position import Position
from rstream.reset.plan import LAST, Move, Plan, Reset, read_up_to, start_of
from rstream.store.keys import ARCHIVE, Shard
from rstream.store.layout import Layout
from rstream.store.link import together
from rstream.store.reset import Given, ResetOps, Settled
from rstream.store.stats import GroupStats, ShardGroupStats, ShardStats, find, survey
from rstream.store.steps import Course, Steps

R = TypeVar("R")


def plan(layout: Layout, group: str, to: Position, key: str | None = None) -> Steps[Plan]:
    """What it would mean for the group to read from `to` on; with a key, for its entries alone. Changes nothing.

    Raises `PositionError`, and `ConfigError` where there is no such group.
    """
    if group == ARCHIVE:
        raise ConfigError(
            f"{group!r} is the archive of stream {layout.name!r}, which never reads again: see `rstream archive --help`"
        )
    ops = ResetOps(layout, group)
    stream, groups = yield survey(layout)
    stats = find(groups, group, layout)
    at = start_of(to, stream.shards, stream.now, key)
    members = yield ops.members(stream.now)
    found = [
        (shard, stands, read_up_to(at, shard, stands.position))
        for shard, stands in zip(stream.shards, stats.shards, strict=True)
        if stands.shard in layout.holding(key)
    ]
    if key is None:
        moves = yield from _abreast([_move(ops, *each) for each in found])
    else:  # where the group is missing, it will read all there is
        read = [Move(stands.shard, stands.older, stands.position, new) for _, stands, new in found if stands.position]
        moves = yield from _abreast([_give(ops, key, move, dry=True) for move in read])
    return Plan(layout, group, to, key, at, stream.now, moves, _living(stats, members), stats.dead)


def _living(stats: GroupStats, members: Sequence[str]) -> list[str]:
    return sorted({worker.worker for worker in stats.workers if worker.alive} | {*members})


def execute(plan: Plan, *, forced: bool = False) -> Steps[Reset]:
    """Do it. It may be stopped anywhere and done again. Raises `GroupLive` while workers of the group are alive, unless
    `forced`.
    """
    ops = ResetOps(plan.layout, plan.group)
    if plan.live and not forced:
        raise _live(ops, plan.live)
    release = ops.release([move.shard for move in plan.moves])
    try:
        done = yield from _do(ops, plan, forced)
    except GroupLive:
        yield release
        raise
    yield release
    return done


def _do(ops: ResetOps, plan: Plan, forced: bool) -> Steps[Reset]:
    if plan.key is None:
        numbers = yield from _abreast([_settle(ops, move, forced) for move in plan.moves])
        return Reset(settled=sum(numbers))
    given = [_give(ops, plan.key, move, dry=False, forced=forced) for move in plan.moves]
    moves = yield from _abreast(given)
    return Reset(given=sum(move.again for move in moves), left=sum(move.left for move in moves))


def _live(ops: ResetOps, names: Sequence[str]) -> GroupLive:
    return GroupLive(
        f"group {ops.group!r} of stream {ops.layout.name!r} has live workers ({', '.join(names)}): stop them first, or "
        "force it, and what they hold ends as LeaseLost (one that was killed counts as alive for a lease)"
    )


def _abreast(many: Sequence[Steps[R]]) -> Steps[list[R]]:
    """Go through many side by side; what came of each."""
    courses = [Course(steps) for steps in many]
    while wanted := {course: course.step for course in courses if course.step is not None}:
        replies = yield together([*wanted.values()])
        for course, reply in zip(wanted, replies, strict=True):
            course.go_on(reply)
    return [course.result for course in courses]


# -- a shard ------------------------------------------------------------------------------------------------------


def _move(ops: ResetOps, shard: ShardStats, stands: ShardGroupStats, new: EntryId) -> Steps[Move]:
    old = stands.position
    here = shard.shard.entry_id(b"0-0") if old is None else old  # a worker would make a missing group there
    between = yield from _count(ops, shard.shard, *sorted((here, new)))
    returning, dropped, pages = 0, 0, tuple[str, ...]()
    if stands.pending:
        dropped, before = yield from _pages(ops, shard.shard, "-", new.redis)
        returning, behind = yield from _pages(ops, shard.shard, "(" + new.redis if new[:2] < LAST else "", "+")
        pages = before + behind
    return Move(
        shard.shard,
        stands.older,
        old,
        new,
        again=between if new < here else 0,
        skipped=between if new > here else 0,
        returning=returning,
        dropped=dropped,
        pages=pages,
    )


def _count(ops: ResetOps, shard: Shard, after: EntryId, upto: EntryId) -> Steps[int]:
    """The entries behind one id, up to another."""
    total, at = 0, after.redis
    while at and after < upto:
        number, at = yield ops.count(shard, at, upto.redis)
        total += number
    return total


def _pages(ops: ResetOps, shard: Shard, start: str, end: str) -> Steps[tuple[int, tuple[str, ...]]]:
    """How many deliveries are pending in a range; and where to cut it, so that each part is a page of them at most."""
    total, cuts = 0, []
    while start:
        number, last = yield ops.pending(shard, start, end)
        total += number
        start = last and "(" + last
        if last:
            cuts.append(last)
    return total, tuple(cuts)


def _settle(ops: ResetOps, move: Move, forced: bool) -> Steps[int]:
    """Settle what is pending in a shard, the newest first, and move the group; how many deliveries that were."""
    settled, moved, cuts, upto = 0, False, [*move.pages], "+"
    while upto:
        after = cuts[-1] if cuts else ""
        start = "(" + after if after else "-"
        page: Settled = yield ops.settle(move.shard, start, upto, "" if moved else _floor(move, after), forced=forced)
        if page.living:
            raise _live(ops, page.living)
        if page.grown:  # live workers, of a group that was forced, have read meanwhile
            cuts += (yield from _pages(ops, move.shard, start, upto))[1]
            continue
        settled, moved = settled + page.number, moved or page.at == move.new.redis
        upto = page.rest or after
        if cuts and not page.rest:
            cuts.pop()
    return settled


def _floor(move: Move, after: str) -> str:
    return max(move.new, move.shard.entry_id(after.encode())).redis if after else move.new.redis


def _give(ops: ResetOps, key: str, move: Move, *, dry: bool, forced: bool = False) -> Steps[Move]:
    """Give the entries of a key to the group again that it has read; what a dry run would."""
    again, left, start = 0, 0, "(" + move.new.redis
    while start and move.old is not None and move.new < move.old:
        page: Given = yield ops.again(move.shard, key, start, move.old.redis, dry=dry, forced=forced)
        if page.living:
            raise _live(ops, page.living)
        again, left = again + page.given, left + page.left
        start = page.last and "(" + page.last
    return replace(move, again=again, left=left)
