"""The benchmarks' arithmetic, and that the harness runs: tiny counts, no peers, and no time is judged."""

from __future__ import annotations

import importlib
import xml.etree.ElementTree as Xml
from pathlib import Path

import pytest

from benchmarks import chart, history, report
from benchmarks.__main__ import main
from benchmarks.entrants import ALL_PEERS, OURS, RAW
from benchmarks.harness import Failed, bench
from benchmarks.table import Mark, Ratio, Series, Table, markdown, number, quantile, rate, ratio, text
from benchmarks.targets import PEER, Target, judge, verdicts

ROOT = Path(__file__).parent.parent


def series(name: str, *values: float, kind: str = "raw", cpu: list[float] | None = None) -> Series:
    return Series(name, kind, list(values), cpu or [])  # type: ignore[arg-type]


def test_a_rate_is_taken_between_two_marks() -> None:
    marks = [Mark(10.0, 1.0, 5), Mark(11.0, 1.1, 20), Mark(12.0, 1.2, 60), Mark(13.0, 1.3, 100), Mark(99.0, 9.0, 101)]
    found = rate(marks, 100)
    assert found.per_second == pytest.approx(80 / 2.0)
    assert found.cpu == pytest.approx(0.2 / 80 * 1e6)


@pytest.mark.parametrize("marks", [[], [Mark(1.0, 0.0, 100)], [Mark(1.0, 0.0, 5), Mark(2.0, 0.0, 100)]])
def test_a_rate_that_cannot_be_measured_is_not_invented(marks: list[Mark]) -> None:
    with pytest.raises(ValueError, match="more work"):
        rate(marks, 100)


def test_a_mark_is_read_as_a_contestant_writes_it() -> None:
    assert Mark.parse("12.5 0.25 300") == Mark(12.5, 0.25, 300)


def test_a_ratio_is_taken_round_by_round() -> None:
    """The machine was slow in the second round: for both."""
    assert ratio(series("a", 20, 2, 30), series("b", 10, 1, 10)) == Ratio(2.0, 2.0, 3.0)


def test_what_was_not_measured_has_no_ratio() -> None:
    failed = series("a", 1.0)
    failed.failed = "it crashed"
    for one, other in ((failed, series("b", 1.0)), (series("b", 1.0), failed), (series("b", 1.0), series("c"))):
        with pytest.raises(ValueError, match="not both measured"):
            ratio(one, other)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_quantiles_are_values_that_were_seen(share: float, expected: float) -> None:
    assert quantile([*range(100, 0, -1)], share) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1234567.8, "1,234,568"), (12.345, "12.3"), (1.0, "1.00"), (0.12345, "0.123"), (-0.5, "-0.500")],
)
def test_numbers_have_three_digits_that_count(value: float, expected: str) -> None:
    assert number(value) == expected


def sample() -> Table:
    broken = series("Breaks", kind="peer")
    broken.failed = "its worker ended after 0 of 10: no <module>"
    lines = [series("bare", 100, 110, 90), series("rstream", 50, 60, 40, kind="ours"), series("Slow", 10, kind="peer")]
    return Table("drain", "Drain & more", "events/s", [*lines, series("Fast", 20, kind="peer"), broken])


def test_a_table_shows_who_failed_and_why() -> None:
    for told in (text(sample()), markdown(sample())):
        assert "no <module>" in told and "0.500" in told
        assert "**rstream**" in markdown(sample())


def test_the_best_peer_is_the_one_that_is_best_for_that_unit() -> None:
    table = sample()
    assert table.best("peer") is table.get("Fast")
    table.higher = False
    assert table.best("peer") is table.get("Slow")
    assert Table("x", "x", "x", [series("a")]).best("peer") is None


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target("drain", "drain", "rstream", "≥", 0.5, "bare"), True),
        (Target("drain", "drain", "rstream", "≥", 0.6, "bare"), False),
        (Target("drain", "drain", "rstream", "≥", 2.5, PEER), True),
        (Target("drain", "drain", "rstream", "≥", 2.6, PEER), False),
        (Target("drain", "drain", "rstream", "≤", 50), True),
        (Target("drain", "drain", "rstream", "≤", 49), False),
        (Target("drain", "drain", "bare", "≤", 50, "rstream", more=True), True),
        (Target("drain", "drain", "bare", "≤", 49, "rstream", more=True), False),
        (Target("drain", "drain", "rstream", "≥", 1, "Breaks"), None),
        (Target("drain", "drain", "Breaks", "≥", 1, "bare"), None),
    ],
)
def test_targets_are_judged(target: Target, met: bool | None) -> None:
    verdict = judge(target, {"drain": sample()})
    assert verdict is not None and verdict.met is met


def test_a_workload_that_was_not_run_has_no_verdict() -> None:
    assert judge(Target("x", "y", "rstream", "≥", 1), {"drain": sample()}) is None
    assert (
        judge(Target("x", "drain", "bare", "≥", 1, PEER), {"drain": Table("drain", "", "", [series("bare", 1)])})
        is None
    )


def test_the_chart_is_an_image_whatever_the_names_are() -> None:
    Xml.fromstring(chart.svg([sample(), sample(), Table("none", "Nothing", "s", [])]))


def test_the_results_tell_of_every_table() -> None:
    told = report.results([sample()], "Valkey 9", (0.5, 2.0))
    assert "Drain & more" in told and "Valkey 9" in told and str(ROOT) not in told


def lines(*each: str) -> list[list[str]]:
    return [line.split() for line in each]


HISTORY = lines(
    "begin 1 60 10.0 7",  # runs on the killed one
    "begin 2 60 10.0 8",
    "begin 3 1 10.0 7",
    "end 3 1 11.0 7",
    "begin 3 1 25.0 8",  # again, though done
    "begin 1 60 22.5 8",  # taken over
    "begin 2 60 24.0 9",  # again, though it runs
    "begin 4 60 19.0 7",  # never again
)


def test_history_tells_what_was_taken_over_and_what_ran_twice() -> None:
    calls = history.calls(HISTORY)
    assert history.taken_over(calls, {7}, 20.0) == [history.Again(1, 2.5), history.Again(4, None)]
    assert history.duplicates(calls, {7}, 20.0) == 2
    assert history.delays(calls, {1: 9.5, 5: 12.0}, until=30.0) == [0.5, 18.0]


def test_every_contestant_has_its_file_and_its_choices() -> None:
    for contestant in [RAW, OURS, *ALL_PEERS]:
        source = (ROOT / "benchmarks" / "contestants" / f"{contestant.module}.py").read_text("utf-8")
        compile(source, contestant.module, "exec")
        assert source.startswith('"""')
        if contestant.kind == "peer":
            assert "Choices: " in source


@pytest.mark.timeout(300)
def test_the_harness_runs() -> None:
    found = main(["--quick", "--rounds", "1", "--scale", "0.1", "--only", "publish,drain,latency"])
    keys = {table.key for table in found}
    assert keys == {"publish", "concurrent", "many", "drain", "batch", "p50", "p99"}
    for table in found:
        for one in table.series:
            # So little work may lie between two marks of a fast one.
            assert one.measured or "marks" in one.failed, (table.key, one.name, one.failed)
            assert all(value > 0 for value in one.values)
    assert verdicts({table.key: table for table in found})


def test_a_worker_that_ends_is_told_of_with_its_last_words() -> None:
    told = pytest.raises(Failed, match=r"after 0 of 10: .*no-such-group")
    with bench(quiet=True) as one, one.worker(OURS, "no-such-group") as worker, told:
        one.marks(worker, 10)


def test_replays_benchmark_can_be_imported() -> None:
    importlib.import_module("benchmarks.replay")
