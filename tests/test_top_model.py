"""What is on the screen of `rstream top`, and how keys change it: no terminal, no Redis."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstream.event import EntryId
from rstream.operate.pending import Pending
from rstream.store.keys import shard
from rstream.store.pause import Pause
from rstream.store.stats import GroupStats, ShardGroupStats, WorkerStats
from rstream.store.totals import GroupTotals, Totals
from rstream.top.draw import columns, cut, rate, screen, short, span, table
from rstream.top.model import SORTS, Action, Model
from rstream.top.rows import Look, StreamLook, group_rows, stream_rows
from rstream.top.terminal import Keys

SHARDS = [shard("t", "orders", 1, number, 2) for number in range(2)]


def group(name: str, **known: object) -> GroupStats:
    shards = [ShardGroupStats(each, False) for each in SHARDS]
    return GroupStats(name, shards=shards, **known)  # type: ignore[arg-type]


def look(now: int = 10_000, published: int = 100, paused: bool = False, **acked: int) -> Look:
    groups = [group(name, pending=n, behind=float(10 * n)) for n, name in enumerate(acked)]
    totals = Totals(now, published, dict.fromkeys(SHARDS, 50), {n: GroupTotals(n, acked=c) for n, c in acked.items()})
    pauses = {("orders", next(iter(acked))): Pause("a", "kim", 1, "why")} if paused else {}
    return Look(now, {"orders": StreamLook(published, groups, totals)}, pauses)


def model(*looks: Look) -> Model:
    made = Model()
    for each in looks or (look(a=1, b=2, c=3),):
        made.came(each)
    return made


def names(model: Model) -> list[str]:
    return [row.group for row in model.rows]


def test_rates_are_differences_and_never_of_what_was_reset() -> None:
    before, after = look(10_000, 100, a=10, b=50), look(12_000, 300, a=30, b=7)
    rows = {row.group: row for row in group_rows(after, before)}
    assert (rows["a"].came, rows["a"].done, rows["b"].done) == (100.0, 10.0, None)
    assert [row.came for row in group_rows(after, None)] == [None, None]
    assert [row.came for row in group_rows(after, replace(before, now=12_000))] == [None, None]
    assert [row.done for row in group_rows(after, look(10_000, 100, a=1))] == [14.5, None]


def test_a_row_names_the_oldest_pending_of_all_shards_and_who_has_it() -> None:
    stats = group("g", pending=2)
    stats.shards[0] = replace(stats.shards[0], oldest=EntryId(7, 0, 1, 0), oldest_age=3.0, holder="w1")
    stats.shards[1] = replace(stats.shards[1], oldest=EntryId(5, 0, 1, 1), oldest_age=5.0, holder="~retry")
    stats.workers += [WorkerStats("w1", 1, True), WorkerStats("w2", 1, False), WorkerStats("w3", 0, False)]
    totals = Totals(1, 0, {}, {"g": GroupTotals("g", lost=4)})
    found = Look(1, {"s": StreamLook(9, [stats, group("~archive")], totals)})
    (row,) = group_rows(found, None)
    assert (row.oldest, row.holder, row.age) == (EntryId(5, 0, 1, 1), "~retry", 5.0)
    assert (row.alive, row.silent, row.lost) == (1, 1, 4)
    (stream,) = stream_rows(found, [row])
    assert (stream.entries, stream.groups, stream.pending, stream.lost) == (9, 1, 2, 4)


def test_sorting_goes_round_and_turns() -> None:
    top = model()
    assert names(top) == ["c", "b", "a"]  # the furthest behind first
    top.press("r")
    assert names(top) == ["a", "b", "c"]
    seen = []
    for _ in SORTS["groups"]:
        top.press("s")
        seen.append(top.sort[0].title)
    assert seen == [*(column.title for column in SORTS["groups"][1:]), "BEHIND"]
    top.press("S")
    assert top.sort[0].title == "GROUP" and names(top) == ["a", "b", "c"]


def test_the_selection_stays_with_its_row_wherever_that_moves() -> None:
    top = model()
    top.press("down")
    assert top.row.group == "b"
    top.press("r")
    assert (top.row.group, top.at) == ("b", 1)
    top.came(look(11_000, a=1, b=2, c=3, d=4))
    assert top.row.group == "b"
    top.came(look(12_000, x=1, y=2))
    assert top.at == 0  # it is gone
    for key in ("up", "pageup", "home", "end", "pagedown", "down"):
        top.press(key)
        assert 0 <= top.at < len(top.rows)


def test_a_filter_is_typed_kept_and_cleared() -> None:
    top = model()
    for key in "/B":
        assert top.press(key) is None
    assert top.typing and names(top) == ["b"]
    top.press("q")  # a letter, while it is typed
    assert names(top) == []
    top.press("backspace")
    top.press("enter")
    assert not top.typing and names(top) == ["b"]
    top.press("escape")
    assert top.filter == "" and top.level == "groups"


def test_the_way_down_and_back() -> None:
    top = model()
    assert top.press("enter") == Action("look") and (top.level, top.group) == ("pending", "c")
    one = Pending(EntryId(5, 0, 1, 0), "k", 1, "held", "w1", 1, 1.0, 2.0)
    top.pending = [one, replace(one, id=EntryId(4, 0, 1, 0))]
    top.press("down")
    assert top.press("enter") == Action("look") and (top.level, top.id) == ("entry", EntryId(5, 0, 1, 0))
    top.press("escape")
    assert (top.level, top.selected) == ("pending", EntryId(5, 0, 1, 0))
    top.press("escape")
    assert (top.level, top.row.group, top.stream) == ("groups", "c", None)
    top.press("left")
    assert (top.level, top.row.stream) == ("streams", "orders")
    top.press("right")
    assert (top.level, top.stream) == ("groups", "orders")
    top.press("enter")
    top.press("escape")
    assert (top.level, top.stream) == ("groups", "orders")
    only = Model(only="orders", stream="orders")
    only.came(look(a=1))
    only.press("escape")
    assert (only.level, only.stream) == ("groups", "orders")


def test_deeds_wait_for_a_yes() -> None:
    top = model(look(a=1))
    top.press("p")
    assert top.ask == Action("pause", "orders", "a")
    assert top.press("x") is None and top.ask is None
    top.press("p")
    assert top.press("y") == Action("pause", "orders", "a")
    top.came(look(11_000, paused=True, a=1))
    top.press("p")
    assert top.ask is not None and top.ask.deed == "resume"
    top.press("n")
    top.press("c")
    assert top.ask is None  # there is no entry here
    top.press("enter")
    top.pending = [Pending(EntryId(5, 0, 1, 0), "k", 1, "held", "w1", 1, 1.0, 2.0)]
    top.press("c")
    assert top.press("Y") == Action("cancel", "orders", "a", EntryId(5, 0, 1, 0))
    assert top.press("q") == Action("quit")


def test_nothing_is_selected_where_there_is_nothing() -> None:
    top = Model()
    for key in ("enter", "p", "c", "down", "s", "end", "escape", "enter", "p"):
        top.press(key)
    assert top.row is None and top.ask is None
    assert len(screen(top, "redis://x")) == 24


KEYS = ["up", "down", "enter", "escape", "s", "S", "r", "/", "a", "p", "y", "c", "end", "?", " "]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(KEYS), max_size=12),
    st.tuples(st.integers(3, 60), st.integers(20, 200)),
    st.booleans(),
)
def test_whatever_is_pressed_every_frame_fits(keys: list[str], size: tuple[int, int], color: bool) -> None:
    top = model(look(a=1, b=2, **{f"g{n}": n for n in range(30)}))
    top.size = size
    for key in keys:
        top.press(key)
        if top.level == "pending":
            top.pending = [
                Pending(EntryId(5, n, 1, 0), "日本\x1b[2J" * 9, 1, "held", "w1", 1, 1.0, 2.0) for n in range(40)
            ]
        lines = screen(top, "redis://127.0.0.1:6379", color=False)
        assert len(lines) == size[0] and all(columns(line) <= size[1] for line in lines)
        assert not any("\x1b" in line for line in lines)
        if top.rows and not top.help:
            start, end = top.window(len(top.rows))
            assert start <= top.at < end
        colored = screen(top, "redis://127.0.0.1:6379", color=True)
        assert len(colored) == size[0]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (9949, "9.9k"), (9950, "10k"), (12_345, "12k"),
     (999_499, "999k"), (999_500, "1.0M"), (10**15, "1000T")],
)  # fmt: skip
def test_numbers_are_short(number: int, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (9.9, "9.9s"), (12, "12s"), (60, "1m00s"), (200, "3m20s"), (7500, "2h05m"),
     (273_600, "3d04h"), (120 * 86400, "120d"), (-1, "0.0s")],
)  # fmt: skip
def test_spans_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text and len(span(seconds)) <= 6
    assert rate(None) == "-" and rate(0.04) == "0.0" and rate(2.25) == "2.2" and rate(10.4) == "10"


@given(st.text(max_size=40), st.integers(0, 30))
def test_what_is_cut_is_no_wider_and_orders_nothing(text: str, width: int) -> None:
    shown = cut(text, width)
    assert columns(shown) <= width and all(c.isprintable() for c in shown)


def test_a_table_for_scripts() -> None:
    head, *rows = table(model(look(10_000, a=1, b=2), look(12_000, 150, a=5, b=2)))
    assert head.split()[0] == "GROUP" and rows[0].startswith("orders/b") and "\x1b" not in "".join(rows)
    assert "25" in rows[0].split()


def test_keys_as_terminals_send_them() -> None:
    keys = Keys()
    assert keys.feed(b"\x1b[A\x1bOBj\r\x7f\x1b[5~\x1b[6~\x1b[H\x1b[1;5C") == [
        "up", "down", "j", "enter", "backspace", "pageup", "pagedown", "home",
    ]  # fmt: skip
    assert keys.feed(b"\x1b") == [] and keys.waits and keys.rest() == ["escape"] and not keys.waits
    assert keys.feed(b"\x1b[") == [] and keys.feed(b"B") == ["down"]
    assert keys.feed("é".encode()[:1]) == [] and keys.feed("é".encode()[1:]) == ["é"]
    assert keys.feed(b"\x1bx") == ["escape", "x"]
    assert keys.feed(b"\x00\x0c") == ["redraw"]


@given(st.lists(st.binary(max_size=6)))
def test_keys_of_anything_are_keys(parts: list[bytes]) -> None:
    keys = Keys()
    for part in parts:
        assert all(len(key) > 1 or key.isprintable() for key in keys.feed(part))
    keys.rest()
