import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu_lit.data.splits import ANY, NONE, SETS, UNUSED, claims, seeded_hash, set_sizes, shard_order, split
from dejavu_lit.utils.errors import UserError


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[str], np.ndarray, dict[str, int], int]:
    """Sorted keys, groups by the row of their smallest key, sizes that fit, a seed."""
    keys = sorted(draw(st.sets(st.text("abc01", min_size=1, max_size=6), min_size=1, max_size=60)))
    label = draw(st.lists(st.integers(0, len(keys)), min_size=len(keys), max_size=len(keys)))
    groups = np.array([label.index(mine) for mine in label], dtype=np.int64)
    sizes, left = {}, len(keys)
    for name in SETS:
        sizes[name] = draw(st.integers(0, left))
        left -= sizes[name]
    return keys, groups, sizes, draw(st.integers(0, 3))


@given(sources())
def test_groups_go_whole_to_one_set_and_no_set_is_too_large(source: tuple) -> None:
    keys, groups, sizes, seed = source
    member = split(keys, groups, sizes, seed)
    assert set(member.tolist()) <= {UNUSED, *range(len(SETS))}
    for root in np.unique(groups):
        assert len(set(member[groups == root].tolist())) == 1
    for code, name in enumerate(SETS):
        missing = sizes[name] - int((member == code).sum())
        assert missing >= 0
        # Short only where no group of the later sets, or of the unused, would still have fitted.
        later = [
            int((groups == root).sum()) for root in np.unique(groups) if member[root] == UNUSED or member[root] > code
        ]
        assert all(size > missing for size in later)
    np.testing.assert_array_equal(member, split(keys, groups, sizes, seed))


@given(sources())
def test_single_pairs_reach_every_size_exactly(source: tuple) -> None:
    keys, _, sizes, seed = source
    member = split(keys, np.arange(len(keys)), sizes, seed)
    assert {name: int((member == code).sum()) for code, name in enumerate(SETS)} == sizes


@st.composite
def listings(draw: st.DrawFn) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, dict[str, int], int]:
    """A source whose pairs are partly listed for sets: keys, groups, listed, claims, sizes that fit, a seed."""
    keys, groups, _, seed = draw(sources())
    listed = np.array([draw(st.sampled_from([ANY, ANY, *range(len(SETS))])) for _ in keys], dtype=np.int8)
    claimed = claims(groups, listed)
    sizes, free = {}, int((claimed == ANY).sum())
    for code, name in enumerate(SETS):
        own = code in listed
        sizes[name] = draw(st.integers(0, int((claimed == code).sum()) if own else free))
        free -= 0 if own else sizes[name]
    return keys, groups, listed, claimed, sizes, seed


@given(listings())
def test_a_set_with_a_list_gets_pairs_of_it_alone_and_no_other_set_gets_them(source: tuple) -> None:
    keys, groups, listed, claimed, sizes, seed = source
    member = split(keys, groups, sizes, seed, claimed)
    for row, code in enumerate(member.tolist()):
        if code != UNUSED:
            assert listed[row] == (code if code in listed else ANY)
    for code, name in enumerate(SETS):
        assert int((member == code).sum()) <= sizes[name]
        if code in listed and sizes[name] == int((claimed == code).sum()):  # all that can be had
            np.testing.assert_array_equal(member == code, claimed == code)
    for root in np.unique(groups):
        theirs = groups == root
        wanted = set(listed[theirs].tolist()) - {ANY}
        used = set(member[theirs].tolist()) - {UNUSED}
        # No group in two sets; one that is listed for a set goes there, or nowhere: what is left of it is in no other.
        assert len(used) <= 1
        assert not wanted or used <= {min(wanted)}
    np.testing.assert_array_equal(member, split(keys, groups, sizes, seed, claimed))


@given(sources())
def test_without_lists_nothing_changes(source: tuple) -> None:
    keys, groups, sizes, seed = source
    claimed = claims(groups, np.full(len(keys), ANY, dtype=np.int8))
    np.testing.assert_array_equal(split(keys, groups, sizes, seed, claimed), split(keys, groups, sizes, seed))


@given(listings(), st.integers(0, 60))
def test_a_larger_a_of_a_list_holds_the_smaller_one(source: tuple, more: int) -> None:
    keys, _, listed, _, sizes, seed = source
    alone = np.arange(len(keys))
    small, large = (
        split(keys, alone, {"A": sizes["A"] + extra}, seed, claims(alone, listed)) == 0 for extra in (0, more)
    )
    assert not (small & ~large).any()


def test_a_group_belongs_to_the_first_set_that_it_is_listed_for() -> None:
    a, h = SETS.index("A"), SETS.index("H")
    groups = np.array([0, 0, 0, 3, 3, 5, 6, 6])
    listed = np.array([h, ANY, a, h, h, a, ANY, ANY], dtype=np.int8)
    claimed = claims(groups, listed)
    assert claimed.tolist() == [NONE, NONE, a, h, h, a, ANY, ANY]
    keys = [f"{number}" for number in range(8)]
    member = split(keys, groups, {"A": 2, "H": 2, "P": 2}, 0, claimed)
    p = SETS.index("P")
    assert member.tolist() == [UNUSED, UNUSED, a, h, h, a, p, p]
    # What A does not take goes nowhere, nor do its duplicates.
    member = split(keys, groups, {"H": 2, "P": 2}, 0, claimed)
    assert member.tolist() == [UNUSED, UNUSED, UNUSED, h, h, UNUSED, p, p]


@given(sources(), st.integers(0, 60))
def test_a_larger_a_holds_the_smaller_one(source: tuple, more: int) -> None:
    keys, _, sizes, seed = source
    alone = np.arange(len(keys))
    small = split(keys, alone, {"A": sizes["A"]}, seed) == 0
    large = split(keys, alone, {"A": min(len(keys), sizes["A"] + more)}, seed) == 0
    assert not (small & ~large).any()


@given(sources())
def test_the_order_depends_on_key_and_seed_only(source: tuple) -> None:
    keys, _, _, seed = source
    whole = [keys[row] for row in shard_order(keys, seed)]
    assert sorted(whole) == keys
    # The order within a part of the keys is that within all: prefixes of A stay prefixes whatever the other sets are.
    part = keys[::2]
    assert [part[row] for row in shard_order(part, seed)] == [key for key in whole if key in set(part)]


def test_the_order_within_a_set_is_not_the_order_of_assignment() -> None:
    # Else the members of groups would gather at the end of A, and a prefix of A would be no sample of it.
    keys = [f"{number:05d}" for number in range(4000)]
    groups = np.arange(4000) // 2 * 2
    member = split(keys, groups, {"A": 1000}, seed=0)
    order = shard_order(keys, seed=0)
    in_a = order[member[order] == 0]
    second = in_a % 2 == 1
    assert len(in_a) == 1000
    assert 220 < second[:500].sum() < 280


def test_sets_look_like_the_source() -> None:
    keys = [f"{number:05d}" for number in range(10_000)]
    member = split(keys, np.arange(10_000), {"A": 3000, "B": 3000, "H": 2000, "V": 500, "P": 1000}, seed=1)
    for code in range(len(SETS)):
        rows = np.flatnonzero(member == code)
        spread = 10_000 / np.sqrt(12 * len(rows))
        assert abs(rows.mean() - 5000) < 4 * spread
    other = split(keys, np.arange(10_000), {"A": 3000}, seed=2)
    assert 800 < ((member == 0) & (other == 0)).sum() < 1000  # 900 by chance


def test_seeded_hash_is_the_same_on_every_machine() -> None:
    assert seeded_hash(["000000000009", "é"], 0, "order").tolist() == [12730274427209642174, 14135109582924935591]
    assert len({int(seeded_hash(["a"], seed, why)[0]) for seed in (0, 1) for why in ("set", "order")}) == 4


def test_sizes_by_number_and_by_share() -> None:
    assert set_sizes({"P": 0.2, "A": 0.29, "B": 10, "V": 0}, 100) == {"A": 29, "B": 10, "P": 20}


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"A": 60, "B": 0.5}, r"ask for 110 pairs \(A=60, B=50\), but there are only 100"),
        ({"Q": 1}, "a set 'Q'"),
        ({"A": 1.0}, "sizes.A=1.0 is no share below 1"),
        ({"A": -1}, "sizes.A=-1 is no size"),
        ({"A": True}, "sizes.A=True is no size"),
        ({"A": 0}, "no pairs at all"),
        ({"A": 0.001}, "no pairs at all"),
    ],
)
def test_wrong_sizes_are_named(sizes: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        set_sizes(sizes, 100)


def test_sizes_of_sets_with_lists() -> None:
    listed = {"A": 30, "H": 20}
    assert set_sizes({"A": None, "H": 5, "P": 0.4}, 100, listed) == {"A": 30, "H": 5, "P": 40}
    assert set_sizes({"A": 0.1, "P": 45}, 100, listed, left_out=5) == {"A": 10, "H": 20, "P": 45}  # H is not named: all


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"B": None}, r"sizes\.B=null means all pairs that keys\.B lists, which lists none"),
        ({"A": 31}, r"sizes\.A=31 asks for 31 pairs, but keys\.A lists only 30 that can be used; .*sizes\.A=null"),
        ({"A": 0.5}, r"sizes\.A=0\.5 asks for 50 pairs, but keys\.A lists only 30"),
        ({"A": 0}, r"keys\.A lists pairs for A, but data\.sizes\.A is 0"),
        (
            {"B": 20, "P": 26},
            r"ask for 46 pairs \(B=20, P=26\), but there are only 45 that may go there: keys lists the",
        ),
    ],
)
def test_wrong_sizes_of_sets_with_lists_are_named(sizes: dict[str, float | None], words: str) -> None:
    with pytest.raises(UserError, match=words):
        set_sizes(sizes, 100, {"A": 30, "H": 20}, left_out=5)


def test_a_list_of_which_nothing_can_be_used_is_named() -> None:
    with pytest.raises(UserError, match=r"no pair that keys\.H lists can be used"):
        set_sizes({"A": 10, "H": None}, 100, {"H": 0})
