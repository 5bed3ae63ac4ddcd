"""JSON lines and CSV, row by row: nothing is kept."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rstream.event import jsonable
from rstream.export.columns import OWN, Column, checked, to_json


class JsonLines:
    """One object a line: the entry's columns, then all that the event has."""

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        self._file = file
        self._names = {column.field: column.name for column in columns}
        self._empty = dict.fromkeys(self._names.values())

    def add(self, own: tuple[Any, ...], fields: Mapping[str, Any], size: int = 0) -> None:
        event = {self._name(field): found for field, found in fields.items()}
        row = dict(zip(OWN, own, strict=True)) | self._empty | jsonable(event)
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def _name(self, field: str) -> str:
        return self._names.get(field) or (f"event.{field}" if field in OWN else field)

    def close(self) -> None:
        pass


class Csv:
    """With a header. Nested values are JSON, bytes base64; what is missing or null is empty."""

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        self._file, self._columns = file, columns
        self._line = io.StringIO(newline="")
        self._writer = csv.writer(self._line, lineterminator="\n")
        self._write([*OWN, *(column.name for column in columns)])

    def add(self, own: tuple[Any, ...], fields: Mapping[str, Any], size: int = 0) -> None:
        checked(self._columns, fields)
        self._write([*own, *(_cell(fields.get(column.field)) for column in self._columns)])

    def _write(self, cells: Sequence[Any]) -> None:
        self._line.seek(0)
        self._line.truncate()
        self._writer.writerow(cells)
        self._file.write(self._line.getvalue().encode(errors="replace"))

    def close(self) -> None:
        pass


def _cell(found: Any) -> Any:
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, bytes):
        return base64.urlsafe_b64encode(found).decode()
    return found if found is None or isinstance(found, str | int | float) else to_json(found)
