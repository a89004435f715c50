"""A real, tiny CLIP in open_clip's own format, and images to feed it."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from dejavu_lit.data.shards import Pair, ShardSet, write_shard

CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 96, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
PREPROCESS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def write_clip(folder: Path, seed: int = 0, config: dict | None = None, preprocess: dict | None = None) -> Path:
    """Write a randomly initialised model."""
    torch.manual_seed(seed)
    config = config or CONFIG
    folder.mkdir(parents=True, exist_ok=True)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess or PREPROCESS})
    (folder / "open_clip_config.json").write_text(text)
    return folder


def sample_image(seed: int, width: int = 96, height: int = 80, mode: str = "RGB") -> Image.Image:
    """A smooth image with some noise, so that resizing it is not trivial."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-8, 9, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def write_shards(folder: Path, pairs: Sequence[Pair], size: int = 1000) -> ShardSet:
    """Write pairs into shards of ``size``."""
    for number, start in enumerate(range(0, len(pairs), size)):
        with write_shard(folder / f"{number:05d}.tar") as write:
            for pair in pairs[start : start + size]:
                write(pair)
    return ShardSet.open(folder)
