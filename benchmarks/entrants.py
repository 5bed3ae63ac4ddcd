"""Who takes part, and how each is run. Why so, says the docstring of its file in `benchmarks/contestants`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Kind = Literal["ours", "raw", "peer"]
ROOT = Path(__file__).parent.parent
PEERS, ARQ = ROOT / ".venv-peers", ROOT / ".venv-arq"


@dataclass(frozen=True, eq=False)
class Contestant:
    """module: its file in benchmarks/contestants · venv: None for the one that we run in ourselves · run: what Python
    gets after its name to run a worker, by mode; a mode that is not in there is run as "" is · environ: by mode."""

    name: str
    module: str
    kind: Kind
    venv: Path | None = None
    run: Mapping[str, Sequence[str]] = field(default_factory=dict)
    environ: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def python(self) -> str:
        return sys.executable if self.venv is None else str(self.venv / "bin" / "python")

    @property
    def installed(self) -> bool:
        return Path(self.python).exists()

    def worker(self, mode: str) -> tuple[list[str], dict[str, str]]:
        words = self.run.get(mode) or self.run[""]
        return [word.replace("MODE", mode) for word in words], dict(self.environ.get(mode, {}))


def _rstream(*groups: str) -> list[str]:
    chosen = [word for group in groups for word in ("--group", group)]
    return ["-m", "rstream", "worker", "benchmarks.contestants.ours:app", *chosen]


def _celery(*options: str) -> list[str]:
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
    return ["-m", "celery", "-A", "benchmarks.contestants.celery", "worker", *quiet, *options]


def _dramatiq(threads: int) -> list[str]:
    return ["-m", "dramatiq", "benchmarks.contestants.dramatiq", "--processes", "1", "--threads", str(threads)]


def _arq() -> list[str]:
    here = "benchmarks.contestants.arq"
    return ["-m", "arq", f"{here}.Worker", "--custom-log-dict", f"{here}.LOGGING"]


def _taskiq(*options: str) -> list[str]:
    return [
        *("-m", "taskiq", "worker", "benchmarks.contestants.taskiq:broker", "--workers", "1", "--no-parse"),
        *("--log-level", "ERROR", *options),
    ]


RAW = Contestant("raw", "raw", "raw", run={"": ["-m", "benchmarks.contestants.raw", "MODE"]})
OURS = Contestant(
    "rstream",
    "ours",
    "ours",
    run={
        "": _rstream("MODE"),
        **{f"groups{many}": _rstream(*(f"idle{at}" for at in range(many))) for many in (1, 2, 8)},
    },
    environ={"mix": {"BENCH_SLOTS": "16"}},
)
CELERY = Contestant(
    "Celery",
    "celery",
    "peer",
    PEERS,
    run={
        "noop": _celery("-P", "solo"),
        "stamp": _celery("-P", "solo"),
        "wait": _celery("-P", "threads", "-c", "100"),
        "mix": _celery("-P", "threads", "-c", "16"),
    },
    environ={"wait": {"BENCH_PREFETCH": "4"}, "mix": {"BENCH_PREFETCH": "1"}},
)
DRAMATIQ = Contestant(
    "dramatiq",
    "dramatiq",
    "peer",
    PEERS,
    run={"": _dramatiq(8), "wait": _dramatiq(100), "mix": _dramatiq(16)},
    environ={"noop": {"dramatiq_queue_prefetch": "1000"}},
)
ARQ_PEER = Contestant("arq", "arq", "peer", ARQ, run={"": _arq()})
TASKIQ = Contestant(
    "taskiq",
    "taskiq",
    "peer",
    PEERS,
    run={"": _taskiq("--max-async-tasks", "100", "--max-prefetch", "100"), "mix": _taskiq("--max-async-tasks", "16")},
)
STREAQ = Contestant(
    "streaQ", "streaq", "peer", PEERS, run={"": ["-m", "streaq", "run", "benchmarks.contestants.streaq:worker"]}
)
FASTSTREAM = Contestant(
    "FastStream",
    "faststream",
    "peer",
    PEERS,
    run={"": ["-m", "faststream", "run", "benchmarks.contestants.faststream:app", "--log-level", "error"]},
    environ={"validated": {"BENCH_VALIDATE": "1"}},
)
ALL_PEERS = [CELERY, DRAMATIQ, ARQ_PEER, TASKIQ, STREAQ, FASTSTREAM]
