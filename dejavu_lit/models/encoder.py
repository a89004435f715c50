"""Encoder: the interface of every model in the zoo, "encode images, encode captions"."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from dejavu_lit.utils.errors import UserError


class Encoder(Protocol):
    """A frozen model that turns images and captions into unit vectors of one space.

    ``name`` is the name that the user gave. ``fingerprint`` covers weights, preprocessing, architecture and the tokenizer's
    files, so two names of the same model have the same fingerprint. ``pixels`` covers the preprocessing alone: encoders with
    the same ``pixels`` take the same preprocessed images. ``logit_scale`` is the multiplier 1/τ of the cosines in the model's
    own loss, None if it has none.
    """

    name: str
    fingerprint: str
    pixels: str
    device: torch.device
    logit_scale: float | None

    def preprocess(self, image: Image.Image | torch.Tensor) -> np.ndarray:
        """The model's own resize and crop: uint8 [3, h, w]. ``encode_images`` normalizes.

        A tensor of decoded RGB pixels, uint8 [3, height, width], may be resized by a faster kernel, which differs from
        Pillow's by at most one level of 255.
        """
        ...

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, h, w] → float32 [n, d] on the CPU, L2-normalized."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """n captions → float32 [n, d] on the CPU, L2-normalized."""
        ...


def torch_device(device: str) -> torch.device:
    """The torch device called ``device``; raises UserError if it is unknown or not available."""
    try:
        parsed = torch.device(device)
        if parsed.type != "cuda":  # which a parent of further processes may not initialize
            torch.empty(0, device=parsed)
    except (RuntimeError, AssertionError, ImportError):  # as torch's backends say that they are not in this build
        raise UserError(f"device={device} is not a device of this machine; use cpu, cuda or cuda:N") from None
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device} needs an NVIDIA GPU that torch can use, but there is none; use device=cpu")
    return parsed
