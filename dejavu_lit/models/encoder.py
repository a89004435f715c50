"""Encoder: what every model of the zoo is to the rest of the package, "encode images, encode captions"."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from dejavu_lit.utils.errors import UserError


class Encoder(Protocol):
    """A frozen model that turns images and captions into unit vectors of one space.

    ``name`` is what the user called it; ``fingerprint`` covers weights, preprocessing and architecture, so two names of
    the same model have one fingerprint. ``pixels`` covers the preprocessing alone: encoders that share it take the same
    images.
    """

    name: str
    fingerprint: str
    pixels: str
    device: torch.device

    def preprocess(self, image: Image.Image | torch.Tensor) -> np.ndarray:
        """The model's own resize and crop: uint8 [3, h, w]. Normalisation is left to ``encode_images``.

        Decoded pixels, uint8 [3, height, width] in RGB, may be resized by a quicker kernel, which differs from Pillow's by
        at most one level of 255.
        """
        ...

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, h, w] → float32 [n, d] on the CPU, L2-normalised."""
        ...

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """n captions → float32 [n, d] on the CPU, L2-normalised."""
        ...


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, independent of the order of its entries."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def torch_device(device: str) -> torch.device:
    """The torch device called ``device``; raises UserError where it is unknown or not there."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(f"device={device} is no device; use cpu, cuda or cuda:N") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device} needs an NVIDIA GPU that torch can use, and there is none; use device=cpu")
    return found
