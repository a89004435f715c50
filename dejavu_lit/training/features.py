"""The features of a batch for training: the model's own, from no more tokens, memory and Python than they need.

Captions are encoded without padding and last blocks for pooled tokens alone, where that is exact (see ``towers``).

A batch computed in ``parts`` has the loss of the whole batch: only the features of each part are kept, and its
activations are computed again in the backward pass (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup, 2021, arXiv 2101.06983), by nested non-reentrant checkpoints, which repeat every random draw.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import CustomResidualAttentionBlock
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from dejavu_lit.training.towers import image_tower, pack, text_tower
from dejavu_lit.utils.errors import UserError


@dataclass(frozen=True)
class Compute:
    """How features are computed. Nothing here changes what is trained, apart from rounding."""

    trim: bool = True  # only the tokens that features depend on, where that is exact
    checkpointing: bool = False  # activations inside each block are computed again in the backward pass
    compile: bool = False  # torch.compile
    parts: int = 1  # a rank's batch is computed in this many parts, one after the other


class Features:
    """Callable from images uint8 [b, 3, h, w] and the captions that ``captions`` prepared to open_clip's output.

    pixels: images as the model takes them. Parameters stay the model's own; this object has none.

    Raises:
        UserError: the model cannot be computed as ``compute`` says.
    """

    def __init__(self, model: nn.Module, compute: Compute, pixels: Callable[[Tensor], Tensor]) -> None:
        self.model, self.compute, self.pixels = cast(Any, model), compute, pixels
        self.text = text_tower(model) if compute.trim else None
        self.visual = image_tower(model) if compute.trim else None
        name = type(self.model.visual).__name__
        if compute.parts > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            raise UserError(
                f"recipe.accumulate={compute.parts} computes a batch in parts, and this model ({name}) normalises over "
                "the batch, so that each part would see itself alone; set it to 1"
            )
        if compute.checkpointing:
            if any(isinstance(module, (ModifiedResNet, CustomResidualAttentionBlock)) for module in model.modules()):
                raise UserError(f"trainer.checkpointing=true is not offered by this model ({name}); set it to false")
            self.model.set_grad_checkpointing(True)
        self._encode = torch.compile(self.encode) if compute.compile else self.encode

    def captions(self, tokens: Tensor, pin: bool = False) -> list[Any]:
        """The captions of each part, from tokens int64 [b, context] on the host: packed where the tower allows it.

        pin: into memory from which a GPU copies without waiting.
        """
        parts = tokens.tensor_split(min(self.compute.parts, len(tokens)))
        if self.text is None:
            return list(parts)
        packed = [pack(part, self.text.ends(part)) for part in parts]
        return [one.pinned() for one in packed] if pin else packed

    def __call__(self, images: Tensor, captions: list[Any]) -> dict[str, Tensor]:
        """image_features and text_features [b, d], logit_scale and, where the model has one, logit_bias."""
        parts = images.tensor_split(len(captions))
        again = torch.is_grad_enabled() and len(captions) > 1
        both = [
            checkpoint(self._encode, one, other, use_reentrant=False) if again else self._encode(one, other)
            for one, other in zip(parts, captions, strict=True)
        ]
        image, text = (torch.cat(side) if len(captions) > 1 else side[0] for side in zip(*both, strict=True))
        found = {"image_features": image, "text_features": text, "logit_scale": self.model.logit_scale.exp()}
        bias = getattr(self.model, "logit_bias", None)
        return found if bias is None else {**found, "logit_bias": bias}

    def encode(self, images: Tensor, captions: Any) -> tuple[Tensor, Tensor]:
        """The L2-normalised features of one part, [n, d] each."""
        if self.text is None and self.visual is None:  # one call: some models have no encoders of their own
            output = self.model(self.pixels(images), captions)
            if isinstance(output, dict):
                return output["image_features"], output["text_features"]
            return output[0], output[1]
        again, pixels = self.compute.checkpointing and torch.is_grad_enabled(), self.pixels(images)
        image = (
            self.model.encode_image(pixels, normalize=True)
            if self.visual is None
            else normalize(self.visual(pixels, again), dim=-1)
        )
        text = (
            self.model.encode_text(captions, normalize=True)
            if self.text is None
            else normalize(self.text(captions, again), dim=-1)
        )
        return image, text
