"""The LightningDataModule: batches of A or B in the order of the epoch plan, and of V for validation.

An ``EpochLoader`` keeps torch's worker processes for the whole training and replaces those that died or stalled.
"""

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
from dejavu_lit.data.halves import source_sets
from dejavu_lit.data.key_lists import count_pairs, later_duplicates, positions_of
from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.prepared import TRAINED_ON
from dejavu_lit.data.shards import Pair, ShardSet, caption_candidates, read_pairs
from dejavu_lit.data.stream import (
    Augment,
    Batch,
    ImageCache,
    PairStream,
    Preprocess,
    TokenCache,
    Tokenizer,
    rgb_pixels,
)
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError

log = logging.getLogger(__name__)

VOCABULARY_PAIRS = 100_000  # whose captions text_random draws its words from; shards are in hash order: it is a sample
POLL_S = 5  # seconds between two checks that the worker processes are alive
TIMED_OUT = "DataLoader timed out"  # how torch's message starts


@dataclass(frozen=True)
class LoaderSettings:
    """How pairs are read. The order of the pairs depends on ``workers``; nothing else here changes what is trained."""

    workers: int = 0
    """Loader processes per rank; 0 reads in the training process."""
    cache_mb: int = 1024
    """Decoded images and tokens stay in memory if the training set fits into this many MiB."""
    prefetch: int = 4
    """Batches that each worker prepares ahead."""
    pin_memory: bool = False
    """Put batches in memory that the GPU reads directly."""
    bad_share: float = 0.01
    """Training stops if more than this share of an epoch's pairs cannot be read."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.cache_mb < 0 or self.prefetch < 1 or not 0 <= self.bad_share <= 1:
            raise UserError(
                f"trainer.loader: workers={self.workers} and cache_mb={self.cache_mb} must be at least 0, "
                f"prefetch={self.prefetch} at least 1, bad_share={self.bad_share} between 0 and 1"
            )


@dataclass(eq=False)
class PairDataModule(pl.LightningDataModule):
    """The training pairs of one side and the validation pairs."""

    folder: Path
    """A prepared data folder."""
    side: str
    """Which model is trained: target (on A) or reference (on B)."""
    batch: int
    """Pairs per step, over all ranks."""
    seed: int
    """Of the order of the pairs and of all draws."""
    preprocess: Preprocess
    """From an image to the model's input, without randomness."""
    tokenizer: Tokenizer
    """From captions to tokens."""
    shards: ShardSet | None = None
    """The training set of a random half; None: the prepared one."""
    train_size: int | None = None
    """Train on the first pairs only, this many; None: all."""
    repeat: Repeat = field(default_factory=Repeat)
    """Planted memory: pairs that come several times per epoch."""
    mitigation: Mitigation = field(default_factory=Mitigation)
    """What is done to captions and images."""
    augment: Augment | None = None
    """Replaces ``preprocess`` in training, with random draws."""
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    """How pairs are read."""
    exclude: frozenset[str] = frozenset()
    """Keys excluded from training and validation."""
    dedup: bool = False
    """Train on one pair of each group of near-duplicates."""
    batch_timeout: float = 0
    """Seconds that the worker processes may take for a batch; 0: no limit."""

    def __post_init__(self) -> None:
        super().__init__()
        if self.side not in TRAINED_ON:
            raise UserError(f"side={self.side} must be target (trains on A) or reference (trains on B)")
        name = TRAINED_ON[self.side]
        self.train_set = self.shards or ShardSet.open(self.folder / name)
        self.valid_set = ShardSet.open(self.folder / "V") if (self.folder / "V").is_dir() else None
        self._excluded, self._removed = positions_of(self.train_set, self.exclude), dict[int, tuple[int, ...]]()
        pairs = len(self.train_set)
        if self.exclude:
            excluded, listed = count_pairs(self._excluded), len(self.exclude)
            log.info("data.exclude removes %d of %d pairs of %s; it lists %d keys", excluded, pairs, name, listed)
        if self.dedup:
            manifest = self.folder / MANIFEST
            sources = source_sets(self.train_set, name)
            self._removed = later_duplicates(manifest, sources, self.train_set, self.train_size, self._excluded)
            log.info("mitigation.dedup removes %d of %d pairs of %s", count_pairs(self._removed), pairs, name)
        self._loaders: list[EpochLoader] = []
        self._cache: ImageCache | None = None
        self._tokenizer = self.tokenizer
        self._vocabulary: Sequence[str] = ()

    def per_rank(self, world: int) -> int:
        """Pairs per rank and step; raises UserError if the global batch is not divisible by ``world``."""
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
        """Check the sizes and the captions, and decode all images once if they fit into memory.

        With augmentation, the cache holds whole images, augmented anew each epoch: it never changes what is trained.

        Raises:
            UserError: ``caption_choice`` for pairs with one caption each.
        """
        total, limit = sum(self.plan(0, self._world).sizes), self.loader.cache_mb * 2**20
        self._check_captions(total)
        if self._cache is not None:
            return
        height, width = self._image_shape
        if self.augment is not None:
            self._cache = ImageCache.fill(self.train_set, total, rgb_pixels, limit)
        elif 3 * height * width * total <= limit:
            self._cache = ImageCache.fill(self.train_set, total, self.preprocess, limit)
        knobs = self.mitigation
        if self._cache and not (knobs.caption_choice or knobs.text_mask or knobs.text_random or knobs.text_shuffle):
            self._tokenizer = TokenCache(self.tokenizer)

    def train_dataloader(self) -> "EpochLoader":
        """One epoch per iteration; starts in mid-epoch if the trainer does."""

        def position() -> tuple[int, int]:
            if self.trainer is None:
                return 0, 0
            return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

        return self._loader(
            self.train_set,
            self.plan(0, self._world),
            position,
            knobs=self.mitigation,
            vocabulary=self._vocabulary,
            augment=self.augment,
            cache=self._cache,
        )

    def val_dataloader(self) -> "EpochLoader | list[EpochLoader]":
        """V in a fixed order, unaffected by any knob, in batches of at most the training batch; [] if there is no V."""
        valid = self.valid_set
        if valid is None:
            return []
        excluded = positions_of(valid, self.exclude)
        pairs = len(valid) - count_pairs(excluded)
        if pairs < self._world:
            return []
        batch = min(self.per_rank(self._world), pairs // self._world)
        plan = epoch_plan(valid.sizes, 0, 0, self._world, self.loader.workers, batch, excluded=excluded)
        return self._loader(valid, plan, lambda: (0, 0))

    def teardown(self, stage: str) -> None:
        """End the loaders' worker processes."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def _check_captions(self, total: int) -> None:
        """Check that ``caption_choice`` has a choice, and collect the words of ``text_random``, in the first pairs."""
        choice = self.mitigation.caption_choice
        if choice and not any(len(set(caption_candidates(pair))) > 1 for pair in self._pairs(min(total, 100))):
            raise UserError(
                "mitigation.caption_choice=true needs pairs with several captions (the list captions of their JSON), but "
                f"those of {self.train_set.folder} have one; set it to false"
            )
        if self.mitigation.text_random and not self._vocabulary:
            pairs = self._pairs(min(total, VOCABULARY_PAIRS))
            self._vocabulary = vocabulary(
                c for pair in pairs for c in (pair.caption, *(caption_candidates(pair) if choice else ()))
            )

    def _pairs(self, total: int) -> Iterator[Pair]:
        """Those of the first ``total`` pairs that are readable and not excluded, without their images."""
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
    ) -> "EpochLoader":
        rank = self.trainer.global_rank if self.trainer else 0
        stream = PairStream(shards, plan, rank, self.preprocess, self._tokenizer, **training)
        loader = EpochLoader(stream, self.loader, position, self.batch_timeout)
        self._loaders.append(loader)
        return loader


class EpochLoader:
    """A loader that asks ``position`` for the epoch, and the step in it, whenever an iteration starts.

    Its worker processes start with the first iteration and live until ``close``; iterations cannot overlap. Forking again
    each epoch would be slow in a large process, and could hang if one of its threads is just ending.
    """

    def __init__(
        self,
        stream: PairStream,
        settings: LoaderSettings,
        position: Callable[[], tuple[int, int]],
        batch_timeout: float = 0,
    ) -> None:
        """``batch_timeout``: seconds that the worker processes may take for a batch; 0: no limit."""
        self._stream, self._settings, self._position, self._batch_timeout = stream, settings, position, batch_timeout
        if settings.workers:
            stream.position.share_memory_()
        self._loader: DataLoader[Batch] | None = None
        self._batches: Iterator[Batch] = iter(())
        self._remaining = 0  # batches that the last iteration has not yielded
        self._processes: list[BaseProcess] = []

    def __len__(self) -> int:
        return self._stream.plan.steps

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing starts before the first batch is requested, when the trainer knows its position.
        yield from self.batches(*self._position())

    def batches(self, epoch: int, step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``step`` on."""
        self._stream.start_at(epoch, step)
        self._start_iteration()
        self._remaining = len(self) - step
        while (batch := self._next()) is not None:
            self._remaining -= 1
            yield batch

    def close(self) -> None:
        """End the processes; another iteration starts new ones."""
        self._batches, self._loader, self._remaining = iter(()), None, 0  # torch then asks the processes to end
        _kill(self._processes)
        self._processes = []

    def _start_iteration(self) -> None:
        """Start an iteration in the worker processes; replace those that are still in another one or do not respond."""
        if self._loader is not None and not self._remaining:
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
            timeout=POLL_S if workers else 0,
            pin_memory=self._settings.pin_memory,
            # SLURM sends TERM to every process of a job; a worker that obeyed would end the run before it is preempted.
            worker_init_fn=_ignore_term if "SLURM_JOB_ID" in os.environ else None,
            generator=torch.Generator(),  # otherwise each new loader would draw from the training's generator
        )

    def _next(self) -> Batch | None:
        started = time.monotonic()
        while True:
            try:
                return next(self._batches, None)
            except RuntimeError as error:  # every POLL_S seconds; this is also how torch notices a killed process
                if not str(error).startswith(TIMED_OUT):
                    raise
                if 0 < self._batch_timeout < time.monotonic() - started:
                    _kill(self._processes)
                    raise
            except (ConnectionError, EOFError) as error:  # killed while it was sending a batch
                raise RuntimeError("a process of the DataLoader is gone") from error


def loader_failure(error: RuntimeError) -> str:
    """What happened to a worker process, judged by torch's error."""
    if str(error).startswith(TIMED_OUT):
        return (
            "the loader's processes gave no batch for trainer.timeout_min: reading the data has stalled; check that the "
            "data can be read, or raise trainer.timeout_min"
        )
    return (
        "a process of the loader was killed from outside, perhaps for lack of memory; free memory, or lower "
        "trainer.loader.prefetch or trainer.loader.cache_mb"
    )


def _ignore_term(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill(processes: Sequence[BaseProcess]) -> None:
    """Kill processes that torch's TERM may not end: stalled, or ignoring TERM, they would block the exit forever."""
    for _ in range(2):
        with suppress(RuntimeError):  # torch reports a killed process once per loader, from whatever code is running
            for process in processes:
                process.kill()
            for process in processes:
                process.join(POLL_S)
