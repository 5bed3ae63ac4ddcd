"""`python deploy/grafana/dashboard.py` writes dashboards/rstream.json: what is seen is decided here, the rest is form.

Panels show the streams and groups that are chosen on top. Every metric is one of docs/metrics.md. Those of workers are
summed over workers and processes; those of the fleet are taken once, whichever `rstream metrics` says them.
"""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "rstream.json"
WIDTH = 24
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}

S = 'stream=~"$stream"'
G = 'stream=~"$stream", group=~"$group"'
NAMED = "{{stream}} · {{group}}"

Panel = dict[str, Any]
Query = tuple[str, str]
"""PromQL, and how its series are named."""


def now(metric: str, labels: str = G, by: str = "stream, group") -> str:
    """A gauge of the fleet."""
    return f"max by ({by}) ({metric}{{{labels}}})"


def rate(metric: str, labels: str = G, by: str = "stream, group") -> str:
    """A counter of the fleet, a second."""
    return f"sum by ({by}) (max without (instance) (rate({metric}{{{labels}}}[$__rate_interval])))"


def work(metric: str, labels: str = G, by: str = "stream, group") -> str:
    """A counter of the workers, a second."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(share: float, metric: str, labels: str = G, by: str = "stream, group") -> str:
    return f"histogram_quantile({share}, sum by (le, {by}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))"


def both(metric: str, labels: str = G, by: str = "stream, group", named: str = NAMED) -> list[Query]:
    return [(quantile(0.5, metric, labels, by), f"p50 {named}"), (quantile(0.99, metric, labels, by), f"p99 {named}")]


def panel(kind: str, title: str, unit: str, queries: list[Query], told: str, **more: Any) -> Panel:
    targets = [
        {"refId": chr(ord("A") + number), "datasource": PROMETHEUS, "expr": expr, "legendFormat": legend}
        for number, (expr, legend) in enumerate(queries)
    ]
    defaults: dict[str, Any] = {"unit": unit, "min": 0}
    body = {"type": kind, "title": title, "description": told, "datasource": PROMETHEUS, "targets": targets}
    return body | {"fieldConfig": {"defaults": defaults, "overrides": []}} | more


def plot(title: str, unit: str, queries: list[Query], told: str = "") -> Panel:
    options = {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}}
    found = panel(
        "timeseries", title, unit, queries, told, options=options | {"tooltip": {"mode": "multi", "sort": "desc"}}
    )
    found["fieldConfig"]["defaults"]["custom"] = {"fillOpacity": 8, "showPoints": "never", "spanNulls": False}
    return found


def stat(title: str, unit: str, expr: str, told: str, red: float | None = None) -> Panel:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if red is not None:
        steps.append({"color": "red", "value": red})
    found = panel("stat", title, unit, [(expr, "")], told, options={"reduceOptions": {"calcs": ["lastNotNull"]}})
    found["fieldConfig"]["defaults"]["thresholds"] = {"mode": "absolute", "steps": steps}
    return found


def lost(metric: str, labels: str = G) -> str:
    return f"sum(max without (instance) (increase({metric}{{{labels}}}[$__range])))"


PINNED = now("rstream_stream_trim_pinned") + " * on (stream) group_left () "
PINNED += now("rstream_stream_trim_pinned_seconds", S, "stream")

ROWS: dict[str, list[Panel]] = {
    "Now": [
        stat(
            "Oldest unprocessed",
            "s",
            f"max(rstream_group_lag_seconds{{{G}}})",
            "The age lag of the group that is furthest behind.",
            300,
        ),
        stat(
            "Workers alive",
            "short",
            f"sum({now('rstream_group_workers_alive')})",
            "A worker counts once for each of its groups.",
        ),
        stat(
            "Dead letters kept",
            "short",
            f"sum({now('rstream_group_dead_letters')})",
            "rstream dead list STREAM --group G",
            1,
        ),
        stat("Entries lost", "short", lost("rstream_group_entries_lost_total"), "In the time that is shown.", 1),
        stat("Redis lost its data", "short", lost("rstream_redis_resets_total", S), "In the time that is shown.", 1),
        stat("Groups paused", "short", f"sum({now('rstream_group_paused')})", "rstream resume GROUP", 1),
        panel(
            "table",
            "Alerts that fire",
            "short",
            [('ALERTS{alertstate="firing", alertname=~"Rstream.*"}', "")],
            "What to do is in docs/runbook.md.",
            transformations=[{"id": "labelsToFields", "options": {}}, {"id": "merge", "options": {}}],
        ),
    ],
    "Throughput": [
        plot(
            "Published",
            "cps",
            [(rate("rstream_stream_published_total", S, "stream"), "{{stream}}")],
            "Entries a second.",
        ),
        plot(
            "Acked",
            "cps",
            [(rate("rstream_group_settled_total", G + ', outcome="ack"'), NAMED)],
            "Deliveries a second.",
        ),
        plot(
            "In hand",
            "short",
            [
                (f"sum by (stream, group) (rstream_in_flight{{{G}}})", f"in flight {NAMED}"),
                (f"sum by (stream, group) (rstream_buffered{{{G}}})", f"buffered {NAMED}"),
            ],
            "Being handled, and fetched but not begun.",
        ),
    ],
    "Lag": [
        plot(
            "Age lag",
            "s",
            [(now("rstream_group_lag_seconds"), NAMED)],
            "Age of the oldest entry that the group has not processed.",
        ),
        plot(
            "Unread",
            "short",
            [(now("rstream_group_lag_entries"), NAMED)],
            "Nothing is shown where Redis does not know.",
        ),
        plot(
            "Pending",
            "short",
            [(now("rstream_group_pending"), NAMED)],
            "Handed out and not settled, waiting retries included.",
        ),
        plot(
            "Oldest pending",
            "s",
            [(now("rstream_group_oldest_pending_seconds"), NAMED)],
            "rstream pending STREAM --group G tells whose it is.",
        ),
    ],
    "Delay": [
        plot("From publish to start", "s", both("rstream_queue_delay_seconds")),
        plot("Handlers", "s", both("rstream_handler_seconds"), "How long they ran, whatever came of it."),
    ],
    "Failures": [
        plot(
            "Not acked",
            "cps",
            [
                (
                    rate("rstream_group_settled_total", G + ', outcome!="ack"', "stream, group, outcome"),
                    "{{outcome}} " + NAMED,
                )
            ],
            "Retries, dead letters, expired and cancelled deliveries, a second.",
        ),
        plot(
            "Dead letters by reason",
            "cps",
            [(work("rstream_dead_letters_total", by="stream, group, reason"), "{{reason}} " + NAMED)],
        ),
        plot("Dead letters kept", "short", [(now("rstream_group_dead_letters"), NAMED)]),
        plot(
            "Taken over and refused",
            "cps",
            [
                (rate("rstream_group_redelivered_total"), f"redelivered {NAMED}"),
                (rate("rstream_group_fenced_total"), f"fenced {NAMED}"),
                (work("rstream_lease_lost_total"), f"lease lost {NAMED}"),
            ],
            "Deliveries of dead workers, and outcomes of workers that had been frozen for too long.",
        ),
    ],
    "Retention": [
        plot("Entries", "short", [(now("rstream_stream_entries", S, "stream"), "{{stream}}")]),
        plot("Memory in Redis", "bytes", [(now("rstream_stream_bytes", S, "stream"), "{{stream}}")]),
        plot(
            "Beyond retention, pinned by",
            "s",
            [(PINNED, NAMED)],
            "How long beyond its retention a stream reaches, because of this group.",
        ),
        plot("Not archived since", "s", [(now("rstream_archive_lag_seconds", S, "stream"), "{{stream}}")]),
        plot("Shards", "short", [(now("rstream_stream_shards", S, "stream"), "{{stream}}")]),
    ],
    "Workers": [
        plot("Alive", "short", [(now("rstream_group_workers_alive"), NAMED)]),
        plot(
            "Shards owned",
            "short",
            [(f"sum by (instance, stream, group) (rstream_shards_owned{{{G}}})", "{{instance}} " + NAMED)],
            "Of ordered groups: even, when all is well.",
        ),
        plot(
            "Event loop blocked for",
            "s",
            [("max by (instance, process) (rstream_loop_stall_seconds)", "{{instance}} {{process}}")],
            "The longest of the last minute.",
        ),
        plot(
            "Reconnects and resets",
            "cps",
            [
                ("sum by (instance) (rate(rstream_reconnects_total[$__rate_interval]))", "reconnects {{instance}}"),
                (work("rstream_group_resets_total"), f"groups made anew {NAMED}"),
            ],
        ),
        plot(
            "Blob store",
            "s",
            both("rstream_blob_operation_seconds", S, "operation", "{{operation}}"),
            "Seconds a call.",
        ),
        plot(
            "Blob and archive bytes",
            "Bps",
            [
                (work("rstream_blob_bytes_total", S, "operation"), "{{operation}}"),
                (work("rstream_archive_bytes_total", S, "stream"), "archived {{stream}}"),
            ],
        ),
        plot(
            "Archive segments",
            "s",
            both("rstream_archive_segment_seconds", S, "stream", "{{stream}}"),
            "Seconds to write one.",
        ),
        plot(
            "Versions",
            "short",
            [("count by (version) (rstream_build_info)", "{{version}}")],
            "Worker processes by version of rstream.",
        ),
    ],
}


def laid_out() -> list[Panel]:
    """Rows of panels, three plots or six numbers beside each other, each row on from where the one before ended."""
    ids, found, y = count(1), [], 0
    for title, panels in ROWS.items():
        found.append(
            {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place(0, y, WIDTH, 1)}
        )
        x, y, height = 0, y + 1, 0
        for each in panels:
            wide, high = SIZES[each["type"]]
            if x + wide > WIDTH:
                x, y = 0, y + height
            found.append(each | {"gridPos": place(x, y, wide, high)})
            x, height = x + wide, high
        y += height
    return [{"id": next(ids)} | each for each in found]


SIZES = {"stat": (4, 4), "table": (WIDTH, 6), "timeseries": (8, 8)}


def place(x: int, y: int, wide: int, high: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": wide, "h": high}


def variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": PROMETHEUS,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    return {
        "uid": "rstream",
        "title": "rstream",
        "tags": ["rstream"],
        "schemaVersion": 39,
        "editable": False,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "Prometheus", "value": "prometheus"},
                },
                variable("stream", "label_values(rstream_stream_entries, stream)"),
                variable("group", 'label_values(rstream_group_pending{stream=~"$stream"}, group)'),
            ]
        },
        "panels": laid_out(),
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
