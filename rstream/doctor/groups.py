"""What is wrong with groups: gone, without workers, behind, losing, giving up. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rstream.doctor.finding import Finding, some
from rstream.retention import text_of
from rstream.store.facts import Facts
from rstream.store.keys import ARCHIVE
from rstream.store.stats import GroupStats
from rstream.store.streamfacts import StreamFacts

Findings = Iterator[Finding]

BEHIND_SECONDS = 30.0
"""What is younger is not late yet."""
FAR_BEHIND_SECONDS = 3600.0
STALE = 20
"""Consumers that are silent and hold nothing: a few are of workers that were killed."""
RECENT_SECONDS = 3600.0
RECENT_LOSS_SECONDS = 86_400.0
MANY_LETTERS = 1000
OVERDUE_SECONDS = 30.0
UNOWNED_SECONDS = 60.0


def _groups(facts: Facts) -> Iterator[tuple[StreamFacts, GroupStats, str]]:
    """All that are read by, and where they are."""
    for stream in facts.streams:
        for group in stream.groups:
            if group.name != ARCHIVE:
                yield stream, group, f"group {stream.name}/{group.name}"


def there(facts: Facts) -> Findings:
    """groups are there"""
    for stream, group, where in _groups(facts):
        if group.missing:
            yield Finding(
                "warning", "group-missing", where,
                f"it is gone from {len(group.missing)} of {len(stream.layout.every)} shards ({some(group.missing)})",
                "Redis lost it, or somebody destroyed it: a worker makes it anew, and reads there all there is",
                (f"rstream groups {stream.name} --shards --group {group.name}",),
            )  # fmt: skip


def paused(facts: Facts) -> Findings:
    """pauses"""
    for stream, group, where in _groups(facts):
        if (pause := stream.paused.get(group.name)) is not None:
            unread = "?" if group.lag is None else f"{group.lag:,}"
            ago = text_of(max(0.0, (stream.now - pause.at) / 1000))
            yield Finding(
                "note", "group-paused", where,
                f"{pause.by} paused it {ago} ago{f': {pause.why}' if pause.why else ''}; {unread} unread, "
                f"{group.pending:,} pending",
                "its workers begin nothing new, and what it has not processed is not trimmed",
                (f"rstream resume {group.name} --stream {stream.name}",),
            )  # fmt: skip


def workers(facts: Facts) -> Findings:
    """workers"""
    for stream, group, where in _groups(facts):
        alive = [worker for worker in group.workers if worker.alive]
        silent = [worker for worker in group.workers if not worker.alive and worker.pending]
        stale = [worker for worker in group.workers if not worker.alive and not worker.pending]
        held = sum(worker.pending for worker in silent)
        if not alive and group.behind > BEHIND_SECONDS and group.name not in stream.paused:
            yield _nobody(stream, group, where, held)
        elif alive and silent:
            yield Finding(
                "warning", "worker-silent", where,
                f"{len(silent)} workers are silent and hold {held:,} deliveries: {some(w.worker for w in silent)}",
                "they died, are frozen, or do not reach Redis; the others take over within 1.5 leases: look again then",
                (f"rstream groups {stream.name}",),
            )  # fmt: skip
        if len(stale) > STALE:
            yield Finding(
                "note", "stale-consumers", where,
                f"{len(stale)} consumers of workers that are gone are left, with nothing",
                "they cost a little at every look; workers that end by SIGTERM leave none",
                (f"redis-cli XGROUP DELCONSUMER KEY {group.name} {stale[0].worker}    (only where it holds nothing)",),
            )  # fmt: skip


def _nobody(stream: StreamFacts, group: GroupStats, where: str, held: int) -> Finding:
    unread = "?" if group.lag is None else f"{group.lag:,}"
    last = ", ".join(worker.worker for worker in group.workers[:3])
    return Finding(
        "warning", "no-worker", where,
        f"no worker of it lives; {unread} unread, {group.pending:,} pending, the oldest {text_of(group.behind)} old"
        + (f"; {held:,} are with silent ones: {last}" if held else ""),
        "nothing is handled, and what it has not processed is not trimmed",
        (f"rstream worker MODULE:APP --group {group.name}",
         f"rstream groups remove {stream.name} --group {group.name}    (nobody needs it; shows its plan)"),
    )  # fmt: skip


def progress(facts: Facts) -> Findings:
    """progress"""
    for stream, group, where in _groups(facts):
        if not any(worker.alive for worker in group.workers):
            continue
        if group.behind > FAR_BEHIND_SECONDS and group.name not in stream.paused:
            yield Finding(
                "note", "far-behind", where, f"the oldest entry that is not processed is {text_of(group.behind)} old",
                "it has too few workers, or handlers that are stuck or retried",
                (f"rstream groups {stream.name} --shards --group {group.name}", "more workers, or --concurrency"),
            )  # fmt: skip
        free = [
            one.shard for one in group.shards
            if one.owner == "" and one.behind > UNOWNED_SECONDS and (one.lag is None or one.lag) and one.position
        ]  # fmt: skip
        if free:
            yield Finding(
                "warning", "unowned-shards", where, f"nobody owns shards of which something is unread: {some(free)}",
                "their events wait; a worker takes a free shard within seconds, unless none of them gets that far",
                (f"rstream groups {stream.name} --shards --group {group.name}",),
            )  # fmt: skip


def losses(facts: Facts) -> Findings:
    """losses"""
    for stream in facts.streams:
        retention = stream.layout.retention
        for standing in stream.standings if retention is not None else ():
            if standing.alarm:
                ignored = standing.alarm == "ignored"
                yield Finding(
                    "problem" if ignored else "warning", "group-expires", f"group {stream.name}/{standing.name}",
                    f"no worker of it has lived for {text_of(standing.idle)}"
                    f"{', longer than' if ignored else ', more than half of'} group_ttl",
                    "what it has not processed is trimmed" + (" now" if ignored else " after that"),
                    (f"rstream worker MODULE:APP --group {standing.name}",
                     f"rstream groups remove {stream.name} --group {standing.name}"),
                )  # fmt: skip
        for name in sorted({loss.group for loss in stream.losses}):
            lost = [loss for loss in stream.losses if loss.group == name]
            since = (stream.now - max(loss.at for loss in lost)) / 1000
            yield Finding(
                "warning" if since < RECENT_LOSS_SECONDS else "note", "dropped", f"group {stream.name}/{name}",
                f"it lost {sum(loss.count for loss in lost):,} entries before it had processed them, the last "
                f"{text_of(max(0.0, since))} ago",
                "retention drops what is unprocessed, or the group had no worker for longer than group_ttl",
                (f"rstream trim {stream.name} --dry-run    (their ids)",),
            )  # fmt: skip


def failures(facts: Facts) -> Findings:
    """dead letters and retries"""
    for stream, group, where in _groups(facts):
        if group.dead:
            ids = [sizes.newest for (name, _), sizes in stream.letters.items() if name == group.name]
            last = max((id.ms for id in ids if id is not None), default=0)
            since = max(0.0, (stream.now - last) / 1000)
            recent = since < RECENT_SECONDS or group.dead > MANY_LETTERS
            yield Finding(
                "warning" if recent else "note", "dead-letters", where,
                f"it gave up {group.dead:,} entries that still wait to be looked at, the last {text_of(since)} ago",
                "they stay, in Redis's memory, until they are redriven or discarded",
                (f"rstream dead list {stream.name} --group {group.name}",
                 f"rstream dead redrive {stream.name} --group {group.name} --all    (after the fix)"),
            )  # fmt: skip
        overdue = [
            (stream.now - due) / 1000 for (name, _), due in stream.due.items()
            if name == group.name and stream.now - due > OVERDUE_SECONDS * 1000
        ]  # fmt: skip
        if overdue and any(worker.alive for worker in group.workers):
            yield Finding(
                "warning", "retries-overdue", where,
                f"retries wait in {len(overdue)} shards, the oldest for {text_of(max(overdue))} past its time",
                "all slots of its workers are busy, or they are stuck", ("more workers, or --concurrency",),
            )  # fmt: skip


def archive(facts: Facts) -> Findings:
    """archive"""
    for stream in facts.streams:
        group = next((each for each in stream.groups if each.name == ARCHIVE), None)
        if group is None:
            continue
        where, stopped = f"stream {stream.name}", stream.archiver == "~stopped"
        if group.behind > 10 * BEHIND_SECONDS:
            nobody = stopped or not stream.archiver
            who = "the archive was switched off half-way" if stopped else "nobody archives it"
            yield Finding(
                "problem" if nobody else "warning", "archiver-behind", where,
                f"the archive is {text_of(group.behind)} behind" + (f": {who}" if nobody else f" ({stream.archiver})"),
                "nothing is trimmed that is not archived: the stream fills",
                (f"rstream archive {'stop' if stopped else 'run'} {stream.name}",
                 f"rstream archive show {stream.name}"),
            )  # fmt: skip
        if group.missing and not stopped:
            yield Finding(
                "warning", "archive-gap", where, f"shards are not being archived: {some(group.missing)}",
                "what is trimmed there is gone", (f"rstream archive start {stream.name}",),
            )  # fmt: skip
