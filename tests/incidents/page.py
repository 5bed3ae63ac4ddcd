"""A page of the runbook: its commands, and what they printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "runbook"

_PIECE = re.compile(r"```console\n\$ (?P<command>[^\n]+)\n(?P<output>.*?)```|(?P<then><!-- then -->)", re.S)


@dataclass
class Block:
    """turn: how far the incident has gone by then, from 0."""

    command: str
    output: str
    turn: int


class Page:
    def __init__(self, name: str) -> None:
        self.path = FOLDER / f"{name}.md"
        self.text = self.path.read_text("utf-8")

    @property
    def blocks(self) -> Iterator[Block]:
        turn = 0
        for piece in _PIECE.finditer(self.text):
            if piece["then"]:
                turn += 1
            else:
                yield Block(piece["command"], piece["output"], turn)

    def write(self, outputs: list[str]) -> None:
        """Put what the commands print now in the place of what they printed."""
        left = iter(outputs)

        def renewed(piece: re.Match[str]) -> str:
            return piece[0] if piece["then"] else f"```console\n$ {piece['command']}\n{next(left)}```"

        self.text = _PIECE.sub(renewed, self.text)
        self.path.write_text(self.text, "utf-8")
