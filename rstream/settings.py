"""What can be set from outside. Pure: read once, validated, then only passed on."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rstream.errors import ConfigError

Durability = Literal["local", "replicated"]
Mode = Literal["parent", "link", "off"]
"""How the span of a handler is tied to who published: as its child, by a link alone (then it begins a trace of its
own), or there are no spans and no context travels."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)


class Settings(BaseModel):
    """url: where Redis is (None: an embedded server) · namespace: prefix of every key ·
    publish_timeout: seconds a publish may wait for Redis to come back (at most 300) · full_wait: seconds it may wait
    for room in a full stream ·
    max_event_bytes: encoded size above which `publish` raises `EventTooLarge`, where there is no blob store ·
    blobs: URL of that · blob_threshold: size above which an encoded event, or a `Blob`, goes there · durability:
    "local": published is what the master has; "replicated": what a replica has, too · tracing: see `rstream.tracing`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str | None = Field(default=None, repr=False)  # it may hold a password
    namespace: str = "rstream"
    publish_timeout: float = Field(default=30.0, gt=0, le=300)
    full_wait: float = Field(default=0.0, ge=0, le=300)
    durability: Durability = "local"
    tracing: Mode = "parent"
    max_event_bytes: int = Field(default=1024 * 1024, gt=0, le=64 * 1024 * 1024)
    blobs: str | None = Field(default=None, repr=False)
    blob_threshold: int = Field(default=32 * 1024, ge=64, le=64 * 1024 * 1024)

    @property
    def replicas(self) -> int:
        """That have to have what is published."""
        return 1 if self.durability == "replicated" else 0

    @field_validator("namespace")
    @classmethod
    def _named(cls, value: str) -> str:
        return check_name("namespace", value)

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, **given: object) -> Settings:
        """What was given, then RSTREAM_URL, RSTREAM_NAMESPACE, RSTREAM_DURABILITY, RSTREAM_BLOBS and RSTREAM_TRACING,
        then the defaults. Raises `ConfigError`.
        """
        values: dict[str, object] = {}
        for name in ("url", "namespace", "durability", "blobs", "tracing"):
            if environ.get(f"RSTREAM_{name.upper()}"):
                values[name] = environ[f"RSTREAM_{name.upper()}"]
        values |= {name: value for name, value in given.items() if value is not None}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise ConfigError(f"setting {'.'.join(map(str, first['loc']))} cannot be used: {first['msg']}") from None


def check_name(what: str, name: str) -> str:
    """A stream, group or namespace name becomes part of Redis keys, so it is kept plain. Raises `ConfigError`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} {name!r} cannot be used: a name has 1 to 128 letters, digits, '.', '_' or '-', "
            "and starts with a letter or digit"
        )
    return name
