"""Servers that belong together, for tests: a Redis Cluster, and a master with replicas that Sentinels watch.

Set up by commands on real servers, quick to notice a failure, gone with the test process. What one node thinks is
not what the next one thinks: every method that changes something waits until all nodes that run agree.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers import Server, free_port
from tests.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODE_TIMEOUT = DOWN_AFTER = 1000
"""Milliseconds of silence after which the others count a server as failed."""

PATIENCE = 20.0
SLOTS = 16384
QUICK = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--appendfsync", "no")
GONE = (redis.ConnectionError, redis.TimeoutError)


class Node(Server):
    """A server that can be asked."""

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def ask(self, *command: str | int, timeout: float = 5.0) -> Any:
        """The reply, decoded, as it came. Raises redis-py's errors."""
        plain: dict[str, Any] = {"protocol": 2, "driver_info": None, "retry": Retry(NoBackoff(), 0)}
        line = redis.UnixDomainSocketConnection(
            path=str(self.socket), socket_timeout=timeout, decode_responses=True, **plain
        )
        try:
            line.send_command(*command)
            return line.read_response()
        finally:
            line.disconnect()

    def takes(self, *command: str | int) -> bool:
        """Whether it says OK. One that has not heard of another yet, or is busy, refuses to have to do with it."""
        with contextlib.suppress(redis.ResponseError):
            return bool(self.ask(*command) == "OK")
        return False

    def info(self, section: str) -> dict[str, str]:
        return dict(line.split(":", 1) for line in self.ask("INFO", section).splitlines() if ":" in line)

    def is_master(self) -> bool:
        """False also of one that does not answer."""
        with contextlib.suppress(*GONE):
            return bool(self.ask("ROLE", timeout=0.5)[0] == "master")
        return False

    def follow_no_more(self) -> None:
        """A replica stays one, and alive to all others, but gets nothing new: its master refuses a password that it
        does not ask for. (A frozen one would still find in its socket what the master sent it meanwhile.)
        """
        self.ask("CONFIG", "SET", "masterauth", "refused")
        self.ask("CLIENT", "KILL", "TYPE", "MASTER")

    def follow_again(self) -> None:
        self.ask("CONFIG", "SET", "masterauth", "")

    def is_in_sync(self) -> bool:
        """Whether it is a replica that has all that its master has."""
        told = self.info("replication")
        return told["role"] == "slave" and told["master_link_status"] == "up"


class Fleet:
    """What both kinds have in common."""

    nodes: list[Node]

    def start(self) -> Any:
        raise NotImplementedError

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def __enter__(self) -> Any:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    @contextlib.contextmanager
    def lagging(self) -> Iterator[None]:
        """Replicas get nothing new. Whoever waits for all to be in sync waits for the end of this."""
        replicas = [node for node in self.nodes if node.running and not node.is_master()]
        for node in replicas:
            node.follow_no_more()
        yield
        for node in replicas:
            node.follow_again()

    def _agreed(self, condition: Callable[[Node], Any]) -> None:
        """Wait until it holds for every node that runs."""
        for node in self.nodes:
            if node.running:
                eventually(lambda node=node: _quietly(condition, node), PATIENCE)  # type: ignore[misc]


def _quietly(condition: Callable[[Node], Any], node: Node) -> Any:
    with contextlib.suppress(*GONE):
        return condition(node)
    return False


class ClusterNode(Node):
    def __init__(self, binary: Path, directory: Path) -> None:
        args = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT))
        super().__init__(binary, directory, args=(*args, "--cluster-replica-validity-factor", "0", *QUICK), tcp=True)
        self.bus = self._beside = 0

    def _command(self) -> list[str]:
        if self._beside != self.port:  # it may be another one for every try to start
            self.bus, self._beside = free_port(), self.port
        # By default it is port + 10000, which may be no port at all.
        return [*super()._command(), "--cluster-port", str(self.bus)]

    def id(self) -> str:
        return str(self.ask("CLUSTER", "MYID"))

    def slots(self) -> list[tuple[int, int, list[int]]]:
        """(first, last, ports of master and replicas) as this node sees it."""
        return [(first, last, [node[1] for node in nodes]) for first, last, *nodes in self.ask("CLUSTER", "SLOTS")]

    def map(self) -> frozenset[tuple[str, ...]]:
        """(id, config epoch, slots...) of each master, as this node sees it."""
        lines = [line.split() for line in self.ask("CLUSTER", "NODES").splitlines()]
        return frozenset((line[0], line[6], *line[8:]) for line in lines if "master" in line[2] and line[8:])


class Cluster(Fleet):
    """Masters with one replica each; the replica of `nodes[n]` is `nodes[masters + n]`."""

    def __init__(self, binary: Path, directory: Path, *, masters: int = 3) -> None:
        self.masters = masters
        self.nodes: list[ClusterNode] = [  # type: ignore[assignment]
            ClusterNode(binary, directory / f"node{number}") for number in range(2 * masters)
        ]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> Cluster:
        for node in self.nodes:
            node.start()
        share = SLOTS // self.masters
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)  # or they would first have to sort out who is who
            for other in self.nodes[:number]:
                node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus)
        for number, node in enumerate(self.nodes[: self.masters]):
            last = SLOTS if number == self.masters - 1 else (number + 1) * share
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, last - 1)
        self._agreed(lambda node: len(self._known(node)) == len(self.nodes))
        for master, replica in zip(self.nodes[: self.masters], self.nodes[self.masters :], strict=True):
            id = master.id()
            eventually(lambda id=id, to=replica: to.takes("CLUSTER", "REPLICATE", id))  # type: ignore[misc]
        return self.await_ok()

    def await_ok(self) -> Cluster:
        """Until all nodes that run agree that every slot has a master and every other node is a replica in sync."""
        self._agreed(self._is_ok)
        self._await_one_map()
        return self

    def _await_one_map(self) -> None:
        """Until all nodes have the same epoch for each claim. A slot that moves before may get two masters, each of
        which sends its clients to the other, for good: the two claims have one epoch.
        """
        running = [node for node in self.nodes if node.running]
        eventually(lambda: _quietly(lambda _: len({node.map() for node in running}) == 1, running[0]), PATIENCE)

    def _is_ok(self, node: ClusterNode) -> bool:
        if "cluster_state:ok" not in node.ask("CLUSTER", "INFO"):
            return False
        running = {other.port for other in self.nodes if other.running}
        slots = node.slots()
        if sum(last - first + 1 for first, last, _ in slots) != SLOTS:
            return False
        told = {port for _, _, ports in slots for port in ports}
        mastered = {ports[0] for _, _, ports in slots}
        return told == running and (node.port in mastered or node.is_in_sync())

    def _known(self, node: ClusterNode) -> list[str]:
        lines = node.ask("CLUSTER", "NODES").splitlines()
        return [line for line in lines if "handshake" not in line and " connected" in line]

    def node(self, port: int) -> ClusterNode:
        return next(node for node in self.nodes if node.port == port)

    def master_of(self, slot: int) -> ClusterNode:
        """Who serves a slot, in the eyes of the nodes that serve any."""
        for node in self.nodes:
            if node.running and node.is_master():
                for first, last, ports in node.slots():
                    if first <= slot <= last:
                        return self.node(ports[0])
        raise AssertionError(f"nobody serves slot {slot}")

    def replica_of(self, master: ClusterNode) -> ClusterNode:
        for _, _, ports in master.slots():
            if ports[0] == master.port and len(ports) > 1:
                return self.node(ports[1])
        raise AssertionError("it has no replica")

    def await_promotion(self, replica: ClusterNode) -> None:
        """Until a replica has taken over the slots of its master."""
        eventually(lambda: replica.is_master() and _quietly(_serves, replica), PATIENCE)

    def take_over(self, replica: ClusterNode) -> None:
        """Make a replica the master in an orderly way, without losing anything."""
        eventually(lambda: replica.takes("CLUSTER", "FAILOVER"), PATIENCE)
        self.await_promotion(replica)
        self.await_ok()

    def depose(self, slot: int) -> ClusterNode:
        """Kill the master of a slot; it, when its replica has taken over."""
        old = self.master_of(slot)
        replica = self.replica_of(old)
        old.kill()
        self.await_promotion(replica)
        return old

    def bring_back(self, old: ClusterNode) -> None:
        """As the replica of who took over from it, which has no other one that could confirm anything."""
        old.start()
        self.await_ok()

    @contextlib.contextmanager
    def moving(self, slot: int, source: ClusterNode, target: ClusterNode) -> Iterator[None]:
        """A slot is on its way; at the end, what is left of it goes too."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id())
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id())
        yield
        while names := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            self.hand_over(source, target, *names)
        for node in (target, source):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id())
        self._agreed(lambda node: self._owner(node, slot) == target.port)
        self._await_one_map()

    def hand_over(self, source: ClusterNode, target: ClusterNode, *keys: str) -> None:
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)

    def migrate(self, slot: int, target: ClusterNode) -> None:
        """Move a slot to another master while it is in use."""
        with self.moving(slot, self.master_of(slot), target):
            pass

    def _owner(self, node: ClusterNode, slot: int) -> int:
        return next((ports[0] for first, last, ports in node.slots() if first <= slot <= last), 0)

    def node_at(self, slot: int) -> ClusterNode:
        """As `master_of`, in the eyes of any node that runs: also of one that died a moment ago."""
        return self.node(self._owner(next(node for node in self.nodes if node.running), slot))


def _serves(node: ClusterNode) -> bool:
    return any(ports[0] == node.port for _, _, ports in node.slots())


class SentinelNode(Node):
    """A Sentinel. Its configuration file is also its memory."""

    def __init__(self, binary: Path, directory: Path, config: Callable[[], Iterator[str]]) -> None:
        super().__init__(binary, directory, tcp=True)
        self._config = config

    def _command(self) -> list[str]:
        file = self.directory / f"sentinel-{self.port}.conf"
        if not file.exists():
            lines = [f"port {self.port}", "bind 127.0.0.1", f"unixsocket {self.socket}", *self._config()]
            file.write_text("\n".join(lines) + "\n")
        return [str(self.binary), file.name, "--sentinel"]

    def hurry(self, **periods: int) -> None:
        """Milliseconds between what it does regularly."""
        names = {"min_link_reconnect": "MIN-LINK-RECONNECT-PERIOD", "election": "ELECTION-TIMEOUT"}
        for name, ms in periods.items():
            self.ask("SENTINEL", "DEBUG", names.get(name, f"{name.upper()}-PERIOD"), ms)


class Sentinels(Fleet):
    """A master, two replicas, and three sentinels that watch them as `name`."""

    def __init__(self, binary: Path, directory: Path, *, name: str = "mymaster", password: str = "") -> None:
        self.name, self.password = name, password
        self.nodes = [Node(binary, directory / f"node{number}", args=QUICK, tcp=True) for number in range(3)]
        self.sentinels = [SentinelNode(binary, directory / f"sentinel{n}", self._config) for n in range(3)]

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{node.port}' for node in self.sentinels)}/{self.name}"

    def _config(self) -> Iterator[str]:
        yield f"sentinel monitor {self.name} 127.0.0.1 {self.nodes[0].port} 2"
        yield f"sentinel down-after-milliseconds {self.name} {DOWN_AFTER}"
        yield f"sentinel failover-timeout {self.name} 2000"

    def start(self) -> Sentinels:
        for node in self.nodes:
            node.start()
            if node is not self.nodes[0]:
                node.ask("REPLICAOF", "127.0.0.1", self.nodes[0].port)
        self._agreed(lambda node: node is self.nodes[0] or node.is_in_sync())
        for sentinel in self.sentinels:
            sentinel.start()
            # What it knows of a replica counts for 5 pings, and of a failed master's replica it hears once a second.
            sentinel.hurry(info=200, ping=300, ask=100, publish=100, min_link_reconnect=500, election=2000)
        self.await_ok()
        for sentinel in self.sentinels:
            # It takes a replica that calls itself master for wrong after 4 of these: not while they fail over.
            sentinel.hurry(publish=700)
        return self

    def kill(self) -> None:
        for node in self.sentinels:
            node.kill()
        super().kill()

    def await_ok(self) -> Sentinels:
        """Until the sentinels know each other and all servers, and all but one of these are replicas in sync."""
        for sentinel in self.sentinels:
            if sentinel.running:
                eventually(lambda by=sentinel: _quietly(self._is_ok, by), PATIENCE)  # type: ignore[misc]
        master = self.master()
        self._agreed(lambda node: node is master or node.is_in_sync())
        return self

    def _is_ok(self, sentinel: SentinelNode) -> bool:
        flat = sentinel.ask("SENTINEL", "MASTER", self.name)
        told = dict(zip(flat[::2], flat[1::2], strict=True))
        replicas = sentinel.ask("SENTINEL", "REPLICAS", self.name)
        flags = [dict(zip(each[::2], each[1::2], strict=True))["flags"] for each in replicas]
        return (
            told["flags"] == "master" and told["num-other-sentinels"] == "2"
            and flags.count("slave") == len([node for node in self.nodes if node.running]) - 1
        )  # fmt: skip

    def master(self) -> Node:
        """Who is the master, in the eyes of a sentinel that runs."""
        sentinel = next(node for node in self.sentinels if node.running)
        _, port = sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return next(node for node in self.nodes if node.port == int(port))

    def fail_over(self) -> Node:
        """Make another server the master in an orderly way; that one."""
        old = self.master()
        eventually(lambda: self.sentinels[0].takes("SENTINEL", "FAILOVER", self.name), PATIENCE)
        return self.await_promotion(old)

    def depose(self, slot: int = 0) -> Node:
        """Kill the master, whatever the slot; it, when another server has become the master."""
        old = self.master()
        old.kill()
        self.await_promotion(old)
        return old

    def bring_back(self, old: Node) -> None:
        """As a replica."""
        # Told from the start: else it would call itself a master for a moment.
        old.args = (*QUICK, "--replicaof", *map(str, self.master().address))
        old.start()
        self.await_ok()

    def await_promotion(self, old: Node) -> Node:
        """Until all sentinels name another master than `old`; that one."""
        for sentinel in self.sentinels:
            eventually(lambda by=sentinel: self._named(by) != old.port, PATIENCE)  # type: ignore[misc]
        new = self.master()
        eventually(new.is_master, PATIENCE)
        return new

    def _named(self, sentinel: SentinelNode) -> int:
        return int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)[1])
