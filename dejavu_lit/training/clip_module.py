"""The LightningModule around any open_clip architecture: contrastive loss, logit-scale clamp, AdamW, cosine schedule.

The loss is open_clip's: CLIP's symmetric cross-entropy over the batch gathered from all ranks (local loss with
gather-with-grad), or SigLIP's where the model has a bias. Source: Radford et al., ICML 2021; Zhai et al., ICCV 2023.
"""

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dejavu_lit.data.module import PairDataModule
from dejavu_lit.data.stream import Batch
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.training.features import Compute, Features
from dejavu_lit.training.gradient_noise import add_gradient_noise
from dejavu_lit.training.loss import contrastive_loss
from dejavu_lit.training.patch_dropout import drop_patches
from dejavu_lit.utils.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, mitigations apart."""

    epochs: int  # also the horizon of the learning-rate schedule
    batch: int  # pairs a step, over all ranks
    lr: float
    warmup_steps: int = 0
    beta1: float = 0.9  # AdamW's
    beta2: float = 0.98  # AdamW's
    eps: float = 1e-6  # AdamW's
    weight_decay: float = 0.2
    logit_scale_max: float = 100.0  # the learned multiplier is clamped to this after every step
    gradient_clip: float | None = None  # largest norm of all gradients together
    accumulate: int = 1  # parts a rank's batch is computed in, for memory; the loss is the whole batch's all the same

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.accumulate) < 1 or not 0 < self.lr < math.inf or self.warmup_steps < 0:
            raise UserError(
                f"recipe.epochs={self.epochs}, recipe.batch={self.batch} and recipe.accumulate={self.accumulate} must be "
                f"at least 1, recipe.lr={self.lr} above 0 and recipe.warmup_steps={self.warmup_steps} at least 0"
            )


def decayed(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(parameters that decay, exempt ones): gains, biases, 1-D parameters and the logit scale are exempt."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]


def learning_rate(step: int, recipe: Recipe, horizon: int) -> float:
    """Share of ``recipe.lr`` at a step: linear warm-up, then a cosine to 0 at ``horizon`` steps."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    if horizon <= recipe.warmup_steps:
        return 1.0
    done = (step - recipe.warmup_steps) / (horizon - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class ClipModule(pl.LightningModule):
    """Trains one CLIP model. ``seed`` feeds the random draws of each step, so that a resumed run repeats them."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        mitigation: Mitigation,
        seed: int = 0,
        compute: Compute = Compute(),  # noqa: B008 it is immutable
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.mitigation, self.seed = model, recipe, mitigation, seed
        self.siglip = getattr(model, "logit_bias", None) is not None
        contrastive_loss(self.siglip, mitigation.label_smoothing, 0, 1)  # refuses before any work
        if mitigation.patch_dropout:
            drop_patches(model, mitigation.patch_dropout)
        fixed = mitigation.logit_scale_fixed
        self.clamp = math.log(mitigation.logit_scale_max or recipe.logit_scale_max) if fixed is None else None
        start = fixed if fixed is not None else mitigation.logit_scale_init
        if start is not None and self.clamp is not None and math.log(start) > self.clamp:
            raise UserError(
                f"mitigation.logit_scale_init={start:g} is above recipe.logit_scale_max={recipe.logit_scale_max:g}, to which it "
                "would be clamped after the first step; lower the one or raise the other"
            )
        if start is not None:
            self.logit_scale.data.fill_(math.log(start))
        self.logit_scale.requires_grad_(fixed is None)
        visual: Any = model.visual
        self.register_buffer("mean", torch.tensor(visual.image_mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(visual.image_std).view(1, 3, 1, 1) * 255, persistent=False)
        self._loss: nn.Module | None = None
        self._features = Features(model, replace(compute, parts=recipe.accumulate), self._pixels)
        self._unreadable: dict[int, str] = {}  # {index: reason} of this rank's pairs of all epochs
        self._replaced = 0  # pairs of this rank and epoch, counted on the host: logging them would wait for the device
        self._steps, self._clock = 0, time.perf_counter()  # of the throughput
        self._before, self._started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training, over all calls of a run as far as their checkpoints go."""
        return self._before + time.perf_counter() - self._started

    def unreadable(self) -> dict[str, int]:
        """{reason: how many of the training pairs could not be used}, of all ranks and epochs; every rank must ask."""
        return dict(sorted(Counter(self._of_all_ranks().values()).items()))

    def _of_all_ranks(self) -> dict[int, str]:
        parts: list[dict[int, str]] = [self._unreadable]
        if torch.distributed.is_initialized():
            parts = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(parts, self._unreadable)
        return {index: reason for part in parts for index, reason in part.items()}

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the multiplier 1/τ, as open_clip keeps it."""
        return cast(nn.Parameter, self.model.logit_scale)

    @property
    def pairs(self) -> PairDataModule:
        """The data that the trainer feeds in."""
        return cast(PairDataModule, cast(Any, self.trainer).datamodule)

    def setup(self, stage: str) -> None:
        """Make the loss for the ranks there are; a small set is logged at least once an epoch."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        trainer = cast(Any, self.trainer)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, self.pairs.plan(0, world).steps)
        self._loss = contrastive_loss(self.siglip, self.mitigation.label_smoothing, rank, world)

    def _pixels(self, images: Tensor) -> Tensor:
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Prepare the captions while they are on the host, where their lengths can be read without waiting."""
        captions = self._features.captions(batch["tokens"], pin=self.device.type == "cuda")
        return {**{name: value for name, value in batch.items() if name != "tokens"}, "captions": captions}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The contrastive loss of one batch."""
        assert self._loss is not None
        loss: Tensor = self._loss(**self._features(batch["images"], batch["captions"]))
        if self._written(self.trainer.global_step + 1):  # else the ranks would meet, and the host wait, at every step
            self.log("loss", loss, prog_bar=True, sync_dist=True, batch_size=len(batch["index"]))
        self._replaced += int(batch["replaced"])
        self._unreadable |= batch["unreadable"]
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed this batch's draws from (seed, batch, rank): resuming needs no saved generator states."""
        torch.manual_seed(self._seed(self.trainer.global_step, self.trainer.global_rank))

    def _seed(self, step: int, stream: int) -> int:
        return ((self.seed * 1_000_003 + step) * 65_537 + stream) % 2**63

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradient noise: after the ranks' gradients were averaged, before they are clipped; on all ranks the same."""
        if self.mitigation.gradient_noise:
            seed = self._seed(self.trainer.global_step, 65_536)  # no rank's
            add_gradient_noise(self.model.parameters(), self.mitigation.gradient_noise, seed)

    def _written(self, step: int) -> bool:
        """Whether Lightning writes what is logged in this step, counted from 1 over all epochs."""
        return bool(step % cast(Any, self.trainer).log_every_n_steps == 0)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log throughput in pairs/s, over all ranks and of one, learning rate and logit scale."""
        self._steps += 1
        if self._written(self.trainer.global_step):
            now = time.perf_counter()
            pairs = self._steps * len(batch["index"]) / (now - self._clock)
            self.log("pairs/s", round(pairs * self.trainer.world_size), prog_bar=True)
            self.log("pairs/s/rank", round(pairs, 1))
            self.log("logit_scale", self.logit_scale.exp())
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
            self._steps, self._clock = 0, now

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what fixes the order of the pairs, and how long it took to come here."""
        checkpoint["plan"], checkpoint["seconds"] = self._order(), self.seconds
        checkpoint["unreadable"] = self._of_all_ranks()  # rank 0's checkpoint is the one that is written

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with another order of the pairs (some would be seen twice and some never); count on the seconds."""
        before, now = checkpoint.get("plan"), self._order()
        if before is not None and before != now:
            raise UserError(
                f"this run was started with {before} and cannot go on with {now}; use the former, or another out="
            )
        self._before = checkpoint.get("seconds", 0.0)
        self._unreadable = dict(checkpoint.get("unreadable", {}))

    def _order(self) -> dict[str, int]:
        plan = self.pairs.plan(0, self.trainer.world_size)
        return {"ranks": plan.world, "loader workers": plan.workers, "batch a rank": plan.batch, "seed": plan.seed}

    def on_train_epoch_end(self) -> None:
        """Stop where more pairs than allowed could not be read; all ranks see the same sum."""
        plan = self.pairs.plan(0, self.trainer.world_size)
        total = self.trainer.strategy.reduce(torch.tensor(float(self._replaced), device=self.device), reduce_op="sum")
        replaced, read = int(total), plan.steps * plan.world * plan.batch
        self.log("replaced", float(replaced))
        if replaced > self.pairs.loader.bad_share * read:
            raise UserError(
                f"{replaced} of {read} pairs of this epoch could not be read (the log names them); mend the data, or raise "
                f"trainer.loader.bad_share={self.pairs.loader.bad_share}"
            )

    def on_train_start(self) -> None:
        """Start the clock of the throughput, also where an epoch goes on in its middle."""
        self._steps, self._clock = 0, time.perf_counter()

    def on_train_epoch_start(self) -> None:
        """Start it again after validation."""
        self._replaced, self._steps, self._clock = 0, 0, time.perf_counter()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and image→text accuracy within the batch of all ranks, on V."""
        assert self._loss is not None
        features = self._features(batch["images"], batch["captions"])
        captions = cast(Tensor, self.all_gather(features["text_features"])).flatten(0, -2)
        found = (features["image_features"] @ captions.T).argmax(1)
        own = torch.arange(len(found), device=found.device) + self.trainer.global_rank * len(found)
        right = (found == own).float().mean()
        self.log("val_loss", self._loss(**features), prog_bar=True, sync_dist=True, batch_size=len(found))
        self.log("val_accuracy", right, sync_dist=True, batch_size=len(found))

    def configure_optimizers(self) -> Any:
        """AdamW with decay on matrices only; warm-up and cosine by the step, whatever the stop epoch."""
        recipe = self.recipe
        decay = recipe.weight_decay if self.mitigation.weight_decay is None else self.mitigation.weight_decay
        matrices, exempt = decayed(self.model)
        groups = [{"params": matrices, "weight_decay": decay}, {"params": exempt, "weight_decay": 0.0}]
        # Lightning refuses to clip for an optimizer that unscales by itself, as the fused one does.
        optimizer = torch.optim.AdamW(
            groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=recipe.gradient_clip is None
        )
        horizon = recipe.epochs * self.pairs.plan(0, self.trainer.world_size).steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, recipe, horizon))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then clamp the logit scale to [1, max], as CLIP does."""
        super().optimizer_step(*args, **kwargs)
        if self.clamp is not None:
            with torch.no_grad():
                self.logit_scale.clamp_(0, self.clamp)
