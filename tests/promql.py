"""What PromQL asks for, held against the metrics that docs/metrics.md promises."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import promql_parser as promql

from tests.metrics import Metric

SCRAPED = {"job": None, "instance": None, "le": None}
"""Labels that Prometheus adds, and that of histogram buckets."""
OTHERS = {"up": SCRAPED, "ALERTS": SCRAPED | {"alertname": None, "alertstate": frozenset({"pending", "firing"})}}
"""What Prometheus itself has."""

_GRAFANA = [("$__rate_interval", "5m"), ("$__range", "1h")]
_VALUES = re.compile(r"label_values\((?P<expr>.*), (?P<label>\w+)\)")


def problems(query: str, metrics: Iterable[Metric]) -> list[str]:
    """Why a query cannot be answered: syntax, names, labels, values of closed sets. Takes Grafana's variables, too."""
    known = OTHERS | {series: SCRAPED | metric.labels for metric in metrics for series in metric.series}
    for name, value in _GRAFANA:
        query = query.replace(name, value)
    if variable := _VALUES.fullmatch(query):
        query = f"count by ({variable['label']}) ({variable['expr']})"
    try:
        expr = promql.parse(query)
    except ValueError as error:
        return [f"{query}: {error}"]
    return [f"{query}: {problem}" for problem in _problems(expr, known)]


def _problems(expr: promql.Expr, known: dict[str, dict[str, frozenset[str] | None]]) -> Iterator[str]:
    found = selectors(expr)
    if unknown := {selector.name for selector in found} - known.keys():
        yield f"{', '.join(sorted(map(str, unknown)))} is not in docs/metrics.md"
        return
    for selector in found:
        labels = known[selector.name]
        for matcher in selector.matchers.matchers:
            if matcher.name not in labels:
                yield f"{selector.name} has no label {matcher.name}"
            elif values := labels[matcher.name]:
                told = matcher.value.split("|")
                yield from (f"{matcher.name} is never {value!r}" for value in told if value not in values)
    there = {label for selector in found for label in known[selector.name]}
    yield from (f"nothing here has a label {label}" for label in grouped(expr) - there)


def selectors(expr: promql.Expr) -> list[promql.VectorSelector]:
    return [node for node in nodes(expr) if isinstance(node, promql.VectorSelector)]


def grouped(expr: promql.Expr) -> set[str]:
    """The labels of every `by`, `without`, `on`, `ignoring` and `group_…`."""
    found: set[str] = set()
    for node in nodes(expr):
        if isinstance(node, promql.AggregateExpr) and node.modifier:
            found |= set(node.modifier.labels)
        elif isinstance(node, promql.BinaryExpr) and node.modifier:
            found |= set(node.modifier.matching.labels if node.modifier.matching else ())
            found |= set(node.modifier.group_labels or ())
    return found


def nodes(expr: promql.Expr) -> list[promql.Expr]:
    """Those of the tree, root first."""
    found: list[promql.Expr] = []
    promql.walk(expr, pre_visit=found.append)
    return found
