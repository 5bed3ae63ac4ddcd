"""Handlers at the top level of a module, as `run_in="process"` wants them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from rstream import Delivery, Event, Reject, Retry


class Work(Event):
    n: int
    kind: str = "ok"
    seconds: float = 0.0
    folder: str = ""


class Unpicklable(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.trouble = lambda: None


def note(event: Work, delivery: Delivery) -> None:
    with open(f"{event.folder}/history", "a") as out:  # noqa: PTH123
        out.write(f"{event.n} {delivery.attempt} {os.getpid()}\n")


def in_process(event: Work, delivery: Delivery) -> None:
    note(event, delivery)
    print("to be seen on stderr, and no harm to the answers")
    until = time.process_time() + event.seconds
    while time.process_time() < until:  # holds the GIL of its own process only
        pass
    raising: dict[str, Any] = {
        "value": ValueError("a plain one"),
        "unpicklable": Unpicklable(1, 2),
        "exit": SystemExit(3),
        "reject": Reject("no such thing"),
        "retry": Retry(after=0.01),
    }
    if event.kind == "die":
        os._exit(7)
    if event.kind in raising:
        raise raising[event.kind]


async def async_in_process(event: Work) -> None:
    """Only to be declared."""


def checkpointing(event: Work, delivery: Delivery) -> None:
    if delivery.attempt == 1:
        delivery.sync.checkpoint(event.n)
        raise ValueError("the next attempt goes on from here")
    Path(event.folder, "resumed").write_text(str(delivery.checkpoint_value))
