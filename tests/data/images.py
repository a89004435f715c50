"""Small structured images generated from a seed, and the location of the real photographs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COCO_MINI = Path(__file__).parents[3] / "shared" / "data" / "coco-mini"
needs_coco = pytest.mark.skipif(not COCO_MINI.is_dir(), reason="the COCO sample is missing")


def sample_image(seed: int, width: int = 48, height: int = 36) -> Image.Image:
    """Smooth random colors: no two seeds look alike, and recompressed copies of an image stay alike."""
    blobs = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of the image's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """{path relative to the folder: bytes} of all files, including hidden ones."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
