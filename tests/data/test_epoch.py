"""The epoch plan: one pass without replacement, equal per rank, resumable, for any sizes, ranks and workers."""

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dejavu_lit.data.epoch import EpochPlan, epoch_plan, exposure_range, exposures, nested_sizes
from dejavu_lit.data.settings import Repeat
from dejavu_lit.utils.errors import UserError

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=8)


def batches(plan: EpochPlan, rank: int, worker: int = 0, offset: int = 0, whole: bool = False) -> np.ndarray:
    """The entries of one worker in batches, int64 [steps, batch, 2]."""
    parts = plan.parts(rank, worker, offset, whole)
    return np.concatenate([np.zeros((0, 2), np.int64), *parts]).reshape(-1, plan.batch, 2)


def rows(plan: EpochPlan, rank: int, offset: int = 0) -> list[list[tuple[int, int]]]:
    """The batches of one rank in the order of a loader: one of each worker in turn."""
    streams = [batches(plan, rank, w, offset) for w in range(max(plan.workers, 1))]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*streams))
    return [[tuple(map(int, e)) for e in batch] for batch in turns if batch is not None]


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 4), st.integers(0, 3), st.integers(1, 7), st.integers(0, 3))
def test_one_pass_without_replacement(sizes, world, workers, batch, epoch):
    total = sum(sizes)
    if total < world * batch:
        with pytest.raises(UserError, match=f"^{total} training pair"):
            epoch_plan(sizes, 1, epoch, world, workers, batch)
        return
    plan = epoch_plan(sizes, 1, epoch, world, workers, batch)
    per_rank = [rows(plan, r) for r in range(world)]
    assert {len(own) for own in per_rank} == {total // (world * batch)}
    assert all(len(b) == batch for own in per_rank for b in own)
    seen = [entry for own in per_rank for b in own for entry in b]
    assert len(seen) == len(set(seen))
    assert total - len(seen) <= world * batch - 1
    assert all(0 <= position < sizes[shard] for shard, position in seen)


@settings(max_examples=100, deadline=None)
@given(SIZES.filter(lambda s: sum(s) >= 12), st.integers(1, 2), st.integers(0, 4), st.integers(1, 4), st.data())
def test_resuming_yields_the_remaining_batches(sizes, world, workers, batch, data):
    plan = epoch_plan(sizes, 3, 2, world, workers, batch)
    offset = data.draw(st.integers(0, plan.steps))
    for rank in range(world):
        assert rows(plan, rank, offset) == rows(plan, rank)[offset:]
        for worker in range(max(workers, 1)):
            rest, whole = (batches(plan, rank, worker, offset, whole=whole) for whole in (False, True))
            assert np.array_equal(whole[len(whole) - len(rest) :], rest)
            assert any(np.array_equal(whole, batches(plan, rank, own)) for own in range(max(workers, 1)))


class Stream(IterableDataset):
    def __init__(self, plan, offset):
        self.plan, self.offset = plan, offset

    def __iter__(self):
        info = get_worker_info()
        return iter(batches(self.plan, 0, info.id if info else 0, self.offset))


@pytest.mark.parametrize("offset", [0, 1, 5, 6, 7, 10])
def test_a_real_loader_yields_the_same_order_and_resumes_in_it(offset):
    plan = epoch_plan([10, 3, 21], 0, 1, world=1, workers=3, batch=3)
    assert plan.steps == 11  # not a multiple of 3 workers: one worker has fewer batches
    loaded = [b.tolist() for b in DataLoader(Stream(plan, offset), batch_size=None, num_workers=3)]
    assert loaded == [[list(e) for e in b] for b in rows(plan, 0)[offset:]]


def test_order_depends_only_on_seed_and_epoch():
    def order(seed, epoch):
        return rows(epoch_plan([7, 9, 5], seed, epoch, 1, 0, 4), 0)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_shards_are_shuffled_before_they_are_split_by_rank():
    plans = [epoch_plan([50] * 8, 0, e, world=2, workers=0, batch=10) for e in range(6)]
    of_rank_0 = [{shard for b in rows(p, 0) for shard, _ in b} for p in plans]
    assert len({frozenset(s) for s in of_rank_0}) > 1


def test_training_sizes_are_nested_prefixes():
    assert nested_sizes([4, 4, 4], 6) == (4, 2, 0)
    small = {e for b in rows(epoch_plan([4, 4, 4], 0, 0, 1, 0, 1, train_size=6), 0) for e in b}
    large = {e for b in rows(epoch_plan([4, 4, 4], 0, 0, 1, 0, 1, train_size=9), 0) for e in b}
    assert small < large
    with pytest.raises(UserError, match="train_size=13"):
        nested_sizes([4, 4, 4], 13)


def test_exposure_counts_the_batches_yielded():
    for workers, steps in itertools.product([0, 2, 3], [1, 4, 7, 8, 20]):
        plan = epoch_plan([5, 12, 3], 7, 0, world=2, workers=workers, batch=2)
        counts = np.zeros(20, dtype=int)
        for step in range(steps):
            epoch, offset = divmod(step, plan.steps)
            current = epoch_plan([5, 12, 3], 7, epoch, 2, workers, 2)
            for rank in range(2):
                for shard, position in rows(current, rank)[offset]:
                    counts[[0, 5, 17][shard] + position] += 1
        assert exposures(plan, steps).tolist() == counts.tolist()


def digest(plan: EpochPlan, steps: int) -> str:
    """Hash of the batches of every rank and worker, and of the exposures after ``steps``."""
    sha = hashlib.sha256()
    for rank, worker in itertools.product(range(plan.world), range(max(plan.workers, 1))):
        sha.update(batches(plan, rank, worker).astype("<i8").tobytes())
    sha.update(exposures(plan, steps).astype("<i8").tobytes())
    return sha.hexdigest()[:16]


def test_plans_do_not_change_between_versions():
    cases = [
        (([10, 3, 21], 0, 1, 1, 3, 3), 25, "bf3f986100f92894"),
        (([1000, 1000, 517], 7, 4, 2, 2, 32, 2100), 70, "4ed6bc9766aef9eb"),
        (([40, 40], 3, 0, 1, 0, 8, None, Repeat([0.1, 0.2], [5, 3])), 40, "9d91d0f8bc261eb6"),
    ]
    for arguments, steps, expected in cases:
        assert digest(epoch_plan(*arguments), steps) == expected
        empty = {"excluded": {}, "removed": {}}
        assert digest(epoch_plan(*arguments, **empty), steps) == expected


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 3), st.integers(0, 3), st.integers(1, 4), st.data())
def test_excluded_and_removed_pairs_never_come_and_ranks_stay_equal(sizes, world, workers, batch, data):
    every = [(shard, position) for shard, size in enumerate(sizes) for position in range(size)]
    excluded = data.draw(st.sets(st.sampled_from(every or [(0, 0)])))
    removed = data.draw(st.sets(st.sampled_from(every or [(0, 0)])))
    members = [pair for pair in every if pair not in excluded]
    if not members:
        return
    train_size = data.draw(st.none() | st.integers(1, len(members)))
    counted = members[:train_size]
    trained = [pair for pair in counted if pair not in removed]
    dropped = [
        {shard: tuple(p for s, p in pairs if s == shard) for shard in {s for s, _ in pairs}}
        for pairs in (excluded, removed)
    ]
    arguments = (sizes, 1, 0, world, workers, batch, train_size, None, *dropped)
    if len(trained) < world * batch:
        with pytest.raises(UserError, match=f"^{len(trained)} training pair"):
            epoch_plan(*arguments)
        return
    plan = epoch_plan(*arguments)
    per_rank = [rows(plan, rank) for rank in range(world)]
    assert {len(own) for own in per_rank} == {len(trained) // (world * batch)}
    seen = [entry for own in per_rank for b in own for entry in b]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(trained)
    counts = exposures(plan, plan.steps)
    assert dict(zip(counted, counts.tolist(), strict=True)) == {pair: int(pair in seen) for pair in counted}


def test_an_excluded_pair_is_treated_as_absent():
    """With the first two and the last pair excluded, repetitions and sizes count only the others."""
    excluded = {0: (0, 1), 1: (4,)}
    assert nested_sizes([5, 5], 3, excluded) == (5, 0)
    assert nested_sizes([5, 5], 4, excluded) == (5, 1)
    assert nested_sizes([5, 5], 7, excluded) == (5, 4)  # the last pair of the second shard is excluded
    with pytest.raises(UserError, match="train_size=8 but the set has 7"):
        nested_sizes([5, 5], 8, excluded)
    assert nested_sizes([2, 3, 2], 3, {1: (0, 1, 2)}) == (2, 3, 1)  # the shard in between has no pairs left
    assert nested_sizes([4, 4, 1], 4, {2: (0,)}) == (4, 0, 0)  # nor has the last one, which is not reached
    plan = epoch_plan([5, 5], 0, 0, 1, 0, 1, repeat=Repeat(0.3, 4), excluded=excluded)
    assert exposures(plan, plan.steps).tolist() == [4, 4, 1, 1, 1, 1, 1]  # 30 % of 7 pairs, rounded down
    removed = epoch_plan([5, 5], 0, 0, 1, 0, 1, repeat=Repeat(0.3, 4), removed=excluded)
    assert exposures(removed, removed.steps).tolist() == [0, 0, 4, 1, 1, 1, 1, 1, 1, 0]


def test_repeated_pairs_come_as_often_as_set():
    plan = epoch_plan([10, 10], 0, 0, 1, 0, 1, repeat=Repeat([0.1, 0.2], [5, 3]))
    counts = exposures(plan, plan.steps)
    assert counts.tolist() == [5, 5, 3, 3, 3, 3] + [1] * 14
    assert exposure_range(counts) == {"mean": 1.8, "min": 1, "max": 5}
    for shares, times in (([0.1, 0.2], [5]), ([], []), ([0.1], [1.5]), ([True], [2])):
        with pytest.raises(UserError, match=r"data\.repeat\.share="):
            Repeat(shares, times)


def test_a_training_size_is_the_first_pairs_that_count_however_many_are_excluded():
    """Against a brute force over all sizes: every set of excluded pairs of three small shards."""
    sizes = (2, 1, 2)
    pairs = [(shard, position) for shard, size in enumerate(sizes) for position in range(size)]
    for absent in itertools.chain.from_iterable(itertools.combinations(pairs, count) for count in range(len(pairs))):
        counted = [pair for pair in pairs if pair not in absent]
        excluded = {shard: tuple(p for s, p in absent if s == shard) for shard, _ in absent}
        for train_size in range(1, len(counted) + 1):
            used = nested_sizes(sizes, train_size, excluded)
            plan = EpochPlan(used, 0, 0, 1, 0, 1, excluded=excluded)
            members = [(shard, position) for shard in range(3) for position in plan.members(shard).tolist()]
            assert members == counted[:train_size]
            assert len(exposures(plan, plan.steps)) == sum(used) - sum(p < used[s] for s, p in absent) == train_size
