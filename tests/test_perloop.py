"""What belongs to an event loop stays with it, whatever other threads with loops of their own do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from rstream.perloop import PerLoop


def elsewhere(work: Callable[[], Any]) -> None:
    """In another thread, with a loop of its own."""

    async def run() -> None:
        work()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    thread.join()


async def test_each_loop_has_its_own_and_those_of_closed_loops_are_let_go() -> None:
    held: PerLoop[object] = PerLoop()
    mine = held.get(object)
    elsewhere(lambda: held.get(object))
    elsewhere(lambda: held.get(object))
    assert held.get(object) is mine
    assert len(held._held) == 2
    assert held.pop() is mine and held.pop() is None


async def test_what_one_thread_gets_is_not_forgotten_by_another_that_begins_at_that_moment() -> None:
    held: PerLoop[object] = PerLoop()
    got = []

    class Closed:
        """A closed loop that is looked at in the other thread, while this one goes on."""

        def is_closed(self) -> bool:
            if threading.current_thread() is not this:
                got.append(asyncio.run_coroutine_threadsafe(get(), here).result(10))
            return True

    async def get() -> object:
        return held.get(object)

    here, this = asyncio.get_running_loop(), threading.current_thread()
    held._held[Closed()] = object()  # type: ignore[index]
    await asyncio.to_thread(elsewhere, lambda: held.get(object))
    (mine, *_) = got
    assert held.get(object) is mine
