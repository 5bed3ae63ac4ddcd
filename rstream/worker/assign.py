"""Which member of a consumer group should own each shard. Pure: all workers compute it alike, and nobody leads."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypeVar

import xxhash

S = TypeVar("S", bound=Hashable)


def assign(shards: Sequence[S], members: Iterable[str], owners: Mapping[S, str], salt: str = "") -> dict[S, str]:
    """The owner that each of the distinct `shards` should have, given who owns them now. No members: no owners.

    Every member has a quota, N // W shards or one more, keeps what it owns up to that, and what is left over or free
    goes to those with room. As few shards move as balance allows, because the larger quotas go first to those who hold
    more than the smaller one: each of them keeps a shard by it that would have to move otherwise, nobody else does.

    How much more they hold does not count, nor how much the others lack: `salt` alone orders members (give the name of
    the group, and the groups of a stream have their larger quotas at different members). For the same reason an owner
    keeps its first shards, and rooms are filled one after the other. So the answer stays the same while shards move to
    where it says, in whatever order, and workers that looked at different moments do not undo what others did.
    """
    ranked = sorted(set(members), key=lambda member: (xxhash.xxh64_intdigest((salt + member).encode()), member))
    if not ranked:
        return {}
    held: dict[str, list[S]] = {member: [] for member in ranked}
    for shard in shards:
        if (owner := owners.get(shard)) in held:
            held[owner].append(shard)
    smaller, larger = divmod(len(shards), len(ranked))
    first = sorted(ranked, key=lambda member: len(held[member]) <= smaller)  # a stable sort: else as they are ranked
    quotas = {member: smaller + (place < larger) for place, member in enumerate(first)}
    kept = {shard: member for member in ranked for shard in held[member][: quotas[member]]}
    rooms = (member for member in ranked for _ in range(len(held[member]), quotas[member]))
    return {shard: kept[shard] if shard in kept else next(rooms) for shard in shards}
