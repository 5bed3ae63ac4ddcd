"""What waits for a replay's handler: in any order of putting, taking and ending, each key keeps its order."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rstream.event import Entry, EntryId
from rstream.replay import backlog as backlogs
from rstream.replay.backlog import ENTRIES, Backlog


def entries(keys: list[str | None]) -> list[Entry[Any]]:
    return [Entry(EntryId(n, 0, 1, 0), b"x", key, b"", {}, bytes) for n, key in enumerate(keys)]


@given(
    st.lists(st.sampled_from(["a", "b", "c", None]), max_size=60),
    st.integers(1, 7),
    st.integers(1, 4),
    st.booleans(),
    st.data(),
)
def test_each_comes_once_and_of_a_key_in_order(
    keys: list[str | None], size: int, slots: int, ordered: bool, data: st.DataObject
) -> None:
    async def main() -> None:
        backlog, waiting, out = Backlog(ordered, size), deque(entries(keys)), list[list[Entry[Any]]]()
        came: dict[str | None, list[EntryId]] = defaultdict(list)
        takers = set[asyncio.Task[list[Entry[Any]]]]()
        idle = 0
        if not keys:
            backlog.close()
        while waiting or out or takers or backlog._count:
            steps = ["put"] * bool(waiting) + ["end"] * bool(out)
            steps += ["take"] * (len(takers) + len(out) < slots and (bool(waiting) or bool(backlog._count)))
            idle = 0 if steps else idle + 1
            assert idle < 100, "nobody can go on"
            step = data.draw(st.sampled_from(steps)) if steps else ""
            if step == "put":
                backlog.put([waiting.popleft() for _ in range(min(len(waiting), data.draw(st.integers(1, 9))))])
                if not waiting:
                    backlog.close()
            elif step == "take":
                takers.add(asyncio.create_task(backlog.take()))
            elif step == "end":
                backlog.done(out.pop(data.draw(st.integers(0, len(out) - 1))))
            for _ in range(5):
                await asyncio.sleep(0)
            for task in [task for task in takers if task.done()]:
                takers.discard(task)
                batch = task.result()
                assert len(batch) <= size
                if ordered:
                    others = {entry.key for other in out for entry in other} - {None}
                    assert not others & {entry.key for entry in batch}
                for entry in batch:
                    came[entry.key].append(entry.id)
                if batch:
                    out.append(batch)
        assert await backlog.take() == []
        for key, ids in came.items():
            if ordered and key is not None:
                assert ids == sorted(ids)
        assert sorted(id for ids in came.values() for id in ids) == [entry.id for entry in entries(keys)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backlogs, "LINGER", 3600.0)  # so that what is drawn decides, and no clock
        asyncio.run(main())


def test_with_one_slot_batches_are_full_and_in_order() -> None:
    async def main() -> None:
        backlog = Backlog(True, 10)
        backlog.put(entries([f"k{n % 3}" for n in range(95)]))
        backlog.close()
        sizes, ids = [], []
        while batch := await backlog.take():
            sizes.append(len(batch))
            ids += [entry.id.ms for entry in batch]
            backlog.done(batch)
        assert sizes == [10] * 9 + [5] and ids == [*range(95)]

    asyncio.run(main())


def test_a_batch_that_is_not_full_waits_only_so_long() -> None:
    async def main() -> None:
        backlog = Backlog(True, 10)
        backlog.put(entries(["a", "b"]))
        assert len(await asyncio.wait_for(backlog.take(), 5)) == 2

    asyncio.run(main())


def test_a_hot_key_that_fills_it_does_not_stop_it() -> None:
    async def main() -> None:
        backlog = Backlog(True, 2)
        backlog.put(entries(["hot"] * ENTRIES + ["cold"]))
        first = await backlog.take()
        assert [entry.key for entry in first] == ["hot", "hot"]
        second = asyncio.create_task(backlog.take())
        await asyncio.sleep(0)
        backlog.done(first)
        third = await asyncio.wait_for(second, 5)
        assert {entry.key for entry in third} == {"cold", "hot"}

    asyncio.run(main())


def test_what_is_dropped_is_not_handed_out() -> None:
    async def main() -> None:
        backlog = Backlog(True, 4)
        taking = asyncio.create_task(backlog.take())
        await asyncio.sleep(0)
        backlog.put(entries(["a"]))
        await asyncio.sleep(0)
        backlog.close(drop=True)
        assert await asyncio.wait_for(taking, 5) == [] == await backlog.take()

    asyncio.run(main())
