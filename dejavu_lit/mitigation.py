"""The mitigations: one dataclass of knobs, each applied where it acts (captions, images, model, loss, optimizer, trainer)."""

import math
from dataclasses import dataclass
from typing import Any

from dejavu_lit.utils.errors import UserError, check_at_least, check_range

EARLY = ("loss", "accuracy")


@dataclass(frozen=True)
class Mitigation:
    """The knobs against memorization; None means the recipe's own value, which is not always 0.

    Logit-scale options are the multiplier 1/τ, never its logarithm. docs/mitigations.md defines what each knob changes.
    """

    text_mask: float = 0.0
    """Probability of dropping each word of a caption, 0 ≤ p < 1, drawn independently in each epoch."""
    text_random: float = 0.0
    """Probability of replacing each word by one from the vocabulary of the training captions."""
    text_shuffle: float = 0.0
    """Probability of putting a caption's words in random order."""
    caption_choice: bool = False
    """Draw one of the pair's captions each epoch, if its JSON has several."""
    caption_words: int | None = None
    """Keep only the first N words of a caption."""
    image_augment: bool = False
    """open_clip's training augmentation instead of the evaluation's resize and crop."""
    patch_dropout: float = 0.0
    """Share of the image's patches that a ViT does not see while training."""
    label_smoothing: float = 0.0
    """Share of the contrastive targets spread evenly over the batch."""
    ema: float | None = None
    """Decay of the weights' running average, which is exported instead of the weights."""
    gradient_noise: float = 0.0
    """Standard deviation of the noise on a gradient, in units of its root mean square."""
    dedup: bool = False
    """Train only on the pair with the smallest key of each group of near-duplicates."""
    logit_scale_init: float | None = None
    """Initial value of the learned logit scale (recipe: 1/0.07)."""
    logit_scale_max: float | None = None
    """Clamp of the logit scale after every step (recipe: 100)."""
    logit_scale_fixed: float | None = None
    """Hold the logit scale at this value instead of learning it."""
    weight_decay: float | None = None
    """AdamW's weight decay, on matrices only."""
    stop_epoch: int | None = None
    """Stop training after this epoch; the learning-rate schedule keeps its own horizon."""
    early_stopping: str | None = None
    """loss or accuracy: stop when it stops improving on V."""
    early_patience: int | None = None
    """Epochs without improvement before early_stopping ends the training; null: 3."""
    lock_image: bool = False
    """Keep the image tower of model.init as it is."""
    lock_text: bool = False
    """Keep the text tower of model.init as it is."""
    unlocked_groups: int = 0
    """Last groups of layers of a locked tower that are still trained; open_clip defines the groups."""
    lora_rank: int | None = None
    """Train only adapters of this rank on the attention and MLP matrices of model.init; 0 or null: all weights."""
    text_noise: float = 0.0
    """Norm of the noise added to the normalized text embedding while training."""
    gap_budget: float | None = None
    """Stop training when the lower bound of PPG exceeds this; needs gaps.reference."""

    def __post_init__(self) -> None:
        shares = ("text_mask", "patch_dropout", "label_smoothing", "ema", "gap_budget")
        check_range(self, "mitigation.", "[0, 1)", *shares)
        check_range(self, "mitigation.", "[0, 1]", "text_random", "text_shuffle")
        check_range(self, "mitigation.", "[0, inf)", "gradient_noise", "weight_decay", "text_noise")
        check_at_least(self, "mitigation.", caption_words=1, stop_epoch=1, early_patience=1)
        check_at_least(self, "mitigation.", unlocked_groups=0, lora_rank=0)
        self._check_logit_scale()
        if self.unlocked_groups and not (self.lock_image or self.lock_text):
            raise UserError(
                f"mitigation.unlocked_groups={self.unlocked_groups} needs mitigation.lock_image or mitigation.lock_text"
            )
        if self.early_stopping not in (None, *EARLY):
            raise UserError(f"mitigation.early_stopping={self.early_stopping} must be loss or accuracy (on V), or null")
        if self.early_patience is not None and self.early_stopping is None:
            raise UserError(
                f"mitigation.early_patience={self.early_patience} needs mitigation.early_stopping=loss or accuracy"
            )

    def _check_logit_scale(self) -> None:
        for name in ("logit_scale_init", "logit_scale_max", "logit_scale_fixed"):
            value: Any = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise UserError(f"mitigation.{name}={value} is the multiplier 1/τ, at least 1 (not its logarithm)")
            if value is not None and name != "logit_scale_fixed" and self.logit_scale_fixed is not None:
                raise UserError(f"mitigation.logit_scale_fixed and mitigation.{name} exclude each other; drop one")
        first, top = self.logit_scale_init, self.logit_scale_max
        if first is not None and top is not None and first > top:
            raise UserError(
                f"mitigation.logit_scale_init={first} is above mitigation.logit_scale_max={top}; lower one or raise the other"
            )
