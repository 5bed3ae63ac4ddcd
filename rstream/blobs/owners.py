"""Which Redis has blobs of a stream in a store. Each leaves a mark there, so that `rstream.blobs.gc`, which sees what
one Redis refers to, does not delete what another one does: staging with the bucket of production, an emptied Redis
whose backup is still to be put back.

The mark is `<namespace>/<stream>/owners/<id>`. The id is in Redis: a replica that is promoted and a backup that is put
back have the same, a Redis that lost its data gets another one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rstream.blobs.base import BlobStore
from rstream.errors import BlobMissing, ConfigError
from rstream.store import layout as layouts

if TYPE_CHECKING:
    from rstream.stream import Stream


def prefix(namespace: str, stream: str) -> str:
    """Of the keys of the marks."""
    return f"{namespace}/{stream}/owners/"


def mark(store: BlobStore, key: str, label: str) -> None:
    """label: of the Redis, for people."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    store.put(key, json.dumps({"redis": label, "published": since}).encode())


def refuse_others(stream: Stream[Any], store: BlobStore, forget: str | None = None, *, dry_run: bool = False) -> None:
    """Raises `ConfigError` unless this Redis is the only one that is marked. forget: the mark to take away first."""
    settings, app = stream.app.settings, stream.app
    own = app.sync_link.run(layouts.owner(settings.namespace, stream.name), within=settings.publish_timeout)
    marks = {found.key.rpartition("/")[2]: found.key for found in store.list(prefix(settings.namespace, stream.name))}
    marks.pop(own, None)
    if forget is not None:
        if forget not in marks:
            raise ConfigError(f"no other Redis has the mark {forget!r}: there are {', '.join(marks) or 'none'}")
        key = marks.pop(forget)
        if not dry_run:
            store.delete([key])
    for id, key in marks.items():
        raise ConfigError(
            f"blobs of stream {stream.name!r} in {store.label} are also those of another Redis ({_told(store, key)}), "
            "and what it refers to cannot be seen from here: nothing was deleted. Give each its own namespace or "
            f"prefix or, if that one is no more or lost its data for good, --forget {id}"
        )


def _told(store: BlobStore, key: str) -> str:
    try:
        said = json.loads(store.get(key, 10_000))
        return f"{said['redis']}, a process of which began to publish at {said['published']}"
    except (BlobMissing, ValueError, KeyError, TypeError):
        return "its mark cannot be read"
