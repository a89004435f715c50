"""The features of a batch for training: equal to the model's own, with fewer tokens, less memory and less Python.

Captions are encoded without padding, and the last blocks compute pooled tokens only, where that is exact (see ``towers``).

A batch computed in ``parts`` has the loss of the complete batch: only the features of each part are kept, and its
activations are recomputed in the backward pass (Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory
Limited Setup, 2021, arXiv 2101.06983), by nested non-reentrant checkpoints, which repeat every random draw.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import CustomResidualAttentionBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dejavu_lit.models.towers import image_tower, pack, text_tower, unit_features
from dejavu_lit.training.settings import TrainerSettings
from dejavu_lit.utils.errors import UserError


class Features:
    """Maps images uint8 [b, 3, h, w] and the captions prepared by ``captions`` to open_clip's output.

    ``pixels`` turns images into the model's input. The batch of a rank is computed in ``parts``, one after the other. Of
    ``trainer``, trim, checkpointing and compile count; they change nothing but rounding. Parameters stay the model's own.
    Raises UserError if the model does not support checkpointing or ``parts``.
    """

    def __init__(
        self, model: nn.Module, trainer: TrainerSettings, pixels: Callable[[Tensor], Tensor], parts: int = 1
    ) -> None:
        self.model, self.pixels, self.parts = cast(Any, model), pixels, parts
        self.checkpointing = trainer.checkpointing
        self.text = text_tower(model) if trainer.trim else None
        self.visual = image_tower(model) if trainer.trim else None
        name = type(self.model.visual).__name__
        if parts > 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            raise UserError(
                f"recipe.accumulate={parts} computes a batch in parts, but this model ({name}) normalizes over "
                "the batch and would see each part alone; set it to 1"
            )
        if trainer.checkpointing:
            if any(isinstance(module, (ModifiedResNet, CustomResidualAttentionBlock)) for module in model.modules()):
                raise UserError(f"trainer.checkpointing=true is not supported by this model ({name}); set it to false")
            self.model.set_grad_checkpointing(True)
        self._encode = torch.compile(self.encode) if trainer.compile else self.encode

    def captions(self, tokens: Tensor, pin: bool = False) -> list[Any]:
        """The captions of each part, from tokens int64 [b, context] on the host; packed if the tower allows it.

        With ``pin`` they are in page-locked memory, from which a GPU copies without waiting.
        """
        parts = tokens.tensor_split(min(self.parts, len(tokens)))
        if self.text is None:
            return list(parts)
        packed = [pack(part, self.text.ends(part)) for part in parts]
        return [packing.moved(Tensor.pin_memory) for packing in packed] if pin else packed

    def __call__(self, images: Tensor, captions: list[Any]) -> dict[str, Tensor]:
        """image_features and text_features [b, d], logit_scale and, if the model has one, logit_bias."""
        image_parts = images.tensor_split(len(captions))
        recompute = torch.is_grad_enabled() and len(captions) > 1
        encoded = [
            checkpoint(self._encode, *part, use_reentrant=False) if recompute else self._encode(*part)
            for part in zip(image_parts, captions, strict=True)
        ]
        image, text = (torch.cat(features) for features in zip(*encoded, strict=True))
        output = {"image_features": image, "text_features": text, "logit_scale": self.model.logit_scale.exp()}
        bias = getattr(self.model, "logit_bias", None)
        return output if bias is None else {**output, "logit_bias": bias}

    def encode(self, images: Tensor, captions: Any) -> tuple[Tensor, Tensor]:
        """The L2-normalized features of one part, [n, d] each."""
        if self.text is None and self.visual is None:  # one call, since some models have no separate encoders
            output = self.model(self.pixels(images), captions)
            if isinstance(output, dict):
                return output["image_features"], output["text_features"]
            return output[0], output[1]
        recompute = self.checkpointing and torch.is_grad_enabled()
        image = unit_features(self.visual, self.model.encode_image, self.pixels(images), recompute)
        return image, unit_features(self.text, self.model.encode_text, captions, recompute)
