"""What `rstream metrics` says when it is asked: what Redis knows of every stream and group, as docs/metrics.md has it.

Each scrape asks Redis, in three round trips; those that come meanwhile get the same answer. None waits longer than
`PATIENCE`: where Redis has not answered by then, or cannot be reached, all that is said is that it is not up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family

from rstream.errors import StoreError, one_line
from rstream.metrics.server import Check
from rstream.metrics.table import Metric
from rstream.store.fleet import StreamState, fleet
from rstream.store.history import Witness
from rstream.store.keys import ARCHIVE
from rstream.store.link import SyncLink
from rstream.store.pins import Pin, fill, unprocessed
from rstream.store.stats import GroupStats
from rstream.store.steps import drive_sync

log = logging.getLogger("rstream")

PATIENCE = 5.0
"""Seconds that a scrape waits; Prometheus itself waits for 10, where nothing else is said."""

S, G = ("stream",), ("stream", "group")

FLEET = [
    Metric("rstream_stream_entries", "gauge", S, "Entries retained, over all shards."),
    Metric("rstream_stream_bytes", "gauge", S, "Memory that they take in Redis."),
    Metric("rstream_stream_published_total", "counter", S, "Entries ever added."),
    Metric("rstream_stream_shards", "gauge", S, "Shards of the newest generation."),
    Metric("rstream_stream_trim_pinned", "gauge", G, "1 for the group that keeps entries from being trimmed."),
    Metric("rstream_stream_trim_pinned_seconds", "gauge", S, "How long the oldest pinned entry is beyond retention."),
    Metric("rstream_group_lag_entries", "gauge", G, "Entries that the group was not given yet."),
    Metric("rstream_group_lag_seconds", "gauge", G, "Age of the oldest entry that the group has not processed."),
    Metric("rstream_group_pending", "gauge", G, "Deliveries handed out and not settled."),
    Metric("rstream_group_oldest_pending_seconds", "gauge", G, "Age of the oldest of them."),
    Metric("rstream_group_dead_letters", "gauge", G, "Dead letters kept now."),
    Metric("rstream_group_settled_total", "counter", (*G, "outcome"), "What became of deliveries, ever."),
    Metric("rstream_group_fenced_total", "counter", G, "Outcomes refused."),
    Metric("rstream_group_redelivered_total", "counter", G, "Deliveries taken over from dead workers."),
    Metric("rstream_group_entries_lost_total", "counter", G, "Entries dropped or gone before they were processed."),
    Metric("rstream_group_workers_alive", "gauge", G, "Workers whose lease runs."),
    Metric("rstream_group_paused", "gauge", G, "1 while the group is paused."),
    Metric("rstream_archive_lag_seconds", "gauge", S, "Age of the oldest entry that is not archived."),
    Metric("rstream_redis_resets_total", "counter", S, "Times that Redis had lost what it had of the stream."),
    Metric("rstream_up", "gauge", (), "1 while Redis answers."),
]

OUTCOMES: Mapping[str, str] = {
    "ack": "acked",
    "retry": "retried",
    "dead": "dead",
    "expired": "expired",
    "skipped": "skipped",
    "cancelled": "cancelled",
}
"""The label, and what is counted."""

Values = dict[tuple[str, ...], float]
"""By the name of a metric and the values of its labels."""


class Fleet:
    """Answers scrapes, in any thread. link: is used by one thread at a time."""

    def __init__(self, link: SyncLink, namespace: str) -> None:
        self._link, self._namespace = link, namespace
        self._witnesses: dict[str, Witness] = {}
        self._told: dict[str, str] = {}
        self._lock = threading.Lock()
        self._going: Future[list[StreamState]] | None = None

    def collect(self) -> Iterable[Family]:
        """As the server wants it."""
        states = self._states()
        found: Values = {("rstream_up",): float(states is not None)}
        for state in states or ():
            found |= of_stream(state, self._resets(state))
        return families(found)

    def ready(self) -> list[Check]:
        """Whether Redis answers."""
        up = self._states() is not None
        return [Check("redis", up, "it answers" if up else "it does not answer: the log says why")]

    def _states(self) -> list[StreamState] | None:
        """None where Redis cannot be asked, or takes too long."""
        with self._lock:
            going = self._going
            if going is None:
                going = self._going = Future()
                threading.Thread(target=self._look, args=(going,), name="rstream-fleet", daemon=True).start()
        try:
            return going.result(PATIENCE)
        except NotYet:
            self._tell("", f"Redis did not answer within {PATIENCE:g} s")
        except StoreError:
            pass  # it is told
        return None

    def _look(self, going: Future[list[StreamState]]) -> None:
        try:
            states, failed = drive_sync(self._link, fleet(self._namespace), 0.0)
            for name in [*self._told]:
                if name not in failed:
                    del self._told[name]
            for name, error in failed.items():
                self._tell(name, f"stream {name!r}: {one_line(error)}")
        except BaseException as error:
            if isinstance(error, StoreError):
                self._tell("", str(error))
            self._end(going)
            going.set_exception(error)
        else:
            self._end(going)
            going.set_result(states)

    def _end(self, going: Future[list[StreamState]]) -> None:
        """Who comes from now on asks anew."""
        with self._lock:
            if self._going is going:
                self._going = None

    def _resets(self, state: StreamState) -> int:
        """Also those that nobody else has noticed."""
        with self._lock:
            witness = self._witnesses.setdefault(state.layout.name, Witness())
            return witness.look(state.birth, state.seq, state.resets)

    def _tell(self, about: str, text: str) -> None:
        if self._told.get(about) != text:
            log.warning("metrics: %s", text)
        self._told[about] = text


def of_stream(state: StreamState, resets: int) -> Values:
    """All about a stream. What is not known is left out."""
    name, stats = state.layout.name, {group.name: group for group in state.groups}
    pinned = pinned_by(state)
    found: Values = {
        ("rstream_stream_entries", name): state.stats.entries,
        ("rstream_stream_published_total", name): state.totals.published,
        ("rstream_stream_shards", name): state.layout.shards,
        ("rstream_stream_trim_pinned_seconds", name): max(pinned.values(), default=0.0),
        ("rstream_redis_resets_total", name): resets,
    }
    if state.memory is not None:
        found["rstream_stream_bytes", name] = state.memory
    if ARCHIVE in stats:
        found["rstream_archive_lag_seconds", name] = stats[ARCHIVE].behind
    for group in state.groups:
        found |= _of_group(state, group)
        found["rstream_stream_trim_pinned", name, group.name] = float(group.name in pinned)
    return found


def _of_group(state: StreamState, group: GroupStats) -> Values:
    labels = (state.layout.name, group.name)
    found: Values = {
        ("rstream_group_lag_seconds", *labels): group.behind,
        ("rstream_group_pending", *labels): group.pending,
        ("rstream_group_oldest_pending_seconds", *labels): max(one.oldest_age for one in group.shards),
        ("rstream_group_dead_letters", *labels): group.dead,
        ("rstream_group_workers_alive", *labels): sum(worker.alive for worker in group.workers),
        ("rstream_group_paused", *labels): float(group.name in state.paused),
    }
    if group.lag is not None:
        found["rstream_group_lag_entries", *labels] = group.lag
    if (totals := state.totals.groups.get(group.name)) is not None:  # it was made in the midst of the look
        found |= {
            ("rstream_group_settled_total", *labels, out): getattr(totals, kind) for out, kind in OUTCOMES.items()
        }
        found["rstream_group_fenced_total", *labels] = totals.fenced
        found["rstream_group_redelivered_total", *labels] = totals.redelivered
        found["rstream_group_entries_lost_total", *labels] = totals.lost
    return found


def pinned_by(state: StreamState) -> dict[str, float]:
    """The groups that keep entries from being trimmed although they are beyond the retention, and for how many seconds
    the oldest is that. Where a number or a size is the limit, and what the group has not processed fills a shard so far
    that producers are slowed: how old that is.
    """
    kept = state.layout.retention
    if kept is None:
        return {}
    ignored = {standing.name for standing in state.standings if standing.alarm == "ignored"}
    weights = {weight.shard: weight for weight in state.weights}
    found: dict[str, float] = {}
    for pin in state.pins:
        weight = weights.get(pin.shard)
        loses = pin.group != ARCHIVE and (kept.unprocessed == "drop" or pin.group in ignored)
        if weight is None or loses:
            continue
        late = _late(pin, kept.age_seconds)
        if kept.counts and unprocessed(weight, pin) * fill(weight) >= kept.soft:
            late = max(late, pin.age)
        if late > 0:
            found[pin.group] = max(late, found.get(pin.group, 0.0))
    return found


def _late(pin: Pin, age: float | None) -> float:
    return 0.0 if age is None else pin.age - age


def families(values: Values) -> Iterable[Family]:
    """All of FLEET, also those of which there is nothing."""
    by_name: dict[str, list[tuple[tuple[str, ...], float]]] = {}
    for series, value in values.items():
        by_name.setdefault(series[0], []).append((series[1:], value))
    for metric in FLEET:
        make = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
        family = make(metric.name, metric.meaning, labels=metric.labels)
        for labels, value in by_name.get(metric.name, ()):
            family.add_metric(labels, value)
        yield family
