"""What a batch handler is told about the events it was given, and how it says which of them failed. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rstream.delivery import Delivery
from rstream.errors import ConfigError


class Batch:
    """The deliveries of one call of a batch handler.

    deliveries: one for each event, in their order · failures: what was told to `fail`, by index.

    One that you make yourself, as in a unit test, needs `Batch(deliveries)`.
    """

    __slots__ = ("deliveries", "failures")

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self.deliveries = tuple(deliveries)
        self.failures: dict[int, BaseException] = {}

    def __len__(self) -> int:
        return len(self.deliveries)

    def fail(self, index: int, error: BaseException) -> None:
        """Event `index` (from 0) failed, as if a handler of its own had raised `error`: `Retry` and `Reject` mean what
        they mean there. The others are settled without it. Raises `ConfigError`.
        """
        if not 0 <= index < len(self):
            raise ConfigError(f"batch.fail({index}): this batch has the events 0 to {len(self) - 1}")
        if not isinstance(error, BaseException):
            raise ConfigError(f"batch.fail({index}, {error!r:.50}): name the exception that it failed with")
        self.failures[index] = error


def answers(result: Any, failures: dict[int, BaseException], size: int, *, wanted: bool) -> list[Any]:
    """What became of each event: the exception it failed with, or whatever else the handler returned for it.

    wanted: whether what is no exception matters; where it does not, a result that is no list of outcomes is nobody's
    business, as with any other handler. Raises `ConfigError` for a list whose length is not the batch's.
    """
    items: list[Any] = [None] * size
    if isinstance(result, list | tuple):
        if len(result) == size:
            items = list(result)
        elif wanted or any(isinstance(item, BaseException) for item in result):
            raise ConfigError(f"the handler returned {len(result)} outcomes for {size} events: return one for each")
    elif wanted and result is not None:
        raise ConfigError(f"the handler returned a {type(result).__name__}: return a list, one outcome for each event")
    for index, error in failures.items():
        items[index] = error
    return items
