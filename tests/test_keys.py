"""The shard of a key, which may never change, and the slots of keys, which must be shared."""

from __future__ import annotations

import binascii
import string
from collections import Counter
from itertools import product

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from rstream.store import keys
from rstream.store.keys import SLOTS, number_of, shard, slot_of, tag
from rstream.store.layout import MAX_SHARDS, Layout

text = st.text()
counts = st.integers(1, MAX_SHARDS)


@pytest.mark.parametrize(
    ("key", "shards"),
    [
        ("", [0, 0, 0, 0, 0, 11]),
        ("a", [0, 0, 0, 2, 5, 340]),
        ("device-17", [0, 1, 2, 5, 11, 714]),
        ("user:42", [0, 1, 2, 7, 15, 985]),
        ("é", [0, 0, 0, 1, 3, 206]),
        ("日本語", [0, 1, 2, 6, 12, 802]),
        ("x" * 1000, [0, 0, 1, 3, 7, 462]),
    ],
)
def test_the_shard_of_a_key_never_changes(key: str, shards: list[int]) -> None:
    """If this fails, keys of streams that exist have moved: change the code, not the numbers."""
    assert [number_of(key, n) for n in (1, 2, 3, 8, 16, 1024)] == shards


@settings(deadline=None)
@given(text, counts)
def test_a_shard_is_within_range(key: str, shards: int) -> None:
    assert 0 <= number_of(key, shards) < shards


@settings(deadline=None)
@given(st.lists(text), counts)
def test_shards_are_contiguous_ranges_of_the_hash(found: list[str], shards: int) -> None:
    by_hash = sorted(found, key=lambda key: xxhash.xxh32_intdigest(key.encode()))
    places = [number_of(key, shards) for key in by_hash]
    assert places == sorted(places)


@settings(deadline=None)
@given(text, st.integers(1, 256), st.integers(1, 4))
def test_a_finer_layout_splits_shards_and_mixes_none(key: str, shards: int, factor: int) -> None:
    assert number_of(key, shards * factor) // factor == number_of(key, shards)


@pytest.mark.parametrize("shards", [2, 3, 8, 16])
@pytest.mark.parametrize("pattern", ["device-{}", "{}", "user:{}:session", "{:010d}"])
def test_keys_are_balanced(shards: int, pattern: str) -> None:
    load = Counter(number_of(pattern.format(n), shards) for n in range(10_000))
    fair = 10_000 / shards
    assert len(load) == shards
    assert all(0.8 * fair < number < 1.2 * fair for number in load.values()), load


def test_the_keys_of_a_shard() -> None:
    of = shard("ns", "digits", 2, 3, 8)
    stream = "{" + tag("ns", 3, 8) + "}:digits:2"
    assert of.stream == stream
    assert of.seq("p") == f"{stream}:seq:p"
    assert of.alive("g", "w") == f"{stream}:alive:g:w"
    assert of.retry("g") == f"{stream}:retry:g"
    assert of.dead("g") == f"{stream}:dead:g"


# Written down: other languages build them too, and what is stored stays where it is.
@pytest.mark.parametrize(
    ("count", "tags"),
    [
        (1, ["ns:0/1:bPM"]),
        (4, ["ns:0/4:dSn", "ns:1/4:fbk", "ns:2/4:aeL", "ns:3/4:bDh"]),
    ],
)
def test_the_tags_of_shards_never_change(count: int, tags: list[str]) -> None:
    assert [tag("ns", number, count) for number in range(count)] == tags


@pytest.mark.parametrize("namespace", ["rstream", "ns", "prod.eu-1"])
@pytest.mark.parametrize("masters", [3, 6])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 12, 16, 64, 1024])
def test_no_master_holds_more_shards_than_it_has_to(count: int, masters: int, namespace: str) -> None:
    load = Counter(slot_of("{" + tag(namespace, n, count) + "}") * masters // SLOTS for n in range(count))
    assert max(load.values()) <= -(-count // masters) + (count > 64)


def test_the_tag_is_the_first_that_lies_where_it_should() -> None:
    """As docs/wire-format.md tells other languages to find it."""
    first = binascii.crc_hqx(b"ns/8", 0)
    for number in range(8):
        letters = product(string.ascii_letters, repeat=3)
        tags = (f"ns:{number}/8:{''.join(ending)}" for ending in letters)
        assert tag("ns", number, 8) == next(t for t in tags if slot_of(t) == (first + number * 2048) % 16384)


def test_slots_are_those_of_a_cluster() -> None:
    for key in ("a", "{a}b", "x{}y", "{", "}{a}", "{a}{b}", "\xe4{\xf6}"):
        assert slot_of(key) == key_slot(key.encode())


def test_the_keys_of_a_namespace() -> None:
    assert keys.streams("ns") == "ns:streams"
    assert keys.stream("ns", "digits") == "ns:stream:digits"
    assert keys.owner("ns", "digits") == "ns:owner:digits"
    assert keys.replay("ns", "digits", "again") == "ns:replay:digits:again"


def layout(name: str, shards: int, generation: int = 1) -> Layout:
    return Layout("ns", name, generation, shards, None, 1)


def slots(of: Layout) -> list[int]:
    return [key_slot(shard.stream.encode()) for shard in of.current]


@pytest.mark.parametrize("shards", [1, 3, 8, 64])
def test_all_keys_of_a_shard_share_a_slot(shards: int) -> None:
    of = layout("digits", shards)
    for each, slot in zip(of.current, slots(of), strict=True):
        for key in (each.seq("p"), each.alive("g", "w"), each.retry("g"), each.dead("g")):
            assert key_slot(key.encode()) == slot


@pytest.mark.parametrize("shards", [1, 3, 8, 64])
def test_streams_with_as_many_shards_share_their_slots(shards: int) -> None:
    assert slots(layout("digits", shards)) == slots(layout("predictions", shards)) == slots(layout("digits", shards, 2))
    assert len(set(slots(layout("digits", shards)))) == shards  # and the shards are spread


def test_a_layout_has_a_key_set_for_each_shard() -> None:
    of = layout("digits", 5)
    assert of.current == of.every == tuple(shard("ns", "digits", 1, n, 5) for n in range(5))
    assert of.shard("device-17") is of.current[number_of("device-17", 5)]


@pytest.mark.parametrize("group", ["g", "a.b-c_d", "x" * 128])
def test_keys_of_different_things_differ(group: str) -> None:
    of = shard("ns", "digits", 1, 0, 1)
    made = [of.stream, of.sealed, of.seq(group), of.alive(group, "w"), of.retry(group), of.dead(group)]
    made += [of.owner(group), of.epoch(group), of.parked(group)]
    assert len(set(made)) == len(made)
