"""What Prometheus would see: /metrics read by its own parser, and the probes."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import eventually


class Scrape:
    """One answer of /metrics."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def series(self, name: str, **labels: str) -> list[float]:
        """The values of those that have these labels."""
        return [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]

    def total(self, name: str, **labels: str) -> float:
        found = self.series(name, **labels)
        assert found, f"no {name} {labels}"
        return sum(found)

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """Those that are not 0, by the values of one label."""
        found: dict[str, float] = {}
        for sample in self.samples:
            if sample.name == name and sample.value and labels.items() <= sample.labels.items():
                found[sample.labels[label]] = found.get(sample.labels[label], 0) + sample.value
        return found


def read(families: Iterable[Metric]) -> Scrape:
    """Of what a collector gives."""
    given = [*families]

    class Collector:
        def collect(self) -> Iterable[Metric]:
            return given

    registry = CollectorRegistry()
    registry.register(Collector())
    return Scrape(generate_latest(registry).decode())


class Port:
    """Of a worker, by what it logs."""

    def __init__(self, log: Callable[[], str]) -> None:
        found: Any = eventually(lambda: re.search(r"metrics on http://127\.0\.0\.1:(\d+)/metrics", log()))
        self.number = int(found[1])

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.number, timeout=20)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        finally:
            connection.close()

    def scrape(self) -> Scrape:
        status, body = self.get("/metrics")
        assert status == 200, body
        return Scrape(body)

    @property
    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def unready(self, told: str) -> bool:
        """Whether that is a reason why it is not."""
        status, body = self.get("/readyz")
        return status == 503 and re.search(f"^FAIL .*{told}", body, re.MULTILINE) is not None
