"""Patch dropout: a ViT sees only a random part of each image's patches while it trains (Li et al., CVPR 2023)."""

from typing import Any

import torch
from open_clip.transformer import PatchDropout
from torch import Tensor, nn

from dejavu_lit.utils.errors import UserError


class DevicePatchDropout(PatchDropout):  # type: ignore[misc]  # open_clip comes without types
    """open_clip's layer, its draws made on the images' device; on a CPU they are open_clip's own.

    open_clip draws on the host, so that every step would wait until the draws have been copied to the GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Of tokens [b, n, w] the first, the class token, and a random share of the others."""
        if not self.training or not self.prob:
            return x
        first, others = x[:, :1], x[:, 1:]
        kept = max(1, int(others.shape[1] * (1 - self.prob)))
        draws = torch.randn(others.shape[:2], device=x.device)
        rows = torch.arange(len(x), device=x.device)[:, None]
        return torch.cat((first, others[rows, draws.topk(kept, dim=-1).indices]), dim=1)


def drop_patches(model: nn.Module, share: float) -> None:
    """Let the image tower of ``model`` drop this share of the patches.

    The layer has no weights and does nothing in evaluation mode; the exported config does not name it.

    Raises:
        UserError: the image tower is no ViT of open_clip.
    """
    visual: Any = model.visual
    if not hasattr(visual, "patch_dropout"):
        raise UserError(
            f"mitigation.patch_dropout={share} needs a ViT of open_clip, and this model's image tower is a "
            f"{type(visual).__name__}; set it to 0 or choose another model"
        )
    visual.patch_dropout = DevicePatchDropout(share)
