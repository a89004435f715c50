"""A log line about the progress of a training for every tenth of its epochs, for terminals without a progress bar."""

import logging
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

log = logging.getLogger(__name__)


class EpochLogger(Callback):
    """Logs the epoch, the losses, the throughput and the time left; logs nothing unless ``enabled``."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.start = time.perf_counter()
        self.first_epoch: int | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remember where this call started, to estimate the time left."""
        if self.first_epoch is None:
            self.first_epoch, self.start = trainer.current_epoch, time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Log a line at every tenth of the epochs, and at the last."""
        done, total = trainer.current_epoch + 1, int(trainer.max_epochs or 0)
        metrics = {
            name: float(value) for name, value in trainer.callback_metrics.items()
        }  # on all ranks: it may reduce
        if self.enabled and trainer.is_global_zero and (done % max(1, total // 10) == 0 or done == total):
            seconds_left = (time.perf_counter() - self.start) / (done - (self.first_epoch or 0)) * (total - done)
            losses = ", ".join(f"{name} {metrics[name]:.3g}" for name in ("loss", "val_loss") if name in metrics)
            rate = f", {metrics['pairs/s']:.0f} pairs/s" if "pairs/s" in metrics else ""
            log.info("epoch %d/%d: %s%s, %.0f s left", done, total, losses, rate, seconds_left)
