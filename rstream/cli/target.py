"""What a command talks to: `--url`, `--namespace` and `--blobs`, before or after the command's name."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rstream.app import RStream

C = TypeVar("C", bound=Callable[..., Any])

_HELP = {
    "url": "redis[s]://, redis[s]+sentinel://, redis[s]+cluster://, unix:// or embedded:DIR.  "
    "[default: RSTREAM_URL, else an embedded server]",
    "namespace": "Prefix of every key.  [default: RSTREAM_NAMESPACE, else rstream]",
    "blobs": "Blob store of large payloads: s3://bucket/prefix or file:///directory.  [default: RSTREAM_BLOBS]",
}


def target_options(command: C) -> C:
    """Add `--url`, `--namespace` and `--blobs`. They become environment variables, so that the user's app follows
    them too.
    """
    for name in ("blobs", "namespace", "url"):
        command = click.option(
            f"--{name}", metavar=name.upper(), expose_value=False, callback=_remember, help=_HELP[name]
        )(command)
    return command


def _remember(context: click.Context, option: click.Parameter, value: str | None) -> None:
    if value is not None:
        assert option.name
        os.environ[f"RSTREAM_{option.name.upper()}"] = value
        context.find_root().meta[f"rstream.{option.name}"] = value


def stored_app(*, publish_timeout: float | None = None) -> RStream:
    """An app that declares nothing: it knows the streams that are stored. Raises `ConfigError`."""
    from rstream.app import RStream

    return RStream(publish_timeout=publish_timeout)


def declared_app(spec: str) -> RStream:
    """The app of the user, as `MODULE:APP`. Raises `LoadError`, and where one of those options cannot reach it."""
    from rstream.blobs import url as blob_urls
    from rstream.cli.load import load_app
    from rstream.errors import ConfigError
    from rstream.store import url as urls

    app = load_app(spec)
    wanted = click.get_current_context().find_root().meta
    for name in ("url", "namespace", "blobs"):
        given, used = wanted.get(f"rstream.{name}"), getattr(app.settings, name)
        if given is not None and given != used:
            label = {"url": urls.label, "blobs": blob_urls.label}.get(name, str)
            told, sets = (value and label(value) for value in (given, used))
            raise ConfigError(f"--{name} {told} has no effect: {spec} sets {sets!r} itself. Leave out one of them")
    return app
