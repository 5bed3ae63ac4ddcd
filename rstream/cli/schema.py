"""`rstream schema`: what is stored of a stream's events, and whether a model goes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rstream.cli.tables import table
from rstream.cli.target import declared_app, stored_app, target_options

if TYPE_CHECKING:
    from rstream.app import RStream
    from rstream.store.layout import Layout
    from rstream.upgrades import Schemas, Upgrades

Problems = dict[int, list[str]]
"""By stored versions, the differences."""


@click.group()
def schema() -> None:
    """Show the schema of a stream's events, or check a model against it.

    \b
    Examples:
      rstream schema show orders
      rstream schema show orders --version 1 --json | jq .schema
      rstream schema check orders --app shop.events:app
    """


@schema.command()
@click.argument("stream")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="This one.  [default: the newest]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with the JSON Schema as it is stored.")
@target_options
def show(stream: str, version: int | None, as_json: bool) -> None:
    """Show the fields of a version, and which versions there are."""
    from rstream.compat import digest
    from rstream.errors import ConfigError, UnknownStream

    with stored_app() as app:
        layout = _stored(app, stream)
        if layout is None:
            raise UnknownStream(f"no stream {stream!r} is stored here: `rstream streams` lists what is")
    number = version or max(layout.schemas)
    if number not in layout.schemas:
        raise ConfigError(f"stream {stream!r} has no version {number}: there are 1 to {max(layout.schemas)}")
    chosen = layout.schemas[number]
    digests = {each: digest(schema) for each, schema in layout.schemas.items()}
    if as_json:
        versions = [{"version": each, "digest": told} for each, told in digests.items()]
        row = {"stream": stream, "key": layout.key, "version": number, "digest": digests[number]}
        click.echo(json.dumps(row | {"versions": versions, "schema": chosen}, indent=2, ensure_ascii=False))
        return
    click.echo(f"{stream}: version {number} of {len(digests)}, digest {digests[number]}, key {layout.key or '-'}")
    table(["FIELD", "TYPE", "DEFAULT"], _fields(chosen), right=set())
    if others := [f"{each} ({told})" for each, told in digests.items() if each != number]:
        click.echo(f"Other versions: {', '.join(others)}")


@schema.command()
@click.argument("stream")
@click.option("--app", "spec", metavar="MODULE:APP", help="The app that declares the stream, with its upgrade hooks.")
@click.option("--model", metavar="MODULE:CLASS", help="Or just a model.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@target_options
def check(stream: str, spec: str | None, model: str | None, as_json: bool) -> int:
    """Check whether a model goes with all versions that are stored, as its first publish would. Changes nothing.

    Exit codes: 0 it does · 1 it does not, and the differences are shown
    """
    from rstream.declaring import incompatible

    if (spec is None) == (model is None):
        raise click.UsageError("name the model in one way: --app MODULE:APP, or --model MODULE:CLASS")
    with declared_app(spec) if spec else stored_app() as app:
        layout = _stored(app, stream)
    stored = layout.schemas if layout else {}
    key = layout.key if layout else None
    found, upgrades = _declared(app, stream, str(spec)) if spec else _modelled(stream, str(model), key)
    upgrades.settle(stream, stored)
    problems = incompatible(found, stored, upgrades)
    (_check_json if as_json else _check_text)(stream, found, stored, problems)
    return 1 if problems else 0


def _check_json(stream: str, schema: Mapping[str, Any], stored: Schemas, problems: Problems) -> None:
    row = {"stream": stream, "stored": sorted(stored), "version": _number(schema, stored), "compatible": not problems}
    told = {str(number): lines for number, lines in problems.items()}
    click.echo(json.dumps(row | {"differences": told}, indent=2, ensure_ascii=False))


def _check_text(stream: str, schema: Mapping[str, Any], stored: Schemas, problems: Problems) -> None:
    from rstream.compat import digest

    version = _number(schema, stored)
    place = f"is version {version}, stored already" if version else f"would be version {max(stored, default=0) + 1}"
    name = schema.get("title", "the model")
    if not problems:
        click.echo(f"{stream}: {name} {place}, and goes with all that is stored")
        return
    click.echo(f"{stream}: {name} {place}, and does not go with what is stored:")
    for line in (line for lines in problems.values() for line in lines):
        click.echo(f"  {line}")
    numbers = ", ".join(f"{number} ({digest(stored[number])})" for number in problems)
    click.echo(f"No @stream.upgrade covers version {numbers}: add it, or change the model back", err=True)


def _number(schema: Mapping[str, Any], stored: Schemas) -> int | None:
    """The version as which this schema is stored."""
    from rstream.compat import digest

    return next((number for number, each in stored.items() if digest(each) == digest(schema)), None)


def _stored(app: RStream, stream: str) -> Layout | None:
    from rstream.store import layout as layouts

    return app.sync_link.run(layouts.load(app.settings.namespace, stream))


def _declared(app: RStream, name: str, spec: str) -> tuple[Mapping[str, Any], Upgrades]:
    from rstream.codec import ModelCodec
    from rstream.errors import UnknownStream
    from rstream.upgrades import Upgrades

    if name not in app.streams:
        known = ", ".join(app.streams) or "none"
        raise UnknownStream(f"{spec} declares no stream {name!r}: it declares {known}")
    stream = app.streams[name]
    return stream._schema, stream.codec.upgrades if isinstance(stream.codec, ModelCodec) else Upgrades()


def _modelled(name: str, spec: str, key: str | None) -> tuple[Mapping[str, Any], Upgrades]:
    from pydantic import BaseModel

    from rstream.cli.load import load
    from rstream.errors import LoadError
    from rstream.schema import describe
    from rstream.upgrades import Upgrades

    model = load(spec)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise LoadError(f"{spec} is a {type(model).__name__}, not a model: name a class that is an rstream.Event")
    described = describe(model, key)
    return described, Upgrades(name, described)


def _fields(schema: Mapping[str, Any]) -> list[list[str]]:
    from rstream.compat import options, told
    from rstream.schema import DEFAULT_MARK

    rows = []
    for name, field in schema.get("properties", {}).items():
        default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else "required"
        rows.append([name, told(list(options(field, schema))), "made in Python" if DEFAULT_MARK in field else default])
    return rows
