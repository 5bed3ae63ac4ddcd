"""What a handler is told about the entry it was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rstream.event import EntryId


@dataclass(frozen=True, slots=True)
class Delivery:
    """One handing-over of an entry to a worker.

    id: where the entry lies · stream, group: names · key: str or None · event_id: 16 bytes, the same over all
    attempts · headers: str -> str · attempt: from 1 · worker: the worker's id.
    """

    id: EntryId
    stream: str
    group: str
    key: str | None
    event_id: bytes
    headers: Mapping[str, str]
    attempt: int
    worker: str
