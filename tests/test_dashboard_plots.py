"""Numbers as people read them, and as plots draw them; what is said to be the matter with a group. All is pure."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstream.dashboard import words
from rstream.dashboard.charts import SPANS, Window, _backlog, _rates
from rstream.dashboard.live import Fleet, StreamNow
from rstream.dashboard.plots import HEIGHT, WIDTH, Line, Plot, nice, spark
from rstream.dashboard.view import GroupRow, overview
from rstream.event import EntryId
from rstream.history import Bucket, GroupCounts
from rstream.operate.pending import Pending
from rstream.store.keys import shard
from rstream.store.layout import Layout
from rstream.store.lost import Loss
from rstream.store.pause import Pause
from rstream.store.stats import GroupStats, ShardGroupStats, StreamStats, WorkerStats

NOW = 1_795_917_600
"""A whole hour."""


# -- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.04, "0 s"), (0.4, "0.4 s"), (9.96, "10.0 s"), (42.4, "42 s"), (119, "119 s"), (120, "2 min"),
     (3599, "59 min"), (3600, "1 h"), (3900, "1 h 5 min"), (11 * 3600 + 60, "11 h"), (50 * 3600, "2 d 2 h"),
     (30 * 86400, "30 d")],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    assert words.age(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (99_999, "99,999"), (100_000, "100 k"), (1_234_000, "1.23 M"), (45_600_000, "45.6 M"),
     (999_600_000, "1.00 G"), (7e12, "7000 G")],
)  # fmt: skip
def test_counts(number: float, text: str) -> None:
    assert words.count(number) == text


def test_what_an_error_tells_without_telling_of_the_event() -> None:
    assert words.kind_of("ValueError: no account of ada") == "ValueError"
    assert words.kind_of("shop.errors.Declined: ada") == "shop.errors.Declined"
    assert words.kind_of("ada has no account") == "…"
    assert words.kind_of("") == "…"


def test_a_key_is_called_as_in_the_logs() -> None:
    from rstream.logs import key_hash

    assert key_hash("ada").startswith(words.fingerprint("ada"))
    assert words.fingerprint("ada") != words.fingerprint("bob")


@given(st.integers(-(2**70), 2**70))
def test_no_id_is_too_strange_to_be_shown(ms: int) -> None:
    assert isinstance(words.moment(ms), str)
    assert isinstance(words.iso(ms), str)


# -- plots ----------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1e15), st.booleans())
def test_an_axis_ends_above_all_there_is(highest: float, seconds: bool) -> None:
    top = nice(highest, seconds=seconds)
    assert top >= highest * (1 - 1e-9)
    assert top > 0
    assert top <= max(1.0, 10 * highest)


VALUES = st.lists(st.none() | st.floats(0, 1e9, allow_subnormal=False), max_size=60)


@given(VALUES, st.booleans())
def test_a_plot_stays_in_its_frame(values: list[float | None], filled: bool) -> None:
    plot = Plot("<Lag>", "s", [NOW + 60 * n for n in range(len(values))], 60, [Line("a & b", "lag", values, filled)])
    drawn = ElementTree.fromstring(plot.svg)
    assert "<Lag>" in drawn.attrib["aria-label"]
    for path in drawn.iter("path"):
        numbers = [float(number) for number in re.findall(r"[\d.]+", path.attrib["d"])]
        assert all(0 <= x <= WIDTH for x in numbers[::2])
        assert all(0 <= y <= HEIGHT for y in numbers[1::2])
    lines = [path for path in drawn.iter("path") if path.attrib["class"].startswith("line")]
    known = "".join("x" if value is not None else " " for value in values).split()
    assert len(lines) == len(known), "what is unknown is a gap"
    assert all(0 <= at <= 100 for at, _ in plot.marks)
    assert len(plot.marks) <= 8
    assert spark(values, "lag").count("<path") == bool(values)


def test_the_legend_tells_the_newest_that_is_known() -> None:
    plot = Plot("Throughput", "/min", [0, 60, 120], 60, [Line("done", "acked", [1, 5, None])])
    assert [text for _, text in plot.last] == ["5/min"]
    assert plot.top == 5


# -- what is plotted --------------------------------------------------------------------------------------------------


def bucket(minute: int, published: int = 0, resets: int = 0, **counts: int) -> Bucket:
    at = datetime.fromtimestamp(NOW + 60 * minute, UTC)
    return Bucket(at, 60, published, resets, {"billing": GroupCounts(**counts)})


def window(now: int) -> Window:
    return Window.of({}, now * 1000)


def test_windows() -> None:
    assert window(NOW).step == 60
    for name, seconds in SPANS.items():
        found = Window.of({"span": name}, NOW * 1000)
        assert (found.until - found.since, found.span) == (seconds, name)
        assert seconds / found.step <= 360
    typed = Window.of({"zoom": "1", "from": "2h ago", "to": "1h ago"}, NOW * 1000)
    assert (typed.since, typed.until, typed.span) == (NOW - 7200, NOW - 3600, "")
    assert Window.of({"from": "2h ago"}, NOW * 1000).span == "1h", "the form of a replay has these names, too"
    old = Window.of({"zoom": "1", "from": "9h ago", "to": "8h ago"}, NOW * 1000)
    assert old.step == 3600, "minutes are kept for 6 hours"
    assert Window.of({"zoom": "1", "from": "earliest", "to": "latest"}, NOW * 1000).since == NOW - SPANS["30d"]


def test_the_minute_that_goes_on_counts_for_what_is_over_of_it() -> None:
    found = [bucket(0, published=120), bucket(1, published=30)]
    assert _rates(found, window(NOW + 90), lambda b: b.published) == [120, 60]
    assert _rates(found, window(NOW + 65), lambda b: b.published) == [120, None], "5 s say nothing"


def test_the_backlog_is_reckoned_back() -> None:
    found = [bucket(0, 10, acked=4), bucket(1, 0, acked=3, dead=1), bucket(2, 5, acked=2, retried=9)]
    stream = stream_now(GroupStats("billing", lag=3, pending=2))
    assert _backlog(found, stream, "billing", window(NOW + 180)) == [6, 2, 5]
    assert _backlog([bucket(0, 10, acked=4), bucket(1, 0, 1)], stream, "billing", window(NOW + 120)) == [None, 5]
    empty = Bucket(datetime.fromtimestamp(NOW - 60, UTC), 60)
    assert _backlog([empty, *found], stream, "billing", window(NOW + 180)) == [None, 6, 2, 5], (
        "before it was written down"
    )
    unknown = stream_now(GroupStats("billing", lag=None, pending=2))
    assert _backlog(found, unknown, "billing", window(NOW + 180)) is None
    before = replace(window(NOW + 180), until=NOW)
    assert _backlog(found, stream, "billing", before) is None, "it is known back from now alone"


# -- what is the matter -----------------------------------------------------------------------------------------------

LAYOUT = Layout("rstream", "orders", 1, 1, "customer", 1)
SHARD = shard("rstream", "orders", 1, 0, 1)
ID = EntryId(NOW * 1000 - 900_000, 0, 1, 0)


def stream_now(*groups: GroupStats, losses: tuple[Loss, ...] = ()) -> StreamNow:
    return StreamNow(StreamStats(LAYOUT, NOW * 1000, [], [group.name for group in groups]), groups, losses)


def row(
    stats: GroupStats, oldest: Pending | None = None, paused: Pause | None = None, losses: tuple[Loss, ...] = ()
) -> GroupRow:
    name = "orders", stats.name
    fleet = Fleet(
        NOW * 1000, {"orders": stream_now(stats, losses=losses)}, paused={name: paused} if paused else {},
        oldest={name: oldest} if oldest else {},
    )  # fmt: skip
    return overview(fleet).rows[0]


def group(behind: float = 0, lag: int = 0, pending: int = 0, dead: int = 0, alive: int = 1) -> GroupStats:
    one = ShardGroupStats(SHARD, False, position=ID, behind=behind, pending=pending, oldest=ID if pending else None)
    workers = [WorkerStats(f"w{n}", alive=True) for n in range(alive)]
    return GroupStats("billing", pending, lag, behind, 0, dead, workers=workers, shards=[one])


HELD = Pending(ID, "ada", 9, "held", "w1", 3, since=800.0, age=900.0)


@pytest.mark.parametrize(
    ("found", "level", "word", "text"),
    [
        (row(group()), "ok", "fine", ""),
        (row(group(behind=30, pending=1)), "ok", "fine", ""),
        (row(group(behind=90, lag=4)), "warn", "behind", "90 s old, and nobody was given it yet"),
        (row(group(behind=900, pending=1), HELD), "bad", "behind",
         f"15 min old: {ID}, which w1 has for 13 min, in attempt 3"),
        (row(group(behind=900, pending=1), replace(HELD, state="retry", worker=None)), "bad", "behind",
         f"{ID} waits for its next attempt"),
        (row(group(behind=5, lag=1, alive=0)), "warn", "no worker", "no worker is alive"),
        (row(group(behind=90, lag=1, alive=0)), "bad", "no worker", "no worker is alive"),
        (row(group(alive=0)), "ok", "fine", ""),
        (row(group(pending=1), replace(HELD, state="silent")), "warn", "silent worker", "w1 has"),
        (row(group(dead=2)), "warn", "dead letters", "2 entries were given up"),
        (row(group(behind=5, lag=1), paused=Pause("billing", "ada", 0, "a test")), "note", "paused", "by ada: a test"),
        (row(group(behind=90, lag=1, alive=0), paused=Pause("billing", "ada", 0, "")), "warn", "paused", "by ada"),
        (row(group(), losses=(Loss("billing", SHARD, 7, (), NOW * 1000 - 60_000),)), "bad", "lost entries", "7 "),
        (row(group(), losses=(Loss("billing", SHARD, 7, (), NOW * 1000 - 2 * 86_400_000),)), "ok", "fine", ""),
        (row(replace(group(), missing=[SHARD])), "bad", "lost its place", "1 shard lost the group"),
        (row(replace(group(behind=9000), name="~archive")), "warn", "archive behind", "cannot be trimmed"),
        (row(replace(group(behind=90, lag=2, alive=0), name="~archive")), "ok", "fine", ""),
    ],
)  # fmt: skip
def test_what_is_the_matter(found: GroupRow, level: str, word: str, text: str) -> None:
    assert (found.level, found.word) == (level, word)
    assert text in (found.troubles[0].text if found.troubles else "")


def test_the_worst_comes_first() -> None:
    groups = [replace(group(behind=90, lag=1), name="late"), replace(group(), name="well")]
    groups += [replace(group(behind=9000, lag=1), name="later"), replace(group(dead=1), name="dead")]
    found = overview(Fleet(NOW * 1000, {"orders": stream_now(*groups)}))
    assert [each.name for each in found.rows] == ["later", "late", "dead", "well"]
    assert [each.name for each in found.ailing] == ["later", "late", "dead"]
    assert found.level == "bad"
