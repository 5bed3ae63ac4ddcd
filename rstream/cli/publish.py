"""`rstream publish`: JSON in, entries out. Everything is read and checked before anything is sent."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.target import declared_app, stored_app, target_options

if TYPE_CHECKING:
    from rstream.event import EntryId
    from rstream.stream import Stream

Read = Callable[[str], Any]
"""One line of JSON -> an event. Raises `EventInvalid`."""


@click.command()
@click.argument("stream")
@click.argument("source", required=False, metavar="[-]")
@click.option("--json", "text", metavar="JSON", help="One event, as a JSON object.")
@click.option("--file", "file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), metavar="FILE",
              help="Many events, one JSON object a line; - is stdin.")  # fmt: skip
@click.option("--app", "spec", metavar="MODULE:APP",
              help="Check with the models of this app, and declare the stream if nobody has yet.")  # fmt: skip
@click.option("--key", help="The key of all these events, for a stream that has no key field.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="For all these events. May be repeated.")
@click.option("--output", type=click.Choice(["ids", "json", "summary"]),
              help="Print the ids one a line, the same as JSON objects, or one line about all.  "
              "[default: summary for --file, else ids]")  # fmt: skip
@target_options
def publish(
    stream: str,
    source: str | None,
    text: str | None,
    file: Path | None,
    spec: str | None,
    key: str | None,
    headers: tuple[str, ...],
    output: str | None,
) -> None:
    """Add events to a stream: one (--json), a file of them (--file), or those on stdin (-).

    They are checked, and routed by their key, as the library does it: by the schema and key field that are stored of
    the stream. Unless all are valid, none is published. Bytes are base64 text.

    The stored schema checks types, formats and limits. Validators written in Python run in the consumer, or here with
    --app; a key or default that is computed in Python needs --app.

    \b
    Examples:
      rstream publish orders --json '{"customer": "c1", "total": 12.5}'
      rstream publish orders --file orders.jsonl
      generate-orders | rstream publish orders -
      rstream publish orders --app shop.events:app --json '{"customer": "c1", "total": 12.5}'
    """
    if key == "":
        raise click.UsageError("--key is empty: give a key, or leave it out")
    lines = _lines(source, text, file)  # wrong usage is said before anything is looked up
    packed = _headers(headers)
    target = _declared(spec, stream) if spec else _stored(stream)
    if key is not None and target.key is not None:
        raise click.UsageError(f"{stream} takes its keys from the field {target.key!r} of the events: leave out --key")
    ids = _send(target, lines, _reader(target), key, packed)
    _report(ids, stream, output or ("summary" if file is not None and str(file) != "-" else "ids"))


class Lines:
    """JSON lines that know where they are. at: the number of the current line, 0 before the first."""

    def __init__(self, origin: str, lines: Iterable[bytes], *, numbered: bool = True) -> None:
        self.at, self._origin, self._lines, self._numbered = 0, origin, lines, numbered

    def __iter__(self) -> Iterator[str]:
        """Every line that is not blank. Raises `EventInvalid`."""
        from rstream.errors import EventInvalid

        for at, raw in enumerate(self._lines, 1):
            self.at = at
            try:
                line = raw.decode("utf-8-sig" if self.at == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise EventInvalid(f"not UTF-8: {error.reason} at byte {error.start + 1}") from None
            if line:
                yield line
            elif not self._numbered:
                raise EventInvalid("not JSON: it is empty")
        self.at = 0

    @property
    def place(self) -> str:
        return f"{self._origin} line {self.at}" if self._numbered else self._origin


def _lines(source: str | None, text: str | None, file: Path | None) -> Lines:
    if source not in (None, "-"):
        raise click.UsageError(f"unexpected argument {source!r}: give the event with --json, or a file with --file")
    if (source is not None) + (text is not None) + (file is not None) != 1:
        raise click.UsageError("give the events in one way: --json '{…}', --file events.jsonl, or - for stdin")
    if text is not None:
        encoded = text.encode("utf-8", "surrogateescape")
        return Lines("--json", [encoded], numbered=False)
    if file is None or str(file) == "-":
        return Lines("stdin", sys.stdin.buffer)
    try:
        return Lines(str(file), file.open("rb"))
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from None


def _headers(given: Sequence[str]) -> dict[str, str]:
    headers = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{each!r} is not NAME=VALUE", param_hint="--header")
        headers[name] = value
    return headers


def _stored(name: str) -> Stream[Any]:
    from rstream.errors import ConfigError
    from rstream.schema import SchemaCodec

    stream = stored_app().open(name)
    if isinstance(stream.codec, SchemaCodec) and stream.codec.key_is_computed:
        raise ConfigError(f"the key of stream {name!r} is computed in Python: give --app MODULE:APP")
    return stream


def _declared(spec: str, name: str) -> Stream[Any]:
    from rstream.errors import UnknownStream
    from rstream.store import layout as layouts

    app = declared_app(spec)
    if name not in app.streams:
        known = ", ".join(app.streams) or "none"
        raise UnknownStream(f"{spec} declares no stream {name!r}: it declares {known}")
    app.sync_link.run(layouts.clock())  # a Redis that does not answer is told at once: a publish would wait for it
    return app.streams[name]


def _reader(stream: Stream[Any]) -> Read:
    from rstream.codec import ModelCodec

    return _model_reader(stream.codec.model) if isinstance(stream.codec, ModelCodec) else _read_object


def _read_object(line: str) -> Any:
    from rstream.errors import EventInvalid

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value")

    def real(number: str) -> float:
        if math.isinf(value := float(number)):
            raise ValueError(f"{number} is too large a number")
        return value

    try:
        event = json.loads(line, parse_constant=refuse, parse_float=real)
    except (ValueError, RecursionError) as error:
        raise EventInvalid(f"not JSON: {error}; an event is one object, {{…}}, on one line") from None
    if not isinstance(event, dict):
        raise EventInvalid("an event is a JSON object, {…}, not " + line[:40])
    return event


def _model_reader(model: Any) -> Read:
    """By the model's own JSON rules. Unknown fields are refused, as they are by the stored schema."""
    from pydantic import ValidationError

    from rstream.codec import explain
    from rstream.errors import EventInvalid

    extra = "forbid" if model.model_config.get("extra") in (None, "ignore") else None

    def read(line: str) -> Any:
        _read_object(line)  # for its plainer errors
        try:
            return model.model_validate_json(line, by_alias=True, by_name=True, extra=extra)
        except ValidationError as error:
            raise EventInvalid(f"{model.__name__}: {explain(error)}") from None

    return read


def _send(stream: Stream[Any], lines: Lines, read: Read, key: str | None, headers: Mapping[str, str]) -> list[EntryId]:
    from rstream.errors import EventError, StoreError

    def walk() -> Iterator[Any]:  # the stream checks each as it takes it, so an error is about the latest
        for lines.at, event in parsed:
            yield event
        lines.at = 0

    try:
        parsed = [(lines.at, read(line)) for line in lines]  # before a stream that nobody declared yet is declared
        return stream.sync.publish_many(walk(), key=key, headers=headers)
    except EventError as error:
        if lines.at:
            why = str(error).rstrip(".")
            error.args = (f"{lines.place}: {why}. Nothing was published",)
        raise
    except StoreError as error:
        if error.published:
            first, last = min(error.published), max(error.published)
            known = f"{len(error.published):,} of {len(parsed):,} events surely are in ({first} to {last})"
            error.args = (f"{error}; {known}",)
        raise


def _report(ids: list[EntryId], stream: str, output: str) -> None:
    if not ids:
        click.echo(f"published 0 events to {stream}: there were none in the input", err=True)
    elif output == "summary":
        window = f"first id {min(ids)}, last id {max(ids)}"
        click.echo(f"published {len(ids):,} event{'' if len(ids) == 1 else 's'} to {stream}: {window}")
    else:
        click.echo("\n".join(json.dumps({"id": str(id)}) if output == "json" else str(id) for id in ids))
