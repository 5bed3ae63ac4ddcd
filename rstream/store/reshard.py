"""Another number of shards for a stream, while it is written to and read. docs/resharding.md explains it to users.

The next generation is planned, and opened: every group is made there, from its start. Then the shards that are written
to are sealed, which Redis makes natively final; the new ones are lifted, so that their ids follow all of the old ones;
and the stream flips: from then on producers write to the new generation. Between seal and flip they wait, a few round
trips.

Every step may be taken twice and by several at once, so whoever comes by may finish what somebody began: the same
command again, or a producer that was kept waiting. What is once sealed stays so, also when it was removed: whoever
stood still meanwhile makes no shard anew that nobody would read. One that is missing takes no entry until somebody who
has just read the layout makes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from rstream.errors import ConfigError, StoreUnavailable, UnknownStream
from rstream.process import clock
from rstream.store import keys
from rstream.store import layout as layouts
from rstream.store.bell import ring
from rstream.store.keys import Rank, Shard
from rstream.store.layout import MAX_SHARDS, Layout
from rstream.store.link import Op, backoff
from rstream.store.scripts import GROUP, RESHARD, RETIRE, SEAL, SHARD
from rstream.store.stats import group_stats
from rstream.store.steps import Paced, Steps
from rstream.store.totals import counts_of
from rstream.store.trim import limit_new

log = logging.getLogger("rstream")

SEAL_TTL_MS = 90 * 24 * 3600 * 1000
"""How long it is remembered that a removed shard was sealed: longer than any process stands still."""

RESCUE = 1.0
"""Seconds that a producer waits at a sealed shard before it finishes the resharding itself."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Resharding:
    """What was done, or with `dry_run` would be.

    before, after: shards · generation: the one that is written to then · groups: made in the new shards · resumed:
    somebody had begun it · to_drain: entries that each group has yet to handle in shards that are not written to any
    more (None where Redis cannot tell) · removed: older generations in which nothing was left.
    """

    stream: str
    before: int
    after: int
    generation: int
    groups: tuple[str, ...] = ()
    resumed: bool = False
    dry_run: bool = False
    to_drain: Mapping[str, int | None] = field(default_factory=dict)
    removed: tuple[int, ...] = ()


class _State(NamedTuple):
    """changed: by this step · shards, retired: how many shards, by generation."""

    generation: int
    changed: bool
    shards: dict[int, int]
    retired: dict[int, int]


class _Place(NamedTuple):
    """A stream."""

    namespace: str
    name: str

    def shards(self, generation: int, count: int) -> list[Shard]:
        return [keys.shard(self.namespace, self.name, generation, number, count) for number in range(count)]

    def step(self, step: str, given: int = 0, counted: Mapping[str, int] | None = None) -> Op[_State]:
        def parse(replies: list[Any]) -> _State:
            if not replies[0]:
                raise UnknownStream(f"no stream {self.name!r} in namespace {self.namespace!r}: nothing is stored of it")
            generation, changed, *pairs = replies[0]
            shards, retired = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in pairs)
            return _State(generation, bool(changed), shards, retired)

        told = [part for pair in (counted or {}).items() for part in pair]
        return Op([RESHARD([keys.stream(self.namespace, self.name)], step, given, *told)], parse)

    def ring(self) -> Op[None]:
        """Have workers look now. A hint: where memory is full they look by themselves, only later."""
        return ring(self.namespace, self.name)


def reshard(
    namespace: str, name: str, shards: int, *, dry_run: bool = False, tell: Tell = log.info
) -> Steps[Resharding]:
    """Give a stream so many shards; `tell` is told each step. Raises `ConfigError`, `UnknownStream`."""
    if not 1 <= shards <= MAX_SHARDS:
        raise ConfigError(f"stream {name!r}: shards is {shards}, it must be between 1 and {MAX_SHARDS}")
    place = _Place(namespace, name)
    removed = [] if dry_run else (yield from retire(namespace, name, tell))
    state: _State = yield place.step("look" if dry_run else "plan", shards)
    before, planned = state.shards[state.generation], state.shards.get(state.generation + 1)
    if planned not in (None, shards):
        raise ConfigError(
            f"stream {name!r} is on its way from {before} to {planned} shards, and that is not done: "
            f"finish it first with `rstream streams reshard {name} --shards {planned}`"
        )
    wanted = planned is not None or (dry_run and shards != before)
    groups: list[str] = (yield layouts.groups(place.shards(state.generation, before))) if wanted else []
    result = Resharding(
        name,
        before,
        shards,
        state.generation + wanted,
        tuple(groups),
        not state.changed and planned is not None,
        dry_run,
    )
    if dry_run:
        return replace(result, to_drain=(yield from _undone(place, all_of_it=wanted)))
    if result.resumed:
        tell("planned already: going on with what was begun")
    elif wanted:
        tell(f"planned generation {state.generation + 1} with {shards} shards")
    if wanted:
        yield from _finish(place, state.generation, before, shards, tell)
    return replace(result, removed=tuple(removed), to_drain=(yield from _undone(place)))


def _finish(place: _Place, generation: int, before: int, after: int, tell: Tell) -> Steps[None]:
    """Everything from the plan on."""
    old, new = place.shards(generation, before), place.shards(generation + 1, after)
    groups: list[str] = yield layouts.groups(old)
    yield _open(new, groups)
    tell(f"opened {_shards(new)} for {len(groups)} group{'s' * (len(groups) != 1)}")
    sealed: list[tuple[Rank, bool]] = yield _seal(old, generation + 1)
    yield _shape(new, max(last for last, _ in sealed))
    layout: Layout | None = yield layouts.load(*place)
    if layout is not None:
        yield from limit_new(layout, new)
    state: _State = yield place.step("flip", generation + 1)
    if state.generation <= generation:
        raise UnknownStream(
            f"stream {place.name!r} was not resharded: what is stored of it has changed meanwhile, or Redis lost data. "
            "Look at `rstream streams`, and run it again"
        )
    yield place.ring()
    if not state.changed:
        tell(f"flipped already: producers write to generation {state.generation} now")
        return
    # Told only now: nobody has to wait for a terminal while producers wait for the flip.
    tell(f"sealed {_shards(old)}{_already(sum(not new for _, new in sealed))}")
    tell(f"flipped: producers write to {_shards(new)} now")


def _shards(shards: Sequence[Shard]) -> str:
    return f"{len(shards)} shard{'s' * (len(shards) != 1)} of generation {shards[0].generation}"


def _already(count: int) -> str:
    return f" ({count} of them were sealed before)" if count else ""


def retire(namespace: str, name: str, tell: Tell = log.info) -> Steps[list[int]]:
    """Remove the generations that are not written to any more and in which nothing is left: no entry, nothing pending,
    no dead letter. Their numbers.

    First they are taken out of the layout, so that nobody looks for what goes then. A group that began in one of them
    reads on in those that follow, also where its worker did not come to make it there. What was counted in it goes into
    the totals of the stream with the step that ends its removal, and with no other.
    """
    place, removed = _Place(namespace, name), []
    state: _State = yield place.step("look")
    kept = [
        shard for counts in (state.shards, state.retired) for each in counts.items() for shard in place.shards(*each)
    ]
    if all(shard.generation >= state.generation for shard in kept):
        return []
    groups: list[str] = yield layouts.groups(kept)
    for generation, count in sorted(state.shards.items()):
        shards = place.shards(generation, count)
        if generation < state.generation and (yield _retire(shards, groups, remove=False)):
            begun: list[str] = yield layouts.groups(shards)
            yield _open([shard for shard in kept if shard.generation > generation], begun)
            yield place.step("retire", generation)
            yield place.ring()
            state.retired[generation] = count
    for generation, count in sorted(state.retired.items()):
        shards = place.shards(generation, count)
        if (yield _retire(shards, groups, remove=True)):
            counted: dict[str, int] = yield counts_of(shards)
            yield place.step("forget", generation, counted)
            removed.append(generation)
            tell(f"removed generation {generation}, in which nothing was left")
    return removed


def follow(declaration: Op[Layout], refused: Shard, within: float) -> Paced[Layout]:
    """What a stream has become whose shard took nothing: it is sealed, or not there. Raises `StoreUnavailable`.

    Whoever has just read that a shard is written to may make it: it was never used, or Redis lost it.
    """
    began = clock()
    for pause in backoff(0.25):
        layout: Layout = yield declaration
        if not layout.writes(refused):
            return layout
        if not (yield _shape(layout.current, (0, 0))):
            yield from limit_new(layout, layout.current)  # with a shard, Redis lost its limits
            return layout
        if clock() - began > within:
            raise StoreUnavailable(
                f"stream {layout.name!r} is being resharded, and was not done after {within:g} s: nothing was added. "
                f"Finish it with `rstream streams reshard {layout.name} "
                f"--shards {layout.planned[1] if layout.planned else layout.shards}`"
            )
        if clock() - began > RESCUE and layout.planned is not None:
            log.warning("stream %r: a resharding stands still; finishing it", layout.name)
            place = _Place(layout.namespace, layout.name)
            yield from _finish(place, layout.generation, layout.shards, layout.planned[1], log.info)
        else:
            yield pause
    raise AssertionError("backoff never ends")


def make(layout: Layout) -> Op[int]:
    """Make the shards of a stream that was just declared. Only for who has just read the layout."""
    return _shape(layout.current, (0, 0))


# -- the operations ---------------------------------------------------------------------------------------------


def _open(shards: Sequence[Shard], groups: Sequence[str]) -> Op[None]:
    """Make groups that read these from their start, where they do not exist."""
    calls = [GROUP([shard.stream], group, "0", 1, "") for shard in shards for group in groups]
    return Op(calls, lambda replies: None)


def _seal(shards: Sequence[Shard], following: int) -> Op[list[tuple[Rank, bool]]]:
    """The last id of each shard, and whether it was sealed only now."""

    def parse(replies: list[Any]) -> list[tuple[Rank, bool]]:
        return [(keys.rank_of(last), bool(new)) for last, new in replies]

    return Op([SEAL([shard.stream, shard.sealed, shard.size], following) for shard in shards], parse)


def _shape(shards: Sequence[Shard], floor: Rank) -> Op[int]:
    """Make shards that are not there, and have the ids of all begin after `floor`; how many of them are sealed."""
    return Op([SHARD([shard.stream, shard.sealed], f"{floor[0]}-{floor[1]}") for shard in shards], sum)


def _retire(shards: Sequence[Shard], groups: Sequence[str], *, remove: bool) -> Op[bool]:
    """Whether nothing is left in any of these; what is empty is removed."""
    calls = [RETIRE([s.stream, s.sealed, s.size, s.marks, s.done], int(remove), SEAL_TTL_MS, *groups) for s in shards]
    return Op(calls, all)


def _undone(place: _Place, *, all_of_it: bool = False) -> Steps[dict[str, int | None]]:
    """What each group has yet to handle in the older generations; with `all_of_it`, also in the current one."""
    layout: Layout | None = yield layouts.load(*place)
    if layout is not None and not all_of_it:
        layout = _older_part(layout)
    if layout is None:
        return {}
    found = yield group_stats(layout)
    return {group.name: None if group.lag is None else group.lag + group.pending for group in found}


def _older_part(layout: Layout) -> Layout | None:
    if not layout.older:
        return None
    *older, (generation, count) = layout.older
    return replace(layout, generation=generation, shards=count, older=tuple(older), planned=None)
