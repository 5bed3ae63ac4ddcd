"""What the log lines of a consumer say of the deliveries that they are about; see `rstream.logs`. Pure."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rstream.codec import unpack_headers
from rstream.errors import EntryInvalid
from rstream.logs import Fields, key_hash, trace_of
from rstream.store.deliveries import Fetched, GroupOps
from rstream.store.keys import Shard

log = logging.getLogger("rstream")

NAMED = 10
"""Entries of a batch."""

KINDS = {
    "failed": "attempts failed",
    "dead": "entries became dead letters",
    "refused": "outcomes were refused: the lease was lost",
    "lost": "entries were lost: trimmed before they were processed",
    "expired": "entries had expired, and were not started",
    "skipped": "entries were doubles, and were not started",
    "blob": "entries wait for the blob store",
    "late": "entries were not started, for Redis did not answer",
}
"""What happens to single entries: of each so many lines, see `rstream.logs.Voice`."""


class About:
    """Of one consumer in this process. Given nothing: whose line it is; an entry: which, too; or a batch of them."""

    def __init__(self, ops: GroupOps) -> None:
        self._ops = ops

    def __call__(self, what: Fetched | Sequence[Fetched] | None) -> Fields:
        ops = self._ops
        found: dict[str, object] = {"stream": ops.layout.name, "group": ops.group, "worker": ops.worker}
        if isinstance(what, Fetched):
            return found | self._entry(what)
        if what:
            ids = [str(each.shard.entry_id(each.id)) for each in what[:NAMED]]
            return found | {"batch": len(what), "entries": ids}
        return found

    def place(self, shard: Shard, id: bytes, attempt: int | None = None) -> dict[str, Fields]:
        """For the `extra` of a line about an entry of which no more is at hand."""
        fields: dict[str, object] = {**self(None), "entry": str(shard.entry_id(id))}
        return {"rstream": fields if attempt is None else fields | {"attempt": attempt}}

    @staticmethod
    def _entry(entry: Fetched) -> dict[str, object]:
        fields = dict(zip(entry.flat[::2], entry.flat[1::2], strict=False))
        attempt = entry.deliveries if entry.source is None else entry.deliveries + 1
        found: dict[str, object] = {"entry": str(entry.shard.entry_id(entry.id)), "attempt": attempt}
        if key := fields.get(b"k"):
            found["key_hash"] = key_hash(key)
        try:
            return found | trace_of(unpack_headers(fields.get(b"h")))
        except EntryInvalid:
            return found
