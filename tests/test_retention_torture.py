"""Many times what a stream may hold goes through it, while its consumer stops for a while."""

from __future__ import annotations

from pathlib import Path

import pytest

from rstream import Retention, RStream
from rstream.store.lost import losses
from tests.capped import Course, Row, run, taken
from tests.commands import Commands
from tests.servers import KINDS, Server

SMALL = (20_000, 1000, 4_000_000)
LARGE = pytest.param((1_000_000, 1000, 100_000_000), marks=[pytest.mark.torture, pytest.mark.timeout(900)])
BUFFERS = 5_000_000
"""What Redis needs for requests, scripts and its log meanwhile: in a small stream that is much."""
OTHERS = [pytest.param(kind, marks=pytest.mark.torture) for kind in KINDS if kind != "embedded"]


@pytest.fixture(params=[*(["embedded"] if "embedded" in KINDS else []), *OTHERS])
def commands(request: pytest.FixtureRequest, tmp_path: Path, namespace: str):  # type: ignore[no-untyped-def]
    with Server(KINDS[request.param], tmp_path / "server", tcp=True) as server:
        found = Commands(tmp_path, server.url, namespace)
        (tmp_path / "diary").mkdir()
        found.env |= {"CAPPED_DIARY": str(tmp_path / "diary"), "PYTHONPATH": str(Path.cwd())}
        yield found


def within_its_cap(course: Course, cap: int) -> None:
    print(course)
    assert course.peak - course.base <= 1.1 * cap + (BUFFERS if cap < 10 * BUFFERS else 0), str(course)


@pytest.mark.parametrize("much", [SMALL, LARGE])
async def test_keep_loses_nothing_and_stays_under_its_cap(commands: Commands, much: tuple[int, int, int]) -> None:
    entries, size, cap = much
    course = await run(commands, entries, size, Retention(bytes=cap))
    within_its_cap(course, cap)
    assert course.slowed and course.refused and course.after, str(course)
    assert "'slow'" in course.message
    assert set(taken(Path(commands.env["CAPPED_DIARY"]))) == set(range(entries))


@pytest.mark.parametrize("much", [SMALL, LARGE])
async def test_drop_stays_under_its_cap_and_counts_what_it_loses(
    commands: Commands, much: tuple[int, int, int]
) -> None:
    entries, size, cap = much
    course = await run(commands, entries, size, Retention(bytes=cap, unprocessed="drop"))
    within_its_cap(course, cap)
    assert course.refused == 0
    handled = taken(Path(commands.env["CAPPED_DIARY"]))
    lost = sorted(course.ids[n] for n in set(range(entries)) - set(handled))
    assert lost, "nothing was lost: this shows nothing"
    async with RStream(commands.env["RSTREAM_URL"], namespace=commands.env["RSTREAM_NAMESPACE"]) as app:
        layout = await app.stream("rows", Row, key="key", shards=8).layout()
        found = await app.link.run(losses(layout))
    assert sum(loss.count for loss in found) == len(lost)
    ranges = [part for loss in found for part in loss.ranges]
    assert sum(part.number for part in ranges) == len(lost)
    by_shard = {}  # type: ignore[var-annotated]
    for id in lost:
        by_shard.setdefault(id.shard, []).append(id)
    for part in ranges:
        assert sum(part.first <= id <= part.last for id in by_shard[part.first.shard]) == part.number
