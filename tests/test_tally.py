"""The arithmetic of metrics: tallies, histograms, stalls, and what becomes of counters when a process starts anew."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstream.metrics import table
from rstream.metrics.merge import Ledger
from rstream.metrics.table import WORKER, Snapshot, families, grows
from rstream.store.deliveries import Fetched, Outcome
from rstream.worker import stall as stalls
from rstream.worker.stall import Stall
from rstream.worker.tally import BOUNDS, OUTCOMES, REASONS, Counts, Tallies, Tally, note
from tests.metrics import documented
from tests.scrapes import read

SHARD: Any = None


def entry(ms: int, source: str | None = None, seq: int = 0) -> Fetched:
    return Fetched(SHARD, b"%d-%d" % (ms, seq), (), 1, source)


# -- what is documented is what there is


def test_the_table_is_the_documented_one() -> None:
    page = documented()
    for metric in (*WORKER, table.BUILD):
        told = page[metric.name]
        assert (told.type, [*told.labels]) == (
            metric.type,
            [*metric.labels, *(["process"] if metric is not table.BUILD else [])],
        )
    fleet = {name for name in page if name.startswith(("rstream_stream_", "rstream_group_")) or "lag" in name}
    assert {each.name for each in WORKER} >= {name for name in page if "process" in page[name].labels}
    assert not fleet & {each.name for each in WORKER} - {"rstream_group_resets_total"}


def test_closed_sets_are_the_documented_ones() -> None:
    page = documented()
    assert page["rstream_settled_total"].labels["outcome"] == frozenset(OUTCOMES)
    assert page["rstream_dead_letters_total"].labels["reason"] == frozenset(REASONS)
    assert page["rstream_blob_operation_seconds"].labels["operation"] == frozenset(Tally("s", "g").blobs)


# -- tallies


@given(st.lists(st.tuples(st.integers(0, 10**13), st.floats(0, 10**5), st.integers(1, 3)), max_size=50))
def test_the_queue_delay_is_that_of_every_entry(begun: list[tuple[int, float, int]]) -> None:
    """Whatever it remembers of the last one."""
    tally, now = Tally("s", "g"), 0.0
    buckets = [0] * (len(BOUNDS) + 1)
    for back, step, times in begun:
        now += step
        ms = max(0, 1_700_000_000_000 + int(now * 1000) - back)
        for seq in range(times):
            tally.begins(entry(ms, seq=seq), 1, 1_700_000_000 + now)
            buckets[bisect_left(BOUNDS, 1_700_000_000 + now - ms / 1000)] += 1
            now += 0.0004
    assert tally.delay[:-1] == buckets
    assert tally.attempts == sum(buckets)
    assert tally.delay[-1] >= 0


def test_an_entry_from_the_future_waited_for_nothing() -> None:
    tally = Tally("s", "g")
    tally.begins(entry(1_700_000_000_500), 1, 1_700_000_000.0)
    tally.begins(entry(1_700_000_000_500, seq=1), 1, 1_700_000_001.0)
    assert tally.delay[0] == 1 and tally.delay[bisect_left(BOUNDS, 0.5)] == 1
    assert tally.delay[-1] == pytest.approx(0.5)


def test_only_the_first_start_of_an_entry_has_a_queue_delay() -> None:
    tally = Tally("s", "g")
    for attempt, source in ((1, None), (1, "~released"), (1, "~again"), (2, "~retry"), (3, "host-1-a")):
        tally.begins(entry(1_700_000_000_000, source), attempt, 1_700_000_000.0)
    assert (tally.attempts, sum(tally.delay[:-1])) == (5, 2)


def test_outcomes_are_counted_as_redis_accepted_them() -> None:
    tally = Tally("s", "g")
    ends: list[tuple[Outcome, bool]] = [
        (Outcome(SHARD, b"1-1", 1, "ack"), True),
        (Outcome(SHARD, b"1-1", 1, "expired"), True),
        (Outcome(SHARD, b"1-1", 1, "skipped"), True),
        (Outcome(SHARD, b"1-1", 1, "retry", 500), True),
        (Outcome(SHARD, b"1-1", 1, "retry", 0), True),
        (Outcome(SHARD, b"1-1", 1, "retry", 0), False),  # handed over, not begun
        (Outcome(SHARD, b"1-1", 1, "retry", 500), False),  # it waits for its payload
        (Outcome(SHARD, b"1-1", 1, "release", 0, "~released"), False),
        (Outcome(SHARD, b"1-1", 1, "dead", "blob missing"), True),
        (Outcome(SHARD, b"1-1", 1, "park", 0, b"key"), False),
        (Outcome(SHARD, b"1-1", 1, "lost"), False),
    ]
    for outcome, started in ends:
        tally.ends(outcome, started)
    assert tally.settled == {"ack": 1, "expired": 1, "skipped": 1, "retry": 3, "release": 2, "dead": 1}
    assert {why: count for why, count in tally.dead.items() if count} == {"blob missing": 1}


def test_a_workers_counts_are_the_sum_of_its_tallies() -> None:
    tallies = Tallies()
    one, other = tallies.of("s", "a"), tallies.of("s", "b")
    assert tallies.of("s", "a") is one
    one.handled, other.handled, one.failed, one.fenced, other.astray = 3, 4, 1, 1, 1
    one.settled["dead"], other.settled["skipped"] = 2, 5
    assert tallies.handled() == 8
    counts = Counts.of(tallies.every)
    assert (counts.handled, counts.failed, counts.refused, counts.dead, counts.skipped) == (7, 1, 2, 2, 5)


@given(st.lists(st.floats(0, 10**6)))
def test_a_histogram_is_scraped_as_prometheus_wants_it(seconds: list[float]) -> None:
    tally = Tally("s", "g")
    for each in seconds:
        note(tally.handler, each)
    found = read(families({None: {("rstream_handler_seconds", "s", "g"): tally.handler}}, "1"))
    counts = {s.labels["le"]: s.value for s in found.samples if s.name == "rstream_handler_seconds_bucket"}
    assert counts["+Inf"] == found.total("rstream_handler_seconds_count") == len(seconds)
    assert found.total("rstream_handler_seconds_sum") == pytest.approx(sum(seconds))
    for bound in BOUNDS:
        assert counts[str(float(bound))] == sum(each <= bound for each in seconds)


# -- stalls


def test_the_longest_stall_is_forgotten_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(stalls, "clock", lambda: now)
    stall = Stall()
    assert (stall.now(), stall.longest()) == (0.0, 0.0)
    stall.add(3.0, now)
    stall.add(1.0, now)
    assert stall.longest() == 3.0
    now += 54.0
    stall.add(0.5, now)
    assert stall.longest() == 3.0
    now += 6.0
    assert stall.longest() == 0.5
    now += 600.0
    assert stall.longest() == 0.0


# -- counters through the lives of a process

NAMES = ("rstream_attempts_total", "rstream_in_flight", "rstream_handler_seconds")


@given(st.lists(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 9)), max_size=6), max_size=6))
def test_a_counter_never_goes_back_through_the_lives_of_a_process(lives: list[list[tuple[str, int]]]) -> None:
    """Each life counts from 0, and tells after every step."""
    ledger, wanted, shown = Ledger(), dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0.0)
    for life in lives:
        counted: Snapshot = {}
        for name, number in life:
            wanted[name] = number if name == "rstream_in_flight" else wanted[name] + number
            before = counted.get((name, "s", "g"), [0, 0.0] if name == "rstream_handler_seconds" else 0)
            if name == "rstream_in_flight":
                counted[name, "s", "g"] = number
            elif isinstance(before, list):
                counted[name, "s", "g"] = [before[0] + number, before[1] + number]
            else:
                counted[name, "s", "g"] = before + number
            ledger.told({**counted})
            for (each, *_), value in ledger.total().items():
                now = value[0] if isinstance(value, list) else value
                assert not grows((each,)) or now >= shown[each], f"{each} went back"
                shown[each] = now
        ledger.ended()
        assert ("rstream_in_flight", "s", "g") not in ledger.total()
    for name in ("rstream_attempts_total", "rstream_handler_seconds"):
        total = ledger.total().get((name, "s", "g"), 0)
        assert (total[0] if isinstance(total, list) else total) == wanted[name]


def test_processes_are_labelled_where_there_are_several() -> None:
    one: Snapshot = {("rstream_attempts_total", "s", "g"): 3}
    two: Snapshot = {("rstream_attempts_total", "s", "g"): 4, ("rstream_loop_stall_seconds",): 1.5}
    found = read(families({"1": one, "2": two}, "9.9"))
    assert found.series("rstream_attempts_total", process="2", stream="s", group="g") == [4]
    assert found.series("rstream_loop_stall_seconds", process="2") == [1.5]
    assert found.samples[-1].labels == {"version": "9.9"}
    alone = read(families({None: one}, "9.9"))
    (sample,) = alone.families["rstream_attempts"].samples
    assert sample.labels == {"stream": "s", "group": "g"}
