"""The threads of `asyncio.to_thread` in a worker's process."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """asyncio waits for them at the end, however long a handler's call goes on."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self._calls: weakref.WeakSet[Future[Any]] = weakref.WeakSet()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        call = super().submit(fn, *args, **kwargs)
        self._calls.add(call)
        return call

    @property
    def at_work(self) -> bool:
        return not all(call.done() for call in [*self._calls])
