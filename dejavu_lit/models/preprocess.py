"""An image as a model's uint8 input: open_clip's own resizing and cropping, and its augmentation for training.

Normalization by mean and standard deviation happens later, on the device.
"""

import hashlib
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose, Resize
from torchvision.transforms.v2.functional import resize_image

# What a config, or a released tag, says of images beside their size, and open_clip's defaults.
PREPROCESS = {
    name: getattr(PreprocessCfg, name) for name in ("mean", "std", "interpolation", "resize_mode", "fill_color")
}


def _transform(config: dict[str, Any], is_train: bool) -> Compose:
    """open_clip's transform without the conversion to a tensor and the normalization."""
    return Compose(image_transform_v2(PreprocessCfg(**config), is_train=is_train).transforms[:-2])


def _array(image: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


class Preprocess:
    """Callable from a PIL image to uint8 [3, h, w], for the ``preprocess_cfg`` of an open_clip model."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._transform = _transform(config, is_train=False)

    def __call__(self, image: Image.Image | torch.Tensor) -> np.ndarray:
        """uint8 [3, h, w] of an image, or of decoded RGB pixels uint8 [3, height, width].

        Pixels are resized by torch's uint8 kernel. It has the same filter as Pillow's and is several times faster; its
        rounding differs by at most one level of 255.
        """
        resize, *crop, _ = self._transform.transforms  # the last converts to RGB
        if isinstance(image, torch.Tensor) and isinstance(resize, Resize):
            resized = resize_image(image, resize.size, resize.interpolation, antialias=True)
            return np.ascontiguousarray(Compose(crop)(resized))
        if isinstance(image, torch.Tensor):
            image = Image.fromarray(image.permute(1, 2, 0).numpy())
        return _array(self._transform(image))


class Augment:
    """open_clip's training augmentation: a random crop of 90 to 100 % of the image with a ratio between 3:4 and 4:3.

    No such crop fits an image that is more than 1.48 times as wide as high, or the reverse. It gets the same crop every
    time: the center, in the nearest of these ratios. The result depends only on the image and on the text ``draw``, not
    on the process.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._transform = _transform(config, is_train=True)

    def __call__(self, pixels: np.ndarray, draw: str) -> np.ndarray:
        """RGB pixels uint8 [height, width, 3] → uint8 [3, h, w]; the same for the same ``draw``."""
        seed = int.from_bytes(hashlib.blake2b(draw.encode(), digest_size=8).digest(), "big")
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
            torch.default_generator.manual_seed(seed)
            return _array(self._transform(Image.fromarray(pixels)))
