"""The metrics that the tables of docs/metrics.md promise: what alert rules, panels and exporters are held to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"

_LABEL = re.compile(r"(\w+)(?: \(([^)]*)\))?")
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}


@dataclass(frozen=True)
class Metric:
    """labels: each with the values that it may have, or None where streams and groups decide that."""

    name: str
    type: str
    labels: dict[str, frozenset[str] | None]
    meaning: str

    @property
    def series(self) -> list[str]:
        """As it is scraped, and queried."""
        return [self.name + suffix for suffix in _SUFFIXES.get(self.type, ("",))]


def documented(page: Path = PAGE) -> dict[str, Metric]:
    """By name, in the order of the page."""
    found: dict[str, Metric] = {}
    for line in page.read_text("utf-8").splitlines():
        if line.startswith("| `rstream_"):
            name, kind, labels, meaning = (cell.strip() for cell in line.strip("| ").split("|"))
            name = name.strip("`")
            assert name not in found, f"{name} is documented twice"
            found[name] = Metric(name, kind, _labels(labels), meaning)
    return found


def _labels(cell: str) -> dict[str, frozenset[str] | None]:
    return {
        label: frozenset(value.strip() for value in values.split(",")) if values else None
        for label, values in _LABEL.findall(cell)
    }
