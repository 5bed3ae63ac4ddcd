"""Hands entries to a handler: one by one, or batch by batch, and tells what became of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rstream.batch import Batch, answers
from rstream.calling import Call, Handler, answered, caller
from rstream.delivery import Delivery
from rstream.errors import ConfigError, EntryInvalid, one_line
from rstream.event import Entry, EntryId
from rstream.logs import Fields, key_hash, subject, trace_of
from rstream.store.replays import Outcome

Outcomes = dict[EntryId, Outcome]
Given = tuple[Entry[Any], Any]
"""An entry and its event."""


NAMED = 10
"""Entries of a batch, in log lines."""


class Calls(Protocol):
    async def handle(self, entries: Sequence[Entry[Any]]) -> Outcomes:
        """What became of each. Raises only `KeyboardInterrupt`."""


class Context:
    """Whose deliveries they are, and who is told what went wrong."""

    def __init__(self, stream: str, name: str, worker: str, tell: Callable[..., None]) -> None:
        self._stream, self._name, self._worker, self.tell = stream, name, worker, tell

    def delivery(self, entry: Entry[Any]) -> Delivery:
        return Delivery(
            id=entry.id,
            stream=self._stream,
            group=self._name,
            key=entry.key,
            event_id=entry.event_id,
            headers=entry.headers,
            attempt=1,
            worker=self._worker,
        )

    def about(self, what: Entry[Any] | Sequence[Entry[Any]] | None) -> Fields:
        """What the log lines of its deliveries say."""
        found: dict[str, object] = {"stream": self._stream, "group": self._name, "worker": self._worker}
        if isinstance(what, Entry):
            of_key = {} if what.key is None else {"key_hash": key_hash(what.key)}
            return found | {"entry": str(what.id), "attempt": 1} | of_key | trace_of(what.headers)
        if what:
            found |= {"batch": len(what), "entries": [str(entry.id) for entry in what[:NAMED]]}
        return found

    def events(self, entries: Sequence[Entry[Any]], outcomes: Outcomes) -> list[Given]:
        """Those that can be decoded; `outcomes` gets the others."""
        given = []
        for entry in entries:
            try:
                given.append((entry, entry.event))
            except EntryInvalid as error:
                outcomes[entry.id] = "invalid"
                self.tell(f"entry {entry.id} is {error.reason} and was not handled: {error}")
        return given

    def failed(self, entry: Entry[Any], error: BaseException) -> Outcome:
        subject.set(entry)
        if isinstance(error, KeyboardInterrupt):
            raise error
        self.tell(f"entry {entry.id} failed: {one_line(error)}", error)
        return "failed"


class Singles:
    """Calls a handler with one event at a time."""

    def __init__(self, context: Context, handler: Handler, limit: int) -> None:
        self._context, self._call = context, caller(handler, limit)

    async def handle(self, entries: Sequence[Entry[Any]]) -> Outcomes:
        outcomes: Outcomes = {}
        for entry, event in self._context.events(entries, outcomes):
            subject.set(entry)
            error = (await answered(self._call(event, self._context.delivery(entry)))).error
            outcomes[entry.id] = "handled" if error is None else self._context.failed(entry, error)
        return outcomes


class Batches:
    """Calls a handler with all events at once. One that raises without saying for which is called again with each half,
    in their order, until it is known; where two single events have failed and none has not, it is hardly the events:
    then the rest of the batch has failed with them.
    """

    def __init__(self, context: Context, handler: Handler, limit: int) -> None:
        self._context, self._call = context, caller(handler, limit, batch=True)

    async def handle(self, entries: Sequence[Entry[Any]]) -> Outcomes:
        outcomes: Outcomes = {}
        parts = [given] if (given := self._context.events(entries, outcomes)) else []
        singles, any_handled, error = 0, False, None
        while parts:
            part = parts.pop()
            if error is not None and singles > 1 and not any_handled:
                outcomes.update((entry.id, self._context.failed(entry, error)) for entry, _ in part)
                continue
            rest, raised = await self._try(self._call, part, outcomes)
            any_handled = any_handled or len(rest) < len(part) or raised is None
            if raised is None:
                continue
            error = raised
            if len(rest) == 1:
                outcomes[rest[0][0].id] = self._context.failed(rest[0][0], error)
                singles += 1
            elif rest:
                middle = len(rest) // 2
                parts += [rest[middle:], rest[:middle]]
        return outcomes

    async def _try(self, call: Call, part: list[Given], outcomes: Outcomes) -> tuple[list[Given], BaseException | None]:
        """Call it once; those of which nothing is known after it, and what it raised."""
        batch = _Batch(self._context, [entry for entry, _ in part])
        subject.set([entry for entry, _ in part])
        result, error = await answered(call([event for _, event in part], batch))
        told: list[Any] = []
        if error is None:
            try:
                told = answers(result, batch.failures, len(part), wanted=False)
            except ConfigError as wrong:
                error = wrong
        if error is None:
            outcomes.update(dict.fromkeys((entry.id for entry, _ in part), "handled"))
            if batch.failures or isinstance(result, list | tuple):
                for (entry, _), answer in zip(part, told, strict=True):
                    if isinstance(answer, BaseException):
                        outcomes[entry.id] = self._context.failed(entry, answer)
            return [], None
        for index, failure in batch.failures.items():
            outcomes[part[index][0].id] = self._context.failed(part[index][0], failure)
        return [given for index, given in enumerate(part) if index not in batch.failures], error


class _Batch(Batch):
    """Whose deliveries are made when somebody asks for them: they cost more than all else of a small event."""

    __slots__ = ("_context", "_entries", "_made")

    def __init__(self, context: Context, entries: Sequence[Entry[Any]]) -> None:
        self._context, self._entries = context, entries
        self._made: tuple[Delivery, ...] | None = None
        self.failures = {}

    @property
    def deliveries(self) -> tuple[Delivery, ...]:  # type: ignore[override]
        if self._made is None:
            self._made = tuple(map(self._context.delivery, self._entries))
        return self._made

    def __len__(self) -> int:
        return len(self._entries)
