"""The URL of a blob store: `file:///directory`, or `s3://bucket/prefix?endpoint=…&region=…&patience=…`."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from rstream.blobs.base import BlobStore
from rstream.blobs.directory import Directory
from rstream.blobs.s3 import PATIENCE, S3
from rstream.errors import ConfigError

_SECRET = re.compile("//[^/@]*@")
_OPTIONS = ("endpoint", "region", "patience")


def check_url(url: str) -> None:
    """Raises `ConfigError`."""
    open_store(url)


def open_store(url: str) -> BlobStore:
    """Connects when it is first used. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise _refused(url, str(error)) from None
    if "@" in parts.netloc or "@" in urlsplit(options.get("endpoint", "")).netloc:
        raise _refused(_SECRET.sub("//…@", unquote(url)), "credentials do not belong there, boto3 finds them elsewhere")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.strip("/") or options:
            raise _refused(url, "a directory is written file:///its/path")
        return Directory(Path(unquote(parts.path)))
    if parts.scheme != "s3" or not parts.netloc:
        raise _refused(url, "there are s3://bucket/prefix and file:///directory")
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise _refused(url, f"it has no option {unknown[0]!r}, there are {', '.join(_OPTIONS)}")
    endpoint = options.get("endpoint")
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
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
    return ConfigError(f"the blob store {url!r} cannot be used: {why}")
