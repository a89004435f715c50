"""What ends a training before its time: no better loss or accuracy on V any more, or weights that are no numbers."""

import math
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping

from dejavu_lit.training.checkpoints import saved_step
from dejavu_lit.utils.errors import UserError

PATIENCE = 3  # epochs


class EarlyStop(EarlyStopping):
    """Lightning's early stopping, which also stays stopped when a run is resumed."""

    def __init__(self, quantity: str, patience: int | None) -> None:
        """``quantity``: loss (the lower the better) or accuracy (the higher) on V; patience in epochs."""
        super().__init__(
            f"val_{quantity}",
            mode="min" if quantity == "loss" else "max",
            patience=patience or PATIENCE,
            check_on_train_epoch_end=False,  # right after V: at the end of the epoch it would come after last.ckpt is saved
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse data without a validation set, before anything is computed."""
        super().setup(trainer, pl_module, stage)
        pairs = cast(Any, trainer).datamodule
        if pairs.val_dataloader() == []:
            raise UserError(
                f"mitigation.early_stopping={self.monitor.removeprefix('val_')} needs a validation set, and {pairs.folder} has "
                "none that is large enough; prepare data with data.sizes.V above 0, or use mitigation.stop_epoch"
            )

    @property
    def stopped(self) -> dict[str, Any] | None:
        """What ended the training, after which epoch (counted from 1); None where it was not ended."""
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
        """End at once where the run had been stopped, but not finished, when it was killed."""
        if self.stopped:
            trainer.should_stop = True


class Finite(Callback):
    """Ends a training whose weights hold NaN or infinity, before they are saved anywhere; ``last`` is the last good ones' file.

    A loss that is no number makes the weights so with the same step, and the weights are the same on all ranks, so all end
    together. (In 16-mixed precision the scaler leaves such steps out, and nothing is lost.)
    """

    def __init__(self, last: Path) -> None:
        self.last = last

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """Look as often as something is logged."""
        if trainer.global_step % cast(Any, trainer).log_every_n_steps == 0:
            self._check(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Look before the epoch's weights are kept."""
        self._check(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look before anything is saved."""
        self._check(trainer, module)

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        sums = torch.stack([weights.detach().float().sum() for weights in module.parameters()])
        if not bool(sums.isfinite().all()):
            kept = f"{self.last}, of step {saved_step(self.last)}" if self.last.is_file() else "none: it came too early"
            raise UserError(
                f"the loss is no number any more (NaN or infinity) at step {trainer.global_step}; the last good checkpoint is "
                f"{kept}; train with a lower recipe.lr, a longer recipe.warmup_steps or recipe.gradient_clip=1, into another out="
            )


def why_stopped(trainer: pl.Trainer) -> dict[str, Any] | None:
    """What ended the training before its last epoch: the ``stopped`` of the callback that did; None where none did."""
    return next((why for callback in cast(Any, trainer).callbacks if (why := getattr(callback, "stopped", None))), None)
