"""A log you can replay and a queue you can trust, on the Redis you already run."""

from rstream.app import RStream
from rstream.batch import Batch
from rstream.blobs.blob import Blob
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
    "RStream",
    "RStreamError",
    "Reject",
    "Retention",
    "Retry",
    "RetryPolicy",
    "Stream",
]
