"""Who this process is to others, and the clock by which it judges its leases."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable
from functools import partial

# Counts while the machine is suspended, where the system has such a clock: Redis's does, too.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


clock: Callable[[], float] = partial(time.clock_gettime, _CLOCK)
"""Seconds on the clock that leases are measured by; never the wall clock. (Asked for every entry: no def.)"""


forks = 0
"""How often the processes that led to this one were forked from each other since this module was loaded: who finds
another number than it noted is a copy of who noted it. (Asking for the pid is a system call.)"""


def _forked() -> None:
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def worker_id() -> str:
    """Unique per start and never reused: host-pid-random."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
