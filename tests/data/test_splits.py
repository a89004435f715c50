import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu_lit.data.splits import ANY, NONE, SETS, UNUSED, allowed_sets, hash_order, seeded_hash, set_sizes, split
from dejavu_lit.utils.errors import UserError


@st.composite
def sources(draw: st.DrawFn) -> tuple[list[str], np.ndarray, dict[str, int], int]:
    """Sorted keys, groups by the row of their smallest key, sizes that fit, and a seed."""
    keys = sorted(draw(st.sets(st.text("abc01", min_size=1, max_size=6), min_size=1, max_size=60)))
    labels = draw(st.lists(st.integers(0, len(keys)), min_size=len(keys), max_size=len(keys)))
    groups = np.array([labels.index(label) for label in labels], dtype=np.int64)
    sizes, remaining = {}, len(keys)
    for name in SETS:
        sizes[name] = draw(st.integers(0, remaining))
        remaining -= sizes[name]
    return keys, groups, sizes, draw(st.integers(0, 3))


def unlisted_split(keys: list[str], groups: np.ndarray, sizes: dict[str, int], seed: int) -> np.ndarray:
    """The split of pairs of which none is listed."""
    return split(keys, groups, sizes, seed, np.full(len(keys), ANY, dtype=np.int8))


@given(sources())
def test_groups_go_whole_to_one_set_and_no_set_is_too_large(source: tuple) -> None:
    keys, groups, sizes, seed = source
    member = unlisted_split(keys, groups, sizes, seed)
    assert set(member.tolist()) <= {UNUSED, *range(len(SETS))}
    for root in np.unique(groups):
        assert len(set(member[groups == root].tolist())) == 1
    for code, name in enumerate(SETS):
        missing = sizes[name] - int((member == code).sum())
        assert missing >= 0
        # Too small only if no group of the later sets, or of the unused ones, would have fitted.
        later = [
            int((groups == root).sum()) for root in np.unique(groups) if member[root] == UNUSED or member[root] > code
        ]
        assert all(size > missing for size in later)
    np.testing.assert_array_equal(member, unlisted_split(keys, groups, sizes, seed))


@given(sources())
def test_single_pairs_reach_every_size_exactly(source: tuple) -> None:
    keys, _, sizes, seed = source
    member = unlisted_split(keys, np.arange(len(keys)), sizes, seed)
    assert {name: int((member == code).sum()) for code, name in enumerate(SETS)} == sizes


@st.composite
def listings(draw: st.DrawFn) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray, dict[str, int], int]:
    """A source with some pairs listed for sets: keys, groups, listed and allowed sets, sizes that fit, and a seed."""
    keys, groups, _, seed = draw(sources())
    listed = np.array([draw(st.sampled_from([ANY, ANY, *range(len(SETS))])) for _ in keys], dtype=np.int8)
    allowed, _ = allowed_sets(groups, listed)
    sizes, free = {}, int((allowed == ANY).sum())
    for code, name in enumerate(SETS):
        has_list = code in listed
        sizes[name] = draw(st.integers(0, int((allowed == code).sum()) if has_list else free))
        free -= 0 if has_list else sizes[name]
    return keys, groups, listed, allowed, sizes, seed


@given(listings())
def test_a_set_with_a_list_gets_only_its_pairs_and_no_other_set_gets_them(source: tuple) -> None:
    keys, groups, listed, allowed, sizes, seed = source
    member = split(keys, groups, sizes, seed, allowed)
    for row, code in enumerate(member.tolist()):
        if code != UNUSED:
            assert listed[row] == (code if code in listed else ANY)
    for code, name in enumerate(SETS):
        assert int((member == code).sum()) <= sizes[name]
        if code in listed and sizes[name] == int((allowed == code).sum()):  # all available
            np.testing.assert_array_equal(member == code, allowed == code)
    for root in np.unique(groups):
        in_group = groups == root
        requested = set(listed[in_group].tolist()) - {ANY}
        used = set(member[in_group].tolist()) - {UNUSED}
        # A group is in at most one set; a group listed for a set is in that set or in none.
        assert len(used) <= 1
        assert not requested or used <= {min(requested)}
    np.testing.assert_array_equal(member, split(keys, groups, sizes, seed, allowed))


@given(sources())
def test_without_lists_any_pair_may_go_anywhere(source: tuple) -> None:
    keys, groups, _, _ = source
    allowed, _ = allowed_sets(groups, np.full(len(keys), ANY, dtype=np.int8))
    np.testing.assert_array_equal(allowed, ANY)


@given(listings(), st.integers(0, 60))
def test_a_larger_listed_a_contains_the_smaller_one(source: tuple, more: int) -> None:
    keys, _, listed, _, sizes, seed = source
    alone = np.arange(len(keys))
    small, large = (
        split(keys, alone, {"A": sizes["A"] + added}, seed, allowed_sets(alone, listed)[0]) == 0 for added in (0, more)
    )
    assert not (small & ~large).any()


def test_a_group_belongs_to_the_first_set_that_it_is_listed_for() -> None:
    a, h = SETS.index("A"), SETS.index("H")
    groups = np.array([0, 0, 0, 3, 3, 5, 6, 6])
    listed = np.array([h, ANY, a, h, h, a, ANY, ANY], dtype=np.int8)
    allowed, _ = allowed_sets(groups, listed)
    assert allowed.tolist() == [NONE, NONE, a, h, h, a, ANY, ANY]
    keys = [f"{number}" for number in range(8)]
    member = split(keys, groups, {"A": 2, "H": 2, "P": 2}, 0, allowed)
    p = SETS.index("P")
    assert member.tolist() == [UNUSED, UNUSED, a, h, h, a, p, p]
    # Pairs listed for A that A does not take go nowhere, and neither do their duplicates.
    member = split(keys, groups, {"H": 2, "P": 2}, 0, allowed)
    assert member.tolist() == [UNUSED, UNUSED, UNUSED, h, h, UNUSED, p, p]


@given(sources(), st.integers(0, 60))
def test_a_larger_a_contains_the_smaller_one(source: tuple, more: int) -> None:
    keys, _, sizes, seed = source
    alone = np.arange(len(keys))
    small = unlisted_split(keys, alone, {"A": sizes["A"]}, seed) == 0
    large = unlisted_split(keys, alone, {"A": min(len(keys), sizes["A"] + more)}, seed) == 0
    assert not (small & ~large).any()


@given(sources())
def test_the_order_depends_on_key_and_seed_only(source: tuple) -> None:
    keys, _, _, seed = source
    ordered = [keys[row] for row in hash_order(keys, seed, "order")]
    assert sorted(ordered) == keys
    # A subset keeps the order of all keys: prefixes of A stay prefixes whatever the other sets are.
    subset = keys[::2]
    assert [subset[row] for row in hash_order(subset, seed, "order")] == [key for key in ordered if key in set(subset)]


def test_the_order_within_a_set_is_not_the_order_of_assignment() -> None:
    # Otherwise grouped pairs would gather at the end of A, and a prefix of A would not be a sample of it.
    keys = [f"{number:05d}" for number in range(4000)]
    groups = np.arange(4000) // 2 * 2
    member = unlisted_split(keys, groups, {"A": 1000}, seed=0)
    order = hash_order(keys, 0, "order")
    in_a = order[member[order] == 0]
    is_second = in_a % 2 == 1
    assert len(in_a) == 1000
    assert 220 < is_second[:500].sum() < 280


def test_sets_look_like_the_source() -> None:
    keys = [f"{number:05d}" for number in range(10_000)]
    member = unlisted_split(keys, np.arange(10_000), {"A": 3000, "B": 3000, "H": 2000, "V": 500, "P": 1000}, seed=1)
    for code in range(len(SETS)):
        rows = np.flatnonzero(member == code)
        spread = 10_000 / np.sqrt(12 * len(rows))
        assert abs(rows.mean() - 5000) < 4 * spread
    reseeded = unlisted_split(keys, np.arange(10_000), {"A": 3000}, seed=2)
    assert 800 < ((member == 0) & (reseeded == 0)).sum() < 1000  # 900 by chance


def test_seeded_hash_is_the_same_on_every_machine() -> None:
    assert seeded_hash(["000000000009", "é"], 0, "order").tolist() == [12730274427209642174, 14135109582924935591]
    assert len({int(seeded_hash(["a"], seed, purpose)[0]) for seed in (0, 1) for purpose in ("set", "order")}) == 4


def test_sizes_by_number_and_by_share() -> None:
    assert set_sizes({"P": 0.2, "A": 0.29, "B": 10, "V": 0}, 100) == {"A": 29, "B": 10, "P": 20}
    assert set_sizes({"A": 0, "B": 0.0, "P": 1.0}, 100) == {"P": 100}
    assert set_sizes({"P": 1}, 100) == {"P": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"A": 60, "B": 0.5}, r"ask for 110 pairs \(A=60, B=50\), but there are only 100"),
        ({"Q": 1}, "an unknown set 'Q'"),
        ({"A": 1.1}, r"sizes.A=1.1 is not a size; .* a share of all pairs \(1.0: all\)"),
        ({"A": -1}, "sizes.A=-1 is not a size"),
        ({"A": True}, "sizes.A=True is not a size"),
        ({"A": 0}, "no pairs at all"),
        ({"A": 0.001}, "no pairs at all"),
    ],
)
def test_wrong_sizes_are_named(sizes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        set_sizes(sizes, 100)


def test_sizes_of_sets_with_lists() -> None:
    listed = {"A": 30, "H": 20}
    assert set_sizes({"A": None, "H": 5, "P": 0.4}, 100, listed) == {"A": 30, "H": 5, "P": 40}
    assert set_sizes({"A": 0.1, "P": 45}, 100, listed, excluded=5) == {
        "A": 10,
        "H": 20,
        "P": 45,
    }  # H without a size: all


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"B": None}, r"sizes\.B=null takes all pairs that keys\.B lists, but it lists none"),
        ({"A": 31}, r"sizes\.A asks for 31 pairs, but keys\.A lists 30 that can be used .* null for all"),
        ({"A": 0.5}, r"sizes\.A asks for 50 pairs, but keys\.A lists 30"),
        ({"A": 0}, r"sizes\.A asks for 0 pairs, but keys\.A lists 30"),
        (
            {"B": 20, "P": 26},
            r"ask for 46 pairs \(B=20, P=26\), but there are only 45 for these sets: keys lists the",
        ),
    ],
)
def test_wrong_sizes_of_sets_with_lists_are_named(sizes: dict[str, float | None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        set_sizes(sizes, 100, {"A": 30, "H": 20}, excluded=5)


def test_a_list_without_usable_pairs_is_named() -> None:
    with pytest.raises(UserError, match=r"sizes\.H asks for 0 pairs, but keys\.H lists 0 that can be used"):
        set_sizes({"A": 10, "H": None}, 100, {"H": 0})
