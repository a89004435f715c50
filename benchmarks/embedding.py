"""Images per second through `embed`, from shards of 640×480 JPEGs to fp16 embeddings on disk.

    python benchmarks/embedding.py              two JSON lines: `embedding` (a tiny ViT) and `embedding_vit_b_32`
    python benchmarks/embedding.py --tiny       the first alone

The peer is open_clip's own preprocessing and `encode_image` behind a DataLoader with 2 workers, reading the same
shards, at its best batch size. Weights are random; the embeddings must agree to 1e-3. Peer and ours take turns, as many of
one as of the other, and the best of each counts. On a CPU, a shard's images are encoded in batches of
16, the last one padded: 250 images of ViT-B-32 by 2.4 %, the 1,000 pairs of a shard of `dejavu prepare` by 0.8 %.
"""

import argparse
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dejavu_lit.data.shards import Pair, ShardSet, write_shard
from dejavu_lit.evaluation.embed import embed
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.models.build import export_config, export_weights
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.models.zoo import load_encoder

TINY = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 96, "layers": 3, "head_width": 32},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 2},
}
BATCHES = (32, 64, 128, 256)
WORKERS = 2


def photograph(random: np.random.Generator) -> bytes:
    """A 640×480 JPEG of about 90 kB: structure at several scales and some noise."""
    pixels = np.zeros((480, 640, 3), np.float32)
    for side, strength in ((5, 60), (20, 40), (80, 25)):
        coarse = random.integers(0, 256, (side * 3 // 4 + 1, side, 3), dtype=np.uint8)
        field = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        pixels += (np.asarray(field, np.float32) - 128) * (strength / 64)
    pixels += random.normal(0, 7, pixels.shape) + 128
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


class Images(Dataset[torch.Tensor]):
    """The peer's reading: one image of the shards, decoded and preprocessed by open_clip's transform."""

    def __init__(self, shards: ShardSet, preprocess: Any) -> None:
        self.shards, self.preprocess = shards, preprocess

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, place: int) -> torch.Tensor:
        shard = int(np.searchsorted(self.shards.starts, place, side="right")) - 1
        pair = self.shards.index(shard).read(place - int(self.shards.starts[shard]))
        return self.preprocess(Image.open(io.BytesIO(pair.image)))


@torch.inference_mode()
def peer(model: Any, preprocess: Any, shards: ShardSet, batch: int) -> np.ndarray:
    """Embeddings of all images, float32 [n, d]."""
    loader = DataLoader(Images(shards, preprocess), batch_size=batch, num_workers=WORKERS)
    return torch.cat([model.encode_image(images, normalize=True) for images in loader]).numpy()


def compare(
    name: str, spec: ModelSpec, shards: ShardSet, folder: Path, rounds: int, threshold: float | None
) -> dict[str, Any]:
    """One claim."""
    export_config(spec, folder / "model")
    torch.manual_seed(0)
    export_weights(
        open_clip.create_model(f"local-dir:{folder / 'model'}", load_weights=False).state_dict(), folder / "model"
    )
    source = f"local-dir:{folder / 'model'}"
    model, _, preprocess = open_clip.create_model_and_transforms(source)
    model.eval()
    encoder = load_encoder(source)
    seconds: dict[str, float] = {}

    def turn(what: str, begun: float) -> None:
        seconds[what] = min(seconds.get(what, float("inf")), time.perf_counter() - begun)

    expected = found = np.zeros(0)
    for number in range(rounds):
        for batch in BATCHES:
            begun = time.perf_counter()
            expected = peer(model, preprocess, shards, batch)
            turn(f"peer, batch {batch}", begun)
            begun = time.perf_counter()
            embed(encoder, shards, "image", folder / f"{number}_{batch}", workers=WORKERS)
            turn("ours", begun)
            found = Embeddings.open(folder / f"{number}_{batch}").load().astype(np.float32)
    difference = float(np.abs(found - expected).max())
    if difference > 1e-3:
        raise SystemExit(f"{name}: the embeddings differ by {difference:.1e}, more than 1e-3")
    ours = len(shards) / seconds["ours"]
    best = len(shards) / min(value for what, value in seconds.items() if what != "ours")
    line = {
        "name": name,
        "ratio": ours / best,
        "ours": ours,
        "peer": best,
        "unit": "images/s",
        "threshold": threshold,
    }
    line |= {"peer_is": f"open_clip preprocessing and encode_image, DataLoader with {WORKERS} workers, best batch"}
    return line | {
        "largest_difference": difference,
        "pictures": len(shards),
        "seconds": seconds,
        "threads": os.cpu_count(),
    }


def main() -> None:
    """Print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="leave ViT-B-32 out")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the tiny ViT, of a turn per batch")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    cases = [("embedding", ModelSpec("tiny", TINY), arguments.images, arguments.rounds, 1.7)]
    if not arguments.tiny:
        cases.append(("embedding_vit_b_32", ModelSpec("ViT-B-32"), max(1, arguments.images // 8), 1, 1.1))
    for name, spec, count, rounds, threshold in cases:
        with tempfile.TemporaryDirectory() as where:
            folder = Path(where)
            for first in range(0, count, 500):
                with write_shard(folder / "shards" / f"{first // 500:05d}.tar") as write:
                    for number in range(first, min(first + 500, count)):
                        write(Pair(f"{number:06d}", photograph(random), "jpg", "an image"))
            print(
                json.dumps(compare(name, spec, ShardSet.open(folder / "shards"), folder, rounds, threshold)), flush=True
            )


if __name__ == "__main__":
    main()
