"""The URL of a blob store: `file:///directory`, or `s3://bucket/prefix?endpoint=…&region=…&patience=…`."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from rstream.blobs.base import BlobStore
from rstream.blobs.directory import Directory
from rstream.blobs.s3 import PATIENCE, S3
from rstream.errors import ConfigError

_OPTIONS = ("endpoint", "region", "patience")
_NO_SECRETS = "credentials do not belong there, boto3 finds them elsewhere"
_BUCKET = re.compile(r"[\w.-]{1,255}", re.ASCII)


def label(url: str) -> str:
    """A URL for messages: without user, password and options."""
    # By hand, as that of a Redis: what urlsplit makes of a secret with an unquoted / ? # or @ may be host or path.
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    user, at, place = rest.rpartition("@")
    if not at or (scheme == "file" and ":" not in user):
        user, place = "", rest
    shown, cut, _ = place.replace("#", "?").partition("?")
    if "?" in user or "#" in user:
        shown = ""
    known = scheme if scheme in ("s3", "file", "http", "https", "") else "…"
    return known + separator + ("…@" if user else "") + shown + ("?…" if cut or not shown else "")


def check_url(url: str) -> None:
    """Raises `ConfigError`."""
    open_store(url)


def open_store(url: str) -> BlobStore:
    """Connects when it is first used. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        endpoint = options.get("endpoint")
        asked = urlsplit(endpoint or "")
    except ValueError:
        # urllib quotes what it cannot read, which may be half a secret.
        raise _refused(url, "it cannot be read (/ ? # @ [ in a name are written %2F %3F %23 %40 %5B)") from None
    if "@" in parts.netloc or (endpoint and "@" in endpoint):
        raise _refused(url, _NO_SECRETS)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/") or options:
            raise _refused(url, "a directory is written file:///its/path")
        return Directory(Path(unquote(parts.path)))
    if parts.scheme != "s3" or not parts.netloc:
        raise _refused(url, "there are s3://bucket/prefix and file:///directory")
    if not _BUCKET.fullmatch(unquote(parts.netloc)) or parts.fragment:
        raise _refused(url, f"a bucket has letters, digits, '.', '_' and '-'; {_NO_SECRETS}")
    if unknown := [name for name in options if name not in _OPTIONS]:
        named = repr(unknown[0]) if unknown[0].isidentifier() and "@" not in url else "of that name"
        raise _refused(url, f"it has no option {named}, there are {', '.join(_OPTIONS)}")
    if endpoint is not None and (asked.scheme not in ("http", "https") or asked.query or asked.fragment):
        raise _refused(url, "endpoint is the http:// or https:// URL of the server")
    try:
        patience = float(options.get("patience", PATIENCE))
    except ValueError:
        patience = 0.0
    if not 0.1 <= patience <= 300:
        raise _refused(url, "patience is between 0.1 and 300 seconds")
    prefix, region = unquote(parts.path.strip("/")), options.get("region")
    return S3(parts.netloc, prefix, endpoint_url=endpoint, region=region, patience=patience)


def _refused(url: str, why: str) -> ConfigError:
    return ConfigError(f"the blob store {label(url)!r} cannot be used: {why}")
