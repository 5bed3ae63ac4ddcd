"""Goes through an archive and names everything that is not what was archived. Blocks; memory: `AT_ONCE` segments.

Cost: every object is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, pairwise
from typing import TypeVar

from rstream.archive.manifest import Manifest, Page, Row
from rstream.archive.segment import Columns, Header
from rstream.archive.vault import Vault
from rstream.errors import ArchiveDamaged
from rstream.store.keys import Rank, Shard, rank_of

T = TypeVar("T")

AT_ONCE = 8

GAP = (
    "there is a gap before it: of what came after {}, Redis was told that it was archived up to {}, and does not have "
    "all of it any more. It is in another blob store, or was lost with a manifest"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """object: its key in the blob store."""

    shard: str
    object: str
    what: str


@dataclass
class Verified:
    """What was gone through, and what is wrong with it. orphans: objects that nothing names, left by a killed archiver
    or just being written.
    """

    shards: int = 0
    segments: int = 0
    entries: int = 0
    size: int = 0
    orphans: int = 0
    problems: list[Problem] = field(default_factory=list)


def verify(
    vault: Vault, positions: Mapping[Shard, Rank], progress: Callable[[Verified], None] = lambda _: None
) -> Verified:
    """positions: up to which id Redis says that shards are archived, asked for before. Raises `BlobError`."""
    done = Verified()
    try:
        vault.schemas()
    except ArchiveDamaged as error:
        done.problems.append(Problem("", error.object, error.why))
    found = _objects(vault)
    for shard in sorted({*found, *positions}, key=lambda each: (each.generation, each.count, each.number)):
        there = found.get(shard, set())
        if there or positions.get(shard, (0, 0)) > (0, 0):
            done.shards += 1
            _Check(vault, shard, done, there, positions.get(shard, (0, 0)), progress).run()
    return done


def _objects(vault: Vault) -> dict[Shard, set[str]]:
    """The keys of all objects, by shard: they are listed before what names them is read."""
    found = dict[Shard, set[str]]()
    for each in vault.store.list(vault.source.prefix):
        name, _, rest = each.key.removeprefix(vault.source.prefix).partition("/")
        shard = vault.shard_of(rest if name == "manifests" else name)
        if shard is not None:
            objects = found.setdefault(shard, set())
            if name != "manifests":
                objects.add(each.key)
    return found


class _Check:
    """Of one shard."""

    def __init__(
        self, vault: Vault, shard: Shard, done: Verified, there: set[str], position: Rank,
        progress: Callable[[Verified], None],
    ) -> None:  # fmt: skip
        self._vault, self._shard, self._done, self._there = vault, shard, done, there
        self._position, self._progress = position, progress
        self._named = set[str]()

    def run(self) -> None:
        manifest = self._try(lambda: self._vault.load(self._shard)[0])
        if manifest is None:
            return
        self._try(lambda: self._vault.check_ends({self._shard: manifest.last_rank}, {self._shard: self._position}))
        rows = self._rows(manifest)
        last: Rank = (0, 0)
        while some := [*islice(rows, AT_ONCE)]:
            tasks = [self._vault.shelf.submit(partial(_segment, self._vault, self._shard, *each)) for each in some]
            for (row, _), task in zip(some, tasks, strict=True):
                self._try(task.result)
                if rank_of(row.first.encode()) <= last:
                    self._found(row.key, f"it begins with {row.first}, which is not after the segment before it")
                if row.gap:
                    self._found(row.key, GAP.format(_text(last), row.gap))
                last = rank_of(row.last.encode())
                self._there.discard(row.key)
                self._named.add(row.sha256)
                self._done.segments += 1
                self._done.entries, self._done.size = self._done.entries + row.entries, self._done.size + row.size
            self._progress(self._done)
        self._done.orphans += len(self._there)
        self._check_orphans()

    def _check_orphans(self) -> None:
        """A killed archiver leaves a segment that nothing follows, or the double of one that is named (of two that
        wrote the same at once, one was late): one that is followed, and is no double, was named once.
        """
        found = {key: self._vault.loose(key) for key in sorted(self._there) if key.endswith(".segment")}
        followed = {previous for _, previous in found.values()}
        for key, (sha256, _) in found.items():
            if sha256 and sha256 in followed - self._named:
                self._found(key, "it was named, and is not any more: the manifest is missing, or an older one")

    def _rows(self, manifest: Manifest) -> Iterator[tuple[Row, str]]:
        """All rows, the oldest first, with the digest of the segment before; those of a damaged page are missing."""
        pages, pointer = list[Page](), manifest.page
        while pointer is not None:
            self._there.discard(pointer.key)
            page = self._try(partial(self._vault.page, pointer))
            if page is None:
                break
            if (
                sum(row.entries for row in page.rows) + (page.previous.entries if page.previous else 0)
                != pointer.entries
            ):
                self._found(pointer.key, "its rows are not what the page or the manifest after it counts")
            pages.append(page)
            pointer = page.previous
        for rows, before in [*((page.rows, page.before) for page in reversed(pages)), (manifest.rows, manifest.before)]:
            yield from zip(rows, _digests_before(rows, before), strict=True)

    def _try(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except ArchiveDamaged as error:
            self._found(error.object, error.why)
            return None

    def _found(self, key: str, what: str) -> None:
        self._done.problems.append(Problem(str(self._shard), key, what))


def _text(id: Rank) -> str:
    return f"{id[0]}-{id[1]}"


def _digests_before(rows: Sequence[Row], before: str) -> list[str]:
    return [before, *(row.sha256 for row in rows)][: len(rows)]


def _segment(vault: Vault, shard: Shard, row: Row, previous: str) -> None:
    """Raises `ArchiveDamaged`."""
    data = vault.whole(row)
    header = vault.header(row, data, previous)
    vault.index(row, data[row.tail :])
    told = (header.stream, header.generation, header.shard, header.shards, header.first, header.last, header.entries)
    if told != (vault.stream, shard.generation, shard.number, shard.count, row.first, row.last, row.entries):
        raise vault.damaged(row.key, "it is another segment than its row in the manifest says")
    blocks = (vault.block(row, block, data[block.at : block.at + block.size]) for block in header.blocks)
    if not _in_order(header, blocks):
        raise vault.damaged(row.key, "its entries are not those that its header tells of, or out of order")


def _in_order(header: Header, blocks: Iterator[Columns]) -> bool:
    ids = [id for columns in blocks for id in zip(columns.ms, columns.seq, strict=True)]
    ends = [(rank_of(header.first.encode()), rank_of(header.last.encode()))]
    return len(ids) == header.entries and ends == [(ids[0], ids[-1])] and all(a < b for a, b in pairwise(ids))
