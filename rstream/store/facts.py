"""All that `rstream doctor` looks at in Redis: the servers, what watches them, the streams. Nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rstream.errors import RStreamError, StoreError, StoreRefused, one_line
from rstream.store import layout as layouts
from rstream.store import serverfacts, streamfacts
from rstream.store.layout import Layout
from rstream.store.link import SyncLink
from rstream.store.sentinel import SentinelReport
from rstream.store.serverfacts import ServerFacts
from rstream.store.steps import drive_sync
from rstream.store.streamfacts import StreamFacts

EVERY = "(all that are stored)"


@dataclass(slots=True)
class Facts:
    """where: the URL without secrets · kind: how it is deployed · replicas: that have to confirm what is published ·
    threshold: bytes from which on payloads belong into a blob store · consumes: whether the app in question does ·
    failure: why Redis could not be asked at all · listed: names of all streams, None where Redis did not tell them ·
    missing: those that are not stored · unknown: those that were asked for, and are neither · failures: streams that
    could not be looked at, and why.
    """

    where: str
    kind: str = "server"
    namespace: str = "rstream"
    replicas: int = 0
    threshold: int = 32 * 1024
    consumes: bool = False
    failure: StoreError | None = None
    servers: list[ServerFacts] = field(default_factory=list)
    sentinels: list[SentinelReport] = field(default_factory=list)
    streams: list[StreamFacts] = field(default_factory=list)
    listed: list[str] | None = None
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def answering(self) -> list[ServerFacts]:
        return [server for server in self.servers if not server.failure]


def gather(link: SyncLink, facts: Facts, names: Sequence[str] = ()) -> Facts:
    """names: of streams to look at; without, all. Never raises because of Redis."""
    endpoint = link.endpoint
    try:
        facts.kind = "cluster" if endpoint.clustered else "sentinel" if endpoint.watched else "server"
        facts.sentinels = endpoint.sentinel_reports()
        link.servers()  # a cluster has to be known
        known = _streams(link, facts, names)
        facts.where = endpoint.label
        _servers(link, facts, known)
        if not facts.answering and EVERY in facts.failures:  # who may not come in at all
            facts.failure = StoreRefused(facts.failures.pop(EVERY))
            facts.servers.clear()
        for layout in known:
            _stream(link, facts, layout)
    except StoreError as error:
        facts.failure = error
    return facts


def _streams(link: SyncLink, facts: Facts, names: Sequence[str]) -> list[Layout]:
    """What is stored of them. In a cluster one master may be away, and with it what is known of some; a user may not
    have the right to ask for all.
    """
    try:
        facts.listed = link.run(layouts.names(facts.namespace))
    except StoreError as error:
        if facts.kind != "cluster" and not isinstance(error, StoreRefused):
            raise
        facts.failures[EVERY] = str(error)
    found = []
    for name in names or facts.listed or ():
        try:
            layout = link.run(layouts.load(facts.namespace, name))
        except StoreError as error:
            facts.failures[name] = str(error)
            continue
        except (RStreamError, LookupError, ValueError) as error:
            facts.failures[name] = f"its declaration cannot be read: {one_line(error)}"
            continue
        if layout is not None:
            found.append(layout)
        elif facts.listed is not None:
            (facts.missing if name in facts.listed else facts.unknown).append(name)
    return found


def _servers(link: SyncLink, facts: Facts, known: Sequence[Layout]) -> None:
    example = known[0] if known else Layout(facts.namespace, "any", 1, 1, None, 0)
    for name, ask in link.servers().items():
        clustered = facts.kind == "cluster"
        facts.servers.append(serverfacts.look_at(name, ask, example, facts.listed, clustered=clustered))


def _stream(link: SyncLink, facts: Facts, layout: Layout) -> None:
    try:
        found = drive_sync(link, streamfacts.look_at(layout), 0.0)
    except StoreError as error:
        facts.failures[layout.name] = str(error)
        return
    servers = {shard: link.server_of(shard.slot) for shard in layout.every}
    facts.streams.append(replace(found, servers=servers))
