"""What there is to do with dead letters: generators that yield operations and are sent their results. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from rstream.deadletter.letter import WHY, DeadLetter, Discard, Filters, Left, Redrive, check_filters
from rstream.errors import ConfigError, PositionError
from rstream.event import EntryId
from rstream.position import bound
from rstream.store import layout as layouts
from rstream.store.dead import DeadOps, Head, Letter, Match, Search, chunks
from rstream.store.link import Op
from rstream.store.steps import Course, Steps

S = TypeVar("S")


def match(filters: Filters, now: int) -> Match:
    """Raises `PositionError`, `ConfigError`."""
    check_filters(filters)
    start, end = bound(filters.get("since"), "start", now), bound(filters.get("until"), "end", now)
    if start > end:
        raise PositionError(
            f"the time from {filters.get('since')!r} to {filters.get('until')!r} ends before it begins: swap them"
        )
    ids = [EntryId.parse(id) if isinstance(id, str) else id for id in filters.get("ids") or ()]
    limit = filters.get("limit")
    return Match(
        start,
        end,
        filters.get("reason") or "",
        filters.get("key"),
        filters.get("error") or "",
        frozenset(id.id if isinstance(id, DeadLetter) else id for id in ids),
        frozenset(id for id in ids if isinstance(id, EntryId)),
        None if limit is None else max(0, limit),
    )


def check(filters: Filters, everything: bool, verb: str) -> None:
    """All dead letters are meant only where somebody says so. Raises `ConfigError`."""
    check_filters(filters)
    if everything or any(value is not None for name, value in filters.items() if name != "limit"):
        return
    raise ConfigError(f"{verb} which dead letters? Give ids or a filter, or everything=True for all of them")


def heads(ops: DeadOps, filters: Filters) -> Generator[Op[Any] | list[Head], Any, None]:
    """Yields operations, and lists of heads in order of death."""
    wanted = match(filters, (yield layouts.clock()))
    if filters.get("ids") is not None and not wanted.named:
        return
    search = Search(ops, wanted)
    named: list[Head] = []
    while op := search.op():
        yield op
        if wanted.entries:  # all of them, before any is acted on
            named += search.ready()
        else:
            yield search.ready()
    _unambiguous(wanted, named)
    yield named


def _unambiguous(wanted: Match, found: list[Head]) -> None:
    """An id that is one letter's own may also be that of another's entry. Raises `PositionError`."""
    by_id = {head.id: head for head in found if head.id in wanted.entries}
    for head in found:
        other = by_id.get(head.entry_id)
        if other is not None and other.entry_id != head.entry_id:  # two letters of one entry are both meant
            raise PositionError(
                f"{other.id} is the id of one dead letter and of the entry of another: "
                f"write {other.entry_id} for the first, {head.id} for the second"
            )


def letters(ops: DeadOps, filters: Filters) -> Generator[Op[Any] | list[Letter], Any, None]:
    """Yields operations, and lists of letters in order of death."""

    def bring(chunk: list[Head]) -> Generator[Op[Any] | list[Letter], Any, None]:
        yield (yield ops.letters(chunk))

    yield from _over(ops, filters, bring)


def _over(
    ops: DeadOps, filters: Filters, act: Callable[[list[Head]], Generator[S, Any, None]]
) -> Generator[Op[Any] | S, Any, None]:
    """Act on the heads that match, chunk by chunk."""
    search = Course(heads(ops, filters))
    while (step := search.step) is not None:
        if isinstance(step, Op):
            search.go_on((yield step))
            continue
        for chunk in chunks(step):
            yield from act(chunk)
        search.go_on(None)


def redrive(ops: DeadOps, filters: Filters, dry: bool) -> Steps[Redrive]:
    done = Redrive()

    def act(chunk: list[Head]) -> Steps[None]:
        verdicts = yield ops.redrive(chunk, dry=dry)
        done.done += sum(verdict == "again" for _, verdict in verdicts)
        done.gone += sum(verdict == "gone" for _, verdict in verdicts)
        done.left += [Left(head.id, head.entry_id, why) for head, why in verdicts if why in WHY]

    done.left += yield from _each(ops, filters, act)
    if done.done and not dry:
        yield ops.ring()
    return done


def discard(ops: DeadOps, filters: Filters, dry: bool) -> Steps[Discard]:
    done = Discard()

    def act(chunk: list[Head]) -> Steps[None]:
        done.done += len(chunk) if dry else (yield ops.discard(chunk))

    done.left += yield from _each(ops, filters, act)
    return done


def _each(ops: DeadOps, filters: Filters, act: Callable[[list[Head]], Steps[None]]) -> Steps[list[Left]]:
    """Act on the letters that match, chunk by chunk; the ids that name none of them."""
    ids = filters.get("ids")
    if ids is not None:
        ids = filters["ids"] = list(ids)  # may be an iterator, and is gone through twice
    named = [id.id if isinstance(id, DeadLetter) else id for id in ids or ()]
    missing = dict.fromkeys(EntryId.parse(id) if isinstance(id, str) else id for id in named)

    def act_and_tick(chunk: list[Head]) -> Steps[None]:
        yield from act(chunk)
        for head in chunk:
            missing.pop(head.id, None)
            missing.pop(head.entry_id, None)

    yield from _over(ops, filters, act_and_tick)
    return [Left(id, None, "missing") for id in missing]


def count(ops: DeadOps) -> Steps[dict[str, int]]:
    search = Search(ops, Match(), count=True)
    while op := search.op():
        yield op
    return dict(search.counts.most_common())
