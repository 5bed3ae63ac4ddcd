"""What a link has to know of a Redis Cluster: which master serves which key, and what redirections mean. No I/O.

A `Topology` is what one node said. An `Atlas` keeps the newest, and knows when to doubt it. A `Round` takes one
exchange through the cluster: it says what goes where, is told the answers, and says what goes where next.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rstream.errors import StoreError, StoreUnavailable
from rstream.store.keys import SLOTS, slot_of
from rstream.store.scripts import Arg, Call
from rstream.store.url import Address

if TYPE_CHECKING:
    from rstream.store.connect import Endpoint

SURVEY: Call = ("CLUSTER", "SLOTS")
"""What a node is asked for its view of the cluster."""

SURVEY_TIMEOUT = 1.0
"""Seconds that one node may be silent before the next one is asked."""

FEW = 3

HOPS = 5
"""How often a call is sent on within one exchange: once after a failover, twice where its slot is moving."""

ASKING: Call = ("ASKING",)

_KEYLESS = {
    *("TIME", "INFO", "PING", "WAIT", "SCRIPT", "ROLE", "CLUSTER", "CONFIG", "CLIENT", "ACL", "COMMAND", "DBSIZE"),
    *("FLUSHALL", "FLUSHDB", "SCAN", "KEYS", "LATENCY", "SLOWLOG"),
}
_EVALS = {"EVALSHA", "EVAL", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO"}
_CONTAINERS = {"XINFO", "XGROUP", "MEMORY", "OBJECT"}


def key_of(call: Call) -> Arg | None:
    """The first key of a command (all its keys share a slot), or None where any server may answer it."""
    name = call[0]
    if name in _EVALS:
        return call[3] if int(call[2]) else None
    if name in ("XREADGROUP", "XREAD"):
        # A group or a consumer may be called STREAMS.
        return call[call.index("STREAMS", 4 if name == "XREADGROUP" else 1) + 1]
    if name in _KEYLESS:
        return None
    return call[2 if name in _CONTAINERS else 1]


def _address(host: bytes | str | None, port: int, asked: Address) -> Address:
    """A node that does not know its own name has the one by which we reached who told us."""
    text = host.decode() if isinstance(host, bytes) else host
    return (asked[0] if text in (None, "", "?") else str(text), int(port))


class Topology:
    """Which master serves a slot."""

    def __init__(self) -> None:
        self._owners: list[Address | None] = [None] * SLOTS
        self.masters: tuple[Address, ...] = ()
        self.replicas: tuple[Address, ...] = ()

    @classmethod
    def parse(cls, reply: Sequence[Any], asked: Address) -> Topology:
        """From a reply to SURVEY by the node at `asked`."""
        topology = cls()
        masters: dict[Address, None] = {}
        replicas: dict[Address, None] = {}
        for first, last, *nodes in reply:
            owner, *others = (_address(host, port, asked) for host, port, *_ in nodes)
            topology._owners[first : last + 1] = [owner] * (last + 1 - first)
            masters[owner] = None
            replicas.update(dict.fromkeys(others))
        topology.masters, topology.replicas = tuple(masters), tuple(replicas)
        return topology

    def owner(self, slot: int) -> Address | None:
        return self._owners[slot]

    def move(self, slot: int, owner: Address) -> None:
        self._owners[slot] = owner


def _shuffled(nodes: Sequence[Address]) -> list[Address]:
    return random.sample(nodes, len(nodes))


class Atlas:
    """What a link knows of its cluster. doubted: ask before the next exchange."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._seeds = endpoint, endpoint.seeds
        self.topology = Topology()
        self.doubted = True
        self._silent: set[Address] = set()
        self._informed: Address | None = None
        self._trouble: StoreUnavailable | None = None

    @property
    def nodes(self) -> set[Address]:
        """All that may be sent to."""
        return {*self.topology.masters, *self.topology.replicas, *self._seeds}

    def witnesses(self) -> list[Address]:
        """Whom to ask for the topology, in this order: who took a slot over last, a few nodes that serve, those of
        the URL (all others may have got new addresses), the rest; and last who did not answer the last time.
        """
        # At random: any of them may be behind the others.
        known = [node for nodes in (self.topology.masters, self.topology.replicas) for node in _shuffled(nodes)]
        informed = () if self._informed is None else (self._informed,)
        order = dict.fromkeys((*informed, *known[:FEW], *_shuffled(self._seeds), *known))
        return sorted(order, key=self._silent.__contains__)

    def anyone(self) -> Address | None:
        """A master, for what has no key."""
        masters = self.topology.masters
        return next((master for master in masters if master not in self._silent), masters[0] if masters else None)

    def hear(self, witness: Address, told: Any) -> bool:
        """Take a node's reply to SURVEY, or why it gave none. False: ask the next one. Raises what no other node
        would answer differently.
        """
        if isinstance(told, StoreError):
            if not isinstance(told, StoreUnavailable):
                raise told
            self._trouble = told
            self._silent.add(witness)
            return False
        self._silent.discard(witness)
        topology = Topology.parse(told, witness)
        if not topology.masters:  # it was taken out of the cluster
            return False
        self.topology, self.doubted, self._informed, self._trouble = topology, False, None, None
        self._silent &= self.nodes
        return True

    def unheard(self) -> StoreUnavailable:
        """The error when nobody told."""
        if self._trouble is None:
            return self._endpoint.unavailable("no node serves any slot", hint="is the cluster set up?")
        trouble = copy.copy(self._trouble)
        trouble.sent = False  # the question was; what it was asked for was not
        return trouble

    def moved(self, slot: int, to: Address) -> None:
        self.topology.move(slot, to)
        self.doubted, self._informed = True, to

    def silent(self, address: Address) -> None:
        self._silent.add(address)
        self.doubted = True

    def spoke(self, address: Address) -> None:
        self._silent.discard(address)


@dataclass(frozen=True, slots=True)
class Part:
    """What goes to one node in one write. numbers: which calls of the exchange these are."""

    address: Address
    numbers: list[int]
    calls: list[Call]
    asking: bool

    def split(self, answers: list[Any]) -> tuple[list[Any], list[Any]]:
        """The replies to the calls, and that to WAIT where there was one."""
        step = 2 if self.asking else 1
        end = step * len(self.numbers)
        return answers[step - 1 : end : step], answers[end:]


class Round:
    """One exchange with a cluster. A WAIT at the end of its calls goes to every node that gets any of the others."""

    def __init__(self, calls: Sequence[Call], atlas: Atlas, endpoint: Endpoint) -> None:
        self._wait = list(calls[-1:]) if calls and calls[-1][0] == "WAIT" else []
        self._calls = calls[: len(calls) - len(self._wait)]
        self._atlas, self._endpoint = atlas, endpoint
        self._slots = [None if (key := key_of(call)) is None else slot_of(key) for call in self._calls]
        self._replies: list[Any] = [None] * len(self._calls)
        self._left: dict[int, Address | None] = dict.fromkeys(range(len(self._calls)))  # and whom we were told to ask
        self._hops = 0
        self._confirmed: list[Any] = []

    def parts(self) -> list[Part]:
        """What to send now. Empty when every call has its reply."""
        grouped: dict[tuple[Address, bool], list[int]] = {}
        self._hops += 1
        for number, told in self._left.items():
            to = told or self._owner(self._slots[number])
            if to is None or self._hops > HOPS:
                why = "nobody serves one of the slots" if to is None else "a slot is sent from node to node"
                self._atlas.doubted = True
                self._replies[number] = self._endpoint.unavailable(why, hint="is the cluster whole?")
            else:
                grouped.setdefault((to, told is not None), []).append(number)
        self._left = {}
        return [self._part(to, asking, numbers) for (to, asking), numbers in grouped.items()]

    def _owner(self, slot: int | None) -> Address | None:
        return self._atlas.anyone() if slot is None else self._atlas.topology.owner(slot)

    def _part(self, address: Address, asking: bool, numbers: list[int]) -> Part:
        prefix = (ASKING,) if asking else ()
        calls = [call for number in numbers for call in (*prefix, self._calls[number])]
        return Part(address, numbers, calls + self._wait, asking)

    def take(self, part: Part, answers: list[Any] | StoreError) -> None:
        """What came back for a part: raw replies, or why none did."""
        if isinstance(answers, StoreError):
            if isinstance(answers, StoreUnavailable):
                self._atlas.silent(part.address)
            for number in part.numbers:
                self._replies[number] = answers
            return
        self._atlas.spoke(part.address)
        replies, confirmed = part.split(answers)
        for number, reply in zip(part.numbers, replies, strict=True):
            if isinstance(reply, Exception):
                self._take_error(part, number, reply)
            else:
                self._replies[number] = reply
        if not all(isinstance(reply, Exception) for reply in replies):
            self._confirmed += confirmed

    def _take_error(self, part: Part, number: int, error: Exception) -> None:
        from redis.exceptions import AskError, MovedError

        if isinstance(error, AskError):
            to: Address | None = _address(error.host, error.port, part.address)
            slot = self._slots[number]
            if isinstance(error, MovedError) and slot is not None and to is not None:
                self._atlas.moved(slot, to)
                to = None  # the topology knows
            self._left[number] = to
            return
        self._replies[number] = meaning = self._endpoint.reply_error(error)
        if isinstance(meaning, StoreUnavailable):
            self._atlas.doubted = True

    def replies(self) -> list[Any]:
        """In the order of the calls, errors as what they mean. To a WAIT: the fewest that any node reached."""
        if not self._wait:
            return self._replies
        errors = [told for told in self._confirmed if isinstance(told, Exception)]
        fewest = self._endpoint.reply_error(errors[0]) if errors else min(self._confirmed, default=0)
        return [*self._replies, fewest]
