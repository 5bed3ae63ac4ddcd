"""Links to a Redis Cluster: parts, redirections, failovers and moving slots, on real servers.

INCR tells how often a call was applied: no operation of rstream is so touchy.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import anyio
import pytest

from rstream import RStream
from rstream.errors import StoreRefused, StoreUnavailable
from rstream.store.connect import Endpoint
from rstream.store.keys import shard, slot_of
from rstream.store.link import Link, Op
from rstream.store.scripts import RANGE, Call
from tests.faces import RESUMES, Face, Item, both, faces, linked, published, publishing, through
from tests.fleets import Cluster, ClusterNode
from tests.servers import Server
from tests.waiting import eventually


def keys_of(namespace: str, count: int = 24) -> list[str]:
    """On every master of three."""
    keys = [f"{namespace}:{n}" for n in range(count)]
    assert len({slot_of(key) * 3 // 16384 for key in keys}) == 3
    return keys


def incr(keys: list[str]) -> list[Call]:
    return [("INCR", key) for key in keys]


def key_in(slot: int, prefix: str) -> str:
    return next(key for n in itertools.count() if slot_of(key := f"{prefix}{n}") == slot)


# -- parts


@faces
def test_replies_come_in_the_order_of_the_calls(cluster: Cluster, namespace: str, face: str) -> None:
    keys = keys_of(namespace)
    with linked(cluster.url, face) as link:
        link.ask(*(("SET", key, number) for number, key in enumerate(keys)))
        assert link.ask(*(("GET", key) for key in keys)) == [b"%d" % number for number in range(len(keys))]
        assert link.ask(*reversed([("GET", key) for key in keys]))[0] == b"%d" % (len(keys) - 1)
        assert link.ask() == [] and link.ask(("TIME",), ("GET", keys[1]))[1] == b"1"


@faces
def test_one_node_is_enough_to_find_the_others(cluster: Cluster, namespace: str, face: str) -> None:
    for node in (cluster.nodes[0], cluster.nodes[-1]):
        with linked(f"redis+cluster://127.0.0.1:{node.port}", face) as link:
            assert len(link.ask(*incr(keys_of(namespace)))) == 24


@faces
def test_a_script_is_loaded_on_every_node_that_lacks_it(cluster: Cluster, namespace: str, face: str) -> None:
    keys = [f"{namespace}:s{n}" for n in range(24)]
    calls = [RANGE([key], "-", "+", 1, 1000) for key in keys]
    with linked(cluster.url, face) as link:
        for _ in range(2):
            assert link.ask(*calls) == [[[], 0]] * 24
        for node in cluster.nodes:
            node.ask("SCRIPT", "FLUSH")
        assert link.ask(*calls) == [[[], 0]] * 24


@faces
def test_keys_of_several_slots_in_one_call_are_refused(cluster: Cluster, namespace: str, face: str) -> None:
    with linked(cluster.url, face) as link, pytest.raises(StoreRefused, match="same slot"):
        link.ask(("DEL", *keys_of(namespace)), within=60)


def test_publishing_and_reading(cluster: Cluster, namespace: str) -> None:
    async def on_the_loop() -> list[int]:
        async with RStream(cluster.url, namespace=namespace) as app:
            items = app.stream("items", Item, key="n")
            await items.publish_many(Item(n=n) for n in range(500))
            return [entry.event.n async for entry in items.read()]

    assert sorted(anyio.run(on_the_loop)) == list(range(500))
    with RStream(cluster.url, namespace=namespace) as app:
        items = app.stream("items", Item, key="n")
        items.sync.publish_many(Item(n=n) for n in range(500, 600))
        found = list(items.sync.read())
        assert sorted(entry.event.n for entry in found) == list(range(600))
        assert len({entry.id.shard for entry in found}) == 8
        assert app.open("items") is items


def test_a_blocked_read_ends_with_what_it_waited_for(cluster: Cluster, namespace: str) -> None:
    key = f"{namespace}:stream"

    async def run() -> Any:
        link = Link(Endpoint(cluster.url))
        await link.run(Op([("XGROUP", "CREATE", key, "g", "$", "MKSTREAM")], list))
        blocked = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", 20_000, "STREAMS", key, ">")
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(link.run(Op([blocked], list), timeout=25))
            while not waiting.done():
                await link.run(Op([("XADD", key, "*", "f", "v")], list))
                await asyncio.sleep(0.02)
        with pytest.raises(asyncio.CancelledError):
            task = asyncio.create_task(link.run(Op([blocked, ("TIME",)], list), timeout=25))
            await asyncio.sleep(0)
            task.cancel()
            await task
        assert await link.run(Op([("XLEN", key)], lambda replies: replies[0] > 0))
        await link.aclose()
        return waiting.result()

    ((streams,),) = (anyio.run(run),)
    assert streams[0][0] == key.encode()


# -- refusals


@faces
def test_no_node_answers(face: str) -> None:
    url = "redis+cluster://ada:s3cr3t@127.0.0.1:1,127.0.0.1:2"
    with linked(url, face) as link, pytest.raises(StoreUnavailable) as caught:
        link.ask(("GET", "k"))
    message = str(caught.value)
    assert message.startswith("Redis at redis+cluster://127.0.0.1:1,127.0.0.1:2 does not answer: Error 111 connecting")
    assert message.count("127.0.0.1:2") < 3 and "s3cr3t" not in message and not caught.value.sent


@faces
@pytest.mark.timeout(20)
def test_a_server_that_is_no_cluster_is_refused_by_name(one_server: Server, cluster: Cluster, face: str) -> None:
    for url, why in [
        (f"redis+cluster://127.0.0.1:{one_server.port}", "is no cluster: its URL starts with redis://"),
        (
            f"redis://127.0.0.1:{cluster.nodes[0].port}",
            r"is a node of a cluster: its URL starts with redis\+cluster://",
        ),
    ]:
        with linked(url, face) as link, pytest.raises(StoreRefused, match=why):
            link.ask(*(("GET", f"k{n}") for n in range(9)), within=60)


@faces
@pytest.mark.timeout(20)
def test_a_wrong_password_is_refused_at_once(cluster: Cluster, face: str) -> None:
    url = cluster.url.replace("://", "://nobody:s3cr3t@")
    with linked(url, face) as link, pytest.raises(StoreRefused, match="Check user, password") as caught:
        link.ask(("GET", "k"), within=60)
    assert "s3cr3t" not in str(caught.value)


@faces
def test_what_breaks_before_anything_was_sent_was_not_sent(own_server: Server, face: str) -> None:
    own_server.pause()  # it takes connections all the same
    with linked(own_server.url + "?socket_timeout=0.1", face) as link, pytest.raises(StoreUnavailable) as caught:
        link.ask(("GET", "k"))
    assert not caught.value.sent


# -- replicas


def test_replicas_confirm_on_every_node(own_cluster: Cluster, namespace: str) -> None:
    master = own_cluster.nodes[1]
    replica = own_cluster.replica_of(master)
    with both(own_cluster.url) as links, ThreadPoolExecutor(2) as pool:
        ops = [Op(incr(keys_of(namespace + link.name)), list, replicas=1) for link in links]
        for link, op in zip(links, ops, strict=True):
            assert len(link.run(op, within=10)) == 24
        replica.pause()
        began = [pool.submit(link.run, op) for link, op in zip(links, ops, strict=True)]
        for each in began:
            why = "only 0 of 1 replicas confirmed the write within 1000 ms"
            with pytest.raises(StoreUnavailable, match=why) as caught:
                each.result()
            assert caught.value.sent
        keys = [next(key for _, key in op.calls if own_cluster.node_at(slot_of(key)) is master) for op in ops]
        began = [pool.submit(link.run, op, within=30) for link, op in zip(links, ops, strict=True)]
        eventually(lambda: all(int(master.ask("GET", key)) >= 4 for key in keys))
        replica.resume()
        assert all(max(each.result()) >= 4 for each in began)


# -- slots that move


def moving(cluster: Cluster, slot: int) -> tuple[ClusterNode, ClusterNode]:
    """The master of a slot, and another one."""
    source = cluster.master_of(slot)
    return source, next(node for node in cluster.nodes if node is not source and node.is_master())


@faces
def test_a_key_that_is_not_there_yet_is_made_where_the_slot_goes(cluster: Cluster, face: str) -> None:
    slot = {"sync": 100, "async": 200}[face]
    staying, fresh = key_in(slot, "staying"), key_in(slot, "fresh")
    source, target = moving(cluster, slot)
    with linked(cluster.url, face) as link:
        assert link.ask(*incr([staying])) == [1]
        with cluster.moving(slot, source, target):
            target.ask("SCRIPT", "FLUSH")
            assert link.ask(("INCR", staying), ("INCR", fresh), RANGE([fresh + "s"], "-", "+", 1, 9)) == [2, 1, [[], 0]]
            assert link.ask(*incr([fresh, staying, fresh])) == [2, 3, 3]
            assert link.ask(RANGE([key_in(slot, "new")], "-", "+", 1, 9)) == [[[], 0]]
        assert link.ask(*incr([staying, fresh])) == [4, 4]
        assert cluster.master_of(slot) is target


@faces
def test_keys_that_are_apart_for_a_moment_are_waited_for(cluster: Cluster, face: str) -> None:
    slot = {"sync": 300, "async": 400}[face]
    moved, staying = key_in(slot, "moved"), key_in(slot, "staying")
    both: Call = ("EVAL", "return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}", 2, moved, staying)
    source, target = moving(cluster, slot)
    with linked(cluster.url, face) as link, ThreadPoolExecutor(1) as pool:
        assert link.ask(both) == [[1, 1]]
        with cluster.moving(slot, source, target):
            cluster.hand_over(source, target, moved)
            with pytest.raises(StoreUnavailable) as caught:
                link.ask(both)
            assert not caught.value.sent
            elsewhere = f"{face}:elsewhere"
            running = pool.submit(link.ask, both, ("INCR", elsewhere), within=30)
            eventually(lambda: link.ask(("GET", elsewhere)) == [b"1"])
        assert running.result() == [[2, 2], 1]


@faces
def test_slots_move_while_events_are_published(cluster: Cluster, namespace: str, face: str) -> None:
    slots = sorted(shard(namespace, "items", 1, number, 8).slot for number in range(8))[:4]
    with publishing(cluster.url, namespace, face) as accepted:
        for slot in [slot for slot in slots for _ in range(2)]:  # there and back
            before = accepted()
            cluster.migrate(slot, moving(cluster, slot)[1])
            eventually(lambda before=before: accepted() > before)  # type: ignore[misc]
    assert published(cluster.url, namespace) == list(range(accepted()))


# -- failovers


def counting(links: Sequence[Face], namespace: str) -> list[Callable[[], list[int]]]:
    """For each link, what counts its own keys up, on all masters."""
    return [partial(link.ask, *incr(keys_of(namespace + link.name)), within=40) for link in links]


def replicated(cluster: Cluster, namespace: str) -> None:
    with linked(cluster.url, "sync") as link:
        keys = [f"{namespace}{n}" for n in range(24)]
        link.run(Op([("SET", key, 1) for key in keys_of(namespace, 24) + keys], list, replicas=1), within=10)


def test_a_killed_master_is_replaced_and_comes_back(own_cluster: Cluster, namespace: str) -> None:
    with both(own_cluster.url) as links:
        counts = counting(links, namespace)
        assert [count() for count in counts] == [[1] * 24] * 2
        replicated(own_cluster, namespace)
        master = own_cluster.nodes[0]
        replica = own_cluster.replica_of(master)
        master.kill()
        # Nothing that was sent to it was applied, and all others answered at the first try.
        assert through(lambda: own_cluster.await_promotion(replica), *counts) == [[2] * 24] * 2
        master.start()
        own_cluster.await_ok()
        assert [count() for count in counts] == [[3] * 24] * 2
        # Back to where it was, in an orderly way: no call fails, and each is applied once.
        done = threading.Event()
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(lambda count=count: [count() for _ in iter(done.is_set, True)]) for count in counts]
            own_cluster.take_over(master)
            done.set()
            results = [each.result() for each in running]
        for count, replies in zip(counts, results, strict=True):
            assert len(replies) > 1 and replies == [[3 + n] * 24 for n in range(1, len(replies) + 1)]
            assert count() == [4 + len(replies)] * 24


def test_a_frozen_master_is_replaced_and_wakes_up(own_cluster: Cluster, namespace: str) -> None:
    with both(own_cluster.url + "?socket_timeout=0.5") as links:
        counts = counting(links, namespace)
        assert [count() for count in counts] == [[1] * 24] * 2
        replicated(own_cluster, namespace)
        frozen = own_cluster.nodes[0]
        replica = own_cluster.replica_of(frozen)
        frozen.pause()
        assert through(lambda: own_cluster.await_promotion(replica), *counts) == [[2] * 24] * 2
        assert [count() for count in counts] == [[3] * 24] * 2
        frozen.resume()
        own_cluster.await_ok()
        assert [count() for count in counts] == [[4] * 24] * 2


def test_what_waits_for_one_master_does_not_hold_up_the_others(
    own_cluster: Cluster, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    with both(own_cluster.url) as links:
        keys = {link: keys_of(namespace + link.name) for link in links}
        for link in links:
            link.ask(*incr(keys[link]))
        for node in own_cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-node-timeout", 60_000)  # nobody takes note of what dies now
        dead = own_cluster.nodes[0]
        dead.kill()
        for link in links:
            caplog.clear()
            with pytest.raises(StoreUnavailable) as caught:
                link.ask(*incr(keys[link]), within=0.2)
            assert caught.value.sent and f"127.0.0.1:{dead.port}" in str(caught.value).partition("answer")[2]
            assert sum("Waiting for it" in record.getMessage() for record in caplog.records) == 1
        for key in [key for each in keys.values() for key in each]:
            if (node := own_cluster.node_at(slot_of(key))) is not dead:
                assert node.ask("GET", key) == "2"  # once, however often it was tried


def test_a_master_dies_while_events_are_published(own_cluster: Cluster, namespace: str) -> None:
    spaces = [f"{namespace}-{face}" for face in ("sync", "async")]
    with publishing(own_cluster.url, spaces[0], "sync") as one, publishing(own_cluster.url, spaces[1], "async") as two:
        master = own_cluster.nodes[0]
        replica = own_cluster.replica_of(master)
        master.kill()
        own_cluster.await_promotion(replica)
        before = one(), two()
        eventually(lambda: one() > before[0] + 40 and two() > before[1] + 40, RESUMES)
    for space in spaces:
        numbers = published(own_cluster.url, space)
        # What was accepted and not yet replicated may be lost.
        assert len(set(numbers)) == len(numbers)
