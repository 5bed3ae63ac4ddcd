"""A worker that handles one shard of an ordered group, in small: Redis, the worker's loops and another worker, played
one step at a time, with the real `PerKey`. Whatever can happen between two steps of one of them happens here.

What the worker does with `PerKey` is modelled, and what it must heed: it learns what is pending before what is put
aside, and puts nothing before that; only then it asks what became of the former; it takes a shard back only when all it
had sent back to Redis, unstarted, has arrived; it takes a shard anew, by another token, when a call that may bring
something has no answer: such a call may be done when nobody thinks of it any more.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from rstream.store import keys
from rstream.store.deliveries import Fetched
from rstream.store.keys import Shard
from rstream.worker.order import Lane, Now, PerKey

SHARD = keys.shard("test", "orders", 1, 0, 1)
KEYS = [b"a", b"b"]


def entry(id: bytes, key: bytes, deliveries: int = 1, source: str | None = None, shard: Shard = SHARD) -> Fetched:
    return Fetched(shard, id, [b"e", b"payload", b"k", key], deliveries, source)


class Pending(NamedTuple):
    holder: str
    deliveries: int


class Redis:
    """This worker is "me", whoever owns the shard while it does not is "other".

    silent: "me" seems to be dead · runs: what "other" still ran when it lost the shard.
    """

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.key: dict[bytes, bytes] = {}
        self.read = 0
        self.pending: dict[bytes, Pending] = {}
        self.ended: set[bytes] = set()
        self.owner, self.silent, self.token = "me", False, 0
        self.runs: set[bytes] = set()

    def publish(self, key: bytes) -> None:
        n = len(self.log)
        self.log.append(b"%d-%d" % (8 + n // 3, 9 + n % 3))  # as text they sort otherwise
        self.key[self.log[-1]] = key

    def fetch(self, who: str, count: int) -> list[bytes]:
        new = self.log[self.read : self.read + count]
        self.read += len(new)
        self.pending.update((id, Pending(who, 1)) for id in new)
        return new

    def held_by(self, *holders: str) -> list[bytes]:
        return [id for id in self.log if id in self.pending and self.pending[id].holder in holders]

    def aside(self, key: bytes) -> list[bytes]:
        return [id for id in self.held_by("~parked") if self.key[id] == key]

    def is_next(self, id: bytes) -> bool:
        """Whether all earlier ones of its key have ended."""
        earlier = self.log[: self.log.index(id)]
        return all(other in self.ended for other in earlier if self.key[other] == self.key[id])

    def end(self, id: bytes) -> None:
        assert self.is_next(id), f"{id!r} ended before an earlier one of its key"
        del self.pending[id]
        self.ended.add(id)

    def give(self, id: bytes, holder: str, more: int = 0) -> None:
        self.pending[id] = Pending(holder, self.pending[id].deliveries + more)


class Outcome(NamedTuple):
    """to: who gets it, with `begun` attempts; "" = nobody, it is acked · ran: the handler did."""

    id: bytes
    attempt: int
    to: str = ""
    begun: int = 0
    ran: bool = False


class Worker:
    """What run.py, settle.py and own.py do with a `PerKey`.

    state: it is out, has asked, learned and looked, and is in · term: the lease's · own_term, token: those by which it
    owns the shard · in_hand: by which term · stranded: something may be pending for it that it does not have in hand.
    """

    def __init__(self) -> None:
        self.redis, self.order = Redis(), PerKey()
        self.state, self.term, self.own_term, self.token = "in", 0, 0, 0
        self.in_hand: dict[bytes, int] = {}
        self.back: dict[bytes, tuple[Fetched, int, int | None]] = {}
        self.handed: list[Fetched] = []
        self.running: list[tuple[bytes, int]] = []
        self.queue: list[Outcome] = []
        self.answers: list[tuple[Outcome, bool]] = []
        self.stranded = False

    def fetched(self, id: bytes, source: str | None) -> Fetched:
        return entry(id, self.redis.key[id], self.redis.pending[id].deliveries, source)

    def hand_out(self, entry: Fetched | None) -> None:
        if entry is not None:
            assert entry.id in self.in_hand and all(entry.id != other.id for other in self.handed), "handed out twice"
            assert self.redis.is_next(entry.id), f"{entry.id!r} handed out before an earlier one of its key had ended"
            self.handed.append(entry)

    def take(self, entries: list[Fetched], term: int, token: int | None = None) -> None:
        astray = []
        for each in entries:
            if each.id not in self.in_hand:
                self.in_hand[each.id] = term
                if self.state == "in" and self.own_term == self.term and token in (None, self.token):
                    self.hand_out(self.order.put(each))
                else:
                    astray.append(each)
            elif each.source is not None:
                self.back[each.id] = each, term, token
            else:
                self.order.learn(SHARD, each.id, each.flat[3])
        for each in astray:
            self.hand_over(each)

    def take_back(self, lane: Lane, entries: list[Fetched], first: bytes | None, term: int, token: int) -> None:
        if not self.order.knows(lane):
            return self.take(entries, term, token)
        new = [each for each in entries if each.id not in self.in_hand]
        for each in entries:
            if each not in new:
                self.order.learn(SHARD, each.id, lane.key)
                self.back[each.id] = each, term, token
        self.in_hand.update((each.id, term) for each in new)
        self.hand_out(self.order.came_back(lane, new, len(entries) - len(new), first))

    def hand_over(self, entry: Fetched) -> None:
        self.send_back(entry, "~retry" if entry.source in ("~retry", "~unsure") else "~released")

    def send_back(self, entry: Fetched, to: str) -> None:
        """What was not started."""
        self.queue.append(Outcome(entry.id, entry.deliveries, to, entry.deliveries - (entry.source is None)))

    @property
    def returns(self) -> bool:
        """Whether something that was not started is on its way back to Redis."""
        return any(not each.ran for each in (*self.queue, *(outcome for outcome, _ in self.answers)))

    def start(self, entry: Fetched) -> None:
        ours = self.redis.pending.get(entry.id) == Pending("me", entry.deliveries)
        mine = self.state == "in" and self.in_hand.get(entry.id) == self.term and not self.redis.silent
        if not (mine and (ours or entry.source is None)):
            self.let_go(entry.id)
            self.stranded = True
            return
        begin = entry.source is not None
        if begin:
            self.redis.give(entry.id, "me", 1)
        self.running.append((entry.id, entry.deliveries + begin))

    def send(self) -> None:
        queue, self.queue = self.queue, []
        self.answers = [(outcome, self.accepts(outcome)) for outcome in queue]

    def accepts(self, outcome: Outcome) -> bool:
        if self.redis.pending.get(outcome.id) != Pending("me", outcome.attempt):
            return False
        assert not outcome.ran or self.redis.is_next(outcome.id), "an outcome out of order"
        if outcome.to:
            self.redis.pending[outcome.id] = Pending(outcome.to, outcome.begun)
        else:
            self.redis.end(outcome.id)
        return True

    def answer(self) -> None:
        answers, self.answers = self.answers, []
        for outcome, accepted in answers:
            now: dict[str, Now] = {"": "ended", "~parked": "aside"}
            self.let_go(outcome.id, now.get(outcome.to, "elsewhere") if accepted else "elsewhere")

    def let_go(self, id: bytes, now: Now = "elsewhere") -> None:
        self.in_hand.pop(id, None)
        ended = now == "ended"
        follow = self.order.end_all([(SHARD, id)]) if ended else [self.order.let_go(SHARD, id, now)]
        self.hand_out(next(iter(follow), None))
        back = self.back.pop(id, None)
        if back is not None and now != "ended":
            self.take([back[0]], back[1], back[2])

    def adopt(self) -> None:
        self.stranded = False
        mine = [self.fetched(id, "~unsure") for id in self.redis.held_by("me") if id not in self.in_hand]
        self.take(mine, self.term, self.token)

    def beat(self) -> None:
        """The lease holds again."""
        self.term += self.redis.silent
        self.redis.silent = False

    def drop(self) -> list[Fetched]:
        self.state = "out"
        dropped = self.handed + self.order.drop(SHARD)
        self.handed = []
        return dropped

    def give_up(self) -> None:
        if self.redis.owner == "me":
            self.redis.owner = ""
        for each in self.drop():
            self.hand_over(each)

    def lose(self) -> None:
        for each in self.drop():
            self.let_go(each.id)
        self.stranded = True

    def doubt(self, token: int) -> None:
        self.stranded = True
        if self.state != "out" and self.token == token:
            self.lose()

    def own(self) -> None:
        redis, self.state = self.redis, "asked"
        self.token, self.own_term = self.token + 1, self.term
        redis.token = self.token
        redis.owner, redis.runs = "me", {id for id in redis.held_by("other") if redis.is_next(id)}
        self.heirs = [(id, pending.holder) for id, pending in redis.pending.items() if pending.holder != "~parked"]

    def inherit(self) -> None:
        """The next step of taking a shard."""
        redis = self.redis
        if self.state == "asked":
            self.state = "learned"
            for id, holder in self.heirs:
                self.order.learn(SHARD, id, redis.key[id])
                self.stranded = self.stranded or (holder == "me" and id not in self.in_hand)
        elif self.state == "learned":
            self.state = "looked"
            self.parked = {key: ids for key in KEYS if (ids := redis.aside(key))}
        else:
            self.state = "in"
            for key, ids in self.parked.items():
                self.order.is_aside(SHARD, key, ids[0], len(ids))


class Step(NamedTuple):
    """A step that can be taken when it makes sense; the dice say how. The heavier, the more often."""

    when: Callable[[Play], object]
    take: Callable[[Play, Random], None]
    weight: float


STEPS: dict[str, Step] = {}


def step(when: Callable[[Play], object], weight: float = 1.0) -> Callable[[Callable[[Play, Random], None]], None]:
    def register(take: Callable[[Play, Random], None]) -> None:
        STEPS[take.__name__] = Step(when, take, weight)

    return register


class Play:
    """arriving, told, unparking, moves: what the loops wait for (fetch and recovery, recovery, park, park) · asked: the
    lanes that are to be brought back · late: calls that Redis has not come to read, each with its token.
    """

    def __init__(self, worker: type[Worker] = Worker) -> None:
        self.worker = worker()
        self.redis, self.order = self.worker.redis, self.worker.order
        self.arriving: tuple[str, list[Fetched], int, int] | None = None
        self.told: tuple[int, list[tuple[bytes, str]]] | None = None
        self.unparking: tuple[Lane, list[Fetched], bytes | None, int, int] | None = None
        self.moves: dict[Lane, int] | None = None
        self.asked: list[Lane] = []
        self.late: list[tuple[int, Callable[[], object]]] = []

    @property
    def owns(self) -> bool:
        """Whether Redis lets it read."""
        return self.worker.state == "in" and self.redis.owner == "me"

    def next_hungry(self) -> Lane:
        if not self.asked:
            self.asked = self.order.ask_back()
        return self.asked.pop()

    @property
    def recovering(self) -> bool:
        return self.arriving is not None and self.arriving[0] == "recover"

    @property
    def idle_park(self) -> bool:
        return self.unparking is None and self.moves is None

    def check(self) -> None:
        """What holds always."""
        lanes = list(self.order._lanes.values())
        waiting = [each for lane in lanes for each in lane.waiting or ()]
        assert self.order.backlog == len(waiting)
        assert self.order.size == sum(len(each.flat[1]) for each in waiting)
        assert all(count >= 0 for count in self.order.outside.values())
        assert not any(lane.idle for lane in lanes), "an idle lane is kept"

    def finish(self) -> None:
        """From wherever it stands, everything that was published ends, and nothing stays in memory."""
        dice = Random(0)
        for _ in range(20 + 10 * len(self.redis.log)):
            self.go_on(dice)
            self.check()
            if self.redis.ended == set(self.redis.log) and not (self.worker.in_hand or self.order._lanes):
                break
        assert self.redis.ended == set(self.redis.log), "something is stuck"
        assert not (self.order._lanes or self.order.hungry or self.order.overflow), "something is left"
        assert (self.order.backlog, self.order.size, self.order.held) == (0, 0, 0)
        assert not self.order.elsewhere, "elsewhere left"

    def go_on(self, dice: Random) -> None:
        """Everybody does what there is to do, and no answer is lost."""
        worker, redis = self.worker, self.redis
        if redis.owner == "other":
            redis.owner = ""
        for id in redis.held_by("other"):
            if redis.is_next(id) and (redis.owner != "me" or id in redis.runs):
                redis.end(id)
            else:
                redis.give(id, "~parked")
        worker.beat()
        if worker.state == "in" and not self.owns:
            worker.lose()
        if worker.state == "out" and not worker.returns:
            worker.own()
        while worker.state not in ("in", "out"):
            worker.inherit()
        self.moves = None
        for waits, name in ((self.arriving, "arrive"), (self.told, "hear"), (self.unparking, "unparked")):
            if waits is not None:
                STEPS[name].take(self, dice)
        worker.answer()
        if worker.stranded:
            worker.adopt()
        while worker.handed:
            worker.start(worker.handed.pop())
        worker.queue += [Outcome(id, attempt, ran=True) for id, attempt in worker.running]
        worker.running.clear()
        for name in ("follow_aside", "send", "answer", "ask_elsewhere", "hear", "unpark", "unparked"):
            if STEPS[name].when(self):
                STEPS[name].take(self, dice)
        for name in ("recover", "arrive", "fetch", "arrive"):
            if STEPS[name].when(self):
                STEPS[name].take(self, dice)


# Publishing, fetching, recovering.


@step(lambda play: len(play.redis.log) < 20, 0.6)
def publish(play: Play, dice: Random) -> None:
    for _ in range(dice.randint(1, 5)):
        play.redis.publish(dice.choice(KEYS))


@step(lambda play: play.owns and not (play.arriving or play.worker.stranded or play.redis.read == len(play.redis.log)))
def fetch(play: Play, dice: Random) -> None:
    found = [play.worker.fetched(id, None) for id in play.redis.fetch("me", dice.randint(1, 8))]
    play.arriving = "fetch", found, play.worker.term, play.worker.token


@step(lambda play: play.owns and play.arriving is None and play.told is None)
def recover(play: Play, dice: Random) -> None:
    found = play.redis.held_by("~retry", "~released", "dead")
    some = dice.sample(found, len(found) - (len(found) > 1) * dice.randint(0, 1))
    claimed = [play.worker.fetched(id, play.redis.pending[id].holder) for id in some]
    for id in some:
        play.redis.give(id, "me")
    play.arriving = "recover", claimed, play.worker.term, play.worker.token


@step(lambda play: play.arriving is not None, 3)
def arrive(play: Play, dice: Random) -> None:
    assert play.arriving is not None
    play.arriving, (_, entries, term, token) = None, play.arriving
    play.worker.take(entries, term, token)


@step(lambda play: play.arriving or play.unparking, 0.3)
def lose_the_answer(play: Play, dice: Random) -> None:
    token = play.arriving[3] if play.arriving else play.unparking[4]
    if play.arriving:
        play.arriving = None
    else:
        play.unparking = None
    play.worker.doubt(token)


@step(lambda play: play.owns and play.arriving is None, 0.1)
def fetch_late(play: Play, dice: Random) -> None:
    play.late.append((play.worker.token, lambda: play.redis.fetch("me", 3)))
    play.worker.doubt(play.worker.token)


@step(lambda play: play.owns and play.arriving is None and play.told is None, 0.1)
def recover_late(play: Play, dice: Random) -> None:
    def claim() -> None:
        for id in play.redis.held_by("~retry", "~released", "dead"):
            play.redis.give(id, "me")

    play.late.append((play.worker.token, claim))
    play.worker.doubt(play.worker.token)


@step(lambda play: play.idle_park and (play.order.hungry or play.asked), 0.3)
def unpark_late(play: Play, dice: Random) -> None:
    lane = play.next_hungry()
    if play.order.knows(lane):
        play.late.append((play.worker.token, lambda: [play.redis.give(id, "me") for id in play.redis.aside(lane.key)]))
        play.worker.doubt(play.worker.token)


@step(lambda play: play.late, 0.5)
def do_late(play: Play, dice: Random) -> None:
    token, call = play.late.pop(dice.randrange(len(play.late)))
    if play.redis.owner == "me" and play.redis.token == token:
        call()


@step(lambda play: play.worker.stranded and not (play.redis.silent or play.arriving or play.told))
def adopt(play: Play, dice: Random) -> None:
    play.worker.adopt()


# Handling and settling.


@step(lambda play: play.worker.handed)
def start(play: Play, dice: Random) -> None:
    play.worker.start(play.worker.handed.pop(dice.randrange(len(play.worker.handed))))


@step(lambda play: play.worker.running)
def finish(play: Play, dice: Random) -> None:
    id, attempt = play.worker.running.pop(dice.randrange(len(play.worker.running)))
    play.worker.queue.append(Outcome(id, attempt, dice.choice(["", "", "~retry"]), attempt, True))


@step(lambda play: play.worker.queue and not play.worker.answers)
def send(play: Play, dice: Random) -> None:
    play.worker.send()


@step(lambda play: play.worker.answers, 3)
def answer(play: Play, dice: Random) -> None:
    play.worker.answer()


# What is pending elsewhere.


@step(lambda play: play.owns and play.order.elsewhere and play.told is None and not play.recovering)
def ask_elsewhere(play: Play, dice: Random) -> None:
    asked = [id for _, id in play.order.elsewhere]
    some = dice.sample(asked, dice.randint((len(asked) + 1) // 2, len(asked)))
    told = [(id, play.redis.pending[id].holder if id in play.redis.pending else "") for id in some]
    play.told = play.worker.token, told


@step(lambda play: play.told is not None, 2)
def hear(play: Play, dice: Random) -> None:
    assert play.told is not None
    (token, told), play.told = play.told, None
    for id, holder in told:
        if (SHARD, id) not in play.order.elsewhere or play.worker.token != token or play.worker.state != "in":
            continue
        if not holder:
            play.worker.hand_out(play.order.let_go(SHARD, id, "ended"))
        elif holder == "~parked":
            play.worker.hand_out(play.order.let_go(SHARD, id, "aside"))
        elif holder == "me" and id not in play.worker.in_hand:
            play.worker.stranded = True


# Putting aside, and bringing back: one loop.


@step(lambda play: play.idle_park and not play.asked and play.order.backlog)
def look_who_moves(play: Play, dice: Random) -> None:
    play.moves = play.order.moves()


@step(lambda play: play.moves is not None, 2)
def put_aside(play: Play, dice: Random) -> None:
    assert play.moves is not None
    for each in play.order.put_aside(play.moves):
        play.worker.send_back(each, "~parked")
    play.moves = None


@step(lambda play: play.idle_park and not play.asked and play.order.overflow)
def follow_aside(play: Play, dice: Random) -> None:
    for each in play.order.take_overflow():
        play.worker.send_back(each, "~parked")


@step(lambda play: play.idle_park and (play.order.hungry or play.asked))
def unpark(play: Play, dice: Random) -> None:
    lane, limit = play.next_hungry(), dice.randint(1, 3)
    if not play.order.knows(lane):
        return
    if not play.owns:
        play.worker.lose()
        return
    aside = play.redis.aside(lane.key)
    for id in aside[:limit]:
        play.redis.give(id, "me")
    entries = [play.worker.fetched(id, "~parked") for id in aside[:limit]]
    play.unparking = lane, entries, aside[limit] if aside[limit:] else None, play.worker.term, play.worker.token


@step(lambda play: play.unparking is not None, 2)
def unparked(play: Play, dice: Random) -> None:
    assert play.unparking is not None
    play.unparking, (lane, entries, first, term, token) = None, play.unparking
    play.worker.take_back(lane, entries, first, term, token)


# Shards come and go.


@step(lambda play: play.worker.state == "in", 0.1)
def give_up(play: Play, dice: Random) -> None:
    play.worker.give_up()


@step(lambda play: play.worker.state != "out", 0.1)
def lose(play: Play, dice: Random) -> None:
    play.worker.lose()


@step(lambda play: play.redis.owner == "me", 0.1)
def lose_unawares(play: Play, dice: Random) -> None:
    play.redis.owner, play.redis.silent = "other", True


@step(lambda play: play.redis.silent)
def beat(play: Play, dice: Random) -> None:
    play.worker.beat()


@step(
    lambda play: (
        play.worker.state == "out" and play.redis.owner != "other" and not (play.redis.silent or play.worker.returns)
    )
)
def own(play: Play, dice: Random) -> None:
    play.worker.own()


@step(lambda play: play.worker.state in ("asked", "learned", "looked"), 2)
def inherit(play: Play, dice: Random) -> None:
    play.worker.inherit()


# Another worker.


@step(lambda play: play.redis.owner != "me", 0.6)
def other_owns(play: Play, dice: Random) -> None:
    redis, what = play.redis, dice.choice(["read", "claim", "rob", "leave"])
    redis.owner = "" if what == "leave" else "other"
    if what == "read":
        redis.fetch("other", dice.randint(1, 8))
    elif what == "claim" or redis.silent:
        found = redis.held_by("~retry", "~released", "~parked", "dead") if what == "claim" else redis.held_by("me")
        for id in dice.sample(found, dice.randint(0, len(found))):
            redis.give(id, "other")


@step(lambda play: play.redis.held_by("other"))
def other_ends(play: Play, dice: Random) -> None:
    redis, to = play.redis, dice.choice(["", "~retry", "~released", "~parked"])
    id = dice.choice(redis.held_by("other"))
    if to in ("~released", "~parked"):
        redis.give(id, to)
    elif id in redis.runs if redis.owner == "me" else redis.is_next(id):
        if to:
            redis.give(id, to, 1)
        else:
            redis.end(id)


@step(lambda play: play.redis.held_by("other"), 0.2)
def other_dies(play: Play, dice: Random) -> None:
    for id in play.redis.held_by("other"):
        play.redis.give(id, "dead")
    if play.redis.owner == "other":
        play.redis.owner = ""


# Playing.

Script = list[tuple[str, int]]
"""Steps, each with the seed of its dice: what is left out of a script does not change the other steps."""


def random_script(seed: int, worker: type[Worker] = Worker) -> Script:
    """Steps that can be taken, one after the other; up to the one that fails, if one does."""
    rng = Random(seed)
    weights = {name: step.weight * rng.choice([0.1, 1, 1, 3]) for name, step in STEPS.items()}
    script: Script = []
    play = Play(worker)
    try:
        for _ in range(rng.randint(10, 150)):
            names = [name for name, step in STEPS.items() if step.when(play)]
            name = rng.choices(names, [weights[name] for name in names])[0]
            script.append((name, rng.randrange(1000)))
            STEPS[name].take(play, Random(script[-1][1]))
            play.check()
    except Exception:
        pass  # whoever replays it will see
    return script


def replay(script: Script, worker: type[Worker] = Worker) -> Exception | None:
    """What goes wrong."""
    play = Play(worker)
    try:
        for name, seed in script:
            if STEPS[name].when(play):
                STEPS[name].take(play, Random(seed))
                play.check()
        play.finish()
    except Exception as error:
        return error
    return None


def shortest(script: Script, worker: type[Worker] = Worker) -> Script:
    """The script without the steps that it takes not to fail."""
    for at in reversed(range(len(script))):
        if replay(shorter := script[:at] + script[at + 1 :], worker) is not None:
            return shortest(shorter, worker)
    return script
