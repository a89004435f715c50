"""The LightningDataModule: batches of A or B as the epoch plan orders them, and V for validation."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dejavu_lit.data.cache import PictureCache, load_pair, other_captions, pixels
from dejavu_lit.data.captions import train_caption, vocabulary
from dejavu_lit.data.epoch import EpochPlan, Repeat, epoch_plan
from dejavu_lit.data.left_out import count, later_duplicates, positions_of
from dejavu_lit.data.shards import BadPair, ShardSet, read_pairs
from dejavu_lit.data.spec import MANIFEST, SETS
from dejavu_lit.errors import UserError
from dejavu_lit.mitigation import Mitigation

log = logging.getLogger(__name__)

Preprocess = Callable[[Image.Image], np.ndarray]
Augment = Callable[[np.ndarray, str], np.ndarray]  # RGB uint8 [h, w, 3] and what its draws depend on → uint8 [3, h, w]
Tokenizer = Callable[[list[str]], torch.Tensor]
Batch = dict[str, Any]
VOCABULARY_PAIRS = 100_000  # captions whose words text_random draws from: shards are in hash order, so it is a sample


@dataclass(frozen=True)
class LoaderSettings:
    """How pairs are read. The order of the pairs depends on ``workers``, nothing else here changes what is trained."""

    workers: int = 0  # loader processes a rank; 0 reads in the training process
    cache_mb: int = 1024  # decoded pictures are kept in memory where the training set fits into this many MiB
    prefetch: int = 4  # batches each worker prepares ahead
    pin_memory: bool = False
    bad_share: float = 0.01  # training stops when more than this share of the pairs read cannot be used

    def __post_init__(self) -> None:
        if self.workers < 0 or self.cache_mb < 0 or self.prefetch < 1 or not 0 <= self.bad_share <= 1:
            raise UserError(
                f"trainer.loader: workers={self.workers} and cache_mb={self.cache_mb} must be at least 0, "
                f"prefetch={self.prefetch} at least 1, bad_share={self.bad_share} between 0 and 1"
            )


class PairStream(IterableDataset[Batch]):
    """The batches of one rank in one epoch from step ``offset`` on; each worker gives its own stretch.

    A batch holds ``images`` uint8 [b, 3, h, w], ``tokens`` int64 [b, context], ``index`` int64 [b] (the pair's position
    in the set) and ``replaced`` (an int: pairs that could not be read and were replaced by the next readable one of the
    same stretch, so that counts never change). ``knobs`` act on the captions; ``augment``, where given, makes the input of
    the picture instead of ``preprocess``.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: EpochPlan,
        rank: int,
        offset: int,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        knobs: Mitigation | None = None,
        words: Sequence[str] = (),
        augment: Augment | None = None,
        cache: PictureCache | None = None,
    ) -> None:
        self.shards, self.plan, self.rank, self.offset = shards, plan, rank, offset
        self.tokenizer, self.knobs, self.words = tokenizer, knobs or Mitigation(), words
        self.load, self.augment, self.cache = preprocess if augment is None else pixels, augment, cache

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        batches = list(self.plan.batches(self.rank, info.id if info else 0, self.offset))
        stretch = np.concatenate(batches) if batches else np.zeros((0, 2), dtype=np.int64)
        for start in range(0, len(stretch), self.plan.batch):
            wanted = range(start, start + self.plan.batch)
            found = [self._readable(stretch, i) for i in wanted]
            entries = stretch[[i for i, _, _ in found]]
            yield {
                "images": torch.from_numpy(np.stack([picture for _, picture, _ in found])),
                "tokens": self.tokenizer([caption for _, _, caption in found]),
                "index": torch.from_numpy(self.shards.starts[entries[:, 0]] + entries[:, 1]),
                "replaced": sum(i != j for i, (j, _, _) in zip(wanted, found, strict=True)),
            }

    def _readable(self, stretch: np.ndarray, start: int) -> tuple[int, np.ndarray, str]:
        """The first pair of the stretch from ``start`` on (then from its beginning) that can be read."""
        for i in (*range(start, len(stretch)), *range(start)):
            try:
                return i, *self._read(*map(int, stretch[i]))
            except BadPair as bad:
                log.warning("skipped %s", bad)
        raise UserError(f"none of {len(stretch)} pairs of {self.shards.folder} can be read; prepare the data again")

    def _read(self, shard: int, position: int) -> tuple[np.ndarray, str]:
        index = self.shards.index(shard)
        if self.cache is None:
            picture, caption, others = load_pair(index, position, self.load)
        else:
            picture, caption, others = self.cache.get(int(self.shards.starts[shard]) + position)
        if not caption:
            raise BadPair(f"{index.keys[position]} in {index.path.name} has an empty caption")
        seed, epoch, key = self.plan.seed, self.plan.epoch, index.keys[position]
        if self.augment is not None:
            picture = self.augment(picture, f"{seed}/{epoch}/{key}")
        return picture, train_caption(caption, others, self.knobs, self.words, seed, epoch, key)


class EpochLoader:
    """A loader whose every iteration is the epoch, and the step in it, that ``position`` tells when it starts."""

    def __init__(
        self, build: Callable[[int, int], DataLoader[Batch]], steps: int, position: Callable[[], tuple[int, int]]
    ):
        self._build, self._steps, self._position = build, steps, position

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing starts before the first batch is asked for, when the trainer knows where it stands.
        yield from self._build(*self._position())


@dataclass(eq=False)
class PairDataModule(pl.LightningDataModule):
    """Training pairs of one side and the validation pairs.

    folder: a prepared data folder; side: "target" trains on A, "reference" on B; batch: global, over all ranks; exclude:
    keys left out of training and validation; dedup: train on one pair of each group of near-duplicates.
    """

    folder: Path
    side: str
    batch: int
    seed: int
    preprocess: Preprocess
    tokenizer: Tokenizer
    train_size: int | None = None
    repeat: Repeat = field(default_factory=Repeat)
    mitigation: Mitigation = field(default_factory=Mitigation)
    augment: Augment | None = None
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    exclude: frozenset[str] = frozenset()
    dedup: bool = False

    def __post_init__(self) -> None:
        super().__init__()
        if self.side not in SETS:
            raise UserError(f"side={self.side} must be target (trains on A) or reference (trains on B)")
        self.train_set = ShardSet.open(self.folder / SETS[self.side])
        self.valid_set = ShardSet.open(self.folder / "V") if (self.folder / "V").is_dir() else None
        name, pairs = SETS[self.side], len(self.train_set)
        self._excluded, self._removed = positions_of(self.train_set, self.exclude), dict[int, tuple[int, ...]]()
        if self.exclude:
            log.info("data.exclude leaves out %d of %d pairs of %s", count(self._excluded), pairs, name)
        if self.dedup:
            manifest = self.folder / MANIFEST
            self._removed = later_duplicates(manifest, name, self.train_set, self.train_size, self._excluded)
            log.info("mitigation.dedup removes %d of %d pairs of %s", count(self._removed), pairs, name)
        self._cache: PictureCache | None = None
        self._words: Sequence[str] = ()

    def per_rank(self, world: int) -> int:
        """Pairs a rank and step; raises UserError where the global batch does not divide."""
        if self.batch % world:
            raise UserError(f"recipe.batch={self.batch} does not divide by {world} ranks; choose a multiple of {world}")
        return self.batch // world

    def plan(self, epoch: int, world: int) -> EpochPlan:
        """The plan of one epoch of training on ``world`` ranks."""
        return epoch_plan(
            self.train_set.sizes,
            self.seed,
            epoch,
            world,
            self.loader.workers,
            self.per_rank(world),
            self.train_size,
            self.repeat,
            self._excluded,
            self._removed,
        )

    def setup(self, stage: str) -> None:
        """Check the numbers and the captions, and decode everything once where it fits into memory.

        Where pictures are augmented the whole pictures are kept, and augmented anew each epoch: the cache changes nothing.

        Raises:
            UserError: ``caption_choice`` where pairs have one caption.
        """
        plan = self.plan(0, self._world)
        self._read_captions(sum(plan.sizes))
        if self._cache is not None:
            return
        count, limit = sum(plan.sizes), self.loader.cache_mb * 2**20
        height, width = self._picture_shape
        if self.augment is not None:
            self._cache = PictureCache.fill(self.train_set, count, pixels, limit)
        elif 3 * height * width * count <= limit:
            self._cache = PictureCache.fill(self.train_set, count, self.preprocess, limit)

    def _read_captions(self, count: int) -> None:
        """What the knobs need to know of the captions of the first ``count`` pairs."""
        knobs = self.mitigation
        pairs = (pair for pair in read_pairs(self.train_set, image=False) if not isinstance(pair, BadPair))
        if knobs.caption_choice and not any(len(set(other_captions(p))) > 1 for p in islice(pairs, min(count, 100))):
            raise UserError(
                f"mitigation.caption_choice=true needs pairs with several captions (the list captions of their JSON), and "
                f"those of {self.train_set.folder} have one; set it to false"
            )
        if knobs.text_random and not self._words:
            pairs = (pair for pair in read_pairs(self.train_set, image=False) if not isinstance(pair, BadPair))
            few = islice(pairs, min(count, VOCABULARY_PAIRS))
            self._words = vocabulary(text for p in few for text in (p.caption, *other_captions(p)))

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _picture_shape(self) -> Sequence[int]:
        return self.preprocess(Image.new("RGB", (8, 8))).shape[1:]

    def _loader(self, shards: ShardSet, plan: EpochPlan, offset: int, **training: Any) -> Any:
        rank = self.trainer.global_rank if self.trainer else 0
        stream = PairStream(shards, plan, rank, offset, self.preprocess, self.tokenizer, **training)
        workers = self.loader.workers
        return DataLoader(
            stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=self.loader.prefetch if workers else None,
            pin_memory=self.loader.pin_memory,
        )

    def train_dataloader(self) -> EpochLoader:
        """One epoch an iteration, going on in mid-epoch where the trainer does."""
        world = self._world

        def build(epoch: int, offset: int) -> DataLoader[Batch]:
            return self._loader(
                self.train_set,
                self.plan(epoch, world),
                offset,
                knobs=self.mitigation,
                words=self._words,
                augment=self.augment,
                cache=self._cache,
            )

        def position() -> tuple[int, int]:
            if self.trainer is None:
                return 0, 0
            return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

        return EpochLoader(build, self.plan(0, world).steps, position)

    def val_dataloader(self) -> Any:
        """V in a fixed order, untouched by any knob, in batches of at most the training batch; [] where there is no V."""
        if self.valid_set is None:
            return []
        excluded = positions_of(self.valid_set, self.exclude)
        pairs = len(self.valid_set) - count(excluded)
        if pairs < self._world:
            return []
        batch = min(self.per_rank(self._world), pairs // self._world)
        plan = epoch_plan(self.valid_set.sizes, 0, 0, self._world, self.loader.workers, batch, excluded=excluded)
        return self._loader(self.valid_set, plan, 0)
