"""The contrastive losses: open_clip's, and CLIP's with smoothed targets.

With smoothing ε the target of an image is not its own caption alone but (1 − ε) of it and ε / N of each of the N captions
of the batch over all ranks, its own among them, and the same for captions (Szegedy et al., CVPR 2016). ε = 0 is open_clip's
ClipLoss.
"""

from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dejavu_lit.utils.errors import UserError


class SmoothedClipLoss(ClipLoss):  # type: ignore[misc]  # open_clip comes without types
    """ClipLoss with smoothed targets while training; in evaluation mode it is ClipLoss, so that V's loss stays comparable."""

    def __init__(self, smoothing: float, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
        self.smoothing = smoothing

    def forward(
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None
    ) -> Tensor:
        """The loss of one batch: features [b, d] of this rank, L2-normalised, and the multiplier 1/τ."""
        images, captions = self.get_logits(image_features, text_features, logit_scale, logit_bias)
        labels = self.get_ground_truth(images.device, len(images))
        smoothing = self.smoothing if self.training else 0.0
        one = cross_entropy(images, labels, label_smoothing=smoothing)
        return (one + cross_entropy(captions, labels, label_smoothing=smoothing)) / 2


def contrastive_loss(siglip: bool, smoothing: float, rank: int, world: int) -> nn.Module:
    """The loss for one of ``world`` ranks: SigLIP's where the model has a bias, else CLIP's.

    Raises:
        UserError: smoothing of SigLIP's loss, which has no distribution over the batch as its target.
    """
    if siglip and smoothing:
        raise UserError(
            f"mitigation.label_smoothing={smoothing} smooths CLIP's targets, and this model has SigLIP's loss; "
            "set it to 0 or choose another model"
        )
    if siglip:
        loss: nn.Module = SigLipLoss(rank=rank, world_size=world)
    elif smoothing:
        loss = SmoothedClipLoss(smoothing, rank, world)
    else:
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)
    return loss
