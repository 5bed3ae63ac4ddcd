"""What is wrong with servers that belong together: replicas, sentinels, the masters of a cluster. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from rstream.doctor.finding import Finding, some
from rstream.store.facts import Facts
from rstream.store.keys import SLOTS
from rstream.store.serverfacts import ServerFacts

Findings = Iterator[Finding]

LAG_SECONDS = 10
SENTINELS = 3


def replication(facts: Facts) -> Findings:
    """replication"""
    for server in facts.answering:
        if server.info.get("role") == "slave":
            yield Finding(
                "problem", "is-replica", server.name, "it is a replica, and takes no writes",
                "publishing and workers stand still", ("name the master in the URL, or its sentinels: redis+sentinel://…",),
            )  # fmt: skip
            continue
        if "role" not in server.info:
            continue
        replicas = _replicas(server)
        for address, state, lag in replicas:
            if state != "online" or lag > LAG_SECONDS:
                what = f"its replica {address} is {state}" + (f", {lag} s behind" if lag > 0 else "")
                why = "a failover to it would lose what it does not have"
                yield Finding("warning", "replica-behind", server.name, what, why, ("redis-cli INFO replication",))
        yield from _enough(facts, server, len(replicas))


def _enough(facts: Facts, server: ServerFacts, replicas: int) -> Findings:
    wanted, good = int(server.config.get("min-replicas-to-write", "0")), server.number("min_slaves_good_slaves")
    if wanted and good is not None and good < wanted:
        yield Finding(
            "problem", "too-few-replicas", server.name,
            f"{good:.0f} of {wanted} replicas are there (min-replicas-to-write)",
            "it refuses all writes (NOREPLICAS)", ("bring the replicas back: redis-cli INFO replication",),
        )  # fmt: skip
    elif facts.replicas > replicas:
        yield Finding(
            "problem", "too-few-replicas", server.name, "no replica is connected, and durability is replicated",
            "publish waits for a replica that is not there", ("start a replica, or RSTREAM_DURABILITY=local",),
        )  # fmt: skip
    elif not replicas and facts.kind != "server":
        yield Finding(
            "warning", "no-replica", server.name, "it has no replica",
            "when it dies nobody can take its place", ("start one: redis-cli -h REPLICA REPLICAOF HOST PORT",),
        )  # fmt: skip
    elif replicas and not wanted and server.config:
        yield Finding(
            "note", "min-replicas", server.name, "min-replicas-to-write is 0",
            "a master that is cut off goes on taking writes, which the failover then loses",
            ("redis-cli CONFIG SET min-replicas-to-write 1",),
        )  # fmt: skip


def _replicas(server: ServerFacts) -> list[tuple[str, str, int]]:
    """(address, state, lag in s)."""
    found = []
    for name, told in server.info.items():
        if re.fullmatch(r"slave\d+", name):
            parts = dict(part.partition("=")[::2] for part in told.split(","))
            found.append(
                (f"{parts.get('ip')}:{parts.get('port')}", parts.get("state", "?"), int(parts.get("lag", "0")))
            )
    return found


def sentinels(facts: Facts) -> Findings:
    """sentinels"""
    told = [report for report in facts.sentinels if not report.failure]
    for report in facts.sentinels:
        if report.failure:
            why = "one fewer may be lost before no failover is possible"
            yield Finding("warning", "sentinel-silent", f"sentinel {report.name}", f"it {report.failure}", why)
        elif report.no_quorum:
            yield Finding(
                "problem", "sentinel-quorum", f"sentinel {report.name}", report.no_quorum,
                "when the master dies no other is promoted", ("start the sentinels that are missing",),
            )  # fmt: skip
    if len({report.master for report in told}) > 1:
        named = some(f"{report.name} says {report.master}" for report in told)
        why = "a failover is under way, or they do not see each other"
        yield Finding("problem", "sentinels-disagree", facts.where, f"they name several masters: {named}", why)
    if any(report.down for report in told):
        yield Finding("problem", "master-down", facts.where, "a sentinel says that the master is down", "nothing works")
    known = max((report.sentinels for report in told), default=0)
    if told and known < SENTINELS:
        yield Finding(
            "warning", "few-sentinels", facts.where, f"there are {known} sentinels",
            "with fewer than three, the loss of one machine may leave nobody to decide on a failover",
            ("start others on other machines",),
        )  # fmt: skip
    if told and known > len(facts.sentinels):
        yield Finding(
            "note", "sentinels-unnamed", facts.where,
            f"there are {known} sentinels, the URL names {len(facts.sentinels)}",
            "those that it does not name are not asked", ("name all in the URL",),
        )  # fmt: skip


def cluster(facts: Facts) -> Findings:
    """cluster"""
    if facts.kind != "cluster":
        return
    for server in facts.answering:
        state, served = server.cluster.get("cluster_state", "ok"), int(server.cluster.get("cluster_slots_ok", SLOTS))
        if state != "ok" or served < SLOTS:
            yield Finding(
                "problem", "cluster-down", server.name,
                f"cluster_state is {state}, {served:,} of {SLOTS:,} slots are served",
                "shards whose slot nobody serves stand still",
                ("redis-cli --cluster check HOST:PORT", "redis-cli --cluster fix HOST:PORT"),
            )  # fmt: skip
    failed = {address: flags for server in facts.answering for address, flags in server.nodes if "fail" in flags}
    for address, flags in sorted(failed.items()):
        why = "it serves nothing, and cannot take over from another"
        do = ("start it again, or: redis-cli --cluster del-node HOST:PORT ID",)
        yield Finding("warning", "node-failed", address, f"the others call this node {flags}", why, do)
    if any(server.config.get("cluster-require-full-coverage") == "yes" for server in facts.answering):
        yield Finding(
            "note", "full-coverage", facts.where, "cluster-require-full-coverage is yes",
            "one slot that nobody serves stops all shards, also those of other masters",
            ("redis-cli CONFIG SET cluster-require-full-coverage no, on every node",),
        )  # fmt: skip
    yield from _shares(facts)


def _shares(facts: Facts) -> Findings:
    """Shards of streams by master."""
    masters = [server.name for server in facts.servers]
    for stream in facts.streams:
        share = Counter(stream.servers[shard] for shard in stream.layout.current)
        counts = [share.get(name, 0) for name in masters]
        told = some(f"{name}: {count}" for name, count in zip(masters, counts, strict=True))
        if max(counts) > 2 * max(1, min(counts)) and len(stream.layout.current) >= len(masters):
            yield Finding(
                "warning", "cluster-skew", f"stream {stream.name}", f"its shards lie unevenly on the masters ({told})",
                "one server does most of its work", ("redis-cli --cluster rebalance HOST:PORT",),
            )  # fmt: skip
        elif len(stream.layout.current) < len(masters):
            yield Finding(
                "note", "few-shards", f"stream {stream.name}",
                f"it has {len(stream.layout.current)} shards, the cluster {len(masters)} masters",
                "it cannot use all of them", (f"rstream streams reshard {stream.name} --shards {2 * len(masters)}",),
            )  # fmt: skip


def rights(facts: Facts) -> Findings:
    """rights"""
    for server in facts.answering:
        denied = {use: told for use, told in server.denied.items() if told}
        user = server.user or "USER"
        if why := server.untold.get("rights"):
            yield Finding(
                "problem", "rights", server.name, f"user {user!r} may not run scripts: {why}",
                "all that rstream does in Redis is done by scripts",
                (f"redis-cli ACL SETUSER {user} +evalsha +script|load",),
            )  # fmt: skip
        for use, told in denied.items():
            missing = [f"commands {some(told.commands, 12)}"] if told.commands else []
            missing += [f"keys {some(told.keys, 12)}"] if told.keys else []
            grants = [f"+{command.lower().replace(' ', '|')}" for command in told.commands]
            grants += [f"~{pattern}" for pattern in told.keys]
            needed = _is_needed(facts, use, {name for name, each in denied.items() if not each.declares})
            needed = needed and not told.declares
            work = "declare streams, or make room in full ones" if told.declares else _USES[use]
            yield Finding(
                "problem" if needed else "note", "rights", server.name,
                f"user {user!r} may not {work}: it lacks {'; '.join(missing)}",
                "it is refused when it first tries" if needed else "as it should be, if that is not its work",
                (f"redis-cli ACL SETUSER {user} {' '.join(grants)}",),
            )  # fmt: skip


def _is_needed(facts: Facts, use: str, denied: set[str]) -> bool:
    """Who may do the one thing may be meant to do no more."""
    if use == "consume" and facts.consumes:
        return True
    return use != "look" and {"publish", "consume"} <= denied


_USES = {"publish": "publish", "consume": "run consumers", "look": "look (rstream read, groups, …)"}
