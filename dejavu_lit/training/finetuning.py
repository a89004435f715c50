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

from torch import Tensor, nn
from torch.nn.utils import parametrize

from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError, first_line

SCALES = ("logit_scale", "logit_bias")  # not part of a tower


def apply_finetuning(model: nn.Module, mitigation: Mitigation) -> None:
    """Lock towers of ``model`` and add adapters to what is left to train; without these knobs nothing is changed.

    Raises:
        UserError: a tower that cannot be locked or adapted in this way, or no weights left to train.
    """
    if mitigation.lock_image:
        _lock(model, "image", mitigation.unlocked_groups)
    if mitigation.lock_text:
        _lock(model, "text", mitigation.unlocked_groups)
    if not any(p.requires_grad for name, p in model.named_parameters() if name not in SCALES):
        raise UserError(
            "mitigation.lock_image and mitigation.lock_text together leave nothing to train; drop one, or raise "
            "mitigation.unlocked_groups"
        )
    if mitigation.lora_rank:
        _add_adapters(model, mitigation.lora_rank)


class LowRank(nn.Module):
    """W → W + B·A, as a parametrization of the weight W [m, n]."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
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
    try:
        if tower == "image":
            model.visual.lock(unlocked_groups=unlocked_groups, freeze_bn_stats=True)
        elif hasattr(model, "text"):
            model.text.lock(unlocked_groups)
        else:
            model.lock_text_tower(unlocked_groups)
    except (AssertionError, AttributeError, RuntimeError, KeyError) as error:
        raise UserError(
            f"mitigation.lock_{tower}=true with mitigation.unlocked_groups={unlocked_groups} is not possible for this "
            f"model ({first_line(error)}); set unlocked_groups=0 or leave the {tower} tower unlocked"
        ) from None


def _add_adapters(model: Any, rank: int) -> None:
    """Adapt the attention and MLP matrices that are still trained, and freeze all but the adapters and the logit scale."""
    adapted = []
    for name, tower in (("image", model.visual), ("text", getattr(model, "text", None) or model.transformer)):
        trained = [(module, weight) for module, weight in _matrices(tower) if getattr(module, weight).requires_grad]
        if not trained and any(parameter.requires_grad for parameter in tower.parameters()):
            raise UserError(
                f"mitigation.lora_rank={rank} adapts the matrices of transformer blocks, and what is trained of the {name} "
                f"tower ({type(tower).__name__}) has none; lock this tower, set lora_rank to 0 or choose another model"
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
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield module, "in_proj_weight"
