"""What a cluster link knows without asking, and what it makes of what nodes say. No servers but for comparison."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import AskError, MovedError, ResponseError, TryAgainError

from rstream.errors import GroupMissing, StoreError, StoreRefused, StoreUnavailable
from rstream.store.cluster import HOPS, Atlas, Part, Round, Topology, key_of
from rstream.store.connect import Endpoint
from rstream.store.keys import slot_of
from rstream.store.link import Op, SyncLink
from rstream.store.scripts import Call
from tests.fleets import Cluster

A, B, C, D = (("a", 1), ("b", 2), ("c", 3), ("d", 4))


# -- keys and slots


@pytest.mark.parametrize(
    "call",
    [
        ("GET", "k"),
        ("SADD", b"k", "m"),
        ("HGETALL", "k"),
        ("XADD", "k", "*", "f", "v"),
        ("XRANGE", "k", "-", "+", "COUNT", 1),
        ("XPENDING", "k", "g"),
        ("XDEL", "k", "1-1"),
        ("XINFO", "GROUPS", "k"),
        ("XINFO", "CONSUMERS", "k", "g"),
        ("XGROUP", "CREATE", "k", "g", "$", "MKSTREAM"),
        ("MEMORY", "USAGE", "k"),
        ("EVALSHA", "0" * 40, 2, "k", "{k}2", "arg"),
        ("EVAL", "return 1", "1", "k"),
        ("XREAD", "COUNT", 1, "BLOCK", 5, "STREAMS", "k", "$"),
        ("XREADGROUP", "GROUP", "STREAMS", "STREAMS", "COUNT", 1, "STREAMS", "k", ">"),
        ("XREADGROUP", "GROUP", "g", "c", "NOACK", "STREAMS", "k", "{k}2", ">", ">"),
    ],
    ids=lambda call: " ".join(map(str, call)),
)
def test_the_key_of_a_command_is_the_one_that_the_server_finds(cluster: Cluster, call: Call) -> None:
    key = key_of(call)
    assert key is not None
    name = key.decode() if isinstance(key, bytes) else str(key)
    assert cluster.nodes[0].ask("COMMAND", "GETKEYS", *map(_text, call))[0] == name


def _text(arg: Any) -> str:
    return arg.decode() if isinstance(arg, bytes) else str(arg)


@pytest.mark.parametrize(
    "call", [("TIME",), ("PING",), ("INFO", "server"), ("WAIT", 1, 10), ("SCRIPT", "LOAD", "x"), ("EVALSHA", "x", 0)]
)
def test_a_command_without_a_key_may_go_anywhere(call: Call) -> None:
    assert key_of(call) is None


def test_the_slot_of_a_key_is_the_one_that_the_server_computes(cluster: Cluster) -> None:
    keys = [
        *("", "k", "{k}", "x{k}y", "{}k", "{k", "}k{", "{a}{b}", "{{a}}", "rstream:streams", "{rstream:3/8}:s:1", "é"),
        *(f"ns:stream:{n}" for n in range(20)),
    ]
    for key in keys:
        assert slot_of(key) == slot_of(key.encode()) == cluster.nodes[0].ask("CLUSTER", "KEYSLOT", key), key


# -- what nodes say


def told(*ranges: tuple[int, int, tuple[str | None, int]], replica: tuple[str, int] | None = None) -> list[Any]:
    """A reply to CLUSTER SLOTS."""
    others = [] if replica is None else [[replica[0].encode(), replica[1], b"id", []]]
    return [
        [start, end, [None if host is None else host.encode(), port, b"id", []], *others]
        for start, end, (host, port) in ranges
    ]


WHOLE = told((0, 5460, A), (5461, 10922, B), (10923, 16383, C))


def test_a_topology_knows_the_owner_of_each_slot() -> None:
    topology = Topology.parse(WHOLE, A)
    assert [topology.owner(slot) for slot in (0, 5460, 5461, 10922, 10923, 16383)] == [A, A, B, B, C, C]
    assert topology.masters == (A, B, C) and topology.replicas == ()
    assert Topology.parse(told((0, 9, A)), A).owner(10) is None
    assert Topology.parse(told((0, 9, A), (11, 19, A), replica=D), A).replicas == (D,)


@pytest.mark.parametrize("host", [None, "", "?"])
def test_a_node_without_a_name_is_where_it_was_asked(host: str | None) -> None:
    assert Topology.parse(told((0, 9, (host, 7))), A).owner(0) == ("a", 7)


def make_atlas(url: str = "redis+cluster://a:1,b:2", reply: list[Any] = WHOLE) -> Atlas:
    atlas = Atlas(Endpoint(url))
    assert atlas.doubted and atlas.hear(A, reply) and not atlas.doubted
    return atlas


def test_those_who_were_silent_are_asked_last_and_those_of_the_url_before_many_others() -> None:
    assert sorted(Atlas(Endpoint("redis+cluster://a:1,b:2")).witnesses()) == [A, B]
    many = told(*((n, n, (f"m{n}", n)) for n in range(1, 20)))
    atlas = make_atlas(reply=many)
    assert {A, B} <= set(atlas.witnesses()[:5]) and len(atlas.witnesses()) == 21
    atlas.silent(B)
    assert atlas.doubted and atlas.witnesses()[-1] == B
    atlas.moved(3, D)
    assert atlas.witnesses()[0] == D and atlas.topology.owner(3) == D
    atlas.spoke(B)
    assert atlas.witnesses()[-1] != B


def test_a_node_that_knows_of_no_slots_is_no_witness() -> None:
    atlas = Atlas(Endpoint("redis+cluster://a:1"))
    assert not atlas.hear(A, []) and atlas.doubted
    assert "no node serves any slot" in str(atlas.unheard())


def test_a_refusal_is_not_asked_again_and_silence_is() -> None:
    atlas = Atlas(Endpoint("redis+cluster://a:1"))
    with pytest.raises(StoreRefused):
        atlas.hear(A, StoreRefused("no"))
    gone = StoreUnavailable("gone")
    gone.sent = True
    assert not atlas.hear(A, gone)
    assert str(atlas.unheard()) == "gone" and not atlas.unheard().sent and gone.sent


# -- one exchange


def make_round(*calls: Call, atlas: Atlas | None = None) -> Round:
    atlas = atlas or make_atlas()
    return Round(calls, atlas, Endpoint("redis+cluster://a:1"))


# slots: a = 15495 (C), b = 3300 (A), c = 7365 (B)
GETS: tuple[Call, ...] = (("GET", "a"), ("GET", "b"), ("GET", "c"), ("GET", "{b}2"))


def sent(parts: list[Part]) -> dict[tuple[str, int], list[Call]]:
    assert len({part.address for part in parts}) == len(parts)
    return {part.address: part.calls for part in parts}


def test_calls_go_to_their_masters_and_replies_come_back_in_order() -> None:
    way = make_round(*GETS)
    parts = way.parts()
    assert sent(parts) == {C: [GETS[0]], A: [GETS[1], GETS[3]], B: [GETS[2]]}
    for part in parts:
        way.take(part, [f"{call[1]} of {part.address[0]}" for call in part.calls])
    assert way.parts() == []
    assert way.replies() == ["a of c", "b of a", "c of b", "{b}2 of a"]


def test_only_what_moved_is_sent_on_and_the_next_exchange_knows() -> None:
    atlas = make_atlas()
    way = make_round(*GETS, atlas=atlas)
    for part in way.parts():
        way.take(part, [MovedError("3300 d:4") if part.address == A else 1 for _ in part.calls])
    assert atlas.doubted and atlas.topology.owner(3300) == D
    (part,) = way.parts()
    assert part.address == D and part.calls == [GETS[1], GETS[3]]
    way.take(part, [2, 2])
    assert way.parts() == [] and way.replies() == [1, 2, 1, 2]


def test_a_redirection_without_a_host_is_to_the_host_that_was_asked() -> None:
    way = make_round(GETS[0])
    way.take(way.parts()[0], [MovedError("15495 :9")])
    assert way.parts()[0].address == ("c", 9)


def test_who_is_told_to_ask_asks_once() -> None:
    atlas = make_atlas()
    way = make_round(GETS[1], GETS[3], atlas=atlas)
    way.take(way.parts()[0], [AskError("3300 d:4"), 1])
    (part,) = way.parts()
    assert part.address == D and part.calls == [("ASKING",), GETS[1]] and not atlas.doubted
    way.take(part, [b"OK", 2])
    assert way.parts() == [] and way.replies() == [2, 1]
    assert atlas.topology.owner(3300) == A


def test_a_call_is_not_sent_around_forever() -> None:
    way = make_round(GETS[0])
    hops = 0
    while parts := way.parts():
        way.take(parts[0], [MovedError(f"15495 d:{hops}")])
        hops += 1
    (reply,) = way.replies()
    assert hops == HOPS and isinstance(reply, StoreUnavailable) and not reply.sent


def test_a_node_that_does_not_answer_fails_its_own_calls_only() -> None:
    atlas = make_atlas()
    way = make_round(*GETS, atlas=atlas)
    gone = StoreUnavailable("gone")
    for part in way.parts():
        way.take(part, gone if part.address == A else [TryAgainError("x", status_code="TRYAGAIN")])
    replies = way.replies()
    assert replies[1] is replies[3] is gone and atlas.doubted and atlas.witnesses()[-1] == A
    assert isinstance(replies[0], StoreUnavailable) and replies[0] is not gone


def test_keys_that_are_apart_are_said_to_be_so() -> None:
    way = make_round(GETS[0])
    (part,) = way.parts()
    way.take(part, [TryAgainError("Multiple keys request during rehashing of slot", status_code="TRYAGAIN")])
    (reply,) = way.replies()
    assert isinstance(reply, StoreUnavailable) and not reply.sent
    assert "is moving a slot to another node" in str(reply) and "is it running" not in str(reply)


def test_a_slot_that_nobody_serves_fails_its_own_calls_only() -> None:
    atlas = make_atlas(reply=told((0, 5460, A)))
    way = make_round(GETS[0], GETS[1], atlas=atlas)
    (part,) = way.parts()
    way.take(part, [1])
    unserved, reply = way.replies()
    assert reply == 1 and isinstance(unserved, StoreUnavailable) and atlas.doubted


def test_what_has_no_key_goes_to_a_master_that_answers() -> None:
    atlas = make_atlas()
    for silent in (A, B):
        atlas.silent(silent)
    way = make_round(("TIME",), atlas=atlas)
    assert way.parts()[0].address == C


WAIT: Call = ("WAIT", 1, 100)


def test_a_wait_goes_to_all_and_the_worst_counts() -> None:
    way = make_round(*GETS, WAIT)
    parts = way.parts()
    assert all(part.calls[-1] == WAIT for part in parts)
    for part in parts:
        way.take(part, [*(b"OK" for _ in part.numbers), 0 if part.address == B else 1])
    assert way.replies() == [b"OK"] * 4 + [0]


def test_a_wait_counts_only_where_something_was_done() -> None:
    way = make_round(*GETS, WAIT)
    for part in way.parts():
        if part.address == A:
            refusal = ResponseError("WAIT cannot be used with replica instances", status_code="ERR")
            way.take(part, [MovedError("3300 d:4"), MovedError("3300 d:4"), refusal])
        else:
            way.take(part, [b"OK", 2])
    (part,) = way.parts()
    assert part.calls == [GETS[1], GETS[3], WAIT]
    way.take(part, [b"OK", b"OK", 1])
    assert way.replies() == [b"OK"] * 4 + [1]


# -- tries


class Scripted(SyncLink):
    """A link whose exchanges come out as written, and that keeps what it was asked to send."""

    def __init__(self, *outcomes: list[Any] | StoreError) -> None:
        super().__init__(Endpoint("redis+cluster://a:1"))
        self.outcomes, self.sent = list(outcomes), list[list[Call]]()

    def exchange(self, calls: Any) -> list[Any]:
        self.sent.append(list(calls))
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, StoreError):
            raise outcome
        return outcome


def away(*, sent: bool = False) -> StoreUnavailable:
    error = StoreUnavailable("away")
    error.sent = sent
    return error


def test_only_what_was_not_answered_is_sent_again() -> None:
    link = Scripted([1, away(), None, away(sent=True)], [away(), 4], away(), [2])
    assert link.run(Op(GETS, list), within=10) == [1, 2, None, 4]
    assert link.sent == [list(GETS), [GETS[1], GETS[3]], [GETS[1]], [GETS[1]]]


@pytest.mark.parametrize(
    ("outcomes", "sent"),
    [
        ([away()], False),
        ([away(sent=True)], True),
        ([[away(), away(), away(), away()]], False),
        ([[away(), away(sent=True), away(), away()]], True),
        ([[1, away(), away(), away()]], True),  # what was answered was applied
    ],
)
def test_who_gives_up_knows_whether_anything_may_have_been_applied(outcomes: list[Any], sent: bool) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        Scripted(*outcomes).run(Op(GETS, list))
    assert caught.value.sent is sent


def test_an_error_says_whether_an_earlier_sending_of_its_own_call_was_lost() -> None:
    errors = [GroupMissing(name) for name in "wxyz"]
    link = Scripted([errors[0], away(sent=True), away(), 4], [errors[1], errors[2]])
    assert link.run(Op(GETS, list, partial=True), within=10) == [*errors[:3], 4]
    assert [error.sent for error in errors[:3]] == [False, True, False]


def test_an_error_that_will_not_go_away_ends_the_tries() -> None:
    link = Scripted([1, away(), GroupMissing("gone"), 4])
    with pytest.raises(GroupMissing):
        link.run(Op(GETS, list), within=10)


def test_a_write_that_too_few_confirmed_is_sent_again() -> None:
    link = Scripted([1, 2, 3, 4, 0], [1, 2, away(), 4, 1], [5, 1])
    assert link.run(Op(GETS, list, replicas=1), within=10) == [1, 2, 5, 4]
    wait = link.sent[0][-1]
    assert link.sent == [[*GETS, wait], [*GETS, wait], [GETS[2], wait]]
    assert wait[:2] == ("WAIT", 1) and 0 < int(wait[2]) <= 1000


def test_who_gives_up_on_replicas_is_told_so() -> None:
    with pytest.raises(StoreUnavailable, match="only 1 of 2 replicas confirmed the write within") as caught:
        Scripted([1, 2, 3, 4, 1]).run(Op(GETS, list, replicas=2))
    assert caught.value.sent
    refused = StoreRefused("no right to WAIT")
    with pytest.raises(StoreRefused) as also:
        Scripted([1, 2, 3, 4, refused]).run(Op(GETS, list, replicas=2), within=10)
    assert also.value.sent


def test_replicas_get_less_time_than_a_reply() -> None:
    for url, ms in (("redis://a", 1000), ("redis://a?socket_timeout=0.5", 400)):
        link = Scripted([1, 2])
        link.endpoint = Endpoint(url)
        link._timeout = link.endpoint.patience
        link.run(Op(GETS[:1], list, replicas=1))
        assert link.sent[0][-1] == ("WAIT", 1, ms)
