"""Training on raw shards: batches of A or B streamed by webdataset, with its shuffle of shards and of a buffer of pairs.

Every rank does the same number of steps, ⌊pairs / batch⌋ per epoch, where "pairs" is known or estimated. The shards are
shuffled with (seed, epoch) and dealt out to the ranks and their loader processes, so each gets a similar, not an
equal, number of pairs: a process that has read its shards begins a second pass over them, and one that has more leaves some for
another epoch. How often a pair is seen is therefore an expectation.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info
from webdataset import DataPipeline, SimpleShardList, batched, shuffle

from dejavu_lit.data.epoch import EpochPlan, epoch_plan, pairs_per_rank
from dejavu_lit.data.loader import EpochLoader
from dejavu_lit.data.module import PairDataModule
from dejavu_lit.data.prepared import TRAINED_ON, DataSpec
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.data.splits import seeded_hash
from dejavu_lit.data.stream import Batch, PairStream, Sample
from dejavu_lit.utils.errors import UserError, counted

MAX_SKIPPED = 1000  # unreadable pairs in a row, counted again in every pass
MAX_EMPTY = 20  # passes in a row over drawn shards that may have no pair of the set: other shards may have some
RawPair = tuple[int, str, Pair | BadPair]  # hash of the key, key, pair


class RawStream(PairStream):
    """The batches of one rank from the set ``name`` of raw shards. ``index`` of a batch holds hashes of the keys."""

    def __init__(self, data: DataSpec, name: str, *options: Any) -> None:
        """``options``: as ``PairStream`` takes them, without a cache."""
        super().__init__(*options)
        self.raw, self.name, self.buffer, self.resampled = data.raw_shards(), name, data.shuffle, data.resampled
        self.place = "data.shards"

    def __iter__(self) -> Iterator[Batch]:
        info, workers = get_worker_info(), max(self.plan.workers, 1)
        epoch, offset = self.position.tolist()
        # The loader starts with its process 0, so after an offset the processes exchange their parts.
        part = ((info.id if info else 0) + offset) % workers
        done, total = len(range(part, offset, workers)), len(range(part, self.plan.steps, workers))
        pairs = islice(self._pairs(epoch, self.rank * workers + part), done * self.plan.batch, None)
        batch = batched(self.plan.batch, collation_fn=self.collate, partial=False)
        return islice(iter(DataPipeline(lambda: self._samples(epoch, pairs), batch)), total - done)

    def _pairs(self, epoch: int, part: int) -> Iterator[RawPair]:
        """The pairs of one process, in passes over its shards; without end if a pass has a usable pair."""
        addresses, parts = self.raw.addresses, self.plan.world * max(self.plan.workers, 1)
        seed = f"{self.plan.seed}/{epoch}"
        own = random.Random(seed).sample(addresses, len(addresses))[part::parts]  # other ones in each epoch
        empty = 0  # passes in a row
        for turn in count():
            draw = random.Random(f"{seed}/{part}/{turn}")
            chosen = draw.choices(addresses, k=len(addresses)) if self.resampled else own
            shards = SimpleShardList(chosen, seed=f"{seed}/{part}/{turn}")
            is_empty = is_unusable = True
            for key, pair in DataPipeline(shards, self._read_shards, shuffle(self.buffer, self.buffer, rng=draw)):
                index = int(seeded_hash([key], 0, "index")[0] >> np.uint64(1))
                yield index, key, pair
                is_empty, is_unusable = False, is_unusable and index in self._unreadable
            empty = empty + 1 if is_empty else 0
            if empty == MAX_EMPTY or (is_unusable and not self.resampled):
                why = f"no pair of {self.name}; {'check data.fractions' if self.resampled else 'use fewer processes'}"
                if not is_empty:
                    why = f"no pair of {self.name} that can be read (last error: {self._unreadable[index]}); check the shards"
                raise UserError(f"part {part} of {parts} of data.shards has {why}")

    def _read_shards(self, shards: Iterable[dict[str, str]]) -> Iterator[tuple[str, Pair | BadPair]]:
        for shard in shards:
            yield from self.raw.read(shard["url"], self.name)

    def _samples(self, epoch: int, pairs: Iterable[RawPair]) -> Iterator[Sample]:
        """The usable pairs, each with the unusable ones in whose place it comes."""
        skipped: list[tuple[int, str]] = []
        for sample in self._decode(epoch, pairs):
            if isinstance(sample, Sample):
                yield replace(sample, skipped=skipped)
                skipped = []
                continue
            skipped.append(sample)
            if len(skipped) == MAX_SKIPPED:
                raise UserError(
                    f"{MAX_SKIPPED} pairs of data.shards in a row cannot be read (last error: {sample[1]}); check the shards"
                )


class RawDataModule(PairDataModule):
    """The training pairs of one side, streamed from raw shards; V and the captions' words come from the samples."""

    def __post_init__(self) -> None:
        self.data.check_options()
        super().__post_init__()

    @property
    def plan(self) -> EpochPlan:
        """How much an epoch reads, treating all shards as one; raises UserError for fewer shards than loader processes."""
        world, shards = self._world, len(self.data.raw_shards().addresses)
        parts = world * max(self.loader.workers, 1)
        if shards < parts and not self.data.resampled:
            raise UserError(
                f"data.shards has {counted(shards, 'shard')} for {parts} loader processes ({counted(world, 'rank')} × "
                f"{max(self.loader.workers, 1)}); lower trainer.loader.workers or trainer.devices, or set "
                "data.resampled=true"
            )
        pairs = self.data.training_pairs(self.side)
        return epoch_plan([pairs], self.seed, 0, world, self.loader.workers, pairs_per_rank(self.batch, world))

    def exposure(self, batches: int) -> dict[str, Any]:
        """For run.json: the number of training pairs, and how often they are expected to have been seen."""
        plan = self.plan
        mean = batches * plan.world * plan.batch / plan.entries
        return {"train_size": plan.entries, "exposure": {"mean": mean, "min": None, "max": None}}

    def setup(self, stage: str) -> None:
        self._check_captions(len(self.train_set))

    def train_dataloader(self) -> EpochLoader:
        """One epoch per iteration; starts in mid-epoch if the trainer does."""
        return self._loader(RawStream(self.data, TRAINED_ON[self.side], *self._sources), self._position)
