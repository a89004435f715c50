"""Fine-tuning that changes fewer weights: locked towers, and low-rank adapters that are merged into the exported weights.

- Locking is open_clip's (Zhai et al., LiT, CVPR 2022). Batch statistics of a locked image tower stay as they are, too.
- LoRA of rank r (Hu et al., ICLR 2022): the matrix W [m, n] becomes W + B·A with A [r, n] and B [m, r], B = 0 at first.
  W is frozen; A and B are trained. The adapted weights are parametrizations of torch, so every way to compute a tower
  sees W + B·A. peft's layers do not allow this: its MultiheadAttention merges the adapter within its own ``forward``,
  which the trimmed towers never call.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from open_clip.timm_model import TimmModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError, explained

SCALES = ("logit_scale", "logit_bias")  # not part of a tower
UNUSED = "text_decoder."  # CoCa's, which no loss of ours trains


def apply_finetuning(model: nn.Module, mitigation: Mitigation) -> None:
    """Lock towers of ``model`` and add adapters to what is left to train; raises UserError where this is impossible."""
    for tower, is_locked in (("image", mitigation.lock_image), ("text", mitigation.lock_text)):
        if is_locked:
            _lock(model, tower, mitigation.unlocked_groups)
    if mitigation.lora_rank:
        _add_adapters(model, mitigation)
    used = (p for name, p in model.named_parameters() if name not in SCALES and not name.startswith(UNUSED))
    if not any(parameter.requires_grad for parameter in used):
        raise UserError(
            "mitigation.lock_image and mitigation.lock_text together leave nothing to train; drop one, or raise "
            "mitigation.unlocked_groups"
        )


class LowRank(nn.Module):
    """W → W + B·A, as a parametrization of the weight W [m, n]."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of a model with adapters as one of the plain model; without adapters the same."""
    plain = {}
    for name, value in state.items():
        module, adapted, entry = name.partition(".parametrizations.")
        if not adapted:
            plain[name] = value
        elif entry.endswith(".original"):
            weight = entry.removesuffix(".original")
            adapter = f"{module}.parametrizations.{weight}.0"
            plain[f"{module}.{weight}"] = value + state[f"{adapter}.up"] @ state[f"{adapter}.down"]
    return plain


def _lock(model: Any, tower: str, unlocked_groups: int) -> None:
    trained = _trained(model)
    option = f"mitigation.lock_{tower}=true with mitigation.unlocked_groups={unlocked_groups}"
    remedy = f"set unlocked_groups=0 or leave the {tower} tower unlocked"
    with explained(f"{option} is not possible for this model", remedy):
        if tower == "text":
            (model.text.lock if hasattr(model, "text") else model.lock_text_tower)(unlocked_groups)
        elif isinstance(model.visual, TimmModel):
            model.visual.lock(unlocked_groups=unlocked_groups)
            _freeze_statistics(model.visual.trunk)
        else:
            model.visual.lock(unlocked_groups=unlocked_groups, freeze_bn_stats=True)
    if trained <= _trained(model):
        raise UserError(
            f"{option} locks nothing, because the {tower} tower has no more groups than that; lower unlocked_groups"
        )


def _trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _freeze_statistics(trunk: nn.Module) -> None:
    """Freeze batch normalization with locked weights. open_clip's own way drops the activation within timm's layers."""
    from timm.layers.norm_act import freeze_batch_norm_2d

    for name, module in list(trunk.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            trunk.set_submodule(name, freeze_batch_norm_2d(module))


def _add_adapters(model: Any, mitigation: Mitigation) -> None:
    """Adapt the attention and MLP matrices that are still trained, and freeze all but the adapters and the logit scale."""
    rank, adapted = int(mitigation.lora_rank or 0), []
    text_tower = getattr(model, "text", None) or model.transformer
    for name, tower, is_locked in (
        ("image", model.visual, mitigation.lock_image),
        ("text", text_tower, mitigation.lock_text),
    ):
        trained = [(module, weight) for module, weight in _matrices(tower) if getattr(module, weight).requires_grad]
        if not trained and (not is_locked or mitigation.unlocked_groups):
            raise UserError(
                f"mitigation.lora_rank={rank} adapts the matrices of transformer blocks, and what is trained of the {name} "
                f"tower ({type(tower).__name__}) has none; lock this tower as a whole, set lora_rank to 0 or choose another "
                "model"
            )
        adapted += trained
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in SCALES)
    for module, weight in adapted:
        parametrize.register_parametrization(module, weight, LowRank(getattr(module, weight), rank))


def _matrices(tower: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """(module, name of its weight) of the attention and linear layers in numbered blocks, not of projections beside them."""
    for name, module in tower.named_modules():
        if not re.search(r"(^|\.)\d+\.", name):
            continue
        if isinstance(module, nn.Linear):
            yield module, "weight"
        elif getattr(module, "in_proj_weight", None) is not None:  # torch's attention, or open_clip's own
            yield module, "in_proj_weight"
