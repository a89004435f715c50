"""The LightningModule around any open_clip architecture: contrastive loss, logit-scale clamp, AdamW, cosine schedule.

The loss is open_clip's: CLIP's symmetric cross-entropy over the batch gathered from all ranks (local loss with
gather-with-grad), or SigLIP's if the model has a bias. Source: Radford et al., ICML 2021; Zhai et al., ICCV 2023.
"""

import math
import time
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn

from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.module import PairDataModule
from dejavu_lit.data.stream import Batch
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.training.features import Features
from dejavu_lit.training.finetuning import SCALES, apply_finetuning, merged
from dejavu_lit.training.regularizers import add_gradient_noise, add_text_noise, contrastive_loss, drop_patches
from dejavu_lit.training.settings import Recipe, TrainerSettings
from dejavu_lit.utils.distributed import gather
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256
from dejavu_lit.utils.run_directory import first_difference


def split_by_decay(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(decayed, exempt) parameters of those that are trained: gains, biases, 1-D ones and the logit scale are exempt."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]


def learning_rate_factor(step: int, recipe: Recipe, horizon: int) -> float:
    """The learning rate at a step as a share of ``recipe.lr``: linear warm-up, then a cosine to 0 at ``horizon`` steps."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    if horizon <= recipe.warmup_steps:
        return 1.0
    done = (step - recipe.warmup_steps) / (horizon - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class ClipModule(pl.LightningModule):
    """Trains one CLIP model. ``seed`` determines the random draws of each step, so a resumed run repeats them."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        mitigation: Mitigation,
        seed: int = 0,
        trainer: TrainerSettings = TrainerSettings(),  # noqa: B008  # immutable
    ) -> None:
        super().__init__()
        self.model, self.recipe, self.mitigation, self.seed = model, recipe, mitigation, seed
        self.siglip = getattr(model, "logit_bias", None) is not None
        contrastive_loss(self.siglip, mitigation.label_smoothing, 0, 1)  # raises before any work is done
        if mitigation.patch_dropout:
            drop_patches(model, mitigation.patch_dropout)
        apply_finetuning(model, mitigation)
        fixed = mitigation.logit_scale_fixed
        self.clamp = math.log(mitigation.logit_scale_max or recipe.logit_scale_max) if fixed is None else None
        start = fixed if fixed is not None else mitigation.logit_scale_init
        if start is not None and self.clamp is not None and math.log(start) > self.clamp:
            raise UserError(
                f"mitigation.logit_scale_init={start:g} is above recipe.logit_scale_max={recipe.logit_scale_max:g}, to which it "
                "would be clamped after the first step; lower the former or raise the latter"
            )
        if start is not None:
            self.logit_scale.data.fill_(math.log(start))
        self.logit_scale.requires_grad_(fixed is None)
        visual: Any = model.visual
        self.register_buffer("mean", torch.tensor(visual.image_mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(visual.image_std).view(1, 3, 1, 1) * 255, persistent=False)
        self._loss: nn.Module | None = None
        self._features = Features(model, trainer, self._pixels, recipe.accumulate)
        self._unreadable: dict[int, str] = {}  # {index: reason} for the pairs of this rank, over all epochs
        self.settings: Mapping[str, Any] = {}  # of the run, saved with its checkpoints
        self._replaced = 0  # pairs of this rank and epoch; counted on the host, since logging would wait for the device
        self._earlier_seconds, self._started = 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds of training over all calls of a run, up to the checkpoints that they resumed from."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def unreadable(self) -> dict[str, int]:
        """{reason: number of unusable training pairs} over all ranks and epochs; every rank must call it."""
        return dict(sorted(Counter(self._gather_unreadable().values()).items()))

    def _gather_unreadable(self) -> dict[int, str]:
        return {index: reason for part in gather(self._unreadable) for index, reason in part.items()}

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the multiplier 1/τ, as open_clip stores it."""
        return cast(nn.Parameter, self.model.logit_scale)

    @property
    def pairs(self) -> PairDataModule:
        return cast(PairDataModule, cast(Any, self.trainer).datamodule)

    def setup(self, stage: str) -> None:
        """Create the loss for the number of ranks; small sets are logged at least once per epoch."""
        rank, world = self.trainer.global_rank, self.trainer.world_size
        trainer = cast(Any, self.trainer)
        trainer.log_every_n_steps = min(trainer.log_every_n_steps, self.pairs.plan.steps)
        self._loss = contrastive_loss(self.siglip, self.mitigation.label_smoothing, rank, world)
        if world > 1:
            self._check_ranks_agree()
            self._freeze_unused()

    def _check_ranks_agree(self) -> None:
        """Raise UserError if a rank has other settings or data than rank 0, as a copy on its node that is out of date."""
        first, *others = gather({"manifest of the data": self.data, **self.settings})
        for rank, other in enumerate(others, start=1):
            if changed := first_difference(first, other):
                raise UserError(
                    f"rank {rank} differs from rank 0 ({changed}); give all ranks one command, and the same data on every node"
                )

    def _freeze_unused(self) -> None:
        """Freeze the parameters that no feature depends on, as CoCa's decoder: the ranks would wait for their gradients."""
        images = torch.from_numpy(self.pairs.preprocess(Image.new("RGB", (8, 8))))[None]
        (captions,) = self._features.captions(self.pairs.tokenizer(["a"]))
        parameters = [p for name, p in self.model.named_parameters() if p.requires_grad and name not in SCALES]
        training = self.training
        with torch.random.fork_rng(devices=[]):
            features = self.eval()._features.encode(images, captions)
            gradients = torch.autograd.grad(sum(f.sum() for f in features), parameters, allow_unused=True)  # type: ignore[arg-type]
        self.train(training)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def _pixels(self, images: Tensor) -> Tensor:
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Prepare the captions while they are on the host, where reading their lengths does not wait for the device."""
        captions = self._features.captions(batch["tokens"], pin=self.device.type == "cuda")
        return {**{name: value for name, value in batch.items() if name != "tokens"}, "captions": captions}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert self._loss is not None
        features = self._features(batch["images"], batch["captions"])
        if self.mitigation.text_noise:
            features["text_features"] = add_text_noise(features["text_features"], self.mitigation.text_noise)
        loss: Tensor = self._loss(**features)
        if self.is_logged(self.trainer.global_step + 1):  # else all ranks would synchronize at every step
            self.log("loss", loss, prog_bar=True, logger=False, sync_dist=True, batch_size=len(batch["index"]))
        if batch["replaced"]:
            self._replaced += int(batch["replaced"])
            self._check_replaced(self._replaced)  # those of this rank may already be too many
        self._unreadable |= batch["unreadable"]
        return loss

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the draws of this batch from (seed, step, rank), so resuming needs no saved generator states."""
        torch.manual_seed(self._seed(self.trainer.global_step, self.trainer.global_rank))

    def _seed(self, step: int, stream: int) -> int:
        return ((self.seed * 1_000_003 + step) * 65_537 + stream) % 2**63

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Add the gradient noise, the same on all ranks, after gradients are averaged over ranks and before clipping."""
        if self.mitigation.gradient_noise:
            seed = self._seed(self.trainer.global_step, 65_536)  # not the stream of any rank
            add_gradient_noise(self.model.parameters(), self.mitigation.gradient_noise, seed)

    def is_logged(self, step: int) -> bool:
        """Whether metrics are written at this step, counted from 1 over all epochs."""
        return bool(step % cast(Any, self.trainer).log_every_n_steps == 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the data and what determines the pairs' order, the unreadable ones, and the seconds so far.

        Weights that are saved to be evaluated, not to be resumed from, are saved without adapters.
        """
        if "optimizer_states" not in checkpoint:
            checkpoint["state_dict"] = merged(checkpoint["state_dict"])
        checkpoint["data"], checkpoint["plan"], checkpoint["seconds"] = self.data, self._pair_order(), self.seconds
        checkpoint["settings"] = self.settings
        checkpoint["unreadable"] = self._gather_unreadable()  # only the checkpoint of rank 0 is written
        checkpoint["replaced"] = sum(gather(self._replaced))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was saved; raises UserError for other settings, data, or an order of the pairs that would miss some."""
        # Lightning does this after it has loaded the weights, so those of 64 bits would be rounded to 32.
        self.trainer.precision_plugin.convert_module(self)
        if changed := first_difference(checkpoint.get("settings", self.settings), self.settings):
            raise UserError(
                f"the settings of this run were changed after it was started ({changed}); restore its config.yaml, or use "
                "another out="
            )
        if checkpoint.get("data", self.data) != self.data:
            raise UserError(
                f"{self.pairs.data.folder} was prepared again since this run was started, so pairs may have moved between sets; "
                "use another out=, or restore the previous data"
            )
        current = self._pair_order()
        # Checkpoints of earlier checkouts have "batch a rank".
        saved = {name.replace(" a rank", " per rank"): value for name, value in checkpoint.get("plan", current).items()}
        if changed := first_difference(saved, current):
            raise UserError(
                f"this run cannot continue with its pairs in another order ({changed}); use the original value, or another out="
            )
        self._earlier_seconds = checkpoint.get("seconds", 0.0)
        self._unreadable = dict(checkpoint.get("unreadable", {}))
        self._replaced = checkpoint.get("replaced", 0) if self.trainer.is_global_zero else 0

    @cached_property
    def data(self) -> str:
        """The SHA-256 of the manifest of the data, which differs if they were prepared in another way or from other files."""
        return file_sha256(self.pairs.data.folder / MANIFEST)

    def _pair_order(self) -> dict[str, int]:
        plan = self.pairs.plan
        return {"ranks": plan.world, "loader workers": plan.workers, "batch per rank": plan.batch, "seed": plan.seed}

    def replaced(self) -> int:
        """The number of replaced pairs of this epoch over all ranks; every rank must call it.

        Raises UserError if there are too many.
        """
        total = sum(gather(self._replaced))
        self._check_replaced(total)
        return total

    def _check_replaced(self, replaced: int) -> None:
        plan = self.pairs.plan
        read = plan.steps * plan.world * plan.batch
        if replaced > self.pairs.loader.bad_share * read:
            raise UserError(
                f"{replaced} of {read} pairs of this epoch could not be read (the log names them); repair the data, or raise "
                f"trainer.loader.bad_share={self.pairs.loader.bad_share}"
            )

    def on_train_epoch_start(self) -> None:
        self._replaced = 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """On V, the loss and the image→text accuracy within the batch gathered from all ranks."""
        assert self._loss is not None
        features = self._features(batch["images"], batch["captions"])
        captions = cast(Tensor, self.all_gather(features["text_features"])).flatten(0, -2)
        predicted = (features["image_features"] @ captions.T).argmax(1)
        size = len(predicted)
        own = torch.arange(size, device=predicted.device) + self.trainer.global_rank * size
        accuracy = (predicted == own).float().mean()
        self.log("val_loss", self._loss(**features), prog_bar=True, sync_dist=True, batch_size=size)
        self.log("val_accuracy", accuracy, sync_dist=True, batch_size=size)

    def configure_optimizers(self) -> Any:
        """AdamW with decay on matrices only; warm-up and cosine per step, whatever the stop epoch."""
        recipe = self.recipe
        decay = recipe.weight_decay if self.mitigation.weight_decay is None else self.mitigation.weight_decay
        matrices, exempt = split_by_decay(self.model)
        groups = [{"params": matrices, "weight_decay": decay}, {"params": exempt, "weight_decay": 0.0}]
        # Lightning does not clip for an optimizer that unscales gradients itself, as the fused one does.
        optimizer = torch.optim.AdamW(
            groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=recipe.gradient_clip is None
        )
        horizon = recipe.epochs * self.pairs.plan.steps
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, recipe, horizon)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then clamp the multiplier 1/τ to [1, max], as CLIP does."""
        super().optimizer_step(*args, **kwargs)
        if self.clamp is not None:
            with torch.no_grad():
                self.logit_scale.clamp_(0, self.clamp)
