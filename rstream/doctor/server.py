"""What is wrong with a server: version, what it may delete or lose, memory, clock, clients. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rstream.doctor.finding import Finding, some
from rstream.errors import ServerTooOld
from rstream.retention import size_text, text_of
from rstream.store.connect import evicted_by
from rstream.store.facts import Facts
from rstream.store.serverfacts import ServerFacts

Findings = Iterator[Finding]

MB = 1024 * 1024
LUA_HOLE = {"redis": {(7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2}, "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4}}
"""CVE-2025-49844: the first patch without the hole, by release line; newer lines have none, all others have it."""
NEWEST_HOLED = {"redis": (8, 2), "valkey": (8, 1)}

TIGHT, FULL = 0.75, 0.9
"""Of maxmemory, in use."""
CLOCK_SECONDS = 2.0
SLOW_PING, SLOW_CALL, SLOW_SINCE = 0.02, 0.1, 3600.0
IDLE_SECONDS = 60
BUFFER = 64 * MB
"""What a client may have to be sent at once: pages of 4 MiB, of several shards."""


def reachable(facts: Facts) -> Findings:
    """answers"""
    error = facts.failure
    if error is not None:
        where, text = facts.where, str(error)
        if isinstance(error, ServerTooOld):
            yield Finding(
                "problem", "server-too-old", where, text, "rstream does not work with it", ("update the server",)
            )
        elif "BUSY" in text:
            why = "until it ends nothing else is answered, and leases run out"
            yield Finding("problem", "server-busy", where, text, why, ("redis-cli SCRIPT KILL",))
        else:
            yield Finding("problem", "server-unreachable", where, text, "nothing else could be looked at")
    for server in facts.servers:
        if server.failure:
            why = "its shards cannot be written, read or handled meanwhile"
            yield Finding("problem", "server-unreachable", server.name, server.failure, why)


def version(facts: Facts) -> Findings:
    """version"""
    for server in facts.answering:
        kind, told = of(server)
        numbers = tuple(int(part) for part in told.split(".")[:3] if part.isdecimal())
        if len(numbers) == 3 and _has_lua_hole(kind, numbers[:2], numbers[2]):
            yield Finding(
                "warning", "server-flawed", server.name,
                f"{kind} {told} has a hole by which a Lua script may take over the server (CVE-2025-49844)",
                "every user that rstream works with may run scripts",
                (f"update it; a distribution may have mended it under the number {told}: look at its changelog",),
            )  # fmt: skip


def of(server: ServerFacts) -> tuple[str, str]:
    """(redis or valkey, version): what Valkey calls redis_version is only what it can do."""
    valkey = server.info.get("valkey_version", "")
    return ("valkey", valkey) if valkey else ("redis", server.info.get("redis_version", ""))


def _has_lua_hole(kind: str, line: tuple[int, ...], patch: int) -> bool:
    mended = LUA_HOLE[kind].get((line[0], line[1]))
    return patch < mended if mended is not None else line < NEWEST_HOLED[kind]


def eviction(facts: Facts) -> Findings:
    """eviction policy"""
    for server in facts.answering:
        policy = server.info.get("maxmemory_policy", "noeviction")
        if victims := evicted_by(policy):
            limited = server.number("maxmemory")
            yield Finding(
                "problem" if limited else "warning", "eviction", server.name, f"maxmemory-policy is {policy}",
                f"when memory is full it may delete {victims}"
                + ("" if limited else "; no maxmemory is set now, but somebody will"),
                ("redis-cli CONFIG SET maxmemory-policy noeviction (and in redis.conf)",),
            )  # fmt: skip
        if evicted := server.number("evicted_keys"):
            yield Finding(
                "problem" if victims else "note", "evicted", server.name,
                f"{evicted:,.0f} keys were deleted since it was started, to make room",
                "entries, positions or leases may be among them",
                ("rstream groups STREAM tells groups that are gone; replay from your archive what was lost",),
            )  # fmt: skip


def persistence(facts: Facts) -> Findings:
    """persistence"""
    for server in facts.answering:
        aof, config = server.info.get("aof_enabled"), server.config
        if aof == "0":
            snapshots = config.get("save", "?") != ""
            yield Finding(
                "warning" if snapshots else "problem", "no-aof", server.name,
                "no append-only file" + (": only snapshots" if snapshots else ", and no snapshots"),
                f"a restart loses {'all since the last snapshot' if snapshots else 'everything'}: "
                "entries, positions, dead letters",
                ("redis-cli CONFIG SET appendonly yes (and in redis.conf)",),
            )  # fmt: skip
        if aof == "1" and config.get("appendfsync") == "no":
            yield Finding(
                "warning", "fsync", server.name, "appendfsync is no",
                "a crash of the machine loses what the kernel had not written yet: half a minute, or more",
                ("redis-cli CONFIG SET appendfsync everysec (and in redis.conf)",),
            )  # fmt: skip
        for name, told in _write_failures(server):
            yield Finding(
                "problem", "write-failed", server.name, f"{told} failed the last time ({name} is err)",
                "it may refuse all writes (MISCONF), and what is in memory alone is lost with it",
                ("look at the server's log: is its disk full, or not writable?",),
            )  # fmt: skip


def _write_failures(server: ServerFacts) -> Iterator[tuple[str, str]]:
    names = {
        "aof_last_write_status": "writing the append-only file",
        "aof_last_bgrewrite_status": "rewriting the append-only file",
        "rdb_last_bgsave_status": "writing a snapshot",
    }
    return ((name, told) for name, told in names.items() if server.info.get(name) == "err")


def memory(facts: Facts) -> Findings:
    """memory"""
    for server in facts.answering:
        if "used_memory" not in server.info:
            continue
        used, limit = server.number("used_memory") or 0.0, server.number("maxmemory") or 0.0
        machine = server.number("total_system_memory") or 0.0
        if limit and used > TIGHT * limit:
            yield Finding(
                "problem" if used > FULL * limit else "warning", "memory-full", server.name,
                f"{used / limit:.0%} of maxmemory is in use ({size_text(used)} of {size_text(limit)})",
                "when it is full, publish raises MemoryFull; draining goes on",
                ("rstream streams retention STREAM --bytes N caps a stream below that",
                 "redis-cli CONFIG SET maxmemory N"),
            )  # fmt: skip
        elif not limit and machine and used > TIGHT * machine:
            yield Finding(
                "warning", "memory-full", server.name,
                f"{used / machine:.0%} of the machine's memory is in use, and nothing limits it",
                "the kernel ends the server when there is none left",
                ("redis-cli CONFIG SET maxmemory N (and in redis.conf)",),
            )  # fmt: skip
        elif not limit:
            yield Finding(
                "note", "no-maxmemory", server.name, "no maxmemory is set",
                "a stream without a retention grows until the kernel ends the server",
                ("redis-cli CONFIG SET maxmemory N, well above what the retentions allow",),
            )  # fmt: skip
        elif machine and limit > machine:
            yield Finding(
                "warning", "maxmemory-beyond", server.name,
                f"maxmemory is {size_text(limit)}, the machine has {size_text(machine)}",
                "the kernel ends the server before that limit is met", ("redis-cli CONFIG SET maxmemory N",),
            )  # fmt: skip
        yield from _fragments(server, used)


def _fragments(server: ServerFacts, used: float) -> Findings:
    ratio, wasted = server.number("mem_fragmentation_ratio") or 1.0, server.number("mem_fragmentation_bytes") or 0.0
    if ratio > 1.5 and wasted > 64 * MB:
        yield Finding(
            "warning", "fragmentation", server.name,
            f"its process holds {ratio:.1f} times what it uses ({size_text(wasted)} more)",
            "the machine may run out of memory below maxmemory",
            ("redis-cli CONFIG SET activedefrag yes (where the server has it)", "or restart it, replicas first"),
        )  # fmt: skip
    elif 0 < ratio < 0.8 and used > 64 * MB:
        yield Finding(
            "warning", "swapped", server.name, f"only {ratio:.0%} of what it uses is in memory",
            "the rest is swapped out: calls take milliseconds, and leases run out", ("give the machine more memory",),
        )  # fmt: skip


def clock(facts: Facts) -> Findings:
    """clock"""
    for server in facts.answering:
        off = max(0.0, abs(server.ahead) - server.ping)
        if off > CLOCK_SECONDS:
            way = "ahead of" if server.ahead > 0 else "behind"
            yield Finding(
                "warning", "clock", server.name, f"its clock is {text_of(off)} {way} the one here",
                "ids, ages and retries go by the server's clock: times that you give (--from) mean others there",
                ("chronyc tracking, or timedatectl, on both machines",),
            )  # fmt: skip


def latency(facts: Facts) -> Findings:
    """latency"""
    for server in facts.answering:
        if server.ping > SLOW_PING:
            yield Finding(
                "warning" if server.ping > 5 * SLOW_PING else "note", "latency", server.name,
                f"it takes {server.ping * 1000:.0f} ms to answer a PING",
                "a lone publish or settle takes about as long", ("run rstream near it; redis-cli --latency",),
            )  # fmt: skip
        slow = [call for call in server.slow if call.seconds > SLOW_CALL and server.now - call.at < SLOW_SINCE]
        if slow:
            longest = max(slow, key=lambda call: call.seconds)
            names = some(sorted({call.command for call in slow}))
            yield Finding(
                "warning", "slow-calls", server.name,
                f"{len(slow)} calls of the last hour took more than {SLOW_CALL * 1000:.0f} ms ({names}); "
                f"the longest {longest.seconds:.2f} s ({longest.command})",
                "nobody else is answered meanwhile", ("redis-cli SLOWLOG GET (shows arguments)",),
            )  # fmt: skip


def clients(facts: Facts) -> Findings:
    """clients"""
    for server in facts.answering:
        connected, most = server.number("connected_clients") or 0.0, server.number("maxclients") or 0.0
        if most and connected > 0.8 * most:
            yield Finding(
                "warning", "many-clients", server.name,
                f"{connected:,.0f} of {most:,.0f} clients are connected (maxclients)",
                "the next ones are refused, and a worker that loses its connection is one of them",
                ("redis-cli CONFIG SET maxclients N", "redis-cli CLIENT LIST tells who they are"),
            )  # fmt: skip
        if 0 < (idle := int(server.config.get("timeout", "0"))) < IDLE_SECONDS:
            yield Finding(
                "note", "client-timeout", server.name, f"it closes connections that are idle for {idle} s (timeout)",
                "producers that publish now and then have to connect anew", ("redis-cli CONFIG SET timeout 0",),
            )  # fmt: skip
        if 0 < (buffer := _buffer(server.config.get("client-output-buffer-limit", ""))) < BUFFER:
            yield Finding(
                "warning", "output-buffer", server.name,
                f"it cuts clients for which more than {size_text(buffer)} wait (client-output-buffer-limit normal)",
                "reading large entries would never end",
                ('redis-cli CONFIG SET client-output-buffer-limit "normal 0 0 0"',),
            )  # fmt: skip
        if 0 < (busy := int(server.config.get("busy-reply-threshold", "5000"))) < 500:
            yield Finding(
                "warning", "busy-threshold", server.name, f"it says BUSY when a script takes {busy} ms",
                "others are refused while a large trim or reset makes a step",
                ("redis-cli CONFIG SET busy-reply-threshold 5000",),
            )  # fmt: skip


def _buffer(limits: str) -> int:
    """The hard limit of normal clients, 0 = none."""
    words = limits.split()
    return int(words[words.index("normal") + 1]) if "normal" in words else 0


def keys(facts: Facts) -> Findings:
    """keys"""
    for server in facts.answering:
        if server.leaks:
            kinds = some(sorted({leak.part.kind for leak in server.leaks}))
            yield Finding(
                "warning", "keys-without-ttl", server.name,
                f"{len(server.leaks):,} of {server.keys:,} keys that were looked at have no TTL and should ({kinds}): "
                f"{some((leak.key for leak in server.leaks), 3)}",
                "they stay for good; an `alive` or `owner` among them keeps a dead worker's deliveries from others",
                ("somebody used PERSIST or RESTORE: redis-cli PEXPIRE KEY 86400000",),
            )  # fmt: skip
        if server.strays:
            yield Finding(
                "note", "stray-keys", server.name,
                f"there are keys of streams that are not listed: {some(server.strays)}",
                "their declaration was deleted, or lost: nobody trims them",
                tuple(f"redis-cli --scan --pattern '{{*}}:{name}:*'" for name in server.strays[:3]),
            )  # fmt: skip


def untold(facts: Facts) -> Findings:
    """all that could be looked at"""
    for server in facts.answering:
        for what, why in server.untold.items():
            if what == "rights":  # is told as such
                continue
            yield Finding(
                "note", "could-not-look", server.name, f"could not look: {what}: {why}",
                _UNSEEN.get(what, "what depends on it was not checked"),
            )  # fmt: skip
    for name, why in facts.failures.items():
        yield Finding("problem", "could-not-look", f"stream {name}", f"could not look: {why}", "it was not checked")


_UNSEEN = {
    "CONFIG GET": "not checked: fsync, snapshots, min-replicas, output buffers, timeouts (a provider's console tells)",
    "INFO": "not checked: version, eviction, persistence, memory, replication",
    "SLOWLOG GET": "not checked: slow calls",
    "ACL WHOAMI": "the user's name is not told; its rights were looked at all the same",
    "SCAN": "not checked: keys without TTL, keys of unknown streams",
    "CLUSTER NODES": "not checked: failed nodes",
    "CLUSTER INFO": "not checked: whether all slots are served",
}
