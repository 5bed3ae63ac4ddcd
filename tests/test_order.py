"""Lanes per key: what may start, what waits for what, what is put aside and comes back."""

from __future__ import annotations

import random

from rstream.store.deliveries import Fetched
from rstream.store.keys import shard
from rstream.worker import order as module
from rstream.worker.order import KEEP, PerKey

ONE, TWO = shard("ns", "s", 1, 0, 2), shard("ns", "s", 1, 1, 2)


def entry(n: int, key: bytes | None = b"a", *, source: str | None = None, of: module.Shard = ONE) -> Fetched:
    named = [] if key is None else [b"k", key]
    return Fetched(of, b"%d-0" % n, [b"e", b"payload", *named, b"i", bytes(16)], 1, source)


def is_empty(order: PerKey) -> bool:
    return not (order._lanes or order._current or order._leaving or order._elsewhere or order.held or order.size)


def test_a_key_is_handed_out_one_at_a_time_in_order_and_keys_do_not_wait_for_each_other() -> None:
    order = PerKey()
    assert [order.put(entry(n)) for n in (1, 2, 3)] == [entry(1), None, None]
    assert order.put(entry(4, b"b")) == entry(4, b"b")
    assert order.put(entry(5, None)) == entry(5, None)
    assert order.let_go(ONE, b"5-0", "ended") is None
    assert order.let_go(ONE, b"1-0", "ended") == entry(2)
    assert order.let_go(ONE, b"2-0", "ended") == entry(3)
    assert order.let_go(ONE, b"3-0", "ended") is order.let_go(ONE, b"4-0", "ended") is None
    assert is_empty(order)


def test_the_same_key_in_another_shard_is_another_lane() -> None:
    order = PerKey()
    assert order.put(entry(1)) and order.put(entry(1, of=TWO))


def test_what_comes_in_late_is_handed_out_in_its_place() -> None:
    order = PerKey()
    for n in (1, 30, 4, 200):
        order.put(entry(n))
    started = [order.let_go(ONE, b"%d-0" % n, "ended") for n in (1, 4, 30)]
    assert started == [entry(4), entry(30), entry(200)]  # as numbers, not as text


def test_who_waits_elsewhere_has_its_key_wait_until_it_comes_back() -> None:
    order = PerKey()
    order.put(entry(1))
    order.put(entry(2))
    assert order.let_go(ONE, b"1-0", "elsewhere") is None and list(order.elsewhere) == [(ONE, b"1-0")]
    again = entry(1, source="~retry")
    assert order.put(again) is again and not order.elsewhere
    assert order.let_go(ONE, b"1-0", "ended") == entry(2)
    order.let_go(ONE, b"2-0", "ended")
    assert is_empty(order)


def test_what_was_learned_to_be_pending_holds_back_its_key_and_no_other() -> None:
    order = PerKey()
    order.learn(ONE, b"1-0", b"a")
    order.learn(ONE, b"2-0", b"a")
    assert order.put(entry(3)) is None and order.put(entry(4, b"b"))
    assert order.let_go(ONE, b"1-0", "ended") is None
    assert order.let_go(ONE, b"2-0", "ended") == entry(3)


def test_an_entry_before_what_is_elsewhere_does_not_wait_for_it() -> None:
    order = PerKey()
    order.learn(ONE, b"5-0", b"a")
    assert order.put(entry(3)) == entry(3)
    assert order.put(entry(7)) is None
    assert order.let_go(ONE, b"3-0", "ended") is None


def test_what_does_not_move_is_put_aside_and_what_follows_goes_after_it() -> None:
    order = PerKey()
    for n in range(1, 101):
        order.put(entry(n))
    moves = order.moves()
    aside = order.put_aside(moves)
    assert [each.id for each in aside] == [b"%d-0" % n for n in range(KEEP + 2, 101)]
    assert order.backlog == KEEP and order.held == 99
    assert order.put(entry(101)) is None and order.take_overflow() == [entry(101)]
    for each in [*aside, entry(101)]:
        order.let_go(ONE, each.id, "aside")
    assert order.outside == {ONE: 100 - KEEP} and order.held == KEEP
    for n in range(1, KEEP + 1):
        assert order.let_go(ONE, b"%d-0" % n, "ended") == entry(n + 1)
        assert not order.hungry
    assert order.let_go(ONE, b"%d-0" % (KEEP + 1), "ended") is None
    (lane,) = order.ask_back()
    assert order.came_back(lane, aside[:2], 0, aside[2].id) == aside[0]
    assert order.put(aside[2]) is None and order.take_overflow() == [aside[2]]  # it is behind what is still aside


def test_what_moves_is_not_put_aside() -> None:
    order = PerKey()
    for n in range(1, 101):
        order.put(entry(n))
    moves = order.moves()
    order.let_go(ONE, b"1-0", "ended")
    assert order.put_aside(moves) == []


def test_of_many_lanes_that_do_not_move_all_is_put_aside() -> None:
    order = PerKey()
    for key in (b"a", b"b"):
        for n in (1, 2, 3):
            order.put(entry(n, key))
    assert sorted(each.id for each in order.put_aside(order.moves())) == [b"2-0", b"2-0", b"3-0", b"3-0"]
    assert order.backlog == 0


def test_what_arrives_there_while_some_is_asked_back_is_not_forgotten() -> None:
    order = PerKey()
    order.is_aside(ONE, b"a", b"1-0", 1)
    (lane,) = order.ask_back()
    assert order.put(entry(2)) is None
    assert order.take_overflow() == [entry(2)]
    assert order.let_go(ONE, b"2-0", "aside") is None
    # The answer was made before that one arrived: it says that nothing is left.
    assert order.came_back(lane, [entry(1, source="~parked")], 0, None)
    assert order.put(entry(3)) is None and order.take_overflow() == [entry(3)]
    assert order.let_go(ONE, b"3-0", "aside") is None
    assert order.let_go(ONE, b"1-0", "ended") is None
    (lane,) = order.ask_back()
    assert order.came_back(lane, [entry(2), entry(3)], 0, None) == entry(2)


def test_what_came_back_does_not_pass_what_was_put_aside_later() -> None:
    order = PerKey()
    order.is_aside(ONE, b"a", b"1-0", 2)  # 1 and 9 are there; 5 is pending for a worker that died
    order.learn(ONE, b"5-0", b"a")
    (lane,) = order.ask_back()
    assert order.put(entry(5, source="dead")) is None and order.take_overflow()
    assert order.came_back(lane, [entry(1), entry(9)], 0, None) == entry(1)
    assert order.let_go(ONE, b"5-0", "aside") is None
    assert order.let_go(ONE, b"1-0", "ended") is None  # not 9
    (lane,) = order.ask_back()
    assert order.came_back(lane, [entry(5)], 0, None) == entry(5)
    assert order.let_go(ONE, b"5-0", "ended") == entry(9)


def test_a_shard_that_is_dropped_is_forgotten_with_all_that_waited_there() -> None:
    order = PerKey()
    for n in (1, 2, 3):
        order.put(entry(n))
        order.put(entry(n, of=TWO))
    order.learn(ONE, b"9-0", b"b")
    moves = order.moves()
    assert sorted(each.id for each in order.drop(ONE)) == [b"2-0", b"3-0"]
    assert order.put_aside({lane: n for lane, n in moves.items() if lane.shard is ONE}) == []
    assert order.let_go(ONE, b"1-0", "ended") is None and not order.elsewhere
    assert order.let_go(TWO, b"1-0", "ended") == entry(2, of=TWO)
    assert [each.id for each in order.drain()] == [b"3-0"] and is_empty(order)


def test_a_history_at_random_ends_with_nothing_held_and_every_key_in_order() -> None:
    """A worker's life: it reads, settles, has retries come back, puts aside and brings back, and loses the shard."""
    for seed in range(150):
        Life(random.Random(seed)).live()


class Life:
    """pending: what Redis has pending, by whom it is held. Answers to what is put aside come late."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.order = rng, PerKey()
        self.pending: dict[int, str] = {}
        self.keys: dict[int, bytes] = {}
        self.running: set[int] = set()
        self.on_its_way: list[int] = []
        self.done: dict[bytes, list[int]] = {}
        self.next = 1
        self.ending = False

    def live(self) -> None:
        for _ in range(200):
            getattr(self, self.rng.choice(["read", "read", "settle", "settle", "recover", "tidy", "confirm", "lose"]))()
        self.ending = True
        for _ in range(2000):
            if not (self.pending or self.running):
                break
            for what in ("settle", "recover", "tidy", "confirm"):
                getattr(self, what)()
        assert not self.pending, (self.pending, self.order._lanes)
        assert is_empty(self.order)
        assert all(numbers == sorted(numbers) for numbers in self.done.values())

    def begun(self, started: Fetched | None) -> None:
        if started is not None:
            n = int(started.id.partition(b"-")[0])
            assert not any(self.keys[other] == self.keys[n] for other in self.running), "two of one key at once"
            earlier = [m for m in self.pending if m < n and self.keys[m] == self.keys[n]]
            assert not earlier, f"{n} was begun before {earlier}"
            self.running.add(n)

    def entry(self, n: int) -> Fetched:
        return entry(n, self.keys[n])

    def read(self) -> None:
        for _ in range(self.rng.randrange(1, 8)):
            n, self.next = self.next, self.next + 1
            self.keys[n] = self.rng.choice([b"a", b"a", b"b", b"c"])
            self.pending[n] = "me"
            self.begun(self.order.put(self.entry(n)))

    def settle(self) -> None:
        for n in self.rng.sample(sorted(self.running), min(2, len(self.running))):
            self.running.remove(n)
            if self.rng.random() < 0.8:
                del self.pending[n]
                self.done.setdefault(self.keys[n], []).append(n)
                self.begun(self.order.let_go(ONE, b"%d-0" % n, "ended"))
            else:
                self.pending[n] = "elsewhere"
                self.begun(self.order.let_go(ONE, b"%d-0" % n, "elsewhere"))

    def recover(self) -> None:
        free = [n for n, holder in self.pending.items() if holder == "elsewhere"]
        for n in self.rng.sample(free, min(3, len(free))):
            self.pending[n] = "me"
            self.begun(self.order.put(self.entry(n)))

    def tidy(self) -> None:
        for lane in self.order.ask_back():
            there = sorted(n for n, holder in self.pending.items() if holder == "aside" and self.keys[n] == lane.key)
            back, rest = there[:3], there[3:]
            if self.rng.random() < 0.5:
                self.confirm()  # answers that are read between
                if not self.ending:
                    self.read()
            self.pending.update(dict.fromkeys(back, "me"))
            first = b"%d-0" % rest[0] if rest else None
            self.begun(self.order.came_back(lane, [self.entry(n) for n in back], 0, first))
        moves = self.order.moves() if self.rng.random() < 0.3 else {}
        for each in [*self.order.put_aside(moves), *self.order.take_overflow()]:
            n = int(each.id.partition(b"-")[0])
            self.pending[n] = "aside"
            self.on_its_way.append(n)

    def confirm(self) -> None:
        while self.on_its_way:
            n = self.on_its_way.pop(0)
            self.begun(self.order.let_go(ONE, b"%d-0" % n, "aside"))

    def lose(self) -> None:
        """The shard goes, and comes back: everything is learned anew."""
        if self.rng.random() < 0.8:
            return
        self.confirm()
        self.order.drop(ONE)
        self.running.clear()
        for n, holder in self.pending.items():
            if holder != "aside":
                self.pending[n] = "elsewhere"
                self.order.learn(ONE, b"%d-0" % n, self.keys[n])
        for key in (b"a", b"b", b"c"):
            aside = sorted(n for n, holder in self.pending.items() if holder == "aside" and self.keys[n] == key)
            if aside:
                self.order.is_aside(ONE, key, b"%d-0" % aside[0], len(aside))
