"""An image as a model's uint8 input: open_clip's own resizing and cropping, and its augmentation for training.

Normalization by mean and standard deviation happens later, on the device.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Resize
from torchvision.transforms.v2.functional import resize_image

# What a config, or a released tag, says of images beside their size.
PREPROCESS = ("mean", "std", "interpolation", "resize_mode", "fill_color")


class Preprocess:
    """Callable from a PIL image to uint8 [3, h, w], for the ``preprocess_cfg`` of an open_clip model."""

    def __init__(self, config: dict[str, Any]) -> None:
        steps: list[Any] = image_transform_v2(PreprocessCfg(**config), is_train=False).transforms
        self.steps = steps[:-2]  # without the conversion to a tensor and the normalization
        self._resize = self.steps[0] if isinstance(self.steps[0], Resize) else None

    def __call__(self, image: Image.Image | torch.Tensor) -> np.ndarray:
        """uint8 [3, h, w] of an image, or of decoded RGB pixels uint8 [3, height, width].

        Pixels are resized by torch's uint8 kernel. It has the same filter as Pillow's and is several times faster; its
        rounding differs by at most one level of 255.
        """
        if isinstance(image, torch.Tensor) and self._resize is None:
            image = Image.fromarray(image.permute(1, 2, 0).numpy())
        if isinstance(image, torch.Tensor):
            return self._preprocess_pixels(image, self._resize)
        for step in self.steps:
            image = step(image)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))

    def _preprocess_pixels(self, pixels: torch.Tensor, resize: Resize) -> np.ndarray:
        pixels = resize_image(pixels, resize.size, resize.interpolation, antialias=True)
        for step in self.steps[1:-1]:  # the crop; the last step converts to RGB, which it is already
            pixels = step(pixels)
        return pixels.contiguous().numpy()


class Augment:
    """open_clip's training augmentation: a random crop of 90 to 100 % of the image with a ratio between 3:4 and 4:3.

    No such crop fits an image that is more than 1.48 times as wide as high, or the reverse. It gets the same crop every
    time: the center, in the nearest of these ratios. The result depends only on the image and on the text ``draw``, not
    on the process.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        steps: list[Any] = image_transform_v2(PreprocessCfg(**config), is_train=True).transforms
        self.steps = steps[:-2]  # without the conversion to a tensor and the normalization

    def __call__(self, pixels: np.ndarray, draw: str) -> np.ndarray:
        """RGB pixels uint8 [height, width, 3] → uint8 [3, h, w]; the same for the same ``draw``."""
        image: Any = Image.fromarray(pixels)
        seed = int.from_bytes(hashlib.blake2b(draw.encode(), digest_size=8).digest(), "big")
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.default_generator.manual_seed(seed)
            for step in self.steps:
                image = step(image)
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
