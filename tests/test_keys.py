"""The shard of a key, which may never change, and the slots of keys, which must be shared."""

from __future__ import annotations

from collections import Counter

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from rstream.store import keys
from rstream.store.keys import shard_keys, shard_of
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
    assert [shard_of(key, n) for n in (1, 2, 3, 8, 16, 1024)] == shards


@settings(deadline=None)
@given(text, counts)
def test_a_shard_is_within_range(key: str, shards: int) -> None:
    assert 0 <= shard_of(key, shards) < shards


@settings(deadline=None)
@given(st.lists(text), counts)
def test_shards_are_contiguous_ranges_of_the_hash(found: list[str], shards: int) -> None:
    by_hash = sorted(found, key=lambda key: xxhash.xxh32_intdigest(key.encode()))
    places = [shard_of(key, shards) for key in by_hash]
    assert places == sorted(places)


@settings(deadline=None)
@given(text, st.integers(1, 256), st.integers(1, 4))
def test_a_finer_layout_splits_shards_and_mixes_none(key: str, shards: int, factor: int) -> None:
    assert shard_of(key, shards * factor) // factor == shard_of(key, shards)


@pytest.mark.parametrize("shards", [2, 3, 8, 16])
@pytest.mark.parametrize("pattern", ["device-{}", "{}", "user:{}:session", "{:010d}"])
def test_keys_are_balanced(shards: int, pattern: str) -> None:
    load = Counter(shard_of(pattern.format(n), shards) for n in range(10_000))
    fair = 10_000 / shards
    assert len(load) == shards
    assert all(0.8 * fair < number < 1.2 * fair for number in load.values()), load


def test_the_keys_of_a_shard() -> None:
    shard = shard_keys("ns", "digits", 2, 3, 8)
    assert shard.stream == "{ns:3/8}:digits:2"
    assert shard.seq("p") == "{ns:3/8}:digits:2:seq:p"
    assert shard.alive("g", "w") == "{ns:3/8}:digits:2:alive:g:w"
    assert shard.retry("g") == "{ns:3/8}:digits:2:retry:g"
    assert shard.dead("g") == "{ns:3/8}:digits:2:dead:g"


def test_the_keys_of_a_namespace() -> None:
    assert keys.streams("ns") == "ns:streams"
    assert keys.stream("ns", "digits") == "ns:stream:digits"
    assert keys.replay("ns", "digits", "again") == "ns:replay:digits:again"


def layout(name: str, shards: int, generation: int = 1) -> Layout:
    return Layout("ns", name, generation, shards, None, 1)


def slots(of: Layout) -> list[int]:
    return [key_slot(shard.stream.encode()) for shard in of.keys]


@pytest.mark.parametrize("shards", [1, 3, 8, 64])
def test_all_keys_of_a_shard_share_a_slot(shards: int) -> None:
    of = layout("digits", shards)
    for shard, slot in zip(of.keys, slots(of), strict=True):
        for key in (shard.seq("p"), shard.alive("g", "w"), shard.retry("g"), shard.dead("g")):
            assert key_slot(key.encode()) == slot


@pytest.mark.parametrize("shards", [1, 3, 8, 64])
def test_streams_with_as_many_shards_share_their_slots(shards: int) -> None:
    assert slots(layout("digits", shards)) == slots(layout("predictions", shards)) == slots(layout("digits", shards, 2))
    assert len(set(slots(layout("digits", shards)))) == shards  # and the shards are spread


def test_a_layout_has_a_key_set_for_each_shard() -> None:
    of = layout("digits", 5)
    assert [shard.stream for shard in of.keys] == [f"{{ns:{n}/5}}:digits:1" for n in range(5)]
    assert of.shard("device-17") == shard_of("device-17", 5)


@pytest.mark.parametrize("group", ["g", "a.b-c_d", "x" * 128])
def test_keys_of_different_things_differ(group: str) -> None:
    shard = shard_keys("ns", "digits", 1, 0, 1)
    made = [shard.stream, shard.seq(group), shard.alive(group, "w"), shard.retry(group), shard.dead(group)]
    assert len(set(made)) == len(made)
