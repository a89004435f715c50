"""The LightningDataModule: batches of A or B in the order of the epoch plan, and of V for validation."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytorch_lightning as pl

from dejavu_lit.data.captions import idle_knobs, vocabulary
from dejavu_lit.data.decode import caption_candidates
from dejavu_lit.data.epoch import EpochPlan, Positions, epoch_plan, exposure_range, exposures, pairs_per_rank
from dejavu_lit.data.key_lists import later_duplicates, positions_of
from dejavu_lit.data.loader import EpochLoader
from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.prepared import TRAINED_ON, DataSpec
from dejavu_lit.data.settings import LoaderSettings
from dejavu_lit.data.shards import BadPair, Pair, ShardSet, read_pairs
from dejavu_lit.data.stream import (
    Augment,
    LoadedPair,
    PairStream,
    Preprocess,
    TokenCache,
    Tokenizer,
    load_images,
    rgb_pixels,
)
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError

log = logging.getLogger(__name__)
# The arguments of a stream of training pairs, except for the cache.
Sources = tuple[ShardSet, EpochPlan, int, Preprocess, Tokenizer, Mitigation, Sequence[str], Augment | None]

CHECKED_PAIRS = 100  # whose captions tell whether a text knob can change any
VOCABULARY_PAIRS = 100_000  # whose captions text_random draws its words from; shards are in hash order: it is a sample


@dataclass(eq=False)
class PairDataModule(pl.LightningDataModule):
    """The training pairs of one side and the validation pairs."""

    data: DataSpec
    side: str  # which model is trained: target (on A) or reference (on B)
    batch: int  # pairs per step, over all ranks
    seed: int  # of the order of the pairs and of all draws
    preprocess: Preprocess  # without randomness
    tokenizer: Tokenizer
    mitigation: Mitigation = field(default_factory=Mitigation)
    augment: Augment | None = None  # replaces ``preprocess`` in training, with random draws
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    batch_timeout: float = 0  # seconds that the worker processes may take for a batch; 0: no limit

    def __post_init__(self) -> None:
        super().__init__()
        name = TRAINED_ON[self.side]
        folder = self.data.folder
        self.train_set = self.data.shard_set(name)
        self.valid_set = ShardSet.open(folder / "V") if (folder / "V").is_dir() else None
        self._excluded = positions_of(self.train_set, self.data.excluded)
        self._removed: Positions = {}
        pairs = len(self.train_set)
        if self._excluded:
            excluded, listed = sum(map(len, self._excluded.values())), len(self.data.listed)
            log.info("data.exclude removes %d of %d pairs of %s; it lists %d keys", excluded, pairs, name, listed)
        if self.mitigation.dedup:
            self._removed = later_duplicates(folder / MANIFEST, self.train_set, self.data.prefix, self._excluded)
            removed = sum(map(len, self._removed.values()))
            log.info("mitigation.dedup removes %d of %d pairs of %s", removed, pairs, name)
        self._loaders: list[EpochLoader] = []
        self._cache: list[LoadedPair | BadPair] | None = None
        self._tokenizer = self.tokenizer
        self._vocabulary: Sequence[str] = ()

    @property
    def plan(self) -> EpochPlan:
        """The plan of the first epoch; raises UserError if the global batch is not divisible by the number of ranks."""
        world, data = self._world, self.data
        batch, absent = pairs_per_rank(self.batch, world), (self._excluded, self._removed)
        sizes = self.train_set.sizes
        return epoch_plan(sizes, self.seed, 0, world, self.loader.workers, batch, data.prefix, data.repeat, *absent)

    def exposure(self, batches: int) -> dict[str, Any]:
        """For run.json: the number of training pairs, and how often they were seen in so many batches of every rank."""
        counts = exposures(self.plan, batches)
        return {"train_size": len(counts), "exposure": exposure_range(counts)}

    def setup(self, stage: str) -> None:
        """Check the sizes and the captions, and decode all images once if they fit into memory.

        With augmentation, the cache holds whole images, augmented again each epoch: it never changes what is trained.
        """
        total, limit = sum(self.plan.sizes), self.loader.cache_mb * 2**20
        self._check_captions(total)
        if self._cache is not None:
            return
        preprocess = self.preprocess if self.augment is None else rgb_pixels
        self._cache = load_images(self.train_set, total, preprocess, limit)
        knobs = self.mitigation
        if self._cache and not (knobs.caption_choice or knobs.text_mask or knobs.text_random or knobs.text_shuffle):
            self._tokenizer = TokenCache(self.tokenizer)

    def train_dataloader(self) -> EpochLoader:
        """One epoch per iteration; starts in mid-epoch if the trainer does."""
        return self._loader(PairStream(*self._sources, cache=self._cache), self._position)

    @property
    def _sources(self) -> Sources:
        pairs = self.train_set, self.plan, self._rank
        return *pairs, self.preprocess, self._tokenizer, self.mitigation, self._vocabulary, self.augment

    def val_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """V in a fixed order, unaffected by any knob, in batches of at most the training batch; [] if there is no V."""
        valid = self.valid_set
        if valid is None:
            return []
        excluded = positions_of(valid, self.data.excluded)
        pairs = len(valid) - sum(map(len, excluded.values()))
        if pairs < self._world:
            return []
        batch = min(pairs_per_rank(self.batch, self._world), pairs // self._world)
        plan = epoch_plan(valid.sizes, 0, 0, self._world, self.loader.workers, batch, excluded=excluded)
        return self._loader(PairStream(valid, plan, self._rank, self.preprocess, self._tokenizer), lambda: (0, 0))

    def teardown(self, stage: str) -> None:
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def _check_captions(self, total: int) -> None:
        """Check that the first pairs leave the text knobs something to change, and collect the words of ``text_random``."""
        knobs = self.mitigation
        choice = knobs.caption_choice
        pairs = self._pairs(min(total, CHECKED_PAIRS))
        first = [(pair.caption, caption_candidates(pair) if choice else ()) for pair in pairs]
        if choice and not any(len(set(candidates)) > 1 for _, candidates in first):
            raise UserError(
                "mitigation.caption_choice=true needs pairs with several captions (the list captions of their JSON), but "
                f"those of {self.train_set.folder} have one; set it to false"
            )
        if first and self._rank == 0:
            for knob in idle_knobs((caption for own, others in first for caption in (own, *others)), knobs):
                log.warning(
                    "mitigation.%s=%s changes none of the first %d captions of %s, which are too short for it; lower or drop it, "
                    "or train on longer captions",
                    *(knob, getattr(knobs, knob), len(first), self.train_set.folder),
                )
        if knobs.text_random and not self._vocabulary:
            pairs = self._pairs(min(total, VOCABULARY_PAIRS))
            self._vocabulary = vocabulary(
                c for pair in pairs for c in (pair.caption, *(caption_candidates(pair) if choice else ()))
            )

    def _pairs(self, total: int) -> Iterator[Pair]:
        """Those of the first ``total`` pairs that are readable and not excluded, without their images."""
        for pair in islice(read_pairs(self.train_set, image=False), total):
            if isinstance(pair, Pair) and pair.key not in self.data.excluded:
                yield pair

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _position(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _loader(self, stream: PairStream, position: Callable[[], tuple[int, int]]) -> EpochLoader:
        loader = EpochLoader(stream, self.loader, position, self.batch_timeout)
        self._loaders.append(loader)
        return loader
