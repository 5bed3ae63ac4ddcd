"""Cancelling deliveries: they count as settled from now on, whoever has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rstream.errors import ConfigError
from rstream.event import EntryId
from rstream.store import layout as layouts
from rstream.store.bell import ring
from rstream.store.cancel import Judged, Verdict
from rstream.store.cancel import cancel as settle
from rstream.store.keys import ARCHIVE, Shard
from rstream.store.layout import Layout
from rstream.store.link import together
from rstream.store.pending import Held, PendingOps, Which
from rstream.store.stats import no_such_group
from rstream.store.steps import Steps, drive

if TYPE_CHECKING:
    from rstream.stream import Stream

Shards = Mapping[tuple[int, int], Shard]

CHUNK = 100
"""Entries that are cancelled in one write, and told of by one ring."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """What became of one entry. verdict: "cancelled" · "settled": it was not pending any more: it was settled before,
    or passed over · "unread": no worker was given it yet · "gone": the group, or the shard, is not there · worker: who
    had it, None where it waited · waited: "released", "again", "retry" or "parked" where it did · attempt: how many
    were begun.
    """

    id: EntryId
    verdict: Verdict
    worker: str | None = None
    waited: str | None = None
    attempt: int = 0


async def cancel(stream: Stream[Any], group: str, ids: Iterable[EntryId | str]) -> list[Cancelled]:
    """End deliveries of a group without an outcome of theirs: acked, and counted as cancelled.

    Their worker is told at once and cancels a handler that runs on its event loop; one in a thread, in a process, or in
    a batch runs on, and what it settles, keeps or emits is refused. In an ordered group the next event of the key
    follows when the handler has ended. Raises `PositionError`, `ConfigError`, `StoreError`s.
    """
    wanted = [EntryId.parse(id) if isinstance(id, str) else id for id in ids]
    steps = cancelling(await stream.layout(fresh=True), group, wanted)
    return await drive(stream.app.link, steps, stream.app.settings.publish_timeout)


def cancelling(layout: Layout, group: str, ids: Sequence[EntryId]) -> Steps[list[Cancelled]]:
    """As `cancel`, in steps."""
    if group == ARCHIVE:
        raise ConfigError(f"{group!r} is the archive of stream {layout.name!r}, which nobody cancels")
    if group not in (known := (yield layouts.groups(layout.every))):
        raise no_such_group(group, layout, [name for name in known if name != ARCHIVE])
    shards = {(shard.generation, shard.number): shard for shard in layout.every}
    unique = [*dict.fromkeys(ids)]
    done = {id: Cancelled(id, "gone") for id in unique}
    there = [id for id in unique if id[2:] in shards]
    for at in range(0, len(there), CHUNK):
        yield from _cancel(layout, group, there[at : at + CHUNK], shards, done)
    return [done[id] for id in unique]


def _cancel(
    layout: Layout, group: str, ids: list[EntryId], shards: Shards, done: dict[EntryId, Cancelled]
) -> Steps[None]:
    aside = yield from _aside(layout, group, ids, shards)
    by_shard: dict[Shard, list[EntryId]] = {}
    for id in ids:
        by_shard.setdefault(shards[id[2:]], []).append(id)
    ops = [settle(shard, group, [id.redis for id in mine], aside.get(shard, [])) for shard, mine in by_shard.items()]
    judged: list[list[Judged]] = yield together(ops)
    for mine, verdicts in zip(by_shard.values(), judged, strict=True):
        done.update({id: _told(id, verdict) for id, verdict in zip(mine, verdicts, strict=True)})
    # Also of what is settled: that may be by this very call, whose answer was lost, or by one that died before it rang.
    if ended := [id for id in ids if done[id].verdict in ("cancelled", "settled")]:
        yield ring(layout.namespace, layout.name, group, ended)


def _aside(layout: Layout, group: str, ids: list[EntryId], shards: Shards) -> Steps[dict[Shard, list[bytes]]]:
    """The keys of those that are put aside at the moment."""
    ops = PendingOps(layout, group)
    looks = [ops.look({shards[id[2:]]: id.redis}, Which(end=id.redis, limit=1), 1) for id in ids]
    found: dict[Shard, dict[bytes, None]] = {}
    for look in (yield together(looks)):
        held: list[Held] = [one for page, _ in look.values() for one in page]
        for one in held:
            if one.holder == "~parked" and one.key is not None:
                found.setdefault(one.shard, {})[one.key] = None
    return {shard: [*keys] for shard, keys in found.items()}


def _told(id: EntryId, judged: Judged) -> Cancelled:
    verdict, holder, deliveries = judged
    waits = holder.startswith("~")
    return Cancelled(
        id, verdict, None if waits or not holder else holder, holder.lstrip("~") if waits else None, deliveries
    )
