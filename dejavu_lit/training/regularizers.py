"""The mitigations that act inside a training step: smoothed targets in the loss, two kinds of noise, and patch dropout.

- Label smoothing ε (Szegedy et al., CVPR 2016): the target of an image is (1 − ε) of its own caption plus ε / N of each of
  the N captions of the batch over all ranks, its own included; the same holds for captions. ε = 0 is open_clip's ClipLoss.
- Gradient noise σ: g ← g + σ · rms(g) · ξ with ξ ~ N(0, 1) for each entry and rms(g) = ‖g‖₂ / √n over the n entries of one
  parameter. The noise is relative because AdamW divides by the size of the gradients: absolute noise would mean something
  different for every layer and every step. After Neelakantan et al., arXiv 1511.06807, whose noise is absolute and decays.
- Text noise ν: t ← (t + ν · u) / ‖t + ν · u‖ for the normalized text embedding t, with u uniform on the unit sphere. After
  Wang et al., CLIPMem, ICLR 2025, who add Gaussian noise to the text embedding.
- Patch dropout: while training, a ViT sees only a random part of each image's patches (Li et al., CVPR 2023).
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.transformer import PatchDropout
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from dejavu_lit.utils.errors import UserError


def contrastive_loss(siglip: bool, smoothing: float, rank: int, world: int) -> nn.Module:
    """The loss for one of ``world`` ranks: SigLIP's if the model has a bias, else CLIP's.

    Raises UserError for smoothing with SigLIP's, whose target is not a distribution over the batch.
    """
    if siglip and smoothing:
        raise UserError(
            f"mitigation.label_smoothing={smoothing} smooths CLIP's targets, and this model has SigLIP's loss; "
            "set it to 0 or choose another model"
        )
    return cast(
        nn.Module, SigLipLoss(rank=rank, world_size=world) if siglip else SmoothedClipLoss(smoothing, rank, world)
    )


class SmoothedClipLoss(ClipLoss):  # type: ignore[misc]  # open_clip has no types
    """ClipLoss with smoothed targets in training mode. In evaluation mode it is ClipLoss, so losses on V are comparable."""

    def __init__(self, smoothing: float, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
        self.smoothing = smoothing

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Tensor:
        """The loss of one batch: L2-normalized features [b, d] of this rank, and the multiplier 1/τ."""
        image_logits, text_logits = self.get_logits(image_features, text_features, logit_scale, logit_bias)
        labels = self.get_ground_truth(image_logits.device, len(image_logits))
        smoothing = self.smoothing if self.training else 0.0
        image_loss = cross_entropy(image_logits, labels, label_smoothing=smoothing)
        return (image_loss + cross_entropy(text_logits, labels, label_smoothing=smoothing)) / 2


@torch.no_grad()
def add_gradient_noise(parameters: Iterable[nn.Parameter], scale: float, seed: int) -> None:
    """Add noise of standard deviation ``scale`` · rms to every existing gradient; the same ``seed`` adds the same noise."""
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.device not in generators:
            generators[gradient.device] = torch.Generator(gradient.device).manual_seed(seed)
        noise = torch.empty_like(gradient).normal_(generator=generators[gradient.device])
        gradient.add_(noise.mul_(scale * gradient.square().mean().sqrt()))


def add_text_noise(features: Tensor, norm: float) -> Tensor:
    """Unit vectors [b, d] plus noise of this norm in random directions, as unit vectors again."""
    return normalize(features + norm * normalize(torch.randn_like(features), dim=-1), dim=-1)


def drop_patches(model: nn.Module, share: float) -> None:
    """Make the image tower of ``model``, a ViT of open_clip (else UserError), drop this share of the patches.

    The layer has no weights and does nothing in evaluation mode; the exported config does not mention it.
    """
    visual: Any = model.visual
    if not hasattr(visual, "patch_dropout"):
        raise UserError(
            f"mitigation.patch_dropout={share} needs a ViT of open_clip, and this model's image tower is a "
            f"{type(visual).__name__}; set it to 0 or choose another model"
        )
    visual.patch_dropout = DevicePatchDropout(share)


class DevicePatchDropout(PatchDropout):  # type: ignore[misc]  # open_clip has no types
    """open_clip's layer, but drawing on the device of the images; on a CPU the draws are the same as open_clip's.

    open_clip draws on the host, so every step would wait for the copy to the GPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """From tokens [b, n, w], the first (the class token) and a random share of the rest."""
        if not self.training or not self.prob:
            return x
        class_token, patches = x[:, :1], x[:, 1:]
        count = max(1, int(patches.shape[1] * (1 - self.prob)))
        draws = torch.randn(patches.shape[:2], device=x.device)
        rows = torch.arange(len(x), device=x.device)[:, None]
        return torch.cat((class_token, patches[rows, draws.topk(count, dim=-1).indices]), dim=1)
