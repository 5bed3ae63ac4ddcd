"""What is wrong with a stream: what Redis lost of it, its ids, shards, entries, and what keeps it from being trimmed.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from rstream.doctor.finding import Finding, some
from rstream.event import MAX_PART
from rstream.retention import Retention, size_text, text_of
from rstream.store.facts import Facts
from rstream.store.keys import ARCHIVE, Shard
from rstream.store.pins import Pin, fill, unprocessed
from rstream.store.streamfacts import StreamFacts

Findings = Iterator[Finding]

AHEAD_SECONDS = 1.0
HOT, HOT_ENTRIES, HOT_BYTES = 4, 1000, 16 * 1024 * 1024
"""How many times the mean a shard may hold, where it holds that much."""
LARGE = 256 * 1024
FULL = 0.95
"""Of a shard's limit, by what is not processed: a flush may be too large for the rest."""
LATE_SECONDS = 60.0
"""So long may trimming come after an entry's age: the janitor looks every few seconds."""


def stored(facts: Facts) -> Findings:
    """declarations"""
    for name in facts.missing:
        yield Finding(
            "problem", "stream-lost", f"stream {name}", "it is listed, but its declaration is gone",
            "Redis lost data, or somebody deleted it: nothing can be published or read",
            ("start a process that declares it: it stores the declaration again",),
        )  # fmt: skip
    for name in facts.unknown:
        do = ("rstream streams",)
        yield Finding("problem", "stream-unknown", f"stream {name}", "no such stream is stored here", "", do)


def ids(facts: Facts) -> Findings:
    """ids"""
    for stream in facts.streams:
        newest = [s.last for s in stream.stats.shards if s.last is not None and s.last.ms < MAX_PART]
        ahead = max(((id.ms - stream.now) / 1000 for id in newest), default=0.0)
        if ahead > AHEAD_SECONDS:
            yield Finding(
                "problem" if ahead > 3600 else "warning", "ids-ahead", f"stream {stream.name}",
                f"its newest id is {text_of(ahead)} ahead of Redis's clock",
                "the clock was set back, or a failover went to a server whose clock is behind: until it has caught up "
                "new ids only count on, ages are too small, and trimming by age comes late",
                ("chronyc tracking, or timedatectl, on all Redis servers",),
            )  # fmt: skip


def balance(facts: Facts) -> Findings:
    """shard balance"""
    for stream in facts.streams:
        current = stream.layout.current
        entries = {shard: stream.sizes[shard].length for shard in current}
        memory = {shard: stream.memory[shard] for shard in current if shard in stream.memory}
        hot = _hottest(entries, HOT_ENTRIES) or _hottest(memory, HOT_BYTES)
        if hot is not None:
            of = entries if _hottest(entries, HOT_ENTRIES) else memory
            mean = sum(of.values()) / len(of)
            told = f"{of[hot]:,} entries" if of is entries else size_text(of[hot])
            yield Finding(
                "warning", "hot-shard", f"stream {stream.name}",
                f"shard {hot} holds {told}, {of[hot] / mean:.1f} times the mean of {len(of)} shards",
                "a few keys have most of the events: they use one server and, in ordered groups, one worker; the "
                "shard is full long before the stream is",
                (f"rstream read {stream.name} --from \"1h ago\" --json | jq -r .key | sort | uniq -c | sort -rn | head",
                 "choose a finer key"),
            )  # fmt: skip


def _hottest(held: Mapping[Shard, int], least: int) -> Shard | None:
    """The one that holds far more than the mean."""
    if len(held) < 2:
        return None
    shard = max(held, key=lambda each: held[each])
    mean = sum(held.values()) / len(held)
    # Of two or three shards none can have HOT times the mean.
    return shard if held[shard] >= least and held[shard] > min(HOT, 0.9 * len(held)) * mean else None


def generations(facts: Facts) -> Findings:
    """generations"""
    for stream in facts.streams:
        layout, where = stream.layout, f"stream {stream.name}"
        if layout.planned is not None:
            yield Finding(
                "warning", "reshard-unfinished", where,
                f"a resharding to {layout.planned[1]} shards was begun and is not finished", "producers wait for it",
                (f"rstream streams reshard {stream.name} --shards {layout.planned[1]}",),
            )  # fmt: skip
        if layout.older:
            left = sum(each.entries for each in stream.stats.shards if each.shard.generation < layout.generation)
            names = some(generation for generation, _ in layout.older)
            yield Finding(
                "note", "older-generations", where, f"{left:,} entries are left in older generations ({names})",
                "they are read first, and go when they are trimmed"
                + ("" if left else ": nothing is left, they can be removed"),
                (f"rstream streams reshard {stream.name} --shards {layout.shards}",) if not left else (),
            )  # fmt: skip


def entries(facts: Facts) -> Findings:
    """sizes of entries"""
    for stream in facts.streams:
        looked = [each for each in stream.sizes.values() if each.looked]
        large = max(looked, key=lambda each: each.largest, default=None)
        if large is not None and large.largest > facts.threshold:
            yield Finding(
                "warning" if large.largest > LARGE else "note", "large-entries", f"stream {stream.name}",
                f"of the newest {sum(each.looked for each in looked):,} entries the largest has "
                f"{size_text(large.largest)}: {large.which}",
                f"payloads above {size_text(facts.threshold)} (blob_threshold) fill Redis, and every read of them",
                ("set a blob store for producers and workers: RSTREAM_BLOBS=s3://bucket/prefix",),
            )  # fmt: skip


class _Held(NamedTuple):
    pin: Pin
    part: float
    late: float


def retention(facts: Facts) -> Findings:
    """retention"""
    for stream in facts.streams:
        kept = stream.layout.retention
        if kept is None or (kept.age is None and not kept.counts):
            if stream.stats.entries:
                yield Finding(
                    "note", "no-retention", f"stream {stream.name}", "it has no retention: nothing is ever trimmed",
                    "it grows until Redis is full",
                    (f"rstream streams retention {stream.name} --age 7d --bytes 2GiB",),
                )  # fmt: skip
        elif kept.unprocessed == "keep":
            yield from _pinned(stream, kept)


def _pinned(stream: StreamFacts, kept: Retention) -> Findings:
    by_group: dict[str, list[_Held]] = {}
    ignored = {standing.name for standing in stream.standings if standing.alarm == "ignored"}
    for pin in stream.pins:
        weight = stream.weights.get(pin.shard)
        if weight is None or pin.group in ignored:
            continue
        late = pin.age - kept.age_seconds if kept.age_seconds is not None else 0.0
        held = _Held(pin, unprocessed(weight, pin) * fill(weight), late)
        if held.part >= kept.soft or late > LATE_SECONDS:
            by_group.setdefault(pin.group, []).append(held)
    for group, every in sorted(by_group.items()):
        yield _pinning(stream, group, every)


def _pinning(stream: StreamFacts, group: str, every: list[_Held]) -> Finding:
    fullest, oldest = max(every, key=lambda each: each.part), max(every, key=lambda each: each.pin.age).pin
    state = "producers are not affected"
    if fullest.part > FULL:
        state = "publish is refused there, or will be at any moment (StreamFull)"
    elif fullest.part >= (stream.layout.retention or Retention()).soft:
        state = f"producers are slowed (shard {fullest.pin.shard} is {fullest.part:.0%} full of what is not processed)"
    who = "the archiver" if group == ARCHIVE else f"group {group!r}"
    do = (f"rstream archive run {stream.name}",) if group == ARCHIVE else (
        f"rstream worker MODULE:APP --group {group}",
        f"rstream groups reset {stream.name} --group {group} --to latest    (skip all; shows its plan)",
        f"rstream groups remove {stream.name} --group {group}    (nobody needs it; shows its plan)",
    )  # fmt: skip
    return Finding(
        "problem" if fullest.part > FULL else "warning", "retention-pinned", f"stream {stream.name}",
        f"{who} keeps {len(every)} of {len(stream.layout.every)} shards from being trimmed; its oldest entry that is "
        f"not processed is {text_of(oldest.age)} old: {_whose(oldest)}",
        f"what is beyond the retention stays; {state}", do,
    )  # fmt: skip


def _whose(pin: Pin) -> str:
    if pin.holder is None:
        return f"unread, in shard {pin.shard}"
    if pin.holder.startswith("~"):
        return f"{pin.entry}, waiting ({pin.holder.lstrip('~')})"
    return f"{pin.entry}, with {pin.holder} ({'alive' if pin.alive else 'silent'}), attempt {pin.attempt}"
