"""Ids: of entries (text, order) and of events (UUIDv7)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import uuid
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstream import Entry, EntryId, Event
from rstream import event as module
from rstream.errors import PositionError
from rstream.event import MAX_PART, jsonable, new_event_ids

parts = st.integers(0, MAX_PART)
ids = st.builds(EntryId, parts, parts, st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1))


@settings(deadline=None)
@given(ids)
def test_an_entry_id_survives_its_text(id: EntryId) -> None:
    assert EntryId.parse(str(id)) == id
    assert str(id) == f"{id.redis}@{id.generation}.{id.shard}"


@settings(deadline=None)
@given(st.lists(ids))
def test_ids_sort_by_time_then_sequence_then_shard(found: list[EntryId]) -> None:
    assert sorted(found) == sorted(found, key=lambda id: (id.ms, id.seq, id.generation, id.shard))


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "-", "1", "1-2", "1-2@", "1-2@3", "1-2@3.", "1@3.4", "-1-2@3.4", "1-2@3.4 ", " 1-2@3.4"),
        *("1-2@3.4\n", "1-2-3@3.4", "1.5-2@3.4", "1-2@3.4.5", "١-2@3.4", "1-2@3.4e9", "1_0-2@3.4"),
        *(f"{MAX_PART + 1}-0@1.1", f"0-{MAX_PART + 1}@1.1", "9" * 400),
    ],
)
def test_what_is_no_id_says_so(text: str) -> None:
    with pytest.raises(PositionError, match="is not an entry id") as caught:
        EntryId.parse(text)
    assert repr(text)[:20] in str(caught.value) and "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    with contextlib.suppress(PositionError):
        assert EntryId.parse(str(EntryId.parse(text)))


def test_event_ids_are_version_7_uuids() -> None:
    for id in new_event_ids(1000):
        assert len(id) == 16
        read = uuid.UUID(bytes=id)
        assert (read.version, read.variant) == (7, uuid.RFC_4122)


def test_event_ids_use_all_of_their_random_bits() -> None:
    found = [int.from_bytes(id, "big") for id in new_event_ids(2000)]
    ones, zeros = 0, 0
    for number in found:
        ones |= number
        zeros |= ~number
    random = (1 << 80) - 1 & ~(0b1111 << 76) & ~(0b11 << 62)
    assert ones & random == random and zeros & random == random


def test_event_ids_are_unique() -> None:
    assert new_event_ids(0) == []
    assert len({*new_event_ids(10_000), *(new_event_ids(1)[0] for _ in range(1000))}) == 11_000


def test_event_ids_are_ordered_over_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_763_630_000_000_000_000, 1_763_630_001_000_000_000, 1_000_000))
    monkeypatch.setattr(module, "time", SimpleNamespace(time_ns=lambda: next(clock)))
    found = [new_event_ids(2) for _ in range(1000)]
    assert found == sorted(found)
    assert [int.from_bytes(id[:6], "big") for id, _ in found] == list(range(1_763_630_000_000, 1_763_630_001_000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_does_not_repeat_event_ids() -> None:
    script = """
import os, sys
from rstream.event import new_event_ids
new_event_ids(10)
child = os.fork()
print("".join(id.hex() + "\\n" for id in new_event_ids(1000)), end="", flush=True)
child and os.waitpid(child, 0)
"""
    told = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert len(told) == len(set(told)) == 2000


def test_an_entry_decodes_once_and_only_when_asked() -> None:
    asked = []

    def decode(payload: bytes, key: object) -> str:
        assert key == "ada"
        asked.append(payload)
        return payload.decode()

    entry = Entry(EntryId(1, 2, 3, 4), b"secret", "ada", b"\0" * 16, {}, decode)
    assert repr(entry) == "Entry(id=1-2@3.4, key='ada', 6 bytes)" and not asked
    assert entry.event == entry.event == "secret" and asked == [b"secret"]


def test_bytes_of_an_event_are_base64_in_json() -> None:
    class Seen(Event):
        pixels: bytes

    seen = Seen(pixels=b"\xff\x00")
    assert seen.model_dump_json() == '{"pixels":"_wA="}'
    assert Seen.model_validate_json(seen.model_dump_json()) == seen


def test_jsonable_shows_whatever_was_decoded() -> None:
    assert jsonable({"a": b"\xff\x00", 1: [None, 1.5, {b"k": "v"}]}) == {"a": "_wA=", "1": [None, 1.5, {"aw==": "v"}]}
    assert isinstance(jsonable(object()), str)
