"""The metrics of a worker, as docs/metrics.md has them, and their values as one flat table. Pure.

A `Snapshot` is what a process has counted, by metric and the values of its labels. It goes from process to process, so
it is of plain numbers; `families` makes of several what prometheus_client writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.utils import floatToGoString

from rstream.worker.tally import BOUNDS, Histogram

Value = float | Histogram
Series = tuple[str, ...]
"""The name of a metric, and the values of its labels."""

Snapshot = dict[Series, Value]


@dataclass(frozen=True, slots=True)
class Metric:
    """As it is scraped, but for the label `process`."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    meaning: str


OF_GROUP = ("stream", "group")

WORKER = [
    Metric("rstream_attempts_total", "counter", OF_GROUP, "Handler calls that began, in deliveries."),
    Metric("rstream_settled_total", "counter", (*OF_GROUP, "outcome"), "Deliveries ended, as Redis accepted it."),
    Metric("rstream_dead_letters_total", "counter", (*OF_GROUP, "reason"), "Deliveries given up."),
    Metric("rstream_fenced_settles_total", "counter", OF_GROUP, "Outcomes that Redis refused."),
    Metric("rstream_lease_lost_total", "counter", OF_GROUP, "Deliveries in hand when the lease was found lost."),
    Metric("rstream_redelivered_total", "counter", OF_GROUP, "Deliveries taken over from dead workers."),
    Metric("rstream_handler_seconds", "histogram", OF_GROUP, "How long a handler ran."),
    Metric("rstream_queue_delay_seconds", "histogram", OF_GROUP, "From publish to the first start of the handler."),
    Metric("rstream_in_flight", "gauge", OF_GROUP, "Deliveries being handled."),
    Metric("rstream_buffered", "gauge", OF_GROUP, "Deliveries fetched and not begun."),
    Metric("rstream_shards_owned", "gauge", OF_GROUP, "Shards of an ordered group that this worker fetches from."),
    Metric("rstream_loop_stall_seconds", "gauge", (), "The longest block of the event loop in the last minute."),
    Metric("rstream_reconnects_total", "counter", (), "Connections to Redis made anew."),
    Metric("rstream_group_resets_total", "counter", OF_GROUP, "Times that the group was gone, and was made anew."),
    Metric("rstream_blob_operation_seconds", "histogram", (*OF_GROUP, "operation"), "Calls to the blob store."),
    Metric("rstream_blob_bytes_total", "counter", (*OF_GROUP, "operation"), "Bytes read and written there."),
    Metric("rstream_archive_segment_seconds", "histogram", OF_GROUP, "Writing one segment of the archive."),
    Metric("rstream_archive_bytes_total", "counter", OF_GROUP, "Bytes of segments written."),
]
BUILD = Metric("rstream_build_info", "gauge", ("version",), "Which rstream runs there.")

_KINDS = {each.name: each.type for each in WORKER}


def grows(series: Series) -> bool:
    """Whether it only ever grows: a process that starts anew begins it at 0."""
    return _KINDS[series[0]] != "gauge"


def plus(one: Value, other: Value) -> Value:
    if isinstance(one, list) and isinstance(other, list):
        return [mine + theirs for mine, theirs in zip(one, other, strict=True)]
    assert not isinstance(one, list) and not isinstance(other, list)
    return one + other


def families(snapshots: Mapping[str | None, Snapshot], version: str) -> Iterable[Family]:
    """snapshots: by the number of the process; None where there is but one, which has no such label."""
    labelled = None not in snapshots
    for metric in WORKER:
        names = [*metric.labels, "process"] if labelled else [*metric.labels]
        family = _family(metric, names)
        for process, snapshot in snapshots.items():
            for series, value in snapshot.items():
                if series[0] == metric.name:
                    _add(family, [*series[1:], process] if process is not None else [*series[1:]], value)
        yield family
    build = GaugeMetricFamily(BUILD.name, BUILD.meaning, labels=BUILD.labels)
    build.add_metric([version], 1)
    yield build


def _family(metric: Metric, labels: list[str]) -> Family:
    kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
    family: Family = kinds[metric.type](metric.name, metric.meaning, labels=labels)
    return family


def _add(family: Family, labels: list[str], value: Value) -> None:
    if isinstance(value, list):
        assert isinstance(family, HistogramMetricFamily)
        *counts, total = value
        bounds = [*map(floatToGoString, BOUNDS), "+Inf"]
        family.add_metric(labels, [*zip(bounds, accumulate(counts), strict=True)], total)
    else:
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, value)
