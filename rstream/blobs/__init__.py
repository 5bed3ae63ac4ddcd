"""Blob stores: where large payloads are kept out of Redis. `open_store` makes one from its URL."""

from rstream.blobs.base import BlobStore, Found
from rstream.blobs.directory import Directory
from rstream.blobs.s3 import S3
from rstream.blobs.url import check_url, open_store

__all__ = ["S3", "BlobStore", "Directory", "Found", "check_url", "open_store"]
