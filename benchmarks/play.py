"""`python -m benchmarks.play CONTESTANT`: publishes as that contestant does, on orders from the harness.

One JSON order a line on stdin, one JSON answer a line on stdout. A contestant is a module that has
`publish(handler, event)`, plain or async; it may have others of that kind, and `make(n, seconds)` for what it publishes
where that is not a dict. What is published is made before the clock starts.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks import side

Publish = Callable[..., Any]


class Player:
    """One contestant, in this process."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._make = getattr(module, "make", side.event)
        self._runner = asyncio.Runner()

    def obey(self, order: dict[str, Any]) -> dict[str, object]:
        publish: Publish = getattr(self._module, order.pop("by", "publish"))
        return getattr(self, order.pop("do"))(publish, **order)  # type: ignore[no-any-return]

    def one(self, publish: Publish, count: int, handler: str = "noop") -> dict[str, object]:
        """One after the other."""
        events = [self._make(n) for n in range(count)]

        async def run() -> None:
            for event in events:
                await publish(handler, event)

        with side.Clock() as clock:
            if inspect.iscoroutinefunction(publish):
                self._runner.run(run())
            else:
                for event in events:
                    publish(handler, event)
        return vars(clock)

    def concurrent(self, publish: Publish, count: int, callers: int = 100) -> dict[str, object]:
        """`callers` at once, coroutines or threads, each one after the other."""
        events = [self._make(n) for n in range(count)]
        shares = [events[at::callers] for at in range(callers)]

        async def run() -> None:
            await asyncio.gather(*(one(share) for share in shares))

        async def one(share: list[Any]) -> None:
            for event in share:
                await publish("noop", event)

        def in_thread(share: list[Any]) -> None:
            for event in share:
                publish("noop", event)

        if inspect.iscoroutinefunction(publish):
            with side.Clock() as clock:
                self._runner.run(run())
        else:
            with ThreadPoolExecutor(callers) as pool, side.Clock() as clock:
                list(pool.map(in_thread, shares))
        return vars(clock)

    def many(self, publish: Publish, count: int, handler: str = "noop", seconds: float = 0.0421) -> dict[str, object]:
        """All in one call, or as many calls as the contestant needs."""
        events = [self._make(n, seconds) for n in range(count)]
        with side.Clock() as clock:
            result = publish(handler, events)
            if inspect.iscoroutine(result):
                self._runner.run(result)
        return vars(clock)

    def paced(self, publish: Publish, rate: float, count: int, handler: str = "stamp") -> dict[str, object]:
        """`rate` a second; each event carries the time just before it is published."""
        return self.timeline(publish, [(n / rate, n, None) for n in range(count)], handler)

    def timeline(self, publish: Publish, plan: list[Any], handler: str) -> dict[str, object]:
        """At `(after, n, seconds)`: seconds None stands for the time of publishing. Answers with those times by n."""
        times: list[tuple[int, float]] = []

        async def run() -> None:
            began = time.monotonic()
            for after, n, seconds in plan:
                if (wait := began + after - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                now = time.monotonic()
                times.append((n, now))
                result = publish(handler, self._make(n, now if seconds is None else seconds))
                if inspect.iscoroutine(result):
                    await result

        self._runner.run(run())
        return {"times": times}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    player = Player(importlib.import_module(f"benchmarks.contestants.{sys.argv[1]}"))
    for line in sys.stdin:
        answers.write(json.dumps(player.obey(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
