"""Lanes in all the situations that a worker, another one and late answers bring about: seeded plays, see laneplay.py.

A play asserts at every step that no entry is handed out or ends before an earlier one of its key has ended, and at last
that everything ends and nothing is left in memory.
"""

from __future__ import annotations

import pytest

from rstream.worker import order
from tests.laneplay import random_script, replay, shortest


@pytest.fixture(autouse=True)
def few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "KEEP", 2)


def check(seed: int) -> None:
    script = random_script(seed)
    if replay(script) is not None:
        script = shortest(script)
        raise AssertionError(f"seed {seed}: {script}") from replay(script)


def test_plays() -> None:
    for seed in range(500):
        check(seed)


@pytest.mark.torture
@pytest.mark.parametrize("part", range(1, 11))
def test_many_plays(part: int) -> None:
    for seed in range(part * 10_000, part * 10_000 + 5_000):
        check(seed)
