"""Who should own which shard: every shard has an owner, in balance, and as few as possible move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rstream.worker.assign import assign

NAMES = [f"worker-{n}" for n in range(20)]
GONE = ["gone-1", "gone-2"]

Case = tuple[range, list[str], dict[int, str]]


@st.composite
def cases(draw: st.DrawFn, shards: int = 40, members: int = 12) -> Case:
    """Shards, at least one member, and any owners: free shards, shards there are not, and workers that are gone."""
    count = draw(st.integers(0, shards))
    present = draw(st.permutations(NAMES[:members]))[: draw(st.integers(1, members))]
    likely = draw(st.lists(st.sampled_from([*present, *GONE]), min_size=1, max_size=members))  # some hold a lot
    owners = draw(st.dictionaries(st.integers(0, count + 3), st.sampled_from(likely), max_size=count + 4))
    return range(count), present, owners


def moves(shards: Sequence[int], before: Mapping[int, str], after: Mapping[int, str]) -> set[int]:
    return {shard for shard in shards if before.get(shard) != after[shard]}


def balanced(shards: Sequence[int], members: Sequence[str], owners: Sequence[str]) -> bool:
    load, (floor, more) = Counter(owners), divmod(len(shards), len(members))
    return sorted(load[member] for member in members) == [floor] * (len(members) - more) + [floor + 1] * more


@given(cases())
def test_every_shard_has_an_owner_and_the_load_is_balanced(case: Case) -> None:
    shards, members, owners = case
    found = assign(shards, members, owners)
    assert list(found) == list(shards) and set(found.values()) <= set(members)
    assert balanced(shards, members, list(found.values()))


@given(cases())
def test_without_members_there_are_no_owners(case: Case) -> None:
    shards, _, owners = case
    assert assign(shards, [], owners) == {}


@settings(deadline=None)
@given(cases(shards=6, members=4), st.text())
def test_no_balanced_assignment_moves_less(case: Case, salt: str) -> None:
    shards, members, owners = case
    every = (held for held in product(members, repeat=len(shards)) if balanced(shards, members, held))
    fewest = min(sum(owners.get(shard) != owner for shard, owner in enumerate(held)) for held in every)
    assert len(moves(shards, owners, assign(shards, members, owners, salt))) == fewest


@given(cases(), st.text())
def test_what_is_kept_is_as_much_as_the_quotas_allow(case: Case, salt: str) -> None:
    shards, members, owners = case
    held, (floor, more) = Counter(owners.get(shard) for shard in shards), divmod(len(shards), len(members))
    kept = sum(min(held[member], floor) for member in members) + min(more, sum(held[name] > floor for name in members))
    found = assign(shards, members, owners, salt)
    moved = moves(shards, owners, found)
    assert len(shards) - len(moved) == kept
    load = Counter(found.values())
    assert all(held[owners[shard]] > load[owners[shard]] for shard in moved if owners.get(shard) in members)


@given(cases(), st.text())
def test_the_answer_is_a_fixed_point(case: Case, salt: str) -> None:
    shards, members, owners = case
    found = assign(shards, members, owners, salt)
    assert assign(shards, members, found, salt) == found


def halfway(case: Case, found: Mapping[int, str], stages: Mapping[int, int]) -> dict[int, str]:
    """The owners while shards move to where they were `found` to belong: 0, not yet; 1, free; 2, there."""
    shards, _, owners = case
    seen = [(owners.get(shard), None, found[shard])[stages[shard]] for shard in shards]
    return {shard: owner for shard, owner in zip(shards, seen, strict=True) if owner is not None}


@given(cases(), st.text(), st.data())
def test_the_answer_stays_while_shards_move_to_where_it_says(case: Case, salt: str, data: st.DataObject) -> None:
    shards, members, owners = case
    found = assign(shards, members, owners, salt)
    moved = moves(shards, owners, found)
    stages = {shard: data.draw(st.integers(0, 2)) if shard in moved else 0 for shard in shards}
    assert assign(shards, members, halfway(case, found, stages), salt) == found


@pytest.mark.parametrize("salt", ["", "group", "other"])
@pytest.mark.parametrize("held", [(8, 0, 0), (4, 4, 0), (5, 2, 1), (0, 7, 0), (0, 0, 0)])
def test_the_answer_stays_on_every_way_there(held: tuple[int, ...], salt: str) -> None:
    members = NAMES[: len(held)]
    names = [name for name, count in zip(members, held, strict=True) for _ in range(count)]
    case = range(8), members, dict(enumerate(names))
    found = assign(*case, salt)
    moved = sorted(moves(case[0], case[2], found))
    for stages in product(range(3), repeat=len(moved)):
        seen = halfway(case, found, dict.fromkeys(case[0], 0) | dict(zip(moved, stages, strict=True)))
        assert assign(case[0], members, seen, salt) == found


@given(cases(), st.text(), st.lists(st.sampled_from(["new-1", "new-2", "new-3"]), unique=True, min_size=1))
def test_a_join_moves_shards_to_newcomers_only(case: Case, salt: str, newcomers: list[str]) -> None:
    shards, members, owners = case
    before = assign(shards, members, owners, salt)
    after = assign(shards, [*members, *newcomers], before, salt)
    moved = moves(shards, before, after)
    assert {after[shard] for shard in moved} <= set(newcomers)
    if len(newcomers) == 1:
        assert len(moved) == len(shards) // (len(members) + 1)


@given(cases(), st.text(), st.data())
def test_a_leave_moves_the_shards_of_the_leavers_only(case: Case, salt: str, data: st.DataObject) -> None:
    shards, members, owners = case
    stay = data.draw(st.lists(st.sampled_from(members), unique=True, min_size=1))
    before = assign(shards, members, owners, salt)
    after = assign(shards, stay, before, salt)
    assert moves(shards, before, after) == {shard for shard in shards if before[shard] not in stay}


@given(cases(), st.text(), st.randoms(use_true_random=False))
def test_the_order_of_members_and_owners_is_of_no_account(case: Case, salt: str, random: Random) -> None:
    shards, members, owners = case
    found = assign(shards, members, owners, salt)
    pairs, names = list(owners.items()), [*members, *members]  # and a member named twice is one member
    random.shuffle(pairs)
    random.shuffle(names)
    assert assign(shards, iter(names), dict(pairs), salt) == found


@given(cases(), st.text())
def test_owners_that_are_gone_and_shards_there_are_not_are_of_no_account(case: Case, salt: str) -> None:
    shards, members, owners = case
    known = {shard: owner for shard, owner in owners.items() if shard in shards and owner in members}
    assert assign(shards, members, known, salt) == assign(shards, members, owners, salt)


def test_a_member_may_have_any_name_and_a_shard_any_type() -> None:
    shards = [("a", 0), ("a", 1), ("b", 0)]
    assert assign(shards, [""], {}) == dict.fromkeys(shards, "")
    assert set(assign(shards, ["", "é", "日本"], {("b", 0): ""}).values()) == {"", "é", "日本"}


def test_the_groups_of_a_stream_have_their_surplus_at_different_members() -> None:
    members = NAMES[:4]
    surplus = Counter(
        owner
        for n in range(1000)
        for owner, load in Counter(assign(range(6), members, {}, f"group-{n}").values()).items()
        if load == 2
    )
    assert surplus.total() == 2000
    assert all(400 < surplus[member] < 600 for member in members), surplus


def test_all_versions_agree() -> None:
    """If this fails, workers of the version before compute something else: while both run, shards go to and fro."""
    members = ["a", "b", "c"]
    assert "".join(assign(range(8), members, {}).values()) == "bbbcccaa"
    assert "".join(assign(range(8), members, {}, "group").values()) == "bbbaaacc"
    assert "".join(assign(range(8), members, dict.fromkeys(range(8), "a"), "group").values()) == "aaabbbcc"
