"""`rstream doctor` on servers that something is wrong with: each is made so, and asked."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rstream import RStream
from rstream.doctor import server as checks
from rstream.doctor import together
from rstream.store import rights
from tests.commands import Order
from tests.doctoring import codes, found, look, looked
from tests.orders import publish
from tests.proxy import ChaosProxy
from tests.servers import KINDS, Server
from tests.waiting import eventually

SECRET = "s3cr3t"


@contextlib.contextmanager
def started(directory: Path, *args: str, kind: str = "embedded") -> Iterator[Server]:
    with Server(KINDS[kind], directory / "made", args=args, tcp=True) as server:
        yield server


@contextlib.contextmanager
def asked(server: Server) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


def test_a_server_as_it_should_be(own_server: Server) -> None:
    with asked(own_server) as raw:
        raw.config_set("slowlog-log-slower-than", -1)  # a busy machine may be slow
    assert codes(looked(own_server.url)) - {"latency"} == {"no-maxmemory"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_server_can_be_looked_at(kind: str, tmp_path: Path) -> None:
    with started(tmp_path, kind=kind) as server:
        findings = looked(server.url)
        assert codes(findings) - {"server-flawed", "slow-calls", "latency"} == {"no-maxmemory"}
        if kind == "redis-7.0":
            assert "CVE-2025-49844" in found(findings, "server-flawed").what


def test_policies_that_delete(tmp_path: Path) -> None:
    with started(tmp_path, "--maxmemory-policy", "allkeys-lru") as server, asked(server) as raw:
        unlimited = found(looked(server.url), "eviction")
        assert unlimited.level == "warning" and "whole streams" in unlimited.why and server.url in unlimited.where
        raw.config_set("maxmemory", "4mb")
        limited = found(looked(server.url), "eviction")
        assert limited.level == "problem" and "CONFIG SET maxmemory-policy noeviction" in limited.do[0]
        raw.eval("for n = 1, 300 do redis.call('SET', 'k' .. n, string.rep('x', 100000)) end", 0)
        findings = looked(server.url)
        assert "were deleted" in found(findings, "evicted").what and found(findings, "evicted").level == "problem"
        raw.config_set("maxmemory-policy", "volatile-ttl")
        assert "leases" in found(looked(server.url), "eviction").why


def test_what_a_restart_loses(tmp_path: Path) -> None:
    with started(tmp_path, "--appendonly", "no") as server, asked(server) as raw:
        nothing = found(looked(server.url), "no-aof")
        assert nothing.level == "problem" and "no snapshots" in nothing.what
        raw.config_set("save", "60 1")
        snapshots = found(looked(server.url), "no-aof")
        assert snapshots.level == "warning" and "only snapshots" in snapshots.what
        raw.config_set("appendonly", "yes")
        raw.config_set("appendfsync", "no")
        findings = looked(server.url)
        assert found(findings, "fsync").level == "warning" and "no-aof" not in codes(findings)


def test_a_disk_that_takes_nothing(own_server: Server) -> None:
    with asked(own_server) as raw:
        shutil.rmtree(own_server.directory)
        with contextlib.suppress(redis.ResponseError):
            raw.bgsave()
        eventually(lambda: raw.info("persistence")["rdb_last_bgsave_status"] == "err", 20)
    finding = found(looked(own_server.url), "write-failed")
    assert finding.level == "problem" and "snapshot" in finding.what


def test_memory(own_server: Server) -> None:
    with asked(own_server) as raw:
        raw.eval("for n = 1, 200 do redis.call('SET', 'k' .. n, string.rep('x', 100000)) end", 0)
        used = raw.info("memory")["used_memory"]
        for part, level in ((0.8, "warning"), (0.95, "problem")):
            raw.config_set("maxmemory", int(used / part))
            full = found(looked(own_server.url), "memory-full")
            assert full.level == level and "of maxmemory is in use" in full.what
        raw.config_set("maxmemory", "900000gb")
        assert "the machine has" in found(looked(own_server.url), "maxmemory-beyond").what


def test_memory_in_pieces(own_server: Server) -> None:
    with asked(own_server) as raw:
        script = "for n = ARGV[1], ARGV[1] + 9999 do {} end"
        for first in range(0, 150_000, 10_000):
            raw.eval(script.format("redis.call('SET', 'k' .. n, string.rep('x', 1000))"), 0, first)
        for first in range(0, 150_000, 10_000):
            raw.eval(script.format("if n % 4 > 0 then redis.call('DEL', 'k' .. n) end"), 0, first)
        eventually(lambda: raw.info("memory")["mem_fragmentation_ratio"] > 1.6, 20)  # noticed now and then
    finding = found(looked(own_server.url), "fragmentation")
    assert finding.level == "warning" and "times what it uses" in finding.what


def test_a_clock_that_is_another(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is, here: that of the server cannot be set."""
    real = time.time
    for by, way in ((-90, "1.5m ahead of"), (90, "1.5m behind")):
        monkeypatch.setattr(time, "time", lambda by=by: real() + by)
        assert f"its clock is {way} the one here" in found(looked(own_server.url), "clock").what


def test_a_long_way_to_the_server(own_server: Server) -> None:
    with ChaosProxy(own_server.upstream) as proxy:
        proxy.delay_replies(0.04)
        assert found(looked(proxy.url), "latency").level == "note"
        proxy.delay_replies(0.15)
        assert found(looked(proxy.url), "latency").level == "warning"


BUSY = "local begun = os.clock() repeat until os.clock() - begun > 0.15"


def test_calls_that_took_long_are_named_without_their_arguments(own_server: Server) -> None:
    with asked(own_server) as raw:
        raw.eval(BUSY + f" -- {SECRET}", 0)
    finding = found(looked(own_server.url), "slow-calls")
    assert "EVAL" in finding.what and SECRET not in str(finding)


def test_a_script_that_does_not_end(own_server: Server) -> None:
    with asked(own_server) as raw:
        raw.config_set("busy-reply-threshold", 50)
        assert found(looked(own_server.url), "busy-threshold").level == "warning"

        def run() -> None:
            with asked(own_server) as other, contextlib.suppress(redis.ResponseError):
                other.eval("while true do end", 0)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            finding = eventually(lambda: next((f for f in looked(own_server.url) if f.code == "server-busy"), None))
            assert finding.level == "problem" and finding.do == ("redis-cli SCRIPT KILL",)
        finally:
            raw.script_kill()
            thread.join()


def test_too_many_clients_and_limits_on_them(tmp_path: Path) -> None:
    limits = ("--timeout", "30", "--client-output-buffer-limit", "normal 1mb 0 0", "--maxclients", "20")
    with started(tmp_path, *limits) as server, contextlib.ExitStack() as stack:
        for _ in range(17):
            stack.enter_context(asked(server)).ping()
        findings = looked(server.url)
        assert codes(findings, "warning") >= {"many-clients", "output-buffer"}
        assert found(findings, "client-timeout").level == "note"


def test_nobody_there(own_server: Server) -> None:
    own_server.stop()
    (finding,) = looked(own_server.url.replace("//", f"//ada:{SECRET}@"))
    assert (finding.level, finding.code) == ("problem", "server-unreachable") and SECRET not in str(finding)


# -- keys


def test_keys_that_would_stay(own_server: Server) -> None:
    with RStream(own_server.url) as app, asked(own_server) as raw:
        orders = app.stream("orders", Order, key="customer", shards=2)
        publish(orders, 10)
        assert "keys-without-ttl" not in codes(look(app))
        leaked = next(key for key in raw.scan_iter() if b":seq:" in key)
        raw.persist(leaked)
        finding = found(look(app), "keys-without-ttl")
        assert finding.level == "warning" and leaked.decode() in finding.what and "(seq)" in finding.what
        raw.srem("rstream:streams", "orders")
        assert "orders" in found(look(app), "stray-keys").what


# -- rights


@pytest.fixture(scope="module", params=list(KINDS))
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with started(tmp_path_factory.mktemp("guarded"), kind=request.param) as server:
        with RStream(server.url) as app:
            publish(app.stream("orders", Order, key="customer", shards=2), 10)
        yield server


def as_user(guarded: Server, *rules: str) -> str:
    with asked(guarded) as admin:
        admin.execute_command("ACL", "SETUSER", "ada", "reset", "on", f">{SECRET}", *rules)
    return guarded.url.replace("//", f"//ada:{SECRET}@")


KEYS = ("~rstream:*", "~{rstream:*")
LOOK = (
    "+client|setname",
    "+info",
    "+time",
    "+ping",
    "+scan",
    "+pttl",
    "+memory|usage",
    "+config|get",
    "+slowlog|get",
    "+acl|whoami",
)


def grants(*uses: str) -> list[str]:
    return [f"+{command.lower().replace(' ', '|')}" for use in uses for command in rights.commands_of(use)]


def test_who_has_all_that_is_needed_hears_nothing_of_rights(guarded: Server) -> None:
    url = as_user(guarded, *KEYS, *LOOK, *grants("publish", "consume", "look"))
    assert codes(looked(url)) <= {"no-maxmemory", "no-retention", "server-flawed", "slow-calls", "latency"}


def test_what_a_user_lacks_is_named_with_the_command_that_grants_it(guarded: Server) -> None:
    url = as_user(guarded, *KEYS, *LOOK, *grants("publish", "consume", "look"), "-xclaim", "-xgroup|create")
    findings = [finding for finding in looked(url) if finding.code == "rights"]
    told = {finding.what for finding in findings}
    assert len(findings) == 2 and {finding.level for finding in findings} == {"note"}
    assert any("run consumers: it lacks commands XCLAIM, XGROUP CREATE" in each for each in told)
    assert any("declare streams, or make room in full ones: it lacks commands XGROUP CREATE" in each for each in told)
    (consume,) = [finding for finding in findings if "consumers" in finding.what]
    rules = consume.do[0].removeprefix("redis-cli ACL SETUSER ada ").split()
    with asked(guarded) as admin:
        admin.execute_command("ACL", "SETUSER", "ada", *rules)
    assert "rights" not in codes(looked(url))


def test_who_may_only_publish_is_told_as_a_note(guarded: Server) -> None:
    url = as_user(guarded, *KEYS, *LOOK, *grants("publish", "look"))
    finding = found(looked(url), "rights")
    assert finding.level == "note" and "may not run consumers" in finding.what and "XREADGROUP" in str(finding)


def test_keys_that_a_user_may_not_touch(guarded: Server) -> None:
    url = as_user(guarded, "~{rstream:*", "%R~rstream:stream*", *LOOK, *grants("publish", "consume", "look"))
    findings = [finding for finding in looked(url) if finding.code == "rights"]
    assert {finding.level for finding in findings} == {"note"}  # it can publish, and may be meant to do no more
    assert any("rstream:members:*, rstream:seen:*" in finding.what for finding in findings)


@pytest.mark.parametrize("missing", [("-evalsha",), ("-script",), ("-eval", "-evalsha")])
def test_who_may_not_run_scripts(guarded: Server, missing: tuple[str, ...]) -> None:
    """A server may lack the script, or another user may have loaded it."""
    with asked(guarded) as admin:
        admin.script_flush()
    url = as_user(guarded, *KEYS, "+@all", *missing)
    findings = looked(url)
    told = [finding for finding in findings if finding.code == "rights"]
    assert "problem" in {finding.level for finding in told}
    words = [word.lower() for finding in told for line in finding.do for word in line.split()]
    assert any(word.startswith(("+evalsha", "+script|load")) for word in words)


def test_who_may_see_nothing_is_told_what_it_lacks_and_who_may_not_come_in_is_told_that(guarded: Server) -> None:
    findings = looked(as_user(guarded, *LOOK, "+evalsha", "+script|load", "~none"))
    assert {"rights", "could-not-look"} <= codes(findings, "problem") and "server-unreachable" not in codes(findings)
    wrong = as_user(guarded, *KEYS, "+@all").replace(SECRET, "wr0ng")
    assert [(finding.level, finding.code) for finding in looked(wrong)] == [("problem", "server-unreachable")]


def test_what_is_not_told_is_said(guarded: Server) -> None:
    url = as_user(guarded, *KEYS, "+@all", "-config", "-slowlog", "-acl", "-info", "-scan")
    findings = looked(url)
    unseen = {finding.what.split(":")[1].strip() for finding in findings if finding.code == "could-not-look"}
    assert unseen == {"CONFIG GET", "SLOWLOG GET", "ACL WHOAMI", "INFO", "SCAN"}
    assert codes(findings, "warning", "problem") <= {"latency"}


# -- replicas


def test_replicas(tmp_path: Path, own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with asked(own_server) as raw, started(tmp_path, "--repl-diskless-sync-delay", "0") as replica:
        assert found(looked(own_server.url, durability="replicated"), "too-few-replicas").level == "problem"
        raw.config_set("min-replicas-to-write", 1)
        assert "0 of 1 replicas" in found(looked(own_server.url), "too-few-replicas").what
        raw.config_set("min-replicas-to-write", 0)
        with asked(replica) as other:
            other.replicaof("127.0.0.1", own_server.port)
            eventually(lambda: other.info("replication")["master_link_status"] == "up", 20)
        assert found(looked(replica.url), "is-replica").level == "problem"
        assert found(looked(own_server.url, durability="replicated"), "min-replicas").level == "note"
        monkeypatch.setattr(together, "LAG_SECONDS", 0)
        replica.pause()
        try:
            behind = eventually(lambda: [f for f in looked(own_server.url) if f.code == "replica-behind"], 20)
            assert str(replica.port) in behind[0].what
        finally:
            replica.resume()


def test_the_greeting_and_the_doctor_say_the_same() -> None:
    assert checks.evicted_by("allkeys-lfu") == "whole streams" and checks.evicted_by("noeviction") == ""
