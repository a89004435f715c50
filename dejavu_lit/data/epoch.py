"""The epoch plan: which rank and worker sees which pair at which step, as a pure function of seed and epoch.

The shards are shuffled with (seed, epoch), each shard is permuted with (seed, epoch, shard), and all is one long sequence
of N entries. With M = ⌊N / (world · batch)⌋ steps, rank r gets the r-th stretch of M batches, and its worker w the batches
⌊wM/workers⌋ … ⌊(w+1)M/workers⌋ − 1 of it. So every rank has the same number of batches by construction, every entry is seen
at most once per epoch, and at most world · batch − 1 entries are dropped (different ones each epoch).

Two kinds of pairs are never trained on: ``excluded`` ones are treated as absent, ``removed`` ones still count for the
training size and for planted repetitions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, product

import numpy as np

from dejavu_lit.data.settings import Repeat
from dejavu_lit.utils.errors import UserError, counted

Positions = Mapping[int, Sequence[int]]  # {shard: positions in it}


def epoch_plan(
    sizes: Sequence[int],
    seed: int,
    epoch: int,
    world: int,
    workers: int,
    batch: int,
    train_size: int | None = None,
    repeat: Repeat | None = None,
    excluded: Positions | None = None,
    removed: Positions | None = None,
) -> "EpochPlan":
    """The plan of one epoch over shards of ``sizes`` pairs, of which the first ``train_size`` are used.

    The other arguments are as in EpochPlan. Raises UserError for fewer pairs than one batch of all ranks, or fewer than
    ``train_size``.
    """
    used = nested_sizes(sizes, train_size, excluded)
    return EpochPlan(used, seed, epoch, world, workers, batch, repeat or Repeat(), excluded or {}, removed or {})


def pairs_per_rank(batch: int, world: int) -> int:
    """Pairs per rank and step; raises UserError if the global batch is not divisible by ``world``."""
    if batch % world:
        raise UserError(f"recipe.batch={batch} is not divisible by the {world} ranks; choose a multiple of {world}")
    return batch // world


def nested_sizes(sizes: Sequence[int], train_size: int | None, excluded: Positions | None = None) -> tuple[int, ...]:
    """How much of each shard a training size uses: together a prefix of the set, so that training sizes are nested.

    ``excluded`` pairs do not count. Raises UserError if ``train_size`` (None: all) is larger than the set, or not positive.
    """
    if train_size is None:
        return tuple(sizes)
    excluded = excluded or {}
    total = sum(sizes) - sum(map(len, excluded.values()))
    if not 0 < train_size <= total:
        raise UserError(f"data.train_size={train_size} but the set has {total} pairs; choose 1 to {total} or omit it")
    used, remaining = [], train_size
    for shard, size in enumerate(sizes):
        members = _without(np.arange(size), excluded, shard)
        last = int(members[remaining - 1]) + 1 if 0 < remaining <= len(members) else 0
        used.append(size if len(members) < remaining else last)
        remaining -= min(len(members), remaining)
    return tuple(used)


@dataclass(frozen=True)
class EpochPlan:
    """The order of one epoch. Entries are (shard, position in the shard), int64."""

    sizes: tuple[int, ...]  # how much of each shard is used, including excluded pairs
    seed: int  # of the order; the pairs' draws use it too
    epoch: int  # counted from 0
    world: int  # number of ranks
    workers: int  # loader processes per rank; 0 counts as 1
    batch: int  # pairs per rank and step
    repeat: Repeat = field(default_factory=Repeat)
    excluded: Positions = field(default_factory=dict)  # pairs treated as absent
    removed: Positions = field(default_factory=dict)  # pairs that count but are not trained on

    def __post_init__(self) -> None:
        if self.entries < self.world * self.batch:
            raise UserError(
                f"{counted(self.entries, 'training pair')} cannot fill one batch ({counted(self.world, 'rank')} × "
                f"{counted(self.batch, 'pair')}); lower recipe.batch=, use fewer devices or more data"
            )

    @cached_property
    def entries(self) -> int:
        """N, the length of the sequence; repeated pairs count each time."""
        return int(self._lengths.sum())

    @property
    def steps(self) -> int:
        """M, the number of batches of every rank."""
        return self.entries // (self.world * self.batch)

    def members(self, shard: int) -> np.ndarray:
        """The positions of a shard's pairs without excluded ones, ascending, int64 [m]."""
        return _without(np.arange(self.sizes[shard]), self.excluded, shard)

    def parts(self, rank: int, worker: int = 0, offset: int = 0, whole: bool = False) -> Iterator[np.ndarray]:
        """The entries that the loader's worker ``worker`` of ``rank`` yields after ``offset`` steps, shard by shard, each [m, 2].

        The loader always starts with its worker 0. After an offset in mid-round the workers' stretches are therefore
        rotated, so that it continues with exactly the batch that would have come next. ``whole``: also those of its stretch
        that came before.
        """
        spans, turn = self._spans(offset)
        own = (worker + turn) % len(spans)
        first, last = (self._spans(0)[0] if whole else spans)[own]
        base = rank * self.steps
        return self.stretch((base + first) * self.batch, (base + last) * self.batch)

    def stretch(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The entries start … stop − 1 of the sequence, shard by shard, each [m, 2]."""
        begin = 0
        for shard in np.random.default_rng((self.seed, self.epoch)).permutation(len(self.sizes)):
            end = begin + int(self._lengths[shard])
            if max(begin, start) < min(end, stop):
                positions = self._positions(shard)
                positions = np.random.default_rng((self.seed, self.epoch, int(shard))).permutation(positions)
                part = positions[max(start - begin, 0) : stop - begin]
                yield np.stack([np.full_like(part, shard), part], axis=1)
            begin = end

    @cached_property
    def _starts(self) -> np.ndarray:
        """The index of each shard's first pair among all pairs that are not excluded, int64 [shards + 1]."""
        counts = self.sizes if not self.excluded else [len(self.members(shard)) for shard in range(len(self.sizes))]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    @cached_property
    def _lengths(self) -> np.ndarray:
        """The number of entries of each shard, int64 [shards]."""
        if self.repeat == Repeat() and not self.removed:
            return np.diff(self._starts)
        return np.array([len(self._positions(s)) for s in range(len(self.sizes))], dtype=np.int64)

    def _positions(self, shard: int) -> np.ndarray:
        """The positions of one shard that are trained on, repeated ones as often as they come."""
        positions = self.members(shard)
        ordinals = np.arange(len(positions)) + self._starts[shard]
        times = self.repeat.times_of(ordinals, int(self._starts[-1]))
        return _without(np.repeat(positions, times), self.removed, shard)

    def _spans(self, offset: int) -> tuple[list[tuple[int, int]], int]:
        """The batches that each worker still has after ``offset`` steps, (first, end), and the worker whose turn it is.

        A loader takes one batch from each worker in turn and skips those that have none left.
        """
        workers = max(self.workers, 1)
        bounds = [w * self.steps // workers for w in range(workers + 1)]
        counts = np.diff(bounds)
        rounds = int(counts.min())
        longer = [w for w in range(workers) if counts[w] > rounds]
        if offset < rounds * workers:
            done, turn = divmod(offset, workers)
            taken = [done + (w < turn) for w in range(workers)]
        else:
            extra = offset - rounds * workers
            taken = [rounds + (w in longer[:extra]) for w in range(workers)]
            turn = longer[extra] if extra < len(longer) else 0
        return [(bounds[w] + taken[w], bounds[w + 1]) for w in range(workers)], turn


def exposures(plan: EpochPlan, steps: int) -> np.ndarray:
    """How often each pair was seen in the first ``steps`` steps, over all epochs, of a training that follows ``plan``.

    int64 [pairs], in the order of the shards, without excluded pairs; 0 for removed ones. ``plan``: of any epoch; its
    ``epoch`` is ignored.
    """
    starts = np.concatenate([[0], np.cumsum(plan.sizes)]).astype(np.int64)
    counts = np.zeros(int(starts[-1]), dtype=np.int64)
    for epoch in range(-(-steps // plan.steps)):
        current = replace(plan, epoch=epoch)
        done = steps - epoch * plan.steps
        processes = product(range(plan.world), range(plan.workers or 1)) if done < plan.steps else ()
        not_reached = chain.from_iterable(current.parts(rank, worker, done) for rank, worker in processes)
        for times, parts in ((1, current.stretch(0, plan.world * plan.steps * plan.batch)), (-1, not_reached)):
            for part in parts:
                np.add.at(counts, starts[part[:, 0]] + part[:, 1], times)
    if not plan.excluded:
        return counts
    return counts.take(np.concatenate([starts[shard] + plan.members(shard) for shard in range(len(plan.sizes))]))


def exposure_range(counts: np.ndarray | None) -> dict[str, float] | None:
    """{mean, min, max} of the exposures of a training set; None if they are unknown."""
    if counts is None:
        return None
    return {"mean": float(counts.mean()), "min": int(counts.min()), "max": int(counts.max())}


def _without(positions: np.ndarray, dropped: Positions | None, shard: int) -> np.ndarray:
    """``positions`` of a shard without those in ``dropped``, in their order."""
    shard_positions = dropped.get(shard) if dropped else None
    return positions if not shard_positions else positions[~np.isin(positions, shard_positions)]
