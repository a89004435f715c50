"""Early stopping: training ends when the loss or the accuracy on V no longer gets better."""

import math
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping

from dejavu_lit.errors import UserError

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


def why_stopped(trainer: pl.Trainer) -> dict[str, Any] | None:
    """What ended the training before its last epoch: the ``stopped`` of the callback that did; None where none did."""
    return next((why for callback in cast(Any, trainer).callbacks if (why := getattr(callback, "stopped", None))), None)
