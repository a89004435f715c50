"""Weight averaging: an exponential moving average of the weights, updated after every step.

average ← decay · average + (1 − decay) · weights, starting from the weights after the first step (Polyak and Juditsky,
SIAM J. Control Optim. 1992). Training goes on from the weights themselves; V, the checkpoints that are kept (RUN@EPOCH)
and the exported model get the average. ``last.ckpt`` holds both.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averaging(WeightAveraging):
    """Lightning's weight averaging, exponential with ``decay``; buffers, as of batch normalisation, are the latest ones.

    (Averaging them would ruin the text tower's attention mask, whose entries are minus infinity.)
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def swap(self, module: pl.LightningModule) -> None:
        """Exchange the weights and their average."""
        self._swap_models(module)


@contextmanager
def averaged(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Within the block ``module`` has the averaged weights; nothing changes where the trainer averages none."""
    averages = [callback for callback in trainer.callbacks if isinstance(callback, Averaging)]  # type: ignore[attr-defined]  # Lightning sets it from afar
    for average in averages:
        average.swap(module)
    try:
        yield
    finally:
        for average in averages:
            average.swap(module)
