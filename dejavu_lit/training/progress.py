"""Progress of a training where no progress bar can be shown: one log line per tenth of the epochs."""

import logging
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

log = logging.getLogger(__name__)


class Narrator(Callback):
    """A line an epoch where no progress bar can be shown."""

    def __init__(self, speak: bool) -> None:
        self.speak = speak
        self.start = time.perf_counter()
        self.first: int | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remember where this call began, for the time left."""
        if self.first is None:
            self.first, self.start = trainer.current_epoch, time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Say how far it is: every tenth of the epochs, and the last."""
        done, total = trainer.current_epoch + 1, int(trainer.max_epochs or 0)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}  # all ranks: it may reduce
        if self.speak and trainer.is_global_zero and (done % max(1, total // 10) == 0 or done == total):
            left = (time.perf_counter() - self.start) / (done - (self.first or 0)) * (total - done)
            shown = ", ".join(f"{n} {metrics[n]:.3g}" for n in ("loss", "val_loss") if n in metrics)
            rate = f", {metrics['pairs/s']:.0f} pairs/s" if "pairs/s" in metrics else ""
            log.info("epoch %d/%d: %s%s, %.0f s left", done, total, shown, rate, left)
