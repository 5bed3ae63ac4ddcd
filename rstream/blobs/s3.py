"""Blobs in a bucket of S3, or of anything that speaks its language (MinIO, R2, Ceph, …).

What may pass (a 5xx, a slow down, a timeout, a cut connection) is tried again with backoff for `patience` seconds, and
is `BlobUnavailable` after that; what will not (rights, a bucket that is not there) is `BlobRefused` at once.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rstream.blobs.base import Found, Reader
from rstream.errors import BlobError, BlobMissing, BlobRefused, BlobUnavailable, one_line

T = TypeVar("T")

LARGE = 16 * 1024 * 1024
"""What is larger is uploaded in parts of half of it, several at once."""

PART_TRIES = 6
CONNECTIONS = 32
PATIENCE, CONNECT_SECONDS, READ_SECONDS = 10.0, 3.0, 10.0
_PASSING = ("RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "Throttling")
_GONE = "NoSuchKey"
LOOK = "look at"
_CONDITION = ("412", "PreconditionFailed", "ConditionalRequestConflict")


class _Unmet(Exception):
    """The condition of a conditional put does not hold."""


class _Beyond(Exception):
    """The blob ends before what was asked for."""


class S3:
    """See `BlobStore`. patience: seconds that a call goes on trying. Credentials: as boto3 finds them."""

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.bucket, self.prefix = bucket, f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.label = f"s3://{bucket}/{self.prefix}" + (f" at {endpoint_url}" if endpoint_url else "")
        self.patience = patience
        self._endpoint, self._region = endpoint_url, region
        self._locks: dict[int, threading.Lock] = {}
        self._made: dict[tuple[int, int], Any] = {}

    def put(self, key: str, data: bytes | Path) -> None:
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        if isinstance(data, bytes) and size <= LARGE:
            self._ask("put", key, "put_object", Body=data)
        else:
            self._call("put", key, lambda _: self._put_parts(key, data))

    def _put_parts(self, key: str, data: bytes | Path) -> None:
        """A part that fails is sent again by itself: the whole may take much longer than our patience."""
        import io

        from boto3.s3.transfer import TransferConfig

        plan = TransferConfig(multipart_threshold=LARGE, multipart_chunksize=LARGE // 2, max_concurrency=4)
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
            self._client(PART_TRIES).upload_fileobj(file, self.bucket, self.prefix + key, Config=plan)

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        condition = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            return self._tag(self._ask("put", key, "put_object", Body=data, **condition))
        except BlobMissing:  # another tag than nothing has
            return None
        except _Unmet:
            # An earlier try may have done it, and only its answer was lost.
            try:
                there, its_tag = self.get_tagged(key)
            except BlobMissing:
                return None
            return its_tag if there == data and its_tag != tag else None

    def get(self, key: str, most: int | None = None) -> bytes:
        return self._get(key, most)[0]

    def part(self, key: str, start: int, size: int) -> bytes:
        try:
            return self._get(key, None, Range=f"bytes={start}-{start + size - 1}")[0]
        except _Beyond:
            return b""

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        return self._get(key, None)

    def _get(self, key: str, most: int | None, **wanted: str) -> tuple[bytes, str]:
        def get(s3: Any) -> tuple[bytes, str]:
            answer = s3.get_object(Bucket=self.bucket, Key=self.prefix + key, **wanted)
            with contextlib.closing(answer["Body"]) as body:
                data = body.read(most)
            if len(data) < min(answer["ContentLength"], answer["ContentLength"] if most is None else most):
                raise ConnectionError("the answer ended early")
            return data, self._tag(answer)

        return self._call("get", key, get)

    def open(self, key: str) -> Reader:
        return _Stream(self, key)

    def find(self, key: str) -> Found | None:
        try:
            head = self._ask(LOOK, key, "head_object")
        except BlobMissing:
            return None
        return Found(key, head["ContentLength"], head["LastModified"])

    def exists(self, key: str) -> bool:
        return self.find(key) is not None

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:  # DeleteObjects wants an MD5 in some places, and another checksum in others
            self._ask("delete", key, "delete_object")

    def list(self, prefix: str, after: str = "") -> Iterator[Found]:
        more: dict[str, str] = {"StartAfter": self.prefix + after} if after else {}
        while True:
            wanted = {"Bucket": self.bucket, "Prefix": self.prefix + prefix, **more}
            page = self._call("list", prefix, partial(_list, wanted))
            for each in page.get("Contents", ()):
                yield Found(each["Key"].removeprefix(self.prefix), each["Size"], each["LastModified"])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _tag(self, answer: Any) -> str:
        return str(answer["ETag"])

    def _client(self, tries: int = 1) -> Any:
        """boto3's are for all threads, and not for the children of a fork. tries: that it makes by itself."""
        pid = os.getpid()
        with self._locks.setdefault(pid, threading.Lock()):  # somebody may hold one while another thread forks
            if (pid, tries) not in self._made:
                self._made[pid, tries] = self._make(tries)
            return self._made[pid, tries]

    def _make(self, tries: int) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=min(CONNECT_SECONDS, self.patience),
            read_timeout=min(READ_SECONDS, self.patience),
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": tries, "mode": "standard"},
            # Not all that speak S3 know the newer checksums; ours is in the reference.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path" if self._endpoint else "auto"},
        )
        session = boto3.session.Session()  # the default one is not for threads
        region = self._region or session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=self._endpoint, region_name=region, config=config)

    def _ask(self, what: str, key: str, method: str, **arguments: Any) -> Any:
        where = {"Bucket": self.bucket, "Key": self.prefix + key}
        return self._call(what, key, lambda s3: getattr(s3, method)(**where, **arguments))

    def _call(self, what: str, key: str, call: Callable[[Any], T]) -> T:
        limit, pause = 0.0, 0.1
        while True:
            try:
                s3 = self._client()  # to make the first one takes its time, too
                limit = limit or time.monotonic() + self.patience
                return call(s3)
            except Exception as error:
                failure = self._verdict(what, key, error)
                if not isinstance(failure, BlobUnavailable) or time.monotonic() + pause > limit:
                    raise failure from None
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2.0, pause * 2)

    def _verdict(self, what: str, key: str, error: Exception) -> Exception:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
        from botocore.exceptions import ConnectionError as NotConnected
        from urllib3.exceptions import HTTPError

        told = f"{self.label} could not {what} blob {key}: {one_line(error, 300)}"
        if isinstance(error, ClientError):
            return self._answered(what, key, error.response, told)
        if isinstance(error, Boto3Error) and isinstance(error.__context__, ClientError):
            return self._answered(what, key, error.__context__.response, told)
        if isinstance(error, HTTPClientError | NotConnected | IncompleteReadError | HTTPError | OSError | Boto3Error):
            return BlobUnavailable(told)
        return BlobRefused(told)  # whatever it is, it must not end a worker

    def _answered(self, what: str, key: str, response: Any, told: str) -> Exception:
        code = str(response.get("Error", {}).get("Code", ""))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _CONDITION:
            return _Unmet(told)
        if code == "InvalidRange":
            return _Beyond(told)
        # A 404 that does not explain itself (of a balancer without a backend, or one that was cut off) does not say
        # that the blob is missing, and may pass. Only the answer to HEAD has no body that could tell.
        if code == _GONE or (code in ("404", "NotFound") and what == LOOK):
            return BlobMissing(f"there is no blob {key} in {self.label}")
        passing = status >= 500 or status in (408, 429) or code == "404" or code.startswith(_PASSING)
        kind: type[BlobError] = BlobUnavailable if passing else BlobRefused
        return kind(told)


def _list(wanted: dict[str, str], s3: Any) -> Any:
    return s3.list_objects_v2(**wanted)


class _Stream:
    """Reads on where it was, when the connection breaks."""

    def __init__(self, store: S3, key: str) -> None:
        self._store, self._key, self._at = store, key, 0
        self._body: Any = None
        self._size = -1
        self._store._call("get", key, self._begin)

    def _begin(self, s3: Any) -> None:
        wanted = {"Range": f"bytes={self._at}-"} if self._at else {}
        answer = s3.get_object(Bucket=self._store.bucket, Key=self._store.prefix + self._key, **wanted)
        self._body = answer["Body"]
        self._size = self._at + answer["ContentLength"]

    def read(self, size: int, /) -> bytes:
        return self._store._call("get", self._key, lambda s3: self._read(s3, size))

    def _read(self, s3: Any, size: int) -> bytes:
        if self._at >= self._size:
            return b""
        if self._body is None:
            self._begin(s3)
        try:
            piece = bytes(self._body.read(size))
            if not piece:
                raise ConnectionError("the answer ended early")
        except Exception:
            self.close()
            raise
        self._at += len(piece)
        return piece

    def close(self) -> None:
        if self._body is not None:
            self._body.close()
        self._body = None
