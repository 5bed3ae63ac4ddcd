"""The tables as one SVG: a panel a workload, a bar a contestant. Pure.

Plain shapes and text; readable on light and on dark, for the style follows what the reader's browser prefers. Bars
begin at zero and are linear: a small one is small.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from benchmarks.table import Series, Table, number

WIDTH, COLUMNS, GAP, ROW, HEAD, TOP = 980, 2, 28, 19, 34, 52
NAME, FIGURE = 222, 70
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 } .t { font-weight: 600; font-size: 13px } .s { fill: #59636e }
.h { font-weight: 700; font-size: 16px } .ours { fill: #0969da } .peer { fill: #8c959f } .raw { fill: #d0d7de }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .s { fill: #9198a1 } .ours { fill: #4493f8 } .peer { fill: #7d8590 } .raw { fill: #3d444d } }
"""


def svg(tables: Sequence[Table], title: str = "rstream beside its peers, and the raw limits") -> str:
    wide = (WIDTH - GAP * (COLUMNS - 1)) // COLUMNS
    bottoms = [TOP] * COLUMNS
    parts: list[str] = []
    for table in tables:
        column = bottoms.index(min(bottoms))
        parts.append(f'<g transform="translate({column * (wide + GAP)} {bottoms[column]})">{panel(table, wide)}</g>')
        bottoms[column] += height(table)
    tall = max(bottoms)
    legend = "".join(
        f'<rect class="{kind}" x="{x}" y="28" width="12" height="12"/><text class="s" x="{x + 17}" y="38">{name}</text>'
        for x, kind, name in ((0, "ours", "rstream"), (90, "peer", "peers"), (170, "raw", "raw limits"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-12 -8 {WIDTH + 24} {tall + 16}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style><text class="h" x="0" y="14">{escape(title)}</text>'
        f"{legend}{''.join(parts)}</svg>\n"
    )


def height(table: Table) -> int:
    return HEAD + ROW * len(table.series) + 16


def panel(table: Table, wide: int) -> str:
    most = max((series.median for series in table.series if series.measured), default=1.0) or 1.0
    better = "more is better" if table.higher else "less is better"
    head = f'<text class="t" y="12">{escape(shortened(table.title, 64))}</text>'
    head += f'<text class="s" y="27">{escape(table.unit)}, {better}</text>'
    return head + "".join(bar(series, most, HEAD + ROW * at, wide) for at, series in enumerate(table.series))


def bar(series: Series, most: float, y: int, wide: int) -> str:
    name = f'<text x="0" y="{y + 12}">{escape(shortened(series.name))}</text>'
    if not series.measured:
        reason = escape(shortened(series.failed or "not measured", 40))
        return f'{name}<text class="s" x="{NAME}" y="{y + 12}">{reason}</text>'
    room = wide - NAME - FIGURE
    long = max(room * series.median / most, 1.0)
    return (
        f'{name}<rect class="{series.kind}" x="{NAME}" y="{y + 2}" width="{long:.1f}" height="{ROW - 6}" rx="2"/>'
        f'<text x="{NAME + long + 6:.1f}" y="{y + 12}">{number(series.median)}</text>'
    )


def shortened(text: str, most: int = 32) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip(" ,") + "…"
