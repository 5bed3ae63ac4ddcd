"""Batch handlers at the top level of a module, as `run_in="process"` wants them."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rstream import Batch, Event


class Item(Event):
    n: int
    kind: str = "ok"
    folder: str = ""


def calls(folder: Path) -> list[list[int]]:
    """What each call of a handler was given."""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def handle(events: list[Item], batch: Batch) -> list[Exception | None] | None:
    with Path(events[0].folder, "calls").open("a") as out:
        out.write(json.dumps([event.n for event in events]) + "\n")
    outcomes: list[Exception | None] = [None] * len(events)
    for index, event in enumerate(events):
        bad = ValueError(f"event {event.n} is bad")
        if event.kind == "raise":
            raise bad
        if event.kind == "fail":
            batch.fail(index, bad)
        elif event.kind == "return":
            outcomes[index] = bad
        elif event.kind == "die":
            os._exit(9)
    return outcomes if any(outcomes) else None


async def on_loop(events: list[Item], batch: Batch) -> list[Exception | None] | None:
    return handle(events, batch)


def in_thread(events: list[Item], batch: Batch) -> list[Exception | None] | None:
    return handle(events, batch)


def in_process(events: list[Item], batch: Batch) -> list[Exception | None] | None:
    return handle(events, batch)
