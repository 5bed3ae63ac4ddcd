"""What is wrong between an app, as it declares its streams, and what is stored; and with its blob store. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rstream.doctor.finding import Finding, some
from rstream.retention import Retention
from rstream.store.facts import Facts
from rstream.store.keys import ARCHIVE
from rstream.store.layout import Layout

Findings = Iterator[Finding]

SLOW_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Declared:
    """A stream as an app declares it. layout: as it is stored, None where it is not · refused: differences to stored
    versions of the schema, for which its model is refused · unreadable: those for which it cannot read old entries.
    """

    name: str
    layout: Layout | None
    key: str | None
    retention: Retention | None
    groups: tuple[str, ...]
    archive: bool
    refused: Sequence[str] = ()
    unreadable: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class BlobFacts:
    """failure: "" where it answered, after so many seconds."""

    label: str
    failure: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Examined:
    """All that checks look at. blobs: None where no store is set."""

    facts: Facts
    declared: Sequence[Declared] = ()
    blobs: BlobFacts | None = None

    def applies(self, subject: str) -> bool:
        """Whether there is something to look at."""
        if subject == "app":
            return bool(self.declared or self.blobs)
        if subject == "group":
            return any(stream.groups for stream in self.facts.streams)
        if subject in ("sentinel", "cluster"):
            return self.facts.kind == subject and self.facts.failure is None
        if subject == "stream":
            return bool(self.facts.streams or self.facts.missing or self.facts.unknown)
        return subject == "redis" or bool(self.facts.servers)


def schemas(everything: Examined) -> Findings:
    """schemas"""
    for each in everything.declared:
        do = (f"rstream schema check {each.name} --app MODULE:APP", "@stream.upgrade(version), or the old model")
        if each.refused:
            yield Finding(
                "problem", "schema-mismatch", f"stream {each.name}",
                f"the app's model does not go with what is stored: {some(each.refused)}",
                "a process that declares it so is refused (SchemaIncompatible)", do,
            )  # fmt: skip
        elif each.unreadable:
            yield Finding(
                "warning", "schema-unreadable", f"stream {each.name}",
                f"the app's model cannot read older entries: {some(each.unreadable)}",
                "they become dead letters (invalid) of its consumers", do,
            )  # fmt: skip


def declarations(everything: Examined) -> Findings:
    """declarations of the app"""
    stored = {stream.name: stream for stream in everything.facts.streams}
    for each in everything.declared:
        where = f"stream {each.name}"
        if each.layout is None:
            yield Finding("note", "not-stored", where, "the app declares it, and it is not stored yet: nobody used it")
            continue
        if each.key != each.layout.key:
            yield Finding(
                "problem", "key-mismatch", where,
                f"it is stored with key {each.layout.key!r}, declared with {each.key!r}",
                "a process that declares it so is refused (StreamMismatch)",
                ("declare the stored key, or use another stream name",),
            )  # fmt: skip
        if each.retention not in (None, each.layout.retention):
            yield Finding(
                "note", "retention-differs", where,
                f"the stored retention holds ({each.layout.retention or 'everything is kept'}), not the declared one "
                f"({each.retention})",
                "", (f"rstream streams retention {each.name} --help",),
            )  # fmt: skip
        there = {group.name for group in stored[each.name].groups} if each.name in stored else set()
        if unmade := [group for group in each.groups if group not in there]:
            yield Finding(
                "note", "group-not-made", where, f"no worker ever ran for {some(unmade)}",
                "they begin where their consumers say (start=) when one does", ("rstream worker MODULE:APP",),
            )  # fmt: skip
        if each.archive and ARCHIVE not in there:
            yield Finding(
                "warning", "archive-off", where, "the app declares archive=True, and it is not archived",
                "what is trimmed is gone", (f"rstream archive start {each.name}",),
            )  # fmt: skip


def blobs(everything: Examined) -> Findings:
    """blob store"""
    told = everything.blobs
    if told is not None and told.failure:
        yield Finding(
            "problem", "blob-store", told.label, told.failure,
            "large payloads cannot be published or read; deliveries that need one wait",
            ("look at its address, its bucket, and the credentials as boto3 finds them",),
        )  # fmt: skip
    elif told is not None and told.seconds > SLOW_SECONDS:
        why = "every large payload takes at least as long"
        yield Finding("warning", "blob-store-slow", told.label, f"it takes {told.seconds:.1f} s to answer", why)
