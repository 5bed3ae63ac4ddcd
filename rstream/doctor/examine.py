"""Gathers what there is to know, and has every check look at it. Nothing is changed, in Redis or elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rstream.blobs.shelf import shelf
from rstream.codec import ModelCodec
from rstream.compat import digest
from rstream.declaring import incompatible, unreadable
from rstream.doctor import app as apps
from rstream.doctor import groups, server, stream, together
from rstream.doctor.app import BlobFacts, Declared, Examined
from rstream.doctor.finding import Finding
from rstream.errors import RStreamError
from rstream.store import facts as storing
from rstream.store.facts import Facts
from rstream.upgrades import Upgrades

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.store.layout import Layout
    from rstream.stream import Stream

PROBE = "rstream-doctor"
"""A blob that nobody stores."""


class Check(NamedTuple):
    """subject: "redis", "server", "sentinel", "cluster", "stream", "group" or "app" · name: what is well where it finds
    nothing.
    """

    subject: str
    name: str
    run: Callable[[Examined], Iterator[Finding]]


def _on_facts(subject: str, *checks: Callable[[Facts], Iterator[Finding]]) -> list[Check]:
    def on(check: Callable[[Facts], Iterator[Finding]]) -> Check:
        return Check(subject, (check.__doc__ or "").strip(), lambda everything: check(everything.facts))

    return [on(check) for check in checks]


CHECKS: list[Check] = [
    *_on_facts("redis", server.reachable),
    *_on_facts("server", server.version, server.eviction, server.persistence, server.memory),
    *_on_facts("server", server.clock, server.latency, server.clients, server.keys, server.untold),
    *_on_facts("server", together.replication, together.rights),
    *_on_facts("sentinel", together.sentinels),
    *_on_facts("cluster", together.cluster),
    *_on_facts(
        "stream", stream.stored, stream.ids, stream.balance, stream.generations, stream.entries, stream.retention
    ),
    *_on_facts("group", groups.there, groups.paused, groups.workers, groups.progress, groups.losses, groups.failures),
    *_on_facts("group", groups.archive),
    Check("app", "schemas", apps.schemas),
    Check("app", "declarations", apps.declarations),
    Check("app", "blob store", apps.blobs),
]


def examine(app: RStream, names: Sequence[str] = (), *, declared: bool = False) -> list[Finding]:
    """All findings, the worst first; "ok" for each check that found nothing, where it had something to look at.

    names: of streams to look at; without, all that are stored. declared: whether the app is the user's, to be compared
    with what is stored.
    """
    settings = app.settings
    facts = Facts(
        app.endpoint.label, namespace=settings.namespace, replicas=settings.replicas, threshold=settings.blob_threshold,
        consumes=declared and bool(app.consumers),
    )  # fmt: skip
    storing.gather(app.sync_link, facts, names)
    layouts = {each.name: each.layout for each in facts.streams}
    wanted = [each for each in app.streams.values() if not names or each.name in names] if declared else []
    known = [_declared(each, layouts.get(each.name)) for each in wanted] if facts.failure is None else []
    everything = Examined(facts, known, None if settings.blobs is None else _blobs(settings.blobs))
    return judge(everything)


def judge(everything: Examined) -> list[Finding]:
    """Pure."""
    found: list[Finding] = []
    for check in CHECKS:
        if everything.applies(check.subject):
            found += list(check.run(everything)) or [Finding("ok", check.name, check.subject, "")]
    return sorted(found, key=lambda finding: -finding.rank)


def _declared(stream: Stream[Any], layout: Layout | None) -> Declared:
    schema, stored = stream._schema, {} if layout is None else layout.schemas
    upgrades = stream.codec.upgrades if isinstance(stream.codec, ModelCodec) else Upgrades()
    upgrades.settle(stream.name, stored)
    accepted = digest(schema) in {digest(each) for each in stored.values()}  # once is for good
    refused = [] if accepted else [line for lines in incompatible(schema, stored, upgrades).values() for line in lines]
    unread = unreadable(schema, stored, upgrades)
    upgrades.unsettle()
    groups = tuple(consumer.group for consumer in stream.consumers)
    return Declared(
        stream.name,
        layout,
        stream.key,
        stream.retention,
        groups,
        stream.archive is not None,
        tuple(refused),
        tuple(unread),
    )


def _blobs(url: str) -> BlobFacts:
    """One look for a blob that is not there."""
    store = shelf(url).store
    begun = time.monotonic()
    try:
        store.exists(PROBE)
    except RStreamError as error:
        return BlobFacts(store.label, str(error), time.monotonic() - begun)
    return BlobFacts(store.label, "", time.monotonic() - begun)
