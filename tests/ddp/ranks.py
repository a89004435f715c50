"""train.py, with what this rank saw and computed noted in NOTES/RANK.pt: python ranks.py NOTES same|plan OPTION…

``same`` cuts one process's batches by rank, so that the global batches are those of one process; ``plan`` changes nothing.
"""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

import dejavu_lit.training.train as training
from dejavu_lit.cli.train import main
from dejavu_lit.data.module import PairDataModule


class Notes(Callback):
    """Pairs and loss of every batch, gradients of the first step, and the weights at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        self.gradients: dict[str, torch.Tensor] = {}
        self.waits = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Count from now on how often the ranks wait for rank 0's word."""
        broadcast = torch.distributed.broadcast

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.waits += 1
            return broadcast(*args, **kwargs)

        torch.distributed.broadcast = counted

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Note the batch."""
        self.pairs.append(batch["index"])
        self.losses.append(outputs["loss"].detach())

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        """Note the first gradients, after they were averaged over the ranks."""
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Write it all."""
        notes = {
            "pairs": torch.stack(self.pairs),
            "losses": torch.stack(self.losses),
            "gradients": self.gradients,
            "waits": self.waits,
        }
        notes["weights"] = {name: value.clone() for name, value in module.state_dict().items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(notes, self.folder / f"{trainer.global_rank}.pt")


class Cut:
    """A loader that gives this rank's part of every batch."""

    def __init__(self, whole: Any, rank: int, world: int) -> None:
        self.whole, self.rank, self.world = whole, rank, world

    def __len__(self) -> int:
        return len(self.whole)

    def __iter__(self) -> Any:
        for batch in self.whole:
            yield {k: v.chunk(self.world)[self.rank] if torch.is_tensor(v) else v for k, v in batch.items()}


def cut_loader(self: PairDataModule) -> Any:
    """``train_dataloader`` of one process, its first epoch, cut."""
    trainer = self.trainer
    assert trainer is not None
    self.trainer = None  # alone, it is rank 0 of one
    whole = list(PairDataModule.train_dataloader_alone(self))  # type: ignore[attr-defined]
    self.trainer = trainer
    return Cut(whole, trainer.global_rank, trainer.world_size)


if __name__ == "__main__":
    notes, mode = Path(sys.argv[1]), sys.argv[2]
    make = training.build_trainer

    def watched(*args: Any, **kwargs: Any) -> pl.Trainer:
        """The real trainer, with the notes."""
        runner = make(*args, **kwargs)
        runner.callbacks.append(Notes(notes))  # type: ignore[attr-defined]
        return runner

    training.build_trainer = watched
    if mode == "same":
        PairDataModule.train_dataloader_alone = PairDataModule.train_dataloader  # type: ignore[attr-defined]
        PairDataModule.train_dataloader = cut_loader  # type: ignore[method-assign]
    sys.argv[1:] = sys.argv[3:]
    main()
