"""What an entry or a letter holds, as people can read it. Only made where somebody has asked for it."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rstream.codec import unpack_payload
from rstream.deadletter import DeadLetter
from rstream.errors import EntryInvalid
from rstream.event import Entry, jsonable

MOST = 200_000
"""Characters of an event that are shown."""


@dataclass(frozen=True)
class Contents:
    """event: JSON, "" where it cannot be decoded · problem: what is wrong with it · fields: as stored, where it is no
    event · error, traceback: of a dead letter.
    """

    key: str | None
    event_id: str
    headers: Mapping[str, str]
    event: str
    problem: str
    fields: Mapping[str, str]
    cut: bool = False
    error: str = ""
    traceback: str = ""

    @classmethod
    def of(cls, entry: Entry[Any], fields: Mapping[bytes, bytes] | None = None, **more: str) -> Contents:
        event, problem = _event(entry)
        text = "" if event is None else json.dumps(event, indent=2, ensure_ascii=False)
        stored = (
            {text_of(name): text_of(value)[:MOST] for name, value in (fields or {}).items()} if event is None else {}
        )
        id = str(uuid.UUID(bytes=entry.event_id)) if len(entry.event_id) == 16 else ""
        return cls(entry.key, id, entry.headers, text[:MOST], problem, stored, len(text) > MOST, **more)

    @classmethod
    def of_letter(cls, letter: DeadLetter[Any]) -> Contents:
        return cls.of(letter.entry, letter.fields, error=letter.error, traceback=letter.traceback)


def _event(entry: Entry[Any]) -> tuple[Any, str]:
    try:
        return jsonable(entry.event), ""
    except EntryInvalid as error:
        problem = f"{error.reason}: {error}"
    try:
        return jsonable(unpack_payload(entry.payload)[1]), problem
    except EntryInvalid:
        return None, problem


def text_of(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(raw).decode()}"
