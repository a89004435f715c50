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

from dejavu_lit.data.captions import mask_words
from dejavu_lit.data.epoch import EpochPlan, Repeat, epoch_plan
from dejavu_lit.data.pictures import opened
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.data.spec import SETS
from dejavu_lit.errors import UserError
from dejavu_lit.progress import progress

log = logging.getLogger(__name__)

Preprocess = Callable[[Image.Image], np.ndarray]
Tokenizer = Callable[[list[str]], torch.Tensor]
Batch = dict[str, Any]


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
    same stretch, so that counts never change).
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: EpochPlan,
        rank: int,
        offset: int,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        text_mask: float = 0.0,
        cache: "PictureCache | None" = None,
    ) -> None:
        self.shards, self.plan, self.rank, self.offset = shards, plan, rank, offset
        self.preprocess, self.tokenizer, self.text_mask, self.cache = preprocess, tokenizer, text_mask, cache

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
            pair = index.read(position)
            picture, caption = decode(pair.image, pair.key, self.preprocess), pair.caption
        else:
            picture, caption = self.cache.get(int(self.shards.starts[shard]) + position)
        if not caption:
            raise BadPair(f"{index.keys[position]} in {index.path.name} has an empty caption")
        return picture, mask_words(caption, self.text_mask, self.plan.seed, self.plan.epoch, index.keys[position])


def decode(image: bytes, key: str, preprocess: Preprocess) -> np.ndarray:
    """The picture as uint8 [3, h, w]; raises BadPair where it does not decode."""
    try:
        with opened(image) as picture:
            return preprocess(picture)
    except BadPair as bad:
        raise BadPair(f"{key}: {bad}") from None


class PictureCache:
    """The first ``limit`` pairs of a set, decoded once: pictures uint8 [n, 3, h, w] and captions in memory."""

    def __init__(self, shards: ShardSet, limit: int, preprocess: Preprocess) -> None:
        self.pictures: list[np.ndarray | BadPair] = []
        self.captions: list[str] = []
        places = ((s, p) for s in range(len(shards.names)) for p in range(shards.sizes[s]))
        for shard, position in progress(islice(places, limit), "decoding", limit, "picture"):
            try:
                pair = shards.index(shard).read(position)
                self.pictures.append(decode(pair.image, pair.key, preprocess))
                self.captions.append(pair.caption)
            except BadPair as bad:
                self.pictures.append(bad)
                self.captions.append("")

    def get(self, position: int) -> tuple[np.ndarray, str]:
        """Picture and caption; raises the BadPair that was met while decoding."""
        picture = self.pictures[position]
        if isinstance(picture, BadPair):
            raise picture
        return picture, self.captions[position]


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

    folder: a prepared data folder; side: "target" trains on A, "reference" on B; batch: global, over all ranks.
    """

    folder: Path
    side: str
    batch: int
    seed: int
    preprocess: Preprocess
    tokenizer: Tokenizer
    train_size: int | None = None
    repeat: Repeat = field(default_factory=Repeat)
    text_mask: float = 0.0
    loader: LoaderSettings = field(default_factory=LoaderSettings)

    def __post_init__(self) -> None:
        super().__init__()
        if self.side not in SETS:
            raise UserError(f"side={self.side} must be target (trains on A) or reference (trains on B)")
        self.train_set = ShardSet.open(self.folder / SETS[self.side])
        self.valid_set = ShardSet.open(self.folder / "V") if (self.folder / "V").is_dir() else None
        self._cache: PictureCache | None = None

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
        )

    def setup(self, stage: str) -> None:
        """Check the numbers, and decode everything once where it fits into memory."""
        plan = self.plan(0, self._world)
        height, width = self._picture_shape
        if self._cache is None and 3 * height * width * sum(plan.sizes) <= self.loader.cache_mb * 2**20:
            self._cache = PictureCache(self.train_set, sum(plan.sizes), self.preprocess)

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _picture_shape(self) -> Sequence[int]:
        return self.preprocess(Image.new("RGB", (8, 8))).shape[1:]

    def _loader(self, shards: ShardSet, plan: EpochPlan, offset: int, mask: float, cache: PictureCache | None) -> Any:
        rank = self.trainer.global_rank if self.trainer else 0
        stream = PairStream(shards, plan, rank, offset, self.preprocess, self.tokenizer, mask, cache)
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
            return self._loader(self.train_set, self.plan(epoch, world), offset, self.text_mask, self._cache)

        def position() -> tuple[int, int]:
            if self.trainer is None:
                return 0, 0
            return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

        return EpochLoader(build, self.plan(0, world).steps, position)

    def val_dataloader(self) -> Any:
        """V in a fixed order, unmasked, in batches of at most the training batch; [] where there is no V."""
        if self.valid_set is None or len(self.valid_set) < self._world:
            return []
        batch = min(self.per_rank(self._world), len(self.valid_set) // self._world)
        plan = epoch_plan(self.valid_set.sizes, 0, 0, self._world, self.loader.workers, batch)
        return self._loader(self.valid_set, plan, 0, 0.0, None)
