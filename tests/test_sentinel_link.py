"""Links to a master that Sentinels watch: who is asked, what is believed, and failovers, on real servers."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from rstream.errors import StoreRefused, StoreUnavailable
from rstream.store.connect import Endpoint
from rstream.store.link import Link, Op
from tests.faces import both, faces, linked, published, publishing, through
from tests.fleets import Sentinels
from tests.servers import Server
from tests.waiting import eventually, eventually_async


def at(*servers: Server, name: str = "mymaster", user: str = "") -> str:
    return f"redis+sentinel://{user}{','.join(f'127.0.0.1:{server.port}' for server in servers)}/{name}"


# -- finding the master


@faces
def test_the_master_is_found(sentinels: Sentinels, namespace: str, face: str) -> None:
    with linked(sentinels.url, face) as link:
        assert link.ask(("INCR", namespace)) == [1]
        assert sentinels.master().ask("GET", namespace) == "1"
    with linked(sentinels.url + "/3", face) as link:
        assert link.ask(("INCR", namespace)) == [1]


def test_publishing_and_reading(sentinels: Sentinels, namespace: str) -> None:
    for face in ("sync", "async"):
        with publishing(sentinels.url, f"{namespace}-{face}", face) as accepted:
            pass
        assert published(sentinels.url, f"{namespace}-{face}") == list(range(accepted()))


def test_a_sentinel_that_is_dead_is_passed_over(own_sentinels: Sentinels) -> None:
    killed, frozen, alive = own_sentinels.sentinels
    port = own_sentinels.master().port
    killed.kill()
    frozen.pause()
    endpoint = Endpoint(at(killed, frozen, alive))
    took = []
    for _ in range(2):
        began = time.monotonic()
        assert endpoint.kwargs()["port"] == port
        took.append(time.monotonic() - began)
    assert took[1] < took[0]  # the next time who answered is asked first
    with both(at(killed, alive)) as links:
        assert [link.ask(("INCR", "k")) for link in links] == [[1], [2]]


@faces
def test_no_sentinel_answers(tmp_path: Path, face: str) -> None:
    url = "redis+sentinel://ada:s3cr3t@127.0.0.1:1,127.0.0.1:2/mymaster?sentinel_password=s3cr3t"
    with linked(url, face) as link, pytest.raises(StoreUnavailable) as caught:
        link.ask(("GET", "k"), within=0.1)
    message = str(caught.value)
    assert message.startswith("the sentinels of redis+sentinel://127.0.0.1:1,127.0.0.1:2/mymaster name no master: ")
    assert message.count("Connection refused") == 2 and "127.0.0.1:2 does not answer" in message
    assert "s3cr3t" not in message and "\n" not in message and not caught.value.sent


@faces
def test_nobody_knows_the_name(sentinels: Sentinels, face: str) -> None:
    with linked(at(*sentinels.sentinels, name="other"), face) as link, pytest.raises(StoreUnavailable) as caught:
        link.ask(("GET", "k"), within=0.1)
    assert str(caught.value).count("knows no master 'other', only mymaster") == 3 and not caught.value.sent


@faces
@pytest.mark.timeout(20)
def test_a_server_that_is_no_sentinel_is_refused_at_once(one_server: Server, face: str) -> None:
    with linked(at(one_server), face) as link, pytest.raises(StoreRefused, match="Check that these are sentinels"):
        link.ask(("GET", "k"), within=60)


@pytest.mark.timeout(30)
def test_sentinels_and_master_have_passwords_of_their_own(own_sentinels: Sentinels) -> None:
    for server in own_sentinels.nodes:
        server.ask("CONFIG", "SET", "masterauth", "m4ster")
    for sentinel in own_sentinels.sentinels:
        sentinel.ask("SENTINEL", "SET", own_sentinels.name, "auth-pass", "m4ster")
        sentinel.ask("ACL", "SETUSER", "eve", "on", ">s3ntinel", "+@all")
        sentinel.ask("ACL", "SETUSER", "default", "resetpass", ">other")
    for server in own_sentinels.nodes:
        server.ask("CONFIG", "SET", "requirepass", "m4ster")
    plain, guarded = at(*own_sentinels.sentinels), at(*own_sentinels.sentinels, user=":m4ster@")
    right = "?sentinel_username=eve&sentinel_password=s3ntinel"
    with both(guarded + right) as links:
        assert [link.ask(("INCR", "k"), within=10) for link in links] == [[1], [2]]
    for url, why in [
        (guarded, "their own credentials"),
        (guarded + "?sentinel_password=wr0ng", "their own credentials"),
        (guarded + right.replace("s3ntinel", "wr0ng"), "their own credentials"),
        (plain + right, "Check user, password and rights"),
    ]:
        with both(url) as links:
            for link in links:
                with pytest.raises(StoreRefused, match=why) as caught:
                    link.ask(("GET", "k"), within=60)
                assert not [secret for secret in ("wr0ng", "m4ster", "s3ntinel") if secret in str(caught.value)]


@faces
def test_a_replica_is_not_believed_to_be_the_master(
    sentinels: Sentinels, monkeypatch: pytest.MonkeyPatch, face: str
) -> None:
    """A sentinel that lags behind names a master that has come back as a replica."""
    replica = next(node for node in sentinels.nodes if not node.is_master())
    with linked(sentinels.url, face) as link:
        lagging = link.endpoint._sentinels
        assert lagging is not None
        monkeypatch.setattr(lagging, "master", lambda: replica.address)
        with pytest.raises(StoreUnavailable, match="that the sentinels call master is a replica") as caught:
            link.ask(("GET", "k"), within=0.1)
        assert not caught.value.sent
        monkeypatch.undo()
        assert link.ask(("GET", "k")) == [None]


# -- failovers


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_lost_master_is_replaced_and_comes_back(own_sentinels: Sentinels, how: str) -> None:
    with both(own_sentinels.url + "?socket_timeout=0.5") as links:
        counts = [partial(link.ask, ("INCR", link.name), within=40) for link in links]
        assert [count() for count in counts] == [[1], [1]]
        links[0].run(Op([("SET", "all", 1)], list, replicas=2), within=10)
        old = own_sentinels.master()
        (old.kill if how == "kill" else old.pause)()
        assert through(lambda: own_sentinels.await_promotion(old), *counts) == [[2], [2]]
        assert [count() for count in counts] == [[3], [3]]
        (old.start if how == "kill" else old.resume)()
        own_sentinels.await_ok()
        assert not old.is_master() and [count() for count in counts] == [[4], [4]]
        eventually(lambda: old.ask("MGET", "sync", "async") == ["4", "4"])


def test_a_planned_failover_fails_nothing(own_sentinels: Sentinels, namespace: str) -> None:
    spaces = [f"{namespace}-{face}" for face in ("sync", "async")]
    url = own_sentinels.url
    with publishing(url, spaces[0], "sync") as one, publishing(url, spaces[1], "async") as two:
        own_sentinels.fail_over()
        before = one(), two()
        eventually(lambda: one() > before[0] + 40 and two() > before[1] + 40, 10)
    for space in spaces:
        numbers = published(url, space)
        assert len(set(numbers)) == len(numbers)


def test_a_read_that_waits_at_a_demoted_master_goes_on_at_the_new_one(
    own_sentinels: Sentinels, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis answers those who block with UNBLOCKED when it becomes a replica: the group is not gone."""
    blocked = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", 30_000, "STREAMS", "s", ">")

    async def run() -> Any:
        link = Link(Endpoint(own_sentinels.url))
        await link.run(Op([("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM")], list))
        await link.run(Op([("SET", "k", 1)], list, replicas=2), within=10)  # and with it the group
        old = own_sentinels.master()
        waiting = asyncio.create_task(link.run(Op([blocked], list), timeout=35, within=20))
        await eventually_async(lambda: "blocked_clients:1" in old.ask("INFO", "clients"))
        old.ask("REPLICAOF", "127.0.0.1", 1)
        await eventually_async(lambda: caplog.records)
        await asyncio.to_thread(own_sentinels.fail_over)
        while not waiting.done():
            await link.run(Op([("XADD", "s", "*", "f", "v")], list), within=20)
            await asyncio.sleep(0.02)
        await link.aclose()
        return await waiting

    ((streams,),) = (anyio.run(run),)
    assert streams[0][0] == b"s"
    assert "force unblock" in caplog.records[0].getMessage()


def test_replicas_confirm(own_sentinels: Sentinels) -> None:
    replica = own_sentinels.nodes[-1]
    with both(own_sentinels.url) as links, ThreadPoolExecutor(2) as pool:
        ops = [Op([("INCR", link.name)], list, replicas=2) for link in links]
        for link, op in zip(links, ops, strict=True):
            assert link.run(op, within=10)[0] >= 1
        replica.pause()
        began = [pool.submit(link.run, op) for link, op in zip(links, ops, strict=True)]
        for each in began:
            why = "only 1 of 2 replicas confirmed the write within 1000 ms"
            with pytest.raises(StoreUnavailable, match=why) as caught:
                each.result()
            assert caught.value.sent
        began = [pool.submit(link.run, op, within=30) for link, op in zip(links, ops, strict=True)]
        eventually(lambda: all(int(n) >= 4 for n in own_sentinels.nodes[0].ask("MGET", "sync", "async")))
        replica.resume()
        assert all(each.result()[0] >= 4 for each in began)
