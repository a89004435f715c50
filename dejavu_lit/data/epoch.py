"""The epoch plan: which rank and worker sees which pair at which step, as a pure function of seed and epoch.

Shuffle the shards with (seed, epoch), permute inside each shard with (seed, epoch, shard), and see it all as one long row.
With M = ⌊N / (world · batch)⌋ steps, rank r gets the r-th stretch of M batches, worker w of it the batches
⌊wM/workers⌋ … ⌊(w+1)M/workers⌋ − 1. So every rank has the same number of batches by construction, every entry is seen at
most once an epoch, and at most world · batch − 1 entries are left out (others the next epoch).

Pairs can be left out in two ways: ``excluded`` ones are as if they were not there, ``removed`` ones count (for the training
size and for planted repetitions) but are never trained on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from dejavu_lit.utils.errors import UserError

Positions = Mapping[int, Sequence[int]]  # {shard: positions in it}


@dataclass(frozen=True)
class Repeat:
    """Planted memory: the first ``share`` of the pairs comes ``times`` times an epoch (lists: several such groups)."""

    share: float | Sequence[float] = 0.0
    times: int | Sequence[int] = 1

    def __post_init__(self) -> None:
        if len(self.shares) != len(self.counts) or min(self.shares) < 0 or sum(self.shares) > 1 or min(self.counts) < 1:
            raise UserError(
                f"data.repeat.share={self.share} and data.repeat.times={self.times} must be as many shares (together at "
                "most 1) as times (whole numbers from 1)"
            )

    @property
    def shares(self) -> list[float]:
        """The shares, always as a list."""
        return [float(s) for s in (self.share if isinstance(self.share, Sequence) else [self.share])]

    @property
    def counts(self) -> list[int]:
        """The times, always as a list."""
        return [int(t) for t in (self.times if isinstance(self.times, Sequence) else [self.times])]

    def times_of(self, positions: np.ndarray, total: int) -> np.ndarray:
        """How often the pairs at ``positions`` (0 … total − 1) come in one epoch, int64 like ``positions``."""
        edges = np.floor(np.cumsum(self.shares) * total + 1e-9).astype(np.int64)
        return np.array([*self.counts, 1], dtype=np.int64)[np.searchsorted(edges, positions, side="right")]


def nested_sizes(sizes: Sequence[int], train_size: int | None, excluded: Positions | None = None) -> tuple[int, ...]:
    """How far each shard is used for the nested training size: a prefix, since shards are in hash order.

    Args:
        sizes: pairs of each shard; train_size: pairs wanted, all by default; excluded: pairs that do not count.

    Raises:
        UserError: ``train_size`` is larger than the set, or not positive.
    """
    if train_size is None:
        return tuple(sizes)
    counts = [size - len((excluded or {}).get(shard, ())) for shard, size in enumerate(sizes)]
    total = sum(counts)
    if not 0 < train_size <= total:
        raise UserError(
            f"data.train_size={train_size} but the set holds {total} pairs; choose 1 to {total} or leave it out"
        )
    used, left = [], train_size
    for shard, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        if count <= left:
            used.append(size)
        else:
            used.append(int(_without(np.arange(size), excluded, shard)[left - 1]) + 1 if left else 0)
        left -= min(count, left)
    return tuple(used)


def _without(positions: np.ndarray, gone: Positions | None, shard: int) -> np.ndarray:
    """``positions`` of a shard without those of ``gone``, in their order."""
    absent = gone.get(shard) if gone else None
    return positions if not absent else positions[~np.isin(positions, absent)]


@dataclass(frozen=True)
class EpochPlan:
    """The order of one epoch. Entries are (shard, position in the shard), int64.

    sizes: how far each shard is used, excluded pairs among them; batch: pairs a rank and step; workers: loader processes a
    rank (0 counts as 1).
    """

    sizes: tuple[int, ...]
    seed: int
    epoch: int
    world: int
    workers: int
    batch: int
    repeat: Repeat = Repeat()
    excluded: Positions = field(default_factory=dict)
    removed: Positions = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps == 0:
            raise UserError(
                f"{self.entries} training pairs do not fill one batch of {self.world} ranks × {self.batch} pairs; "
                "lower the batch size, use fewer devices or more data"
            )

    def members(self, shard: int) -> np.ndarray:
        """The positions of the pairs of a shard that count, ascending."""
        return _without(np.arange(self.sizes[shard]), self.excluded, shard)

    @cached_property
    def _starts(self) -> np.ndarray:
        """The place of each shard's first pair among all pairs that count, int64 [shards + 1]."""
        counts = self.sizes if not self.excluded else [len(self.members(shard)) for shard in range(len(self.sizes))]
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def _positions(self, shard: int) -> np.ndarray:
        """The positions of one shard that are trained on, those of repeated pairs as often as they come."""
        positions = self.members(shard)
        places = np.arange(len(positions)) + self._starts[shard]
        times = self.repeat.times_of(places, int(self._starts[-1]))
        return _without(np.repeat(positions, times), self.removed, shard)

    @cached_property
    def _lengths(self) -> np.ndarray:
        if self.repeat == Repeat() and not self.removed:
            return np.diff(self._starts)
        return np.array([len(self._positions(s)) for s in range(len(self.sizes))], dtype=np.int64)

    @cached_property
    def entries(self) -> int:
        """N, the length of the whole row (larger than the number of pairs where some are repeated)."""
        return int(self._lengths.sum())

    @property
    def steps(self) -> int:
        """M, the number of batches of every rank."""
        return self.entries // (self.world * self.batch)

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self.sizes))

    def stretch(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """The entries start … stop − 1 of the long row, shard by shard, each [m, 2]."""
        begin = 0
        for shard in self._order:
            end = begin + int(self._lengths[shard])
            if end > start and begin < stop:
                positions = self._positions(shard)
                positions = np.random.default_rng((self.seed, self.epoch, int(shard))).permutation(positions)
                part = positions[max(start - begin, 0) : stop - begin]
                yield np.stack([np.full_like(part, shard), part], axis=1)
            begin = end

    def _spans(self, offset: int) -> tuple[list[tuple[int, int]], int]:
        """The batches left to each worker after ``offset`` steps, and the worker whose turn it is.

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

    def batches(self, rank: int, worker: int = 0, offset: int = 0) -> Iterator[np.ndarray]:
        """The batches, each [batch, 2], that the loader's worker ``worker`` of ``rank`` gives after ``offset`` steps.

        After an offset in mid-round the workers' stretches are rotated, so that the loader, which always starts with its
        worker 0, goes on with exactly the batch that would have come next.
        """
        spans, turn = self._spans(offset)
        first, last = spans[(worker + turn) % len(spans)]
        base = rank * self.steps
        rest = np.zeros((0, 2), dtype=np.int64)
        for part in self.stretch((base + first) * self.batch, (base + last) * self.batch):
            rest = np.concatenate([rest, part])
            whole = len(rest) // self.batch * self.batch
            for start in range(0, whole, self.batch):
                yield rest[start : start + self.batch]
            rest = rest[whole:]


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
) -> EpochPlan:
    """The plan of one epoch over shards of ``sizes`` pairs, of which the first ``train_size`` are trained on.

    Args:
        excluded: pairs that are as if they were not there; removed: pairs that count, but are not trained on.

    Raises:
        UserError: fewer pairs than one batch of all ranks, or fewer than ``train_size``.
    """
    used = nested_sizes(sizes, train_size, excluded)
    return EpochPlan(used, seed, epoch, world, workers, batch, repeat or Repeat(), excluded or {}, removed or {})


def exposures(plan: EpochPlan, steps: int) -> np.ndarray:
    """How often each pair was seen in the first ``steps`` steps of a training that follows ``plan``.

    Args:
        plan: the plan of any epoch of the training (its ``epoch`` is ignored).
        steps: training steps done, over all epochs.

    Returns:
        int64 [pairs], in the order of the shards, without excluded pairs; 0 for removed ones.
    """
    from dataclasses import replace

    starts = np.concatenate([[0], np.cumsum(plan.sizes)]).astype(np.int64)
    counts = np.zeros(int(starts[-1]), dtype=np.int64)
    for epoch in range(-(-steps // plan.steps)):
        current = replace(plan, epoch=epoch)
        done = min(steps - epoch * plan.steps, plan.steps)
        for rank in range(plan.world):
            if done == plan.steps:
                parts: Iterator[np.ndarray] = current.stretch(
                    rank * plan.steps * plan.batch, (rank + 1) * plan.steps * plan.batch
                )
            else:
                parts = _first_steps(current, rank, done)
            for part in parts:
                np.add.at(counts, starts[part[:, 0]] + part[:, 1], 1)
    if not plan.excluded:
        return counts
    return counts.take(np.concatenate([starts[shard] + plan.members(shard) for shard in range(len(plan.sizes))]))


def _first_steps(plan: EpochPlan, rank: int, steps: int) -> Iterator[np.ndarray]:
    workers = max(plan.workers, 1)
    left, _ = plan._spans(steps)
    for worker in range(workers):
        begin = worker * plan.steps // workers
        base = rank * plan.steps
        yield from plan.stretch((base + begin) * plan.batch, (base + left[worker][0]) * plan.batch)
