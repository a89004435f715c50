"""The loader of a rank: processes that prepare its batches ahead, and live for the whole training."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

import torch
from torch.utils.data import DataLoader

from dejavu_lit.data.stream import Batch, PairStream
from dejavu_lit.utils.errors import UserError

LOOK = 5  # seconds between two looks whether the loader's processes live
TIMED_OUT = "DataLoader timed out"  # how torch says it


@dataclass(frozen=True)
class LoaderSettings:
    """How pairs are read. The order of the pairs depends on ``workers``, nothing else here changes what is trained."""

    workers: int = 0  # loader processes a rank; 0 reads in the training process
    cache_mb: int = 1024  # decoded pictures and tokens stay in memory where the training set fits into this many MiB
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
