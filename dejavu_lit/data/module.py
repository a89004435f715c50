"""The LightningDataModule: batches of A or B as the epoch plan orders them, and V for validation."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from dejavu_lit.data.captions import vocabulary
from dejavu_lit.data.epoch import EpochPlan, Repeat, epoch_plan
from dejavu_lit.data.exclude import count, later_duplicates, positions_of
from dejavu_lit.data.prepared import MANIFEST, TRAINED_ON
from dejavu_lit.data.shards import Pair, ShardSet, read_pairs
from dejavu_lit.data.stream import (
    Augment,
    Batch,
    ImageCache,
    PairStream,
    Preprocess,
    TokenCache,
    Tokenizer,
    other_captions,
    pixels,
)
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError

log = logging.getLogger(__name__)

VOCABULARY_PAIRS = 100_000  # captions whose words text_random draws from: shards are in hash order, so it is a sample


LOOK = 5  # seconds between two looks whether the loader's processes live


TIMED_OUT = "DataLoader timed out"  # how torch says it


@dataclass(frozen=True)
class LoaderSettings:
    """How pairs are read. The order of the pairs depends on ``workers``, nothing else here changes what is trained."""

    workers: int = 0  # loader processes a rank; 0 reads in the training process
    cache_mb: int = 1024  # decoded images and tokens stay in memory where the training set fits into this many MiB
    prefetch: int = 4  # batches each worker prepares ahead
    pin_memory: bool = False
    bad_share: float = 0.01  # training stops when more than this share of the pairs read cannot be used

    def __post_init__(self) -> None:
        if self.workers < 0 or self.cache_mb < 0 or self.prefetch < 1 or not 0 <= self.bad_share <= 1:
            raise UserError(
                f"trainer.loader: workers={self.workers} and cache_mb={self.cache_mb} must be at least 0, "
                f"prefetch={self.prefetch} at least 1, bad_share={self.bad_share} between 0 and 1"
            )


def loader_failure(error: RuntimeError) -> str:
    """What happened to a process of a loader, from what torch says of it."""
    if str(error).startswith(TIMED_OUT):
        return (
            "the loader's processes gave no batch for trainer.timeout_min: what they read from has stalled; see that the "
            "data can be read, or wait longer"
        )
    return (
        "a process of the loader was killed from outside, perhaps for lack of memory; make room, or lower "
        "trainer.loader.prefetch or trainer.loader.cache_mb"
    )


class EpochLoader:
    """A loader whose every iteration is the epoch, and the step in it, that ``position`` tells when it starts.

    Its processes start with the first iteration and live until ``close``, for one iteration at a time: to fork anew each
    epoch takes long in a large process, and can hang where a thread of it is just ending.
    """

    def __init__(
        self,
        stream: PairStream,
        settings: LoaderSettings,
        position: Callable[[], tuple[int, int]],
        patience: float = 0,
    ):
        """``patience``: seconds that the loader's processes may take for a batch; 0: as many as they like."""
        self._stream, self._settings, self._position, self._patience = stream, settings, position, patience
        if settings.workers:
            stream.begins.share_memory_()
        self._loader: DataLoader[Batch] | None = None
        self._batches: Iterator[Batch] = iter(())
        self._left = 0  # batches that the last iteration has not given
        self._processes: list[BaseProcess] = []

    def __len__(self) -> int:
        return self._stream.plan.steps

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing starts before the first batch is asked for, when the trainer knows where it stands.
        yield from self.batches(*self._position())

    def batches(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``step`` on."""
        self._stream.begin(epoch, step)
        self._begin()
        self._left = len(self) - step
        while (batch := self._next()) is not None:
            self._left -= 1
            yield batch

    def close(self) -> None:
        """End the processes; another iteration would start others."""
        self._batches, self._loader, self._left = iter(()), None, 0  # which torch answers by asking them to end
        _kill(self._processes)
        self._processes = []

    def _begin(self) -> None:
        """Have the processes start an iteration; other ones, where they are still about another or do not answer."""
        if self._loader is not None and not self._left:
            try:
                self._batches = iter(self._loader)
                return
            except RuntimeError as error:
                if not str(error).startswith(TIMED_OUT):
                    raise
                _kill(self._processes)
        self.close()
        before = active_children()
        self._loader = self._build()
        try:
            self._batches = iter(self._loader)
        finally:
            self._processes = [process for process in active_children() if process not in before]

    def _build(self) -> DataLoader[Batch]:
        workers = self._settings.workers
        return DataLoader(
            self._stream,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=self._settings.prefetch if workers else None,
            persistent_workers=workers > 0,
            timeout=LOOK if workers else 0,
            pin_memory=self._settings.pin_memory,
            # SLURM sends TERM to every process of a job; that of a worker would end the run before it is preempted.
            worker_init_fn=_ignore_term if "SLURM_JOB_ID" in os.environ else None,
            generator=torch.Generator(),  # or each loader that is made would draw from the training's
        )

    def _next(self) -> Batch | None:
        began = time.monotonic()
        while True:
            try:
                return next(self._batches, None)
            except RuntimeError as error:  # after every LOOK, and by this torch finds that a process was killed
                if not str(error).startswith(TIMED_OUT):
                    raise
                if 0 < self._patience < time.monotonic() - began:
                    _kill(self._processes)
                    raise
            except (ConnectionError, EOFError) as error:  # it was killed while it handed a batch over
                raise RuntimeError("a process of the DataLoader is gone") from error


def _ignore_term(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill(processes: Sequence[BaseProcess]) -> None:
    """End what torch's TERM may not: a process that has stalled, or ignores it, would be waited for at exit for ever."""
    for _ in range(2):
        with suppress(RuntimeError):  # by which torch tells, once a loader and from anywhere, that a process was killed
            for process in processes:
                process.kill()
            for process in processes:
                process.join(LOOK)


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
    patience: float = 0  # seconds that the loader's processes may take for a batch; 0: as many as they like

    def __post_init__(self) -> None:
        super().__init__()
        if self.side not in TRAINED_ON:
            raise UserError(f"side={self.side} must be target (trains on A) or reference (trains on B)")
        self.train_set = ShardSet.open(self.folder / TRAINED_ON[self.side])
        self.valid_set = ShardSet.open(self.folder / "V") if (self.folder / "V").is_dir() else None
        name, pairs = TRAINED_ON[self.side], len(self.train_set)
        self._excluded, self._removed = positions_of(self.train_set, self.exclude), dict[int, tuple[int, ...]]()
        if self.exclude:
            left_out = (count(self._excluded), pairs, name, len(self.exclude))
            log.info("data.exclude leaves out %d of %d pairs of %s; it lists %d keys", *left_out)
        if self.dedup:
            manifest = self.folder / MANIFEST
            self._removed = later_duplicates(manifest, name, self.train_set, self.train_size, self._excluded)
            log.info("mitigation.dedup removes %d of %d pairs of %s", count(self._removed), pairs, name)
        self._loaders: list[EpochLoader] = []
        self._cache: ImageCache | None = None
        self._tokenizer = self.tokenizer
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

        Where images are augmented the whole images are kept, and augmented anew each epoch: the cache changes nothing.

        Raises:
            UserError: ``caption_choice`` where pairs have one caption.
        """
        total, limit = sum(self.plan(0, self._world).sizes), self.loader.cache_mb * 2**20
        self._read_captions(total)
        if self._cache is not None:
            return
        height, width = self._image_shape
        if self.augment is not None:
            self._cache = ImageCache.fill(self.train_set, total, pixels, limit)
        elif 3 * height * width * total <= limit:
            self._cache = ImageCache.fill(self.train_set, total, self.preprocess, limit)
        knobs = self.mitigation
        if self._cache and not (knobs.caption_choice or knobs.text_mask or knobs.text_random or knobs.text_shuffle):
            self._tokenizer = TokenCache(self.tokenizer)

    def _read_captions(self, total: int) -> None:
        """What the knobs need to know of the captions of the first ``total`` pairs."""
        choice = self.mitigation.caption_choice
        if choice and not any(len(set(other_captions(pair))) > 1 for pair in self._pairs(min(total, 100))):
            raise UserError(
                f"mitigation.caption_choice=true needs pairs with several captions (the list captions of their JSON), and "
                f"those of {self.train_set.folder} have one; set it to false"
            )
        if self.mitigation.text_random and not self._words:
            some = self._pairs(min(total, VOCABULARY_PAIRS))
            self._words = vocabulary(c for p in some for c in (p.caption, *(other_captions(p) if choice else ())))

    def _pairs(self, total: int) -> Iterator[Pair]:
        """The readable and not excluded ones of the first ``total`` pairs, without their images."""
        for pair in islice(read_pairs(self.train_set, image=False), total):
            if isinstance(pair, Pair) and pair.key not in self.exclude:
                yield pair

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _image_shape(self) -> Sequence[int]:
        return self.preprocess(Image.new("RGB", (8, 8))).shape[1:]

    def _loader(
        self, shards: ShardSet, plan: EpochPlan, position: Callable[[], tuple[int, int]], **training: Any
    ) -> EpochLoader:
        rank = self.trainer.global_rank if self.trainer else 0
        stream = PairStream(shards, plan, rank, self.preprocess, self._tokenizer, **training)
        loader = EpochLoader(stream, self.loader, position, self.patience)
        self._loaders.append(loader)
        return loader

    def train_dataloader(self) -> EpochLoader:
        """One epoch an iteration, going on in mid-epoch where the trainer does."""

        def position() -> tuple[int, int]:
            if self.trainer is None:
                return 0, 0
            return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

        return self._loader(
            self.train_set,
            self.plan(0, self._world),
            position,
            knobs=self.mitigation,
            words=self._words,
            augment=self.augment,
            cache=self._cache,
        )

    def val_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """V in a fixed order, untouched by any knob, in batches of at most the training batch; [] where there is no V."""
        valid = self.valid_set
        if valid is None:
            return []
        excluded = positions_of(valid, self.exclude)
        pairs = len(valid) - count(excluded)
        if pairs < self._world:
            return []
        batch = min(self.per_rank(self._world), pairs // self._world)
        plan = epoch_plan(valid.sizes, 0, 0, self._world, self.loader.workers, batch, excluded=excluded)
        return self._loader(valid, plan, lambda: (0, 0))

    def teardown(self, stage: str) -> None:
        """End the loaders' processes."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()
