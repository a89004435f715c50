"""The mitigations: one dataclass of knobs, each read where it acts (captions, model, optimizer, trainer)."""

from dataclasses import dataclass

from dejavu_lit.errors import UserError


@dataclass(frozen=True)
class Mitigation:
    """What is done against memorization; None means the recipe's own value, which is not always 0.

    Logit-scale options are the multiplier 1/τ, never its logarithm.
    """

    text_mask: float = 0.0  # probability of dropping each word of a caption, 0 ≤ p < 1, anew each epoch
    logit_scale_init: float | None = None  # where the learned logit scale starts (recipe: 1/0.07)
    logit_scale_max: float | None = None  # clamp after every step (recipe: 100)
    logit_scale_fixed: float | None = None  # held at this value instead of being learned
    weight_decay: float | None = None  # AdamW's, on matrices only
    stop_epoch: int | None = None  # training stops after this many epochs; the schedule keeps its own horizon

    def __post_init__(self) -> None:
        if not 0 <= self.text_mask < 1:
            raise UserError(f"mitigation.text_mask={self.text_mask} must be at least 0 and below 1")
        for name in ("logit_scale_init", "logit_scale_max", "logit_scale_fixed"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"mitigation.{name}={value} is the multiplier 1/τ, at least 1 (not its logarithm)")
            if value is not None and name != "logit_scale_fixed" and self.logit_scale_fixed is not None:
                raise UserError(f"mitigation.logit_scale_fixed and mitigation.{name} exclude each other; drop one")
        if None not in (self.logit_scale_init, self.logit_scale_max) and self.logit_scale_init > self.logit_scale_max:  # type: ignore[operator]
            raise UserError(
                f"mitigation.logit_scale_init={self.logit_scale_init} is above "
                f"mitigation.logit_scale_max={self.logit_scale_max}; lower the one or raise the other"
            )
        if self.weight_decay is not None and self.weight_decay < 0:
            raise UserError(f"mitigation.weight_decay={self.weight_decay} must not be negative")
        if self.stop_epoch is not None and self.stop_epoch < 1:
            raise UserError(f"mitigation.stop_epoch={self.stop_epoch} must be at least 1")
