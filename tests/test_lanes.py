"""Deliveries and the slots that wait for them: in order, none lost, nobody asleep while there is work."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rstream.store.deliveries import Fetched
from rstream.store.keys import shard
from rstream.worker.lanes import Lanes

SHARD = shard("ns", "s", 1, 0, 1)


def entry(number: int) -> Fetched:
    return Fetched(SHARD, b"%d-0" % number, (), 1, None)


async def tick() -> None:
    """Let everything that can run do so, once."""
    await asyncio.sleep(0)


async def settled(lanes: Lanes) -> None:
    for _ in range(50):
        await tick()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 4)),
        st.tuples(st.just("take"), st.integers(1, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("tick"), st.just(0)),
        st.tuples(st.just("drain"), st.just(0)),
    ),
    max_size=60,
)


class Play:
    """One schedule, played; `taken` is what slots and drains got, in order."""

    def __init__(self, repeat: bool) -> None:
        self.lanes = Lanes()
        self.repeat = repeat
        self.put = 0
        self.taken: list[Fetched] = []
        self.slots: list[asyncio.Task[None]] = []

    async def slot(self) -> None:
        while True:
            self.taken.append(await self.lanes.take())
            self.lanes.waits()
            if not self.repeat:
                return
            await tick()  # the handler

    async def step(self, what: str, number: int) -> None:
        if what == "put":
            self.lanes.put([entry(self.put + n) for n in range(number)])
            self.put += number
        elif what == "take":
            self.slots += [asyncio.create_task(self.slot()) for _ in range(number)]
        elif what == "cancel" and self.slots:
            self.slots.pop(number % len(self.slots)).cancel()
        elif what == "drain":
            self.taken += self.lanes.drain()
        else:
            await tick()

    @property
    def waiting(self) -> list[asyncio.Task[None]]:
        return [slot for slot in self.slots if not slot.done()]

    async def end(self) -> None:
        for slot in self.waiting:
            slot.cancel()
        await asyncio.gather(*self.slots, return_exceptions=True)


async def play(schedule: list[Any], repeat: bool) -> None:
    game = Play(repeat)
    for what, number in schedule:
        await game.step(what, number)
        assert game.put == len(game.taken) + len(game.lanes)
    await settled(game.lanes)
    assert not (len(game.lanes) and game.waiting), "somebody sleeps while there is work"
    assert game.taken == [entry(n) for n in range(len(game.taken))]
    left = game.lanes.drain()
    assert game.taken + left == [entry(n) for n in range(game.put)]
    await game.end()


@settings(max_examples=500, deadline=None)
@given(steps)
def test_slots_that_take_once(schedule: list[Any]) -> None:
    asyncio.run(play(schedule, repeat=False))


@settings(max_examples=500, deadline=None)
@given(steps)
def test_slots_that_take_for_ever(schedule: list[Any]) -> None:
    asyncio.run(play(schedule, repeat=True))


def test_a_cancelled_slot_passes_its_wake_up_on() -> None:
    async def run() -> None:
        game = Play(repeat=False)
        await game.step("take", 2)
        await tick()
        game.lanes.put([entry(0)])
        game.slots[0].cancel()  # it was woken, and does not know yet
        await settled(game.lanes)
        assert game.taken == [entry(0)] and game.slots[1].done()

    asyncio.run(run())


def test_one_entry_wakes_one_slot() -> None:
    async def run() -> None:
        game = Play(repeat=False)
        await game.step("take", 5)
        await settled(game.lanes)
        game.lanes.put([entry(0), entry(1)])
        await settled(game.lanes)
        assert len(game.waiting) == 3 and len(game.lanes._idle) == 3
        await game.end()

    asyncio.run(run())


def test_cancelled_slots_leave_nothing_behind() -> None:
    async def run() -> None:
        lanes = Lanes()
        for _ in range(1000):
            slot = asyncio.create_task(lanes.take())
            await tick()
            slot.cancel()
            await tick()
        lanes.put([entry(0)])
        assert await lanes.take() == entry(0)
        assert not lanes._idle

    asyncio.run(run())
