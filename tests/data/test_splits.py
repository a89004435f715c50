import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu_lit.data.splits import SETS, UNUSED, seeded_hash, set_sizes, shard_order, split
from dejavu_lit.errors import UserError


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
