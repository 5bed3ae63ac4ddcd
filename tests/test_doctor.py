"""The doctor's checks as pure functions, its command, and its page in the docs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rstream.doctor import app as apps
from rstream.doctor import server, stream, together
from rstream.doctor.app import BlobFacts, Examined
from rstream.doctor.examine import CHECKS, judge
from rstream.doctor.finding import Finding, exit_code, some
from rstream.errors import ServerTooOld, StoreUnavailable
from rstream.store import keys, rights, scripts
from rstream.store.facts import Facts
from rstream.store.layout import Layout
from rstream.store.rights import Denied
from rstream.store.sentinel import SentinelReport
from rstream.store.serverfacts import ServerFacts
from rstream.store.stats import StreamStats
from rstream.store.streamfacts import Sizes, StreamFacts
from tests.commands import Commands

ROOT = Path(__file__).parent.parent
GIB = 1024**3


def facts(info: dict[str, Any] | None = None, kind: str = "server", **given: Any) -> Facts:
    told = {name: str(value) for name, value in (info or {}).items()}
    return Facts("redis://here", kind, servers=[ServerFacts("redis://here", told, **given)])


def told(findings: Any) -> list[tuple[str, str]]:
    return [(finding.level, finding.code) for finding in findings]


@pytest.mark.parametrize(
    ("info", "flawed"),
    [
        ({"redis_version": "7.0.15"}, True), ({"redis_version": "7.2.10"}, True), ({"redis_version": "7.2.11"}, False),
        ({"redis_version": "7.4.5"}, True), ({"redis_version": "7.4.6"}, False), ({"redis_version": "8.0.3"}, True),
        ({"redis_version": "8.2.1"}, True), ({"redis_version": "8.2.2"}, False), ({"redis_version": "8.6.0"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.3"}, True), ({"redis_version": "255.255.255"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.1.4"}, False), ({"redis_version": "unstable"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.5"}, True), ({}, False),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, False),
    ],
)  # fmt: skip
def test_versions_with_a_hole(info: dict[str, str], flawed: bool) -> None:
    assert bool(list(server.version(facts(info)))) == flawed


@pytest.mark.parametrize(
    ("info", "codes"),
    [
        ({"used_memory": GIB, "maxmemory": 2 * GIB, "total_system_memory": 4 * GIB}, []),
        ({"used_memory": GIB, "maxmemory": 1.2 * GIB}, [("warning", "memory-full")]),
        ({"used_memory": GIB, "maxmemory": 1.05 * GIB}, [("problem", "memory-full")]),
        ({"used_memory": GIB, "total_system_memory": 1.1 * GIB}, [("warning", "memory-full")]),
        ({"used_memory": GIB, "maxmemory": 8 * GIB, "total_system_memory": GIB}, [("warning", "maxmemory-beyond")]),
        ({"used_memory": GIB}, [("note", "no-maxmemory")]),
        ({"used_memory": GIB, "maxmemory": 2 * GIB, "mem_fragmentation_ratio": 0.5}, [("warning", "swapped")]),
        ({"used_memory": 10**6, "maxmemory": GIB, "mem_fragmentation_ratio": 9}, []),
        ({"used_memory": "?", "maxmemory": "?"}, [("note", "no-maxmemory")]),
    ],
)
def test_memory(info: dict[str, Any], codes: list[tuple[str, str]]) -> None:
    assert told(server.memory(facts(info))) == codes


@pytest.mark.parametrize(
    ("state", "lag", "expected"), [("online", 0, False), ("online", 60, True), ("wait_bgsave", 0, True)]
)
def test_replicas(state: str, lag: int, expected: bool) -> None:
    info = {"role": "master", "slave0": f"ip=10.0.0.2,port=6379,state={state},offset=1,lag={lag}"}
    findings = list(together.replication(facts(info, config={"min-replicas-to-write": "1"})))
    assert told(findings) == [("warning", "replica-behind")] * expected
    assert all("10.0.0.2:6379" in finding.what for finding in findings)


def report(name: str = "a", **given: Any) -> SentinelReport:
    return SentinelReport(name, **{"master": "m:1", "sentinels": 3, "replicas": 2, **given})


@pytest.mark.parametrize(
    ("reports", "codes"),
    [
        ([report("a"), report("b"), report("c")], []),
        ([report(sentinels=1)], [("warning", "few-sentinels")]),
        ([report("a"), report("b"), report("c", master="n:2")], [("problem", "sentinels-disagree")]),
        ([report("a", down=True), report("b"), report("c")], [("problem", "master-down")]),
        ([report("a"), report("b"), SentinelReport("c", "does not answer (…)")], [("warning", "sentinel-silent")]),
        ([report("a", no_quorum="NOQUORUM"), report("b"), report("c")], [("problem", "sentinel-quorum")]),
        ([report("a"), report("b")], [("note", "sentinels-unnamed")]),
    ],
)
def test_sentinels(reports: list[SentinelReport], codes: list[tuple[str, str]]) -> None:
    watched = facts(kind="sentinel")
    watched.sentinels = reports
    assert told(together.sentinels(watched)) == codes


@pytest.mark.parametrize(
    ("denied", "consumes", "levels"),
    [
        ({}, True, []),
        ({"publish": Denied(("XADD",))}, False, ["note"]),
        ({"consume": Denied(("XCLAIM",))}, False, ["note"]),
        ({"consume": Denied(("XCLAIM",))}, True, ["problem"]),
        ({"publish": Denied(("XADD",)), "consume": Denied((), ("n:bell",))}, False, ["problem", "problem"]),
        ({"look": Denied(("XRANGE",))}, False, ["note"]),
        ({"publish": Denied(("HSET",), declares=True), "consume": Denied(("XCLAIM",))}, False, ["note", "note"]),
    ],
)
def test_rights(denied: dict[str, Denied], consumes: bool, levels: list[str]) -> None:
    looked = facts(denied={use: denied.get(use, Denied()) for use in rights.USES}, user="ada")
    looked.consumes = consumes
    findings = list(together.rights(looked))
    assert [finding.level for finding in findings] == levels
    for finding in findings:
        assert finding.do[0].startswith("redis-cli ACL SETUSER ada ")


def in_cluster(shares: dict[str, int]) -> Facts:
    layout = Layout("n", "orders", 1, sum(shares.values()), None, 1)
    masters = [name for name, count in shares.items() for _ in range(count)]
    empty: Any = {}
    one = StreamFacts(
        layout, StreamStats(layout, 0, [], []), [], empty, [], [], [], empty, empty, empty, empty, "",
        dict(zip(layout.current, masters, strict=True)),
    )  # fmt: skip
    return Facts("redis+cluster://here", "cluster", servers=[ServerFacts(name) for name in shares], streams=[one])


@pytest.mark.parametrize(
    ("shares", "codes"),
    [
        ({"a": 2, "b": 2, "c": 2}, []),
        ({"a": 3, "b": 2, "c": 2}, []),
        ({"a": 1, "b": 1, "c": 0}, [("note", "few-shards")]),
        ({"a": 8, "b": 2, "c": 2}, [("warning", "cluster-skew")]),
        ({"a": 6, "b": 0, "c": 0}, [("warning", "cluster-skew")]),
    ],
)
def test_shards_on_masters(shares: dict[str, int], codes: list[tuple[str, str]]) -> None:
    assert told(together.cluster(in_cluster(shares))) == codes


def test_nodes_that_failed_are_told_once() -> None:
    nodes = (("10.0.0.1:6379", "master"), ("10.0.0.2:6379", "slave,fail"), ("10.0.0.3:6379", "slave,fail?"))
    looked = facts(kind="cluster", nodes=nodes, cluster={"cluster_state": "fail", "cluster_slots_ok": "9"})
    looked.servers *= 2
    assert sorted({finding.where for finding in together.cluster(looked) if finding.code == "node-failed"}) == [
        "10.0.0.2:6379", "10.0.0.3:6379",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("held", "hottest"),
    [([10, 10, 10, 10], None), ([4000, 10, 10, 10], 0), ([900, 0, 0, 0], None), ([5000, 5000], None), ([1, 5000], 1),
     ([5000], None), ([2000, 1000, 1000, 1000], None), ([*[1000] * 15, 6000], 15)],
)  # fmt: skip
def test_the_hottest_shard(held: list[int], hottest: int | None) -> None:
    shards = [keys.shard("n", "s", 1, number, len(held)) for number in range(len(held))]
    found = stream._hottest(dict(zip(shards, held, strict=True)), 1000)
    assert (None if found is None else found.number) == hottest


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (StoreUnavailable("Redis at x does not answer"), "server-unreachable"),
        (StoreUnavailable("Redis at x does not answer: BUSY Redis is busy running a script"), "server-busy"),
        (ServerTooOld("Redis at x is version 6.2"), "server-too-old"),
    ],
)
def test_a_redis_that_cannot_be_asked(failure: Any, code: str) -> None:
    findings = judge(Examined(Facts("redis://x", failure=failure)))
    assert told(findings)[0] == ("problem", code) and exit_code(findings, strict=False) == 1
    assert told(findings[1:]) == []  # nothing is well of which nothing is known


@pytest.mark.parametrize(
    ("seconds", "failure", "codes"),
    [(0.1, "", []), (3.0, "", [("warning", "blob-store-slow")]), (0.1, "refused", [("problem", "blob-store")])],
)
def test_blob_stores(seconds: float, failure: str, codes: list[tuple[str, str]]) -> None:
    assert told(apps.blobs(Examined(facts(), (), BlobFacts("s3://b/", failure, seconds)))) == codes


def test_a_server_that_tells_nothing_has_nothing_wrong() -> None:
    """Whatever a managed Redis leaves out."""
    assert {finding.level for finding in judge(Examined(facts()))} == {"ok"}
    assert {finding.level for finding in judge(Examined(facts(failure="gone")))} == {"ok", "problem"}


def test_exit_codes() -> None:
    def of(*levels: Any) -> list[Finding]:
        return [Finding(level, "c", "w", "x") for level in levels]

    cases = [((), 0, 0), (("ok", "note"), 0, 0), (("warning",), 0, 1), (("note", "problem"), 1, 1)]
    for levels, usual, strict in cases:
        assert (exit_code(of(*levels), strict=False), exit_code(of(*levels), strict=True)) == (usual, strict)


def test_long_lists_are_cut() -> None:
    assert some(range(3)) == "0, 1, 2" and some(range(9), 2) == "0, 1 and 7 more"


# -- what it has to know


def test_all_commands_of_all_scripts_are_among_those_that_are_asked_about() -> None:
    needed = {*rights.commands_of("publish"), *rights.commands_of("consume")}
    for script in scripts.EVERY:
        if script.name not in {"rights", "sizes", *rights.ADMIN_SCRIPTS}:
            assert rights.called_by(script) <= needed, script.name
    assert {"XADD", "XREADGROUP", "XCLAIM", "XGROUP CREATE"} <= needed
    assert {script.name for script in scripts.EVERY} >= {*rights.PUBLISHING, *rights.LOOKING}
    assert not {"XADD", "SET", "HSET", "XACK"} & set(rights.commands_of("look"))


@pytest.mark.parametrize("name", ["seq", "alive", "owner", "once", "emitted", "memo", "given", "retry", "dead"])
def test_keys_are_known_again(name: str) -> None:
    shard = keys.shard("my.ns", "orders", 3, 1, 8)
    made = {
        "seq": shard.seq("p:1"), "alive": shard.alive("g", "w"), "owner": shard.owner("g"),
        "once": shard.once("g", "k:2"), "emitted": shard.emitted(b"\1"),
        "memo": shard.memo("g", "1-1"), "given": shard.given("g", "n"),
        "retry": shard.retry("g"), "dead": shard.dead("g"),
    }  # fmt: skip
    assert keys.part_of("my.ns", made[name].encode()) == ("orders", 3, name)
    assert keys.part_of("my.ns", shard.stream.encode()) == ("orders", 3, "")
    assert keys.part_of("other", made[name].encode()) is None
    assert keys.part_of("my.ns", keys.stream("my.ns", "orders").encode()) is None


def test_sizes_have_names() -> None:
    assert Sizes._fields == ("length", "newest", "looked", "bytes", "largest", "which")


# -- the command


def test_the_command(rs: Commands) -> None:
    rs.ok("publish", "orders", "--app", "shop:app", "--json", '{"customer": "ada", "total": 1}')
    shown = rs.run("doctor")
    assert shown.returncode == 0 and "NOTE     no-retention  stream orders: " in shown.stdout
    assert re.search(r"^0 problems, \d warnings?, \d notes?; \d+ checks found nothing$", shown.stdout, re.MULTILINE)
    rows = json.loads(rs.ok("doctor", "orders", "--json"))
    assert {row["level"] for row in rows} <= {"ok", "note", "warning"}
    assert {*rows[0]} == {"level", "code", "where", "what", "why", "do"}
    assert rs.run("doctor", "ordres").returncode == 1
    assert rs.run("doctor", "--sloppy").returncode == 2
    with_app = rs.run("doctor", "--app", "shop:app")
    assert "rstream worker shop:app" in with_app.stdout and "not-stored  stream notes" in with_app.stdout


def test_no_redis_is_a_finding_and_no_traceback(rs: Commands) -> None:
    done = rs.run("doctor", "--url", "redis://ada:s3cr3t@127.0.0.1:1", "--json")
    (problem, *_) = json.loads(done.stdout)
    assert (done.returncode, problem["code"], done.stderr) == (1, "server-unreachable", "")
    assert "s3cr3t" not in done.stdout


# -- the docs


def codes_in(path: Path) -> set[str]:
    """The second argument of every Finding that is made there."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [call for call in calls if getattr(call.func, "id", "") == "Finding" and len(call.args) > 1]
    return {call.args[1].value for call in made if isinstance(call.args[1], ast.Constant)}  # type: ignore[misc]


def test_the_docs_list_every_code_and_no_other() -> None:
    told = {code for path in (ROOT / "rstream" / "doctor").glob("*.py") for code in codes_in(path)}
    page = (ROOT / "docs" / "doctor.md").read_text()
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)) - {"problem", "warning", "note"}
    assert told == listed and len(told) > 50 and len(CHECKS) > 20
