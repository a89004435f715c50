"""Weight averaging: an exponential moving average of the weights, updated after every step.

average ← decay · average + (1 − decay) · weights, starting from the weights after the first step (Polyak and Juditsky,
SIAM J. Control Optim. 1992). Training continues from the weights themselves. Validation, the saved epochs (RUN@EPOCH) and
the exported model use the average. ``last.ckpt`` contains both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averaging(WeightAveraging):
    """Lightning's weight averaging, exponential with ``decay``. Buffers, for example batch statistics, are copied.

    (Averaging them would ruin the text tower's attention mask, whose entries are minus infinity.)
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False)
        self._average = get_ema_multi_avg_fn(decay)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """Update the average. torch's own update reads a counter on the GPU, so the host would wait."""
        assert self._average_model is not None
        average = self._average_model.module
        with torch.no_grad():
            if self._latest_update_step:
                self._average([*average.parameters()], [*module.parameters()], self._average_model.n_averaged)
            else:
                torch._foreach_copy_([*average.parameters()], [*module.parameters()])
            for buffer, latest in zip(average.buffers(), module.buffers(), strict=True):
                buffer.copy_(latest)
        self._latest_update_step = trainer.global_step


@contextmanager
def averaged(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Within the block ``module`` has the averaged weights; if the trainer has no averaging, nothing changes."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, Averaging)]  # type: ignore[attr-defined]  # Lightning sets it dynamically
    for average in averages:
        average._swap_models(module)
    try:
        yield
    finally:
        for average in averages:
            average._swap_models(module)
