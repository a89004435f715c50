"""Progress of a training: the metrics of its steps, and log lines for terminals without a progress bar."""

import logging
import time
from collections.abc import Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from dejavu_lit.training.clip_module import ClipModule
from dejavu_lit.utils.progress import SECONDS_BETWEEN_LINES

log = logging.getLogger(__name__)


def write_metrics(trainer: pl.Trainer, metrics: Mapping[str, float]) -> None:
    """Write metrics of the last step to all loggers at once.

    Lightning writes what ``self.log`` is given after the hooks in which checkpoints are saved. If a run was killed in
    between, the resumed run would never write it.
    """
    for logger in trainer.loggers:
        logger.log_metrics({**metrics, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
        logger.save()


class StepMetrics(Callback):
    """Writes the metrics of steps and the replaced pairs of epochs; it must come before the callbacks that save checkpoints."""

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the throughput clock, after validation or where a run resumes."""
        self._steps, self._clock = 0, time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The same: Lightning does not call the former for an epoch that is resumed in its middle."""
        self.on_train_epoch_start(trainer, module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._steps += 1
        module = cast(ClipModule, module)
        if not module.is_logged(trainer.global_step):
            return
        now, schedule = time.perf_counter(), cast(Any, trainer.lr_scheduler_configs[0].scheduler)
        pairs = self._steps * len(batch["index"]) / (now - self._clock)
        module.log("pairs/s", round(pairs * trainer.world_size), prog_bar=True, logger=False)
        metrics = {
            "loss": trainer.callback_metrics["loss"],
            "pairs/s": round(pairs * trainer.world_size),
            "pairs/s/rank": round(pairs, 1),
            "logit_scale": module.logit_scale.exp(),
            # The optimizer already has that of the next step.
            "lr": schedule.base_lrs[0] * schedule.lr_lambdas[0](trainer.global_step - 1),
        }
        write_metrics(trainer, {name: torch.as_tensor(value).float().item() for name, value in metrics.items()})
        self._steps, self._clock = 0, now

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write the number of replaced pairs; raises UserError on all ranks if they are more than allowed."""
        write_metrics(trainer, {"replaced": float(cast(ClipModule, module).replaced())})


class EpochLogger(Callback):
    """Logs the epochs with losses, throughput and time left, and steps of long epochs; nothing unless ``enabled``."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Remember where this call started, perhaps amid an epoch, to estimate the time left."""
        self.first_step, self.start = trainer.global_step, time.perf_counter()
        self.last_line = self.start

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.perf_counter() - self.last_line >= SECONDS_BETWEEN_LINES:
            epoch, steps = trainer.current_epoch + 1, int(trainer.num_training_batches)
            self._log(trainer, f"epoch {epoch}/{trainer.max_epochs}: step {batch_idx + 1} of {steps}")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        done, total = trainer.current_epoch + 1, int(trainer.max_epochs or 0)
        # On all ranks, because it may reduce.
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if done % max(1, total // 10) == 0 or done == total:
            losses = ", ".join(f"{name} {metrics[name]:.3g}" for name in ("loss", "val_loss") if name in metrics)
            rate = f", {metrics['pairs/s']:.0f} pairs/s" if "pairs/s" in metrics else ""
            self._log(trainer, f"epoch {done}/{total}: {losses}{rate}")

    def _log(self, trainer: pl.Trainer, progress: str) -> None:
        self.last_line = time.perf_counter()
        if self.enabled and trainer.is_global_zero:
            steps = trainer.num_training_batches * int(trainer.max_epochs or 0)
            seconds_per_step = (self.last_line - self.start) / max(1, trainer.global_step - self.first_step)
            log.info("%s, %.0f s left", progress, seconds_per_step * max(0, steps - trainer.global_step))
