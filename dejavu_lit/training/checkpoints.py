"""Checkpoints of a run: written atomically on any file system, verified when read, saved by step and by epoch."""

import os
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dejavu_lit.training.ema import averaged
from dejavu_lit.training.preemption import within_epoch
from dejavu_lit.training.settings import TrainerSettings
from dejavu_lit.utils.errors import explained
from dejavu_lit.utils.io import atomic
from dejavu_lit.utils.run_directory import RunDirectory

# Entries without which Lightning cannot resume.
RESUMED = {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "loops": dict}


class CheckpointSaver(Callback):
    """Saves ``last.ckpt`` after every epoch and every ``checkpoint_steps``, and as ``epoch=NNNN.ckpt`` the weights to keep."""

    def __init__(self, run: RunDirectory, settings: TrainerSettings) -> None:
        self.run, self.settings = run, settings

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        if within_epoch(trainer) and step % self.settings.checkpoint_steps == 0:
            trainer.save_checkpoint(self.run.last_checkpoint)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the state to resume from and, at some epochs, the weights; NNNN counts the finished epochs."""
        done = trainer.current_epoch + 1
        if self.settings.keeps(done):
            with averaged(trainer, module):
                trainer.save_checkpoint(self.run.checkpoint(done), weights_only=True)
        trainer.save_checkpoint(self.run.last_checkpoint)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a file beside it, then renames that file, and verifies it on reading.

    Lightning's own is copied from the folder for temporary files if that is another file system, as on the nodes of clusters,
    and a job killed during the copy leaves a truncated file.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        with atomic(os.fspath(path)) as part:
            torch.save(checkpoint, part)

    def load_checkpoint(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> dict[str, Any]:
        with _reading(Path(path)):
            with zipfile.ZipFile(path) as file:
                if (member := file.testzip()) is not None:  # torch does not verify the checksums
                    raise ValueError(f"the checksum of {member} does not match")
            checkpoint = super().load_checkpoint(Path(path), *args, **kwargs)
            if missing := [name for name, kind in RESUMED.items() if not isinstance(checkpoint.get(name), kind)]:
                raise ValueError(f"it has no usable {missing[0]}")
            return checkpoint


def saved_step(path: Path) -> int:
    """The step at which a checkpoint was saved; raises UserError naming the file if it is damaged."""
    with _reading(path):
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """A ``trainer.fit`` that resumes from ``path``: if its contents do not fit, raises UserError naming the file."""
    try:
        yield
    except Exception as error:
        if not any("checkpoint_connector" in frame.filename for frame in extract_tb(error.__traceback__)):
            raise  # not from where Lightning restores what it has read
        with _reading(path):
            raise


def _reading(path: Path) -> AbstractContextManager[None]:
    """A block in which any error without a remedy of its own means that the checkpoint is damaged."""
    run = path.parent.parent
    epochs = RunDirectory(run).saved_epochs()
    saved_weights = f" (the weights of epoch {epochs[-1]} can be evaluated as {run}@{epochs[-1]})" if epochs else ""
    remedy = f"restore it from a copy, or remove it to start over{saved_weights}"
    return explained(f"the checkpoint {path} is damaged", remedy)
