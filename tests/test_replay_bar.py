"""The line that says how far a replay is."""

from __future__ import annotations

import re
import sys
import time

import pytest

from rstream.cli.progress import Bar
from rstream.event import EntryId
from rstream.replay import ReplayResult
from rstream.replay.pace import pace


def at(ms: int, done: int, failed: int = 0) -> ReplayResult:
    first, position, last = (EntryId(each, 0, 1, 0) for each in (0, ms, 100_000))
    return ReplayResult(
        "name", "orders", first, last, False, position, done - failed, failed, 0, (), (), None, 0, 1.0
    )  # fmt: skip


class Watch:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)


def test_on_a_terminal_one_line_is_written_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(monkeypatch, terminal=True)
    with Bar("first") as bar:
        bar.show(at(0, 0))
        watch.now += 4
        bar.show(at(20_000, 1200, failed=3))
    said = capsys.readouterr().err
    assert said.startswith("first\n") and said.count("\n") == 1
    assert re.search(r"\[#+\.+\]  20%  1,200 done, 3 failed, 300/s, 0:16 left", said)


def test_elsewhere_a_line_comes_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(monkeypatch, terminal=False)
    bar = Bar()
    for step in range(101):
        watch.now += 0.2
        bar.show(at(step * 100, step))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["name: 5%, 49 done, 5.0/s, 3:10 left", "name: 10%, 99 done, 5.0/s, 3:00 left"]


def test_of_a_multiple_of_the_original_pace_the_rest_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Watch(monkeypatch, terminal=True)
    bar = Bar()
    bar.pace = pace(None, "0.01x")
    bar.show(at(60_000, 5))
    assert "5 done, 1:06:40 left" in capsys.readouterr().err
