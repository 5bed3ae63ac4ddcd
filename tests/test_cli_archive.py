"""`rstream archive`, as its users have it: start, run, show, verify, stop; and the kill -9 of a running archiver."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

from rstream import RStream
from tests.archives import Bits, Log
from tests.commands import Commands
from tests.waiting import eventually


@pytest.fixture
def log(rs: Commands, tmp_path: Path) -> Log:
    rs.env["RSTREAM_BLOBS"] = f"file://{tmp_path / 'blobs'}"
    app = RStream(rs.env["RSTREAM_URL"], namespace=rs.env["RSTREAM_NAMESPACE"], blobs=rs.env["RSTREAM_BLOBS"])
    log = Log(app)
    log.publish(100)
    return log


@pytest.fixture
def bits(tmp_path: Path) -> Bits:
    return Bits(tmp_path / "blobs")


def test_from_start_to_stop(rs: Commands, log: Log, bits: Bits) -> None:
    assert "it was already" in rs.ok("archive", "start", "readings"), "it was declared so"
    rs.ok("archive", "stop", "readings")
    assert "is to be archived from now on" in rs.ok("archive", "start", "readings")
    assert "it was already" in rs.ok("archive", "start", "readings")
    assert "the archiver" in rs.ok("groups", "readings") and "~archive" in rs.ok("streams")
    rows = json.loads(rs.ok("archive", "show", "readings", "--json"))
    assert [row["on"] for row in rows] == [True] * 3 and sum(row["lag"] for row in rows) == 100
    assert "archived 100 entries" in rs.ok("archive", "run", "readings", "--once")
    rows = json.loads(rs.ok("archive", "show", "readings", "--json"))
    assert sum(row["entries"] for row in rows) == 100 and all(row["lag"] == 0 for row in rows)
    shown = rs.ok("archive", "show", "readings")
    assert "1.0/3" in shown and "BEHIND" in shown
    log.trim()
    assert len(rs.ok("read", "readings", "--json").splitlines()) == 100
    assert "all as it was archived" in rs.ok("archive", "verify", "readings")
    key = bits.keys(".segment")[0]
    with bits.flipped(key, 500):
        done = rs.run("archive", "verify", "readings")
        assert done.returncode == 1 and key in done.stdout and "1 problem" in done.stdout
        told = json.loads(rs.run("archive", "verify", "readings", "--json").stdout)
        assert [problem["object"] for problem in told["problems"]] == [key]
        done = rs.run("read", "readings", "--json")
        assert done.returncode == 1 and key in done.stderr and "damaged" in done.stderr
    assert "not archived any more" in rs.ok("archive", "stop", "readings")
    assert "was not archived" in rs.ok("archive", "stop", "readings")
    assert "~archive" not in rs.ok("groups", "readings")
    assert len(rs.ok("read", "readings", "--json").splitlines()) == 100
    done = rs.run("archive", "run", "readings", "--once")
    assert done.returncode == 1 and "switched off" in done.stderr
    assert "deleted 0 of 0" in rs.ok("archive", "sweep", "readings")


def test_a_stream_that_was_stopped_is_archived_again(rs: Commands, log: Log) -> None:
    rs.ok("archive", "run", "readings", "--once")
    rs.ok("archive", "stop", "readings")
    log.publish(20)
    rs.ok("archive", "start", "readings")
    assert "archived 20 entries" in rs.ok("archive", "run", "readings", "--once")
    assert log.trim() == 120 and log.read() == log.ids


def test_refusals(rs: Commands, log: Log) -> None:
    rs.ok("archive", "start", "readings")
    done = rs.run("groups", "reset", "readings", "--group", "~archive", "--to", "-2h")
    assert done.returncode == 1 and "is the archive of stream" in done.stderr
    del rs.env["RSTREAM_BLOBS"]
    for command in ("start", "show", "verify", "sweep", "run"):
        done = rs.run("archive", command, "readings")
        assert done.returncode == 1 and "no blob store" in done.stderr, command
    assert rs.run("archive", "show", "nothing").returncode == 1


def test_a_daemon_ends_on_sigterm_and_the_next_goes_on_at_once(rs: Commands, log: Log) -> None:
    for total in (100, 150):
        with rs.started("archive", "run", "readings", "--every", "0.01") as running:
            eventually(lambda: (log.trim(), log.in_redis())[1] == 0, 15)
            running.process.send_signal(signal.SIGTERM)
            assert running.ended() == 0
        assert len(log.read()) == total
        log.publish(50)


def killed_again_and_again(rs: Commands, log: Log, times: int) -> None:
    """Daemons die at any moment of their work, two at a time; what was archived is trimmed at once."""
    rng = random.Random(times)
    for _ in range(times):
        with (
            rs.started("archive", "run", "readings", "--every", "0.001") as one,
            rs.started("archive", "run", "readings", "--every", "0.001") as other,
        ):
            eventually(lambda: log.publish(30) and log.trim(), 20)
            for _ in range(rng.randrange(6)):
                log.publish(rng.randrange(60))
                log.trim()
            for running in (one, other):
                running.process.kill()
        assert log.read() == log.ids
    rs.ok("archive", "run", "readings", "--once")
    log.trim()
    assert log.in_redis() == 0 and log.read() == log.ids
    assert "all as it was archived" in rs.ok("archive", "verify", "readings")


def test_kill_minus_nine(rs: Commands, log: Log) -> None:
    killed_again_and_again(rs, log, 2)


@pytest.mark.torture
@pytest.mark.timeout(600)
def test_kill_minus_nine_for_long(rs: Commands, log: Log) -> None:
    killed_again_and_again(rs, log, 25)
