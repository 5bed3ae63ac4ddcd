"""Every error rstream raises, as one tree. Each message is one line: what, where, why, what to do.

`RStreamError`
├── `ConfigError`        a setting, URL, name or option that cannot be used
│   └── `LoadError`      MODULE:NAME that does not import
├── `PositionError`      an id or time that does not parse
├── `UnknownStream`      nobody declared this stream
├── `UnknownEntry`       no entry of a stream is known by this id
├── `StreamMismatch`     a declaration that contradicts what is stored of the stream
│   └── `SchemaIncompatible`   … by its model: who has a stored version could not read it, or it could not read them
├── `EventError`         an event that cannot be published
│   ├── `EventInvalid`   it does not fit the stream's schema, or cannot be encoded
│   ├── `EventTooLarge`
│   └── `KeyMissing`
├── `EntryInvalid`       an entry that cannot be turned into an event (`reason` says which kind)
│   ├── `Undecryptable`  it is encrypted with a key that is not here, or was altered, or moved
│   ├── `BlobMissing`    what it refers to is not in the blob store
│   └── `BlobAltered`    what is there is not what was stored
├── `BlobError`          the blob store
│   ├── `BlobUnavailable`   it did not answer in time, or failed in a way that passes
│   └── `BlobRefused`    wrong credentials or bucket, or no blob store is set
├── `ArchiveDamaged`     an object of the archive is not there, or not what was archived
├── `MemoInvalid`        a checkpoint or the result of a step that cannot be stored, or be read again
│   └── `MemoTooLarge`
├── `LeaseLost`          the delivery belongs to somebody else by now; nothing was changed
├── `HandlerTimeout`     a handler that took longer than its consumer allows
├── `HandlerDied`        the process that ran a handler died
├── `ReplayBusy`         the same replay is running elsewhere
├── `GroupLive`          workers of the group are alive, and what was asked for is not for live groups
└── `StoreError`         Redis
    ├── `NoServer`       no server to embed
    ├── `ServerFailed`   the embedded server did not start
    ├── `ServerTooOld`
    ├── `StoreRefused`   wrong password, missing rights, a command Redis does not accept
    ├── `MemoryFull`     Redis is at maxmemory and refused the write; nothing was written
    ├── `StreamFull`     a limit of the stream's retention is reached, by what is not processed; nothing was added
    ├── `ShardLimited`   the shard got limits since; nothing was written (publishers go on by themselves)
    ├── `GroupMissing`   the group or its shard is gone from Redis (it lost data)
    ├── `ShardSealed`    the stream was resharded; nothing was written (publishers go on by themselves)
    └── `StoreUnavailable`   Redis did not answer in time
        └── `PublishUncertain`   … and what was sent last may or may not have been applied
"""

from __future__ import annotations

import re
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rstream.event import EntryId


class RStreamError(Exception):
    """The root of everything rstream raises."""


class ConfigError(RStreamError):
    """A setting, URL, name or option that cannot be used."""


class LoadError(ConfigError):
    """MODULE:NAME that does not import."""


class PositionError(RStreamError):
    """An id or time that does not parse."""


class UnknownStream(RStreamError):
    """Nobody declared this stream."""


class UnknownEntry(RStreamError):
    """No entry of the stream is known by this id."""


class StreamMismatch(RStreamError):
    """The declaration contradicts what is stored of the stream."""


class SchemaIncompatible(StreamMismatch):
    """The model and a stored version of the schema cannot read each other; `differences` has one line for each."""

    def __init__(self, message: str, differences: Sequence[str]) -> None:
        super().__init__("\n  ".join((message, *differences)))
        self.differences = tuple(differences)


class EventError(RStreamError):
    """An event that cannot be published; nothing was."""


class EventInvalid(EventError):
    """The event does not fit the stream's schema, or cannot be encoded."""


class EventTooLarge(EventError):
    """The encoded event is above the stream's size limit."""


class KeyMissing(EventError):
    """The event has no usable key."""


class EntryInvalid(RStreamError):
    """An entry that cannot be turned into an event; `reason` is "undecodable", "invalid", "outdated", "plaintext" or
    what a subclass says.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Undecryptable(EntryInvalid):
    """An entry that is encrypted with a key that is not here; or it was altered, or was of another stream or key."""

    def __init__(self, message: str) -> None:
        super().__init__("undecryptable", message)


class BlobMissing(EntryInvalid):
    """What an entry refers to is not in the blob store."""

    def __init__(self, message: str) -> None:
        super().__init__("blob missing", message)


class BlobAltered(EntryInvalid):
    """What is in the blob store is not what was stored there."""

    def __init__(self, message: str) -> None:
        super().__init__("blob altered", message)


class BlobError(RStreamError):
    """The blob store could not do what was asked."""


class BlobUnavailable(BlobError):
    """The blob store did not answer in time, or failed in a way that passes."""


class BlobRefused(BlobError):
    """The blob store refused: credentials, rights, a bucket that is not there; or there is none."""


class ArchiveDamaged(RStreamError):
    """An object of the archive is missing, or is not what was archived; `object` is its key in the blob store, `why`
    what is wrong with it.
    """

    def __init__(self, message: str, object: str, why: str) -> None:
        super().__init__(message)
        self.object, self.why = object, why


class MemoInvalid(RStreamError):
    """A checkpoint or the result of a step that cannot be stored, or cannot be read again."""


class MemoTooLarge(MemoInvalid):
    """The checkpoint or the result of the step is above the size limit; nothing was stored."""


class LeaseLost(RStreamError):
    """The delivery belongs to somebody else by now; the call changed nothing."""


class HandlerTimeout(RStreamError):
    """The handler took longer than its consumer's timeout."""


class HandlerDied(RStreamError):
    """The process that ran the handler died."""


class ReplayBusy(RStreamError):
    """The same replay is running elsewhere."""


class GroupLive(RStreamError):
    """Workers of the group are alive, and what was asked for would take deliveries from them."""


class StoreError(RStreamError):
    """Redis could not do what was asked.

    `sent`: an earlier sending of the same may have been applied all the same, only its answer was lost. After
    `publish_many`, `published` are the ids of those events that surely are in the stream.
    """

    sent = False
    published: Sequence[EntryId] = ()


class NoServer(StoreError):
    """There is no server to embed."""


class ServerFailed(StoreError):
    """The embedded server did not start."""


class ServerTooOld(StoreError):
    """The server is older than Redis 7.0."""


class StoreRefused(StoreError):
    """Redis refused the command: password, rights, or a command it does not accept.

    denied: this user may not do that.
    """

    denied = False


class MemoryFull(StoreError):
    """Redis is at maxmemory and refused the write; nothing was written."""


class StreamFull(StoreError):
    """The stream is full of what its groups have not processed; nothing was added."""


class GroupMissing(StoreError):
    """The group or its shard is gone from Redis: it lost data."""


class ShardSealed(StoreError):
    """The shard takes no entries any more, for its stream was resharded; nothing was written."""


class ShardLimited(StoreError):
    """The shard has limits, of which the call did not know; nothing was written."""


class StoreUnavailable(StoreError):
    """Redis did not answer in time."""


class PublishUncertain(StoreUnavailable):
    """The connection broke in mid-publish, and the retry failed: what was sent last may or may not be in the stream."""

    sent = True


def one_line(error: BaseException, limit: int = 1_000) -> str:
    """Type and text of any exception, also of one that cannot say its text itself."""
    try:
        text = "".join(traceback.format_exception_only(error))
    except BaseException:
        text = f"{type(error).__name__} (it cannot be printed)"
    return " ".join(_printable(text[: 10 * limit]).split())[:limit]


def full_text(error: BaseException, limit: int = 16_000) -> str:
    """The traceback of any exception, the end of it."""
    try:
        return _printable("".join(traceback.format_exception(error))[-limit:])
    except BaseException:
        return one_line(error, limit)


_PASSWORD = re.compile(r"""://[^\s/"'@:]*(?::[^\s"'@]*)?@(?:[^\s"'/@]*@)*""")


_INPUT = re.compile(r"input_value=.*?, input_type=")


def masked(text: str) -> str:
    """Without user and password of the URLs in it: an error, or the line of code that raised it, may have one; and
    without the values that pydantic did not like.
    """
    return _INPUT.sub("input_value=…, input_type=", _PASSWORD.sub("://…@", text))


def _printable(text: str) -> str:
    """Lone surrogates are text to Python, and to nobody else."""
    return masked(text.encode(errors="replace").decode())
