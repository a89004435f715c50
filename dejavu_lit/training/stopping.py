"""Callbacks that end a training early: the loss or accuracy on V stops improving, or the weights are no longer finite."""

import math
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping

from dejavu_lit.training.checkpoints import saved_step
from dejavu_lit.utils.errors import UserError

DEFAULT_PATIENCE = 3  # epochs without improvement, if mitigation.early_patience is not given


class EarlyStop(EarlyStopping):
    """Lightning's early stopping, which also stays stopped when a run is resumed.

    Its state is in ``last.ckpt`` under the name of this class, so renaming it would lose the state of unfinished runs.
    """

    def __init__(self, quantity: str, patience: int | None) -> None:
        """``quantity``: loss (lower is better) or accuracy (higher is better) on V; ``patience``: in epochs."""
        super().__init__(
            f"val_{quantity}",
            mode="min" if quantity == "loss" else "max",
            patience=patience or DEFAULT_PATIENCE,
            check_on_train_epoch_end=False,  # right after validation: the end of the epoch is after last.ckpt is saved
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raise UserError for data without a validation set, before anything is computed."""
        super().setup(trainer, pl_module, stage)
        pairs = cast(Any, trainer).datamodule
        if pairs.val_dataloader() == []:
            raise UserError(
                f"mitigation.early_stopping={self.monitor.removeprefix('val_')} needs a validation set, and {pairs.data.folder} "
                "has none that is large enough; prepare data with data.sizes.V above 0, or use mitigation.stop_epoch"
            )

    @property
    def stopped(self) -> dict[str, Any] | None:
        """What ended the training, and after which epoch (counted from 1); None if this callback did not end it."""
        if self.stopping_reason_message is None:
            return None
        best = float(self.best_score)
        return {
            "by": "early_stopping",
            "epoch": self.stopped_epoch + 1,
            "metric": self.monitor,
            "best": best if math.isfinite(best) else None,
            "epochs_without_better": self.wait_count,
        }

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End at once if the run was killed after it was stopped and before it was finished."""
        if self.stopped:
            trainer.should_stop = True


class NonFiniteLossStop(Callback):
    """Ends a training whose weights contain NaN or infinity, before they are saved; ``last`` is the last good checkpoint.

    A non-finite loss makes the weights non-finite in the same step. The weights are the same on all ranks, so all ranks end
    together. (In 16-mixed precision the gradient scaler skips such steps, and nothing is lost.)
    """

    def __init__(self, last: Path) -> None:
        self.last = last

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step % cast(Any, trainer).log_every_n_steps == 0:
            self._check(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._check(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer, module)

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        sums = torch.stack([weights.detach().float().sum() for weights in module.parameters()])
        if not bool(sums.isfinite().all()):
            step = trainer.global_step
            last_good = (
                f"the last good checkpoint is {self.last}, of step {saved_step(self.last)}"
                if self.last.is_file()
                else "no checkpoint was saved before"
            )
            raise UserError(
                f"the loss is NaN or infinite at step {step} ({last_good}); train with a lower recipe.lr, a longer "
                "recipe.warmup_steps or recipe.gradient_clip=1, into another out="
            )
