"""A log you can replay and a queue you can trust, on the Redis you already run.

Each name is imported when it is first asked for: `rstream --help` needs none of them, and who declares only events does
not load what publishes them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.batch import Batch
    from rstream.blobs.blob import Blob
    from rstream.crypto import Keyring
    from rstream.delivery import Delivery
    from rstream.errors import RStreamError
    from rstream.event import Entry, EntryId, Event
    from rstream.retention import Retention
    from rstream.retry import Reject, Retry, RetryPolicy
    from rstream.stream import Stream

__all__ = [
    "Batch",
    "Blob",
    "Delivery",
    "Entry",
    "EntryId",
    "Event",
    "Keyring",
    "RStream",
    "RStreamError",
    "Reject",
    "Retention",
    "Retry",
    "RetryPolicy",
    "Stream",
]

_HOMES = {
    "rstream.app": ("RStream",),
    "rstream.batch": ("Batch",),
    "rstream.blobs.blob": ("Blob",),
    "rstream.crypto": ("Keyring",),
    "rstream.delivery": ("Delivery",),
    "rstream.errors": ("RStreamError",),
    "rstream.event": ("Entry", "EntryId", "Event"),
    "rstream.retention": ("Retention",),
    "rstream.retry": ("Reject", "Retry", "RetryPolicy"),
    "rstream.stream": ("Stream",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            found = globals()[name] = getattr(import_module(home), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
