"""`rstream export`: a window of a stream as a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.read import POSITION, check_window, time_of
from rstream.cli.target import declared_app, stored_app, target_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rstream.event import Entry
    from rstream.stream import Stream

PROGRESS_EVERY = 0.2
NAMED = 5
"""Entries that could not be exported and are named; all are counted."""


@click.command()
@click.argument("stream")
@click.option("--from", "start", metavar="X", help=f"Begin here: {POSITION}.  [default: earliest]")
@click.option("--to", "end", metavar="X", help="End here, this included.  [default: what is newest now]")
@click.option("--format", "form", type=click.Choice(["parquet", "jsonl", "csv"]),
              help="[default: as the name of the file ends, else jsonl]")  # fmt: skip
@click.option(
    "--where", "conditions", multiple=True, metavar="FIELD=VALUE", help="Only these. May be repeated: all must hold."
)
@click.option("--key", help="Only the entries of this key.")
@click.option("--app", "spec", metavar="MODULE:APP",
              help="Read with the models of this app and its upgrade hooks: columns are the model's.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Appears when it is whole.  [default: standard output]")  # fmt: skip
@target_options
def export(
    stream: str,
    start: str | None,
    end: str | None,
    form: str | None,
    conditions: tuple[str, ...],
    key: str | None,
    spec: str | None,
    output: Path | None,
) -> int:
    """Write a window of a stream to a file for pandas, DuckDB, Spark, a spreadsheet.

    Columns: id, time and key of the entry, then the fields of the event, typed from the stored schema.

    \b
    Examples:
      rstream export orders --from "1d ago" -o orders.parquet
      rstream export orders --from 2026-11-20T09:00Z --to 2026-11-20T10:00Z --format csv --where country=de
      rstream export orders | jq .total

    \b
    Exit codes: 0 all exported · 1 an error, or entries that do not decode: the others are in the file
    """
    form = form or _by_name(output)
    if form == "parquet" and output is None:
        raise click.UsageError("a Parquet file cannot go to standard output: name it with -o FILE")
    if output is not None and not output.resolve().parent.is_dir():
        raise click.UsageError(f"-o {output}: there is no directory {output.resolve().parent}")
    with declared_app(spec) if spec else stored_app() as app:
        target = _stream(app, stream, spec)
        target.sync.layout()
        if start is not None and end is not None:
            check_window(app, start, end)
        entries = target.sync.read(start, end, key=key)
        done = _write(target, entries, form, conditions, output)
    return done.told(stream, output)


def _by_name(output: Path | None) -> str:
    suffix = "" if output is None else output.suffix.lower()
    return {".parquet": "parquet", ".csv": "csv"}.get(suffix, "jsonl")


def _stream(app: Any, name: str, spec: str | None) -> Stream[Any]:
    from rstream.errors import UnknownStream

    if spec and name not in app.streams:
        raise UnknownStream(f"{spec} declares no stream {name!r}: it declares {', '.join(app.streams) or 'none'}")
    found: Stream[Any] = app.open(name)
    return found


def _write(
    stream: Stream[Any], entries: Iterator[Entry[Any]], form: str, conditions: tuple[str, ...], output: Path | None
) -> Done:
    from rstream.errors import EntryInvalid, EventError
    from rstream.export.columns import columns
    from rstream.export.target import target
    from rstream.where import where

    fields_of, schemas = _reading(stream)
    found = columns(schemas)
    closed = not any(schema.get("additionalProperties") for schema in schemas)
    wanted = where(conditions, [column.field for column in found] if closed else None)
    kind = _writer(form)
    done = Done()
    try:
        with target(output) as file:
            writer = kind(file, found)
            for entry in entries:
                done.at(entry)
                try:
                    fields = fields_of(entry)
                    if wanted(fields):
                        own = (str(entry.id), time_of(entry.id), entry.key)
                        writer.add(own, fields, len(entry.payload))
                        done.written += 1
                except EntryInvalid as error:
                    done.bad(entry, f"{error.reason}: {error}")
                except EventError as error:
                    done.bad(entry, f"invalid: {error}")
            writer.close()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise click.FileError(str(output or "standard output"), error.strerror or str(error)) from None
    return done


def _writer(form: str) -> Any:
    if form == "parquet":
        from rstream.export.parquet import Parquet, pyarrow

        pyarrow()  # before anything is read
        return Parquet
    from rstream.export.text import Csv, JsonLines

    return Csv if form == "csv" else JsonLines


def _reading(stream: Stream[Any]) -> tuple[Callable[[Entry[Any]], Mapping[str, Any]], list[Mapping[str, Any]]]:
    """(what gives the fields of an entry, the schemas that they have)."""
    from rstream.codec import ModelCodec, unpack_payload

    if not isinstance(stream.codec, ModelCodec):
        return lambda entry: entry.event, list(stream.sync.layout().schemas.values())
    codec = stream.codec
    return lambda entry: unpack_payload(codec.encode(entry.event, 0))[1], [stream._schema]


class Done:
    """What has become of the entries so far."""

    def __init__(self) -> None:
        self.written = self.broken = 0
        self._shows, self._shown = sys.stderr.isatty(), 0.0

    def at(self, entry: Entry[Any]) -> None:
        if self._shows and (now := time.monotonic()) - self._shown > PROGRESS_EVERY:
            self._shown = now
            click.echo(f"\r\x1b[K{self.written:,} entries, at {time_of(entry.id)}", nl=False, err=True)

    def bad(self, entry: Entry[Any], why: str) -> None:
        self.broken += 1
        if self.broken <= NAMED:
            self._clear()
            click.echo(f"{entry.id}: {why}", err=True)

    def told(self, stream: str, output: Path | None) -> int:
        """The exit code."""
        self._clear()
        place = f" to {output}" if output else ""
        entries = "1 entry" if self.written == 1 else f"{self.written:,} entries"
        click.echo(f"exported {entries} of {stream}{place}", err=True)
        if self.broken:
            others = f" (the first {NAMED} are named above)" if self.broken > NAMED else ""
            click.echo(f"{self.broken:,} could not be decoded, and are left out{others}", err=True)
        return 1 if self.broken else 0

    def _clear(self) -> None:
        if self._shows:
            click.echo("\r\x1b[K", nl=False, err=True)
