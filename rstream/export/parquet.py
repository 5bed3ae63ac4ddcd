"""Parquet by pyarrow, an extra: rows are gathered into groups of a bounded size, and written out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import IO, Any

from rstream.errors import ConfigError
from rstream.export.columns import Column, Kind, checked

GROUP_ROWS = 20_000
GROUP_BYTES = 16 * 1024 * 1024


class Parquet:
    """add: a row; `close` writes the rest, and what makes it a Parquet file."""

    def __init__(self, file: IO[bytes], columns: Sequence[Column]) -> None:
        self._pa, parquet = pyarrow()
        self._columns = columns
        pa = self._pa
        own = [("id", pa.string()), ("time", pa.timestamp("ms", "UTC")), ("key", pa.string())]
        self._schema = pa.schema([*own, *((column.name, self._type(column.kind)) for column in columns)])
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._rows: list[list[Any]] = []
        self._bytes = 0

    def add(self, own: tuple[Any, ...], fields: Mapping[str, Any], size: int = 0) -> None:
        id, time, key = own
        row = checked(self._columns, fields)
        self._rows.append([id, None if time is None else datetime.fromisoformat(time), key, *row])
        self._bytes += size
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        pa, cells = self._pa, zip(*self._rows, strict=True)
        arrays = [pa.array(column, type=field.type) for column, field in zip(cells, self._schema, strict=True)]
        self._rows, self._bytes = [], 0
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def _type(self, kind: Kind) -> Any:
        pa = self._pa
        if kind.name == "struct":
            return pa.struct([(name, self._type(inner)) for name, inner in kind.fields])
        if kind.name == "list" and kind.item:
            return pa.list_(self._type(kind.item))
        return {
            "int": pa.int64(),
            "float": pa.float64(),
            "bool": pa.bool_(),
            "bytes": pa.binary(),
            "datetime": pa.timestamp("us", "UTC"),
            "date": pa.date32(),
        }.get(kind.name, pa.string())


def pyarrow() -> tuple[Any, Any]:
    """The modules. Raises `ConfigError`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"--format parquet needs pyarrow, which does not import here ({error}): pip install 'rstream[export]', or "
            "export as jsonl or csv"
        ) from None
    return pyarrow, pyarrow.parquet
