"""Checkpoints that are whole or absent, on whatever file system the run lies."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.io import TorchCheckpointIO

from dejavu_lit.training.ema import averaged
from dejavu_lit.training.preemption import within_epoch
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import atomic


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's way to write a checkpoint, through a file beside it.

    Lightning's own goes through the folder of temporary files. Where that is another file system than the run's, as on
    nodes of clusters, the checkpoint is copied to its name, and a job that is killed meanwhile leaves a half-written one.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path`` atomically."""
        with atomic(os.fspath(path)) as part:
            torch.save(checkpoint, part)

    def load_checkpoint(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint; raises UserError naming it where it is damaged."""
        try:
            with zipfile.ZipFile(path) as file:
                if (bad := file.testzip()) is not None:  # torch itself does not look at the check sums
                    raise ValueError(f"{bad} does not agree with its check sum")
            return super().load_checkpoint(Path(path), *args, **kwargs)
        except Exception as error:
            raise _refusal(Path(path), error) from None


def saved_step(path: Path) -> int:
    """The step that a checkpoint was saved at; raises UserError naming the file where it is damaged."""
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    except Exception as error:  # whatever torch makes of a file that is none of its own
        raise _refusal(path, error) from None


def _refusal(path: Path, error: Exception) -> Exception:
    """The error itself where the system or the memory failed, which says nothing of the file; else that it is damaged."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return error
    kept = sorted(int(found.stem.partition("=")[2]) for found in path.parent.glob("epoch=*.ckpt"))
    rest = (
        f"; the weights of epoch {kept[-1]} beside it can be evaluated as {path.parent.parent}@{kept[-1]}"
        if kept
        else ""
    )
    return UserError(
        f"the checkpoint {path} is damaged ({first_line(error).rstrip('.')}); restore it from a copy, or remove it to train "
        f"anew from the beginning{rest}"
    )


class Checkpoints(Callback):
    """``last.ckpt`` after every epoch and every so many steps, and weights alone as ``epoch=NNNN.ckpt`` to keep."""

    def __init__(self, folder: Path, every_steps: int, every_epochs: int, at: Sequence[int] = ()) -> None:
        self.folder, self.every_steps, self.every_epochs, self.at = folder, every_steps, every_epochs, at

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """Save within the epoch."""
        step = trainer.global_step
        if within_epoch(trainer) and step % self.every_steps == 0:
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the state to resume from and, now and then, weights to keep; EPOCH counts the epochs done."""
        done = trainer.current_epoch + 1
        if done % self.every_epochs == 0 or done in self.at:
            with averaged(trainer, module):
                trainer.save_checkpoint(self.folder / f"epoch={done:04d}.ckpt", weights_only=True)
        trainer.save_checkpoint(self.folder / "last.ckpt")
