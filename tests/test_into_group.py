"""Replay into one group, in place: it handles its entries again, each once, a key's in order; nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from rstream import Delivery, EntryId, Event, RStream, Stream
from rstream.errors import ConfigError, StoreUnavailable
from rstream.replay import Giving, ReplayResult, as_group, into_group
from rstream.replay import give as giving
from rstream.store import give as store
from rstream.store.deliveries import Fetched, GroupOps, Outcome
from rstream.store.give import GiveOps
from rstream.store.stats import group_stats
from rstream.worker.worker import Worker
from tests.commands import Commands
from tests.fleets import Cluster
from tests.servers import Server
from tests.waiting import eventually, eventually_async

# What the groups of a game do, in processes of their own: they tell in Redis what they handled.
GAME = """
import asyncio, os
import redis
from rstream import Event, RStream

app = RStream()
raw = redis.Redis.from_url(os.environ["RSTREAM_URL"])

class Move(Event):
    player: str
    n: int

moves = app.stream("moves", Move, key="player", shards=4)

def note(move, delivery):
    raw.rpush(f"of:{app.settings.namespace}:{delivery.group}", f"{move.player} {move.n}")

@moves.consumer("live", lease=1.0)
async def live(move: Move, delivery):
    note(move, delivery)
    await asyncio.sleep(float(os.environ.get("SLOW", "0")))

@moves.consumer("other", lease=1.0)
async def other(move: Move, delivery):
    note(move, delivery)

@moves.consumer("free", lease=1.0, ordered=False)
async def free(move: Move, delivery):
    note(move, delivery)
"""


class Move(Event):
    player: str
    n: int


class Game:
    """A stream, the command line, and what its groups have handled."""

    def __init__(self, server: Server, namespace: str, directory: Path) -> None:
        self.app, self.raw = RStream(server.url, namespace=namespace), redis.Redis.from_url(server.url)
        self.commands = Commands(directory, server.url, namespace)
        self.commands.write("game.py", GAME)
        self.moves: Stream[Move] = self.app.stream("moves", Move, key="player", shards=4)
        self.namespace = namespace

    def publish(self, players: list[str], first: int, count: int) -> list[EntryId]:
        events = [Move(player=player, n=n) for n in range(first, first + count) for player in players]
        return sorted(self.moves.sync.publish_many(events))

    def handled(self, group: str) -> list[tuple[str, int]]:
        lines = [line.decode().split() for line in self.raw.lrange(f"of:{self.namespace}:{group}", 0, -1)]
        return [(player, int(n)) for player, n in lines]

    def count(self, group: str) -> int:
        return int(self.raw.llen(f"of:{self.namespace}:{group}"))

    def settled(self, *groups: str) -> None:
        """Wait until nothing is pending there."""
        for group in groups:
            eventually(lambda group=group: not any(self.pending(group)), timeout=20)  # type: ignore[misc]

    def pending(self, group: str) -> list[int]:
        return [self.raw.xpending(shard.stream, group)["pending"] for shard in self.moves.sync.layout().every]

    def standing(self, group: str) -> list[Any]:
        """All that Redis knows of a group, but how long its consumers are idle."""
        found = []
        for shard in self.moves.sync.layout().every:
            info = next(info for info in self.raw.xinfo_groups(shard.stream) if info["name"] == group.encode())
            consumers = [(each["name"], each["pending"]) for each in self.raw.xinfo_consumers(shard.stream, group)]
            found.append((info, consumers))
        return found

    def stored(self) -> dict[bytes, bytes]:
        """Of the only replay there is."""
        names = [*self.raw.scan_iter(f"{self.namespace}:replay:*")]
        return self.raw.hgetall(names[0]) if names else {}

    @contextlib.contextmanager
    def publishing(self, players: list[str], first: int) -> Iterator[None]:
        """Somebody publishes meanwhile."""
        over = threading.Event()

        def publish() -> None:
            with RStream(self.app.settings.url, namespace=self.namespace) as app:
                moves, n = app.stream("moves", Move, key="player", shards=4), first
                while not over.wait(0.002):
                    moves.sync.publish_many([Move(player=player, n=n) for player in players])
                    n += 1

        thread = threading.Thread(target=publish)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def replay(self, *options: str, code: int = 0) -> dict[str, Any]:
        done = self.commands.run("replay", "moves", "--json", *options)
        assert done.returncode == code, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def close(self) -> None:
        self.raw.close()
        self.app.close()


@pytest.fixture
def game(server: Server, namespace: str, tmp_path: Path) -> Iterator[Game]:
    with contextlib.closing(Game(server, namespace, tmp_path)) as made:
        yield made


@pytest.fixture
def one(one_server: Server, namespace: str, tmp_path: Path) -> Iterator[Game]:
    with contextlib.closing(Game(one_server, namespace, tmp_path)) as made:
        yield made


# -- live groups, in processes of their own -------------------------------------------------------------------------


def test_a_keys_200_events_come_again_in_order_and_no_other_group_notices(game: Game) -> None:
    old = game.publish(["hot", "a", "b", "c"], 0, 200)
    groups = ("--group", "live", "--group", "other")
    with game.commands.started("worker", "game:app", *groups):
        eventually(lambda: game.count("live") == game.count("other") == 800, timeout=20)
        game.settled("live", "other")
        before = game.count("live")
        window = ("--from", str(old[0]), "--to", str(old[-1]), "--key", "hot")
        with game.publishing(["hot", "a"], 1000):
            told = game.replay(*window, "--into-group", "live")
            eventually(lambda: game.count("live") - before > 400, timeout=20)
        last = len([*game.moves.sync.read()])
        eventually(lambda: game.count("live") == last + 200 and game.count("other") == last, timeout=20)

    assert (told["given"], told["pending"], told["unread"], told["gone"]) == (200, 0, 0, 0)
    hot = [n for player, n in game.handled("live")[before:] if player == "hot"]
    first = hot.index(0)
    assert hot[first : first + 200] == [*range(200)]  # nothing newer in between
    newer = hot[:first] + hot[first + 200 :]
    assert newer == [*range(1000, 1000 + len(newer))]
    for group in ("live", "other"):
        others = Counter(game.handled(group))
        again = {move for move, times in others.items() if times > 1}
        assert again == ({("hot", n) for n in range(200)} if group == "live" else set())


def test_another_group_stands_where_it_stood(one: Game) -> None:
    old = one.publish(["hot", "a"], 0, 50)
    with one.commands.started("worker", "game:app", "--group", "live", "--group", "other"):
        eventually(lambda: one.count("live") == one.count("other") == 100, timeout=20)
        one.settled("live", "other")
        before = one.standing("other")
        assert one.replay("--from", "earliest", "--to", "latest", "--into-group", "live")["given"] == 100
        eventually(lambda: one.count("live") == 200, timeout=20)
        one.settled("live")
        assert one.standing("other") == before
    assert [id for id in old if id not in {entry.id for entry in one.moves.sync.read()}] == []
    assert len([*one.moves.sync.read()]) == 100


def test_a_group_without_order_gets_all_of_it_again(game: Game) -> None:
    game.publish(["a", "b", "c"], 0, 100)
    with game.commands.started("worker", "game:app", "--group", "free"):
        eventually(lambda: game.count("free") == 300, timeout=20)
        game.settled("free")
        told = game.replay("--from", "earliest", "--to", "latest", "--into-group", "free", "--where", "player=b")
        eventually(lambda: game.count("free") == 400, timeout=20)
        game.settled("free")
    assert (told["given"], told["skipped"]) == (100, 200)
    assert Counter(game.handled("free")) == Counter(
        {(player, n): 1 + (player == "b") for player in "abc" for n in range(100)}
    )


def test_killed_in_the_midst_it_goes_on_and_gives_nothing_twice(one: Game) -> None:
    one.publish(["a", "b", "c", "d"], 0, 100)
    window = ("--from", "earliest", "--to", "latest", "--into-group", "live")
    with one.commands.started("worker", "game:app", "--group", "live"):
        eventually(lambda: one.count("live") == 400, timeout=20)
        one.settled("live")
        with one.commands.started("replay", "moves", *window, "--rate", "60/s") as replay:
            eventually(lambda: one.count("live") >= 450 and int(one.stored().get(b"given", 0)), timeout=20)
            replay.process.kill()
            replay.process.wait()
        one.settled("live")
        so_far = one.count("live")
        assert so_far < 800
        told = one.replay(*window)  # as fast as it goes: the pace is no part of what it is
        eventually(lambda: one.count("live") == 800, timeout=20)
        one.settled("live")
    assert (told["finished"], told["given"], told["earlier"] > 0) == (True, 400, True)
    assert set(Counter(one.handled("live")).values()) == {2}
    again: dict[str, list[int]] = defaultdict(list)
    for player, n in one.handled("live")[400:]:
        again[player].append(n)
    assert all(numbers == [*range(100)] for numbers in again.values())


def test_a_worker_that_is_killed_meanwhile_loses_nothing_and_no_order(one: Game) -> None:
    one.publish(["a", "b", "c", "d"], 0, 60)
    one.commands.env["SLOW"] = "0.002"
    with one.commands.started("worker", "game:app", "--group", "live") as first:
        eventually(lambda: one.count("live") == 240, timeout=20)
        one.settled("live")
        told = one.replay("--from", "earliest", "--to", "latest", "--into-group", "live")
        assert told["given"] == 240
        eventually(lambda: one.count("live") > 260, timeout=20)
        first.process.kill()
        first.process.wait()
    with one.commands.started("worker", "game:app", "--group", "live"):
        one.settled("live")
    again: dict[str, list[int]] = defaultdict(list)
    for player, n in one.handled("live")[240:]:
        again[player].append(n)
    for numbers in again.values():
        assert sorted(set(numbers)) == [*range(60)]
        assert numbers == sorted(numbers)  # what ran when it died runs again, before the next


def test_a_giver_that_dies_holding_shards_stops_the_group_only_for_a_moment(
    one: Game, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "HOLD_MS", 700)
    old = one.publish(["a"], 0, 20)
    with one.commands.started("worker", "game:app", "--group", "live"):
        eventually(lambda: one.count("live") == 20, timeout=20)
        one.settled("live")
        ops = GiveOps(one.moves.sync.layout(), "live", "dies", "run")
        assert set(one.app.sync_link.run(ops.give(old, hold=True)).outcomes.values()) == {"given"}
        one.publish(["a"], 20, 5)
        eventually(lambda: one.count("live") == 45, timeout=20)
    assert [n for _, n in one.handled("live")[20:]] == [*range(25)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_keeps_a_rate_it_ends_at_once(one: Game, number: signal.Signals) -> None:
    one.publish(["a"], 0, 20)
    one.app.sync_link.run(GroupOps(one.moves.sync.layout(), "live", "").create("$"))
    window = ("--from", "earliest", "--to", "latest", "--into-group", "live")
    with one.commands.started("replay", "moves", *window, "--rate", "1/h") as replay:
        eventually(lambda: any(one.pending("live")), timeout=20)
        replay.process.send_signal(number)
        assert replay.ended(5) == 128 + number
        assert "run the same command again to go on" in replay.err
        assert "gave 1 of window" in replay.out
    assert one.replay(*window)["given"] == 20


# -- what a group has, and what it has not ---------------------------------------------------------------------------


class Bench:
    """A group "g" that a test moves by hand."""

    def __init__(self, game: Game) -> None:
        self.game, self.run = game, game.app.sync_link.run
        self.run(self.ops().create("0"))

    def ops(self, worker: str = "w1") -> GroupOps:
        return GroupOps(self.game.moves.sync.layout(), "g", worker)

    def fetch(self, count: int) -> list[Fetched]:
        return self.run(self.ops().fetch(count)).entries

    def ack(self, entries: list[Fetched]) -> list[EntryId]:
        assert self.run(self.ops().settle([Outcome(e.shard, e.id, 1, "ack") for e in entries])) == []
        return [e.shard.entry_id(e.id) for e in entries]

    def again(self) -> dict[EntryId, int]:
        """What waits for workers, and how often it was delivered."""
        return {
            shard.entry_id(item["message_id"]): item["times_delivered"]
            for shard in self.game.moves.sync.layout().every
            for item in self.game.raw.xpending_range(shard.stream, "g", "-", "+", 100_000, "~again")
        }

    def play(self, make: Callable[[], Giving]) -> ReplayResult:
        async def main() -> ReplayResult:
            async with self.game.app:
                return await make().run()

        return asyncio.run(main())

    def give(self, **options: Any) -> ReplayResult:
        return self.play(lambda: Giving(self.game.moves, "g", None, None, **options))


@pytest.fixture
def bench(game: Game) -> Bench:
    return Bench(game)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAGE", 3)
    monkeypatch.setattr(giving, "FAT", 7)
    monkeypatch.setattr(giving, "GATHER", 20)


@pytest.mark.usefixtures("small_pages")
def test_what_is_settled_is_given_and_all_else_is_left_and_counted(bench: Bench) -> None:
    game = bench.game
    ids = game.publish(["a", "b", "c", "d", "e"], 0, 40)
    settled = bench.ack(bench.fetch(100))
    busy = [e.shard.entry_id(e.id) for e in bench.fetch(30)]
    trimmed = settled[::7]
    for id in trimmed:
        shard = next(s for s in game.moves.sync.layout().every if s.number == id.shard)
        game.raw.xdel(shard.stream, id.redis)
    plan = asyncio.run(_plan(game, Giving(game.moves, "g", None, None)))
    assert (plan.given, plan.pending, plan.unread, plan.gone) == (100 - len(trimmed), 30, 70, 0)
    assert bench.again() == {}

    result = bench.give()
    assert (result.given, result.pending, result.unread) == (100 - len(trimmed), 30, 70)
    assert bench.again() == dict.fromkeys(sorted(set(settled) - set(trimmed)), 0)
    assert result.finished and result.done == len(ids) - len(trimmed)
    assert len(busy) == 30

    for shard in game.moves.sync.layout().every:
        assert game.raw.pttl(shard.given("g", result.name)) <= store.KEPT_MS
    second = bench.give()  # anew: what was given is pending now
    assert (second.given, second.pending, second.unread) == (0, 130 - len(trimmed), 70)


async def _plan(game: Game, replay: Giving) -> Any:
    async with game.app:
        return await replay.plan()


def test_sent_again_however_late_a_call_gives_nothing_twice(bench: Bench) -> None:
    bench.game.publish(["a", "b"], 0, 20)
    ids = sorted(bench.ack(bench.fetch(100)))
    ops = GiveOps(bench.game.moves.sync.layout(), "g", "mine", "run1")
    first = ops.give(ids[:30], hold=False)
    assert set(bench.run(first).outcomes.values()) == {"given"}
    assert bench.run(first).outcomes == dict.fromkeys(ids[:30], "given")
    for shard in bench.game.moves.sync.layout().every:  # they are handled
        found = [item["message_id"] for item in bench.game.raw.xpending_range(shard.stream, "g", "-", "+", 100)]
        if found:
            bench.game.raw.xack(shard.stream, "g", *found)
    bench.run(first)
    assert bench.again() == {}
    bench.run(ops.give(ids[20:], hold=False))
    assert sorted(bench.again()) == ids[30:]
    bench.run(GiveOps(bench.game.moves.sync.layout(), "g", "mine", "run2").give(ids[:5], hold=False))
    assert sorted(bench.again()) == [*ids[:5], *ids[30:]]


@pytest.mark.usefixtures("small_pages")
def test_a_page_that_redis_was_not_ready_for_is_not_passed_over(bench: Bench) -> None:
    """A server answers some calls of a write that it loads, or is busy, and does those behind them."""
    bench.game.publish(["a"], 0, 12)
    ids = sorted(bench.ack(bench.fetch(100)))
    op = GiveOps(bench.game.moves.sync.layout(), "g", "mine", "run1").give(ids, hold=False)
    first, second, *_ = op.calls
    [error] = bench.game.app.sync_link.exchange([second])
    assert isinstance(error, StoreUnavailable)
    assert bench.again() == {}
    assert set(bench.run(op).outcomes.values()) == {"given"}
    assert sorted(bench.again()) == ids
    for call in (second, first):
        [(verdicts, _)] = bench.game.app.sync_link.exchange([call])
        assert verdicts == b"bbb"


def test_conditions_decide_and_are_part_of_what_it_is(bench: Bench) -> None:
    bench.game.publish(["a", "b"], 0, 20)
    bench.ack(bench.fetch(100))
    result = bench.give(where=["n=7"], name="mine")
    assert (result.given, result.skipped) == (2, 38)
    with pytest.raises(ConfigError, match="no field 'nn'"):
        bench.give(where=["nn=7"])


def test_the_whole_window_under_a_full_memory(own_server: Server, namespace: str, tmp_path: Path) -> None:
    with contextlib.closing(Game(own_server, namespace, tmp_path)) as game:
        bench = Bench(game)
        game.publish(["a", "b"], 0, 50)
        ids = bench.ack(bench.fetch(1000))
        game.raw.config_set("maxmemory", 1)
        assert bench.give().given == 100
        assert sorted(bench.again()) == sorted(ids)


def test_a_group_that_has_much_waiting_is_waited_for(one: Game, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(giving, "MOST", 20)
    monkeypatch.setattr(giving, "GATHER", 40)
    bench = Bench(one)
    one.publish(["a"], 0, 100)
    bench.ack(bench.fetch(1000))
    said: list[str] = []

    async def main() -> None:
        async with one.app:
            replay = Giving(one.moves, "g", None, None, notice=said.append)
            task = asyncio.create_task(replay.run())
            await eventually_async(lambda: said)
            assert len(bench.again()) < 100
            replay.stop()
            result = await task
            assert not result.finished and result.given == len(bench.again())

    monkeypatch.setattr("rstream.store.log.PAGE", 30)
    asyncio.run(main())
    assert "no worker has taken yet" in said[0]


def test_there_must_be_such_a_group(one: Game) -> None:
    one.publish(["a"], 0, 3)
    Bench(one)

    async def main() -> None:
        async with one.app:
            await into_group(one.moves, "nobody", None, None)

    with pytest.raises(ConfigError, match="no group 'nobody' reads stream 'moves': there are g; to make one"):
        asyncio.run(main())


def test_on_a_cluster(cluster: Cluster, namespace: str) -> None:
    handled: list[tuple[str, int]] = []

    async def main() -> None:
        async with RStream(cluster.url, namespace=namespace) as app:
            moves = app.stream("moves", Move, key="player", shards=6)

            @moves.consumer("live", lease=1.0)
            async def live(move: Move, delivery: Delivery) -> None:
                handled.append((move.player, move.n))

            players = [f"p{n}" for n in range(12)]
            await moves.publish_many(Move(player=player, n=n) for n in range(20) for player in players)
            worker = Worker(app)
            working = asyncio.create_task(worker.serve(signals=False))
            await eventually_async(lambda: len(handled) == 240, timeout=20)
            result = await into_group(moves, "live", None, None)
            assert (result.given, result.pending) in {(240, 0), *((240 - n, n) for n in range(30))}
            await eventually_async(lambda: len(handled) == 240 + result.given, timeout=20)
            worker.stop()
            await working

    asyncio.run(main())
    again: dict[str, list[int]] = defaultdict(list)
    for player, n in handled[240:]:
        again[player].append(n)
    assert all(numbers == sorted(set(numbers)) for numbers in again.values())


async def test_workers_do_not_ask_for_every_look_about_all_that_waits(own_server: Server, namespace: str) -> None:
    async with RStream(own_server.url, namespace=namespace) as app:
        moves = app.stream("moves", Move, key="player", shards=1)
        handled = 0

        @moves.consumer("live")
        async def live(move: Move) -> None:
            nonlocal handled
            handled += 1

        await moves.publish_many(Move(player=f"p{n % 40}", n=n) for n in range(4000))
        worker = Worker(app, ["live"])
        working = asyncio.create_task(worker.serve(signals=False))
        await eventually_async(lambda: handled == 4000, timeout=20)
        with redis.Redis.from_url(own_server.url) as raw:
            raw.config_resetstat()
            await into_group(moves, "live", None, None)
            await eventually_async(lambda: handled == 8000, timeout=30)
            asked = raw.info("commandstats")["cmdstat_xpending"]["calls"]
        worker.stop()
        await working
        assert asked < 4000 * 12  # given, claimed, begun and settled: four each


# -- a stream that was resharded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"rate": 2000}], ids=["at once", "at a rate"])
@pytest.mark.parametrize("ordered", [True, False])
async def test_older_generations_come_again_before_newer_ones(
    one_app: RStream, ordered: bool, options: dict[str, Any]
) -> None:
    moves = one_app.stream("moves", Move, key="player", shards=3)
    handled: list[tuple[str, int]] = []
    running: set[str] = set()

    @moves.consumer("live", lease=1.0, ordered=ordered)
    async def live(move: Move, delivery: Delivery) -> None:
        assert move.player not in running or not ordered
        running.add(move.player)
        await asyncio.sleep(0)
        running.discard(move.player)
        handled.append((move.player, move.n))

    async def publish(first: int) -> None:
        await moves.publish_many(Move(player=f"p{p}", n=n) for n in range(first, first + 20) for p in range(8))

    await publish(0)
    await as_group(moves, "keeps", "earliest")  # so that the old shards stay
    worker = Worker(one_app, ["live"])
    working = asyncio.create_task(worker.serve(signals=False))
    await eventually_async(lambda: len(handled) == 160, timeout=20)
    await moves.reshard(5)
    await publish(20)
    await eventually_async(lambda: len(handled) == 320, timeout=20)
    layout = await moves.layout(fresh=True)
    await eventually_async(lambda: none_pending(one_app, layout), timeout=20)

    result = await into_group(moves, "live", None, None, **options)
    assert (result.given, result.pending) == (320, 0)
    await eventually_async(lambda: len(handled) == 640, timeout=20)
    worker.stop()
    await working
    assert worker.counts.refused == worker.counts.failed == 0
    again: dict[str, list[int]] = defaultdict(list)
    for player, n in handled[320:]:
        again[player].append(n)
    assert all(sorted(numbers) == [*range(40)] for numbers in again.values())
    assert not ordered or all(numbers == [*range(40)] for numbers in again.values())


async def none_pending(app: RStream, layout: Any) -> bool:
    (group,) = [group for group in await app.link.run(group_stats(layout)) if group.name == "live"]
    return not group.pending


# -- dying at every step ----------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("answered", [True, False])
def test_killed_after_any_step_each_entry_is_given_once(
    one: Game, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """answered: whether what was sent last was done before."""
    monkeypatch.setattr("rstream.store.log.PAGE", 8)
    bench = Bench(one)
    one.publish(["a", "b", "c"], 0, 30)
    ids = bench.ack(bench.fetch(1000))
    given: Counter[EntryId] = Counter()

    class Dies(Giving):
        left = 0

        async def _send(self, op: Any) -> Any:
            self.left -= 1
            if self.left < 0 and not answered:
                raise Killed
            came = await super()._send(op)
            if self.left < 0:
                raise Killed
            return came

        async def _leave(self) -> None:
            """Who is killed stores nothing."""
            await asyncio.to_thread(self._keeper.stop)

    async def main() -> None:
        async with one.app:
            for steps in range(4, 200, 3):
                run = Dies(one.moves, "g", None, None, lease=0.2)
                run.left = steps
                with contextlib.suppress(Killed):
                    assert (await run.run()).finished
                    return
                handle_all()
                if run.left < 0 and not one.stored():  # it was killed when it had just ended
                    return
            raise AssertionError("it never ends")

    def handle_all() -> None:
        for id in bench.again():
            given[id] += 1
            shard = next(s for s in one.moves.sync.layout().every if s.number == id.shard)
            one.raw.xack(shard.stream, "g", id.redis)

    asyncio.run(main())
    handle_all()
    assert given == dict.fromkeys(ids, 1)


# -- a storm ----------------------------------------------------------------------------------------------------------


@pytest.mark.torture
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(4))
def test_while_workers_die_and_freeze_keys_come_again_in_order(one: Game, seed: int) -> None:
    """Windows of all sizes, given in all ways, by givers that are killed, too."""
    dice, players, count = random.Random(seed), [f"p{n}" for n in range(6)], 0
    one.commands.env["SLOW"] = "0.001"
    workers = contextlib.ExitStack()

    def start() -> Any:
        return workers.enter_context(one.commands.started("worker", "game:app", "--group", "live"))

    with workers:
        running = [start(), start()]
        for round in range(6):
            one.publish(players, count, 50)
            count += 50
            eventually(lambda total=6 * count: len({*one.handled("live")}) == total, timeout=30)  # type: ignore[misc]
            one.settled("live")
            begun = one.count("live")
            first, last = sorted(dice.sample([entry.id for entry in one.moves.sync.read()], 2))
            stored = [*one.moves.sync.read(first, last)]
            window = ("--from", str(first), "--to", str(last), "--into-group", "live")
            pace = dice.choice([(), (), ("--rate", "500/s")])
            with one.commands.started("replay", "moves", *window, *pace) as giver:
                for _ in range(dice.randrange(3)):
                    struck = running.pop(dice.randrange(len(running)))
                    goal = one.count("live") + 3
                    eventually(lambda at=goal: one.count("live") >= at or giver.process.poll() is not None, timeout=20)  # type: ignore[misc]
                    struck.process.send_signal(dice.choice([signal.SIGKILL, signal.SIGTERM]))
                    running.append(start())
                if dice.random() < 0.5:
                    giver.process.kill()
                giver.process.wait()
            if giver.process.returncode != 0:
                one.replay(*window)
            one.settled("live")
            again: dict[str, list[int]] = defaultdict(list)
            for player, n in one.handled("live")[begun:]:
                if n not in again[player]:
                    again[player].append(n)
            wanted: dict[str, list[int]] = defaultdict(list)
            for entry in stored:
                wanted[entry.event.player].append(entry.event.n)
            assert again == wanted, (round, window)
