"""Replays into a group that were started here: they run in this process, and the command line can go on with them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rstream.errors import RStreamError
from rstream.replay.give import Giving
from rstream.replay.result import ReplayResult

log = logging.getLogger("rstream.dashboard")

KEPT = 20
GRACE = 5.0


@dataclass
class Run:
    """number · asked: what the form said · error: one line, where it failed · ended: whether it has."""

    number: int
    giving: Giving
    asked: Mapping[str, str]
    began: float = field(default_factory=time.time)
    error: str = ""
    ended: bool = False
    stopped: bool = False

    @property
    def result(self) -> ReplayResult:
        return self.giving.result()

    @property
    def command(self) -> str:
        """That does the same, or goes on with it."""
        words = ["rstream", "replay", self.giving.stream.name, "--from", self.asked["from"], "--to", self.asked["to"]]
        words += ["--into-group", self.giving.group]
        for name in ("key", "where", "rate"):
            words += [f"--{name}", self.asked[name]] if self.asked.get(name) else []
        return shlex.join(words)


class Replays:
    """Those that run, and the last ones that have ended."""

    def __init__(self) -> None:
        self.runs: dict[int, Run] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._numbers = itertools.count(1)

    @property
    def running(self) -> int:
        return sum(not run.ended for run in self.runs.values())

    def start(self, giving: Giving, asked: Mapping[str, str]) -> Run:
        run = Run(next(self._numbers), giving, asked)
        self.runs[run.number] = run
        self._tasks[run.number] = asyncio.create_task(self._run(run))
        for number in [each.number for each in self.runs.values() if each.ended][:-KEPT]:
            del self.runs[number]
        return run

    async def _run(self, run: Run) -> None:
        try:
            await run.giving.run()
        except RStreamError as error:
            run.error = " ".join(str(error).split())
            log.warning("replay %s into group %s ended: %s", run.giving.name, run.giving.group, run.error)
        except Exception as error:
            run.error = f"{type(error).__name__}: see the dashboard's log"
            log.exception("replay %s into group %s failed", run.giving.name, run.giving.group)
        finally:
            run.ended = True
            del self._tasks[run.number]

    def stop(self, number: str) -> None:
        """What is given is stored exactly; the same command goes on."""
        if run := next((run for run in self.runs.values() if str(run.number) == number), None):
            run.stopped = not run.ended
            run.giving.stop()

    async def aclose(self) -> None:
        for run in self.runs.values():
            run.giving.stop()
        if self._tasks:
            await asyncio.wait([*self._tasks.values()], timeout=GRACE)
