"""`rstream groups remove`: what a group kept is gone, nothing else is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from rstream import Event, Retention, RStream, Stream
from rstream.errors import ConfigError, GroupLive
from rstream.store.deliveries import GroupOps, Outcome
from rstream.store.remove import remove
from rstream.store.steps import drive_sync
from rstream.store.trim import tidy
from tests.commands import Commands


class Job(Event):
    user: str
    n: int


@pytest.fixture
def jobs(app: RStream) -> Iterator[Stream[Job]]:
    """Two groups; of the first some are pending: in hand, waiting for a retry, put aside."""
    jobs = app.stream("jobs", Job, key="user", shards=2, retention=Retention(entries=2))
    jobs.sync.publish_many([Job(user=f"u{n % 3}", n=n) for n in range(2)])
    layout = jobs.sync.layout()
    for group in ("shadow", "live"):
        ops = GroupOps(layout, group, "w")
        app.sync_link.run(ops.create("0"))
    ops = GroupOps(layout, "shadow", "w")
    entries = app.sync_link.run(ops.fetch(10)).entries
    kinds = [("retry", 60_000, ""), ("park", 0, b"u1")]
    outcomes = [Outcome(e.shard, e.id, 1, kind, a, b) for e, (kind, a, b) in zip(entries, kinds, strict=True)]
    assert app.sync_link.run(ops.settle(outcomes)) == []  # type: ignore[arg-type]
    yield jobs


def test_it_keeps_nothing_any_more(jobs: Stream[Job], app: RStream, raw: redis.Redis, namespace: str) -> None:
    layout = jobs.sync.layout()
    before = {key for key in raw.scan_iter(f"*{namespace}*") if b"shadow" in key}
    assert any(b":retry:" in key for key in before) and any(b":parked:" in key for key in before)
    stats = drive_sync(app.sync_link, remove(layout, "shadow", dry=True), 1.0)
    assert stats.pending == 2 and {key for key in raw.scan_iter(f"*{namespace}*") if b"shadow" in key} == before
    drive_sync(app.sync_link, remove(layout, "shadow"), 1.0)
    assert not [key for key in raw.scan_iter(f"*{namespace}*") if b"shadow" in key]
    assert [[g["name"] for g in raw.xinfo_groups(shard.stream)] for shard in layout.every] == [[b"live"]] * 2
    with pytest.raises(ConfigError, match="no group 'shadow'"):
        drive_sync(app.sync_link, remove(layout, "shadow"), 1.0)
    for shard in layout.every:  # the other one has settled all
        raw.xgroup_setid(shard.stream, "live", "$")
    assert layout.retention is not None
    drive_sync(app.sync_link, tidy(layout, Retention(age="1s")), 1.0)
    assert sum(raw.xlen(shard.stream) for shard in layout.every) == 2
    jobs.sync.publish_many([Job(user=f"u{n % 3}", n=n) for n in range(20)])  # there is room


def test_it_is_refused_where_somebody_needs_it(jobs: Stream[Job], app: RStream) -> None:
    layout = jobs.sync.layout()
    ops = GroupOps(layout, "shadow", "w")
    app.sync_link.run(ops.beat(60_000))
    with pytest.raises(GroupLive, match=r"live workers \(w\)"):
        drive_sync(app.sync_link, remove(layout, "shadow"), 1.0)
    app.sync_link.run(ops.leave())
    with pytest.raises(ConfigError, match="rstream archive stop jobs"):
        drive_sync(app.sync_link, remove(layout, "~archive"), 1.0)
    other = GroupOps(layout, "live", "w")
    dead = [Outcome(e.shard, e.id, 1, "dead", "failed", "no", "") for e in app.sync_link.run(other.fetch(10)).entries]
    app.sync_link.run(other.settle(dead))
    with pytest.raises(ConfigError, match="has 2 dead letters"):
        drive_sync(app.sync_link, remove(layout, "live"), 1.0)


def test_the_command(rs: Commands) -> None:
    rs.write("shop.py", APP)
    assert rs.run("publish", "jobs", "--app", "shop:app", "--json", '{"user": "u", "n": 1}').returncode == 0
    assert rs.run("replay", "jobs", "--from", "earliest", "--as-group", "shadow").returncode == 0
    told = rs.run("groups", "remove", "jobs", "--group", "shadow")
    assert told.returncode == 0 and "Would remove group shadow of stream jobs: 1 unread, 0 pending." in told.stdout
    done = rs.run("groups", "remove", "jobs", "--group", "shadow", "--execute")
    assert done.returncode == 0 and done.stdout.startswith("Removed group shadow of stream jobs: 1 unread")
    again = rs.run("groups", "remove", "jobs", "--group", "shadow", "--execute")
    assert again.returncode == 1 and "no group 'shadow'" in again.stderr


APP = """
from rstream import Event, RStream
app = RStream()
class Job(Event):
    user: str
    n: int
jobs = app.stream("jobs", Job, key="user", shards=2)
"""
