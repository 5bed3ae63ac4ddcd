"""Archives for tests: archiving by hand, trimming as far as is safe, dying in the middle, and flipping bits."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rstream import EntryId, Event, RStream, Stream
from rstream.archive.archive import Archive
from rstream.archive.archiver import Archiver
from rstream.store import archiving
from rstream.store.keys import Shard
from rstream.store.link import Op
from rstream.store.steps import Course, Steps, drive_sync
from tests.objects import Objects, client, moto

WITHIN = 10.0


class Reading(Event):
    device: str
    n: int
    pad: bytes = b""


class Log:
    """A stream of readings that is archived by hand. ids: all that were published, in the order of `read`."""

    def __init__(self, app: RStream, shards: int = 3, segment_bytes: int = 4096) -> None:
        self.app, self.segment_bytes = app, segment_bytes
        self.stream: Stream[Reading] = app.stream("readings", Reading, key="device", shards=shards, archive=True)
        self.ids: list[EntryId] = []

    @property
    def past(self) -> Archive:
        assert self.stream.past is not None
        return self.stream.past

    @property
    def layout(self) -> Any:
        return self.stream.sync.layout(fresh=True)

    @property
    def keys(self) -> list[str]:
        return [f"device{n}" for n in range(7)]

    def publish(self, count: int, pad: int = 50) -> list[EntryId]:
        first = len(self.ids)
        noise = random.Random(first)
        readings = [
            Reading(device=f"device{n % 7}", n=n, pad=noise.randbytes(pad)) for n in range(first, first + count)
        ]
        new = self.stream.sync.publish_many(readings)
        self.ids = sorted([*self.ids, *new])
        return new

    def cycle(self, every: float = 60.0, *, everything: bool = True) -> Steps[int]:
        return Archiver(self.past, every, self.segment_bytes).cycle(self.layout, everything=everything)

    def archive(self) -> int:
        return self.drive(self.cycle())

    def drive(self, steps: Any) -> Any:
        return drive_sync(self.app.sync_link, steps, WITHIN)

    def drive_op(self, op: Op[Any]) -> Any:
        return self.app.sync_link.run(op, within=WITHIN)

    def ask(self, *calls: Any) -> list[Any]:
        return self.app.sync_link.run(Op(calls, list), within=WITHIN)

    def positions(self) -> dict[Shard, tuple[int, int] | None]:
        shards = self.layout.every
        return {
            shard: at.position
            for shard, at in zip(shards, self.app.sync_link.run(archiving.standings(shards)), strict=True)
        }

    def trim(self, share: float = 1.0) -> int:
        """What is archived, or about so much of it, the oldest; how many entries."""
        gone = 0
        for shard, position in self.positions().items():
            if position is not None:
                (found,) = self.ask(("XRANGE", shard.stream, "-", f"{position[0]}-{position[1]}"))
                if found and (cut := found[: round(len(found) * share)]):
                    ms, seq = map(int, cut[-1][0].split(b"-"))
                    gone += self.ask(("XTRIM", shard.stream, "MINID", f"{ms}-{seq + 1}"))[0]
        return gone

    def read(self, *args: Any, **kwargs: Any) -> list[EntryId]:
        return [entry.id for entry in self.stream.sync.read(*args, **kwargs)]

    def in_redis(self) -> int:
        return sum(self.ask(*(("XLEN", shard.stream) for shard in self.layout.every)))


def dies_at(log: Log, steps: Steps[Any], number: int, *, done: bool) -> bool:
    """Go through the steps up to one, which is still done or not; False where there are not so many."""
    course, at = Course(steps), 0
    while course.step is not None:
        if at == number and not done:
            return True
        came = log.app.sync_link.run(course.step, within=WITHIN)
        if at == number:
            return True
        course.go_on(came)
        at += 1
    return False


class Bits:
    """The objects of a blob store, to be looked at and broken."""

    def __init__(self, where: Path | Objects) -> None:
        self.where = where

    def keys(self, kind: str = "") -> list[str]:
        if isinstance(self.where, Path):
            found = [
                path.relative_to(self.where).as_posix()
                for path in self.where.rglob("*")
                if path.is_file() and path.suffix != ".lock"
            ]
        else:
            found = [key.removeprefix("some/prefix/") for key in self.where.keys()]  # noqa: SIM118
        return sorted(key for key in found if kind in key)

    def get(self, key: str) -> bytes:
        if isinstance(self.where, Path):
            return (self.where / key).read_bytes()
        body: bytes = self._client.get_object(Bucket=self.where.bucket, Key=f"some/prefix/{key}")["Body"].read()
        return body

    def put(self, key: str, data: bytes) -> None:
        if isinstance(self.where, Path):
            (self.where / key).write_bytes(data)
        else:
            self._client.put_object(Bucket=self.where.bucket, Key=f"some/prefix/{key}", Body=data)

    def delete(self, key: str) -> None:
        if isinstance(self.where, Path):
            (self.where / key).unlink()
        else:
            self._client.delete_object(Bucket=self.where.bucket, Key=f"some/prefix/{key}")

    @property
    def _client(self) -> Any:
        return client(moto())

    @contextmanager
    def flipped(self, key: str, at: int, bit: int = 0) -> Iterator[None]:
        """One bit is another; at: byte, from the end where negative."""
        before = self.get(key)
        broken = bytearray(before)
        broken[at] ^= 1 << bit
        self.put(key, bytes(broken))
        try:
            yield
        finally:
            self.put(key, before)
