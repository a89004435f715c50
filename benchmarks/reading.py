"""Pairs per second of the training reader, from shards on disk to batches of images and tokens.

    python benchmarks/reading.py                 two JSON lines: `reading` with 0 workers and `reading_2_workers`
    python benchmarks/reading.py --pairs 500     a short run

The peer is `webdataset.WebDataset(…).decode(…).to_tuple(…)`, which decodes, resizes and tokenizes the same with the same
functions, in batches of the same size behind the same DataLoader. Both read every pair of 640×480 JPEGs in shards of 500.
Peer and ours take turns, and the best of each counts. Ours also checks the headers, follows the epoch plan and holds a
shard's pairs for it.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import webdataset
from embedding import photograph  # the benchmark beside this one
from shards import write_shards  # beside this one
from torch.utils.data import DataLoader

from dejavu_lit.data.module import PairDataModule
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.settings import LoaderSettings
from dejavu_lit.data.shards import Pair, ShardSet, index_shard
from dejavu_lit.models.preprocess import Preprocess

BATCH = 50
PREPROCESS = {
    "size": 224,
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def write_data(folder: Path, pairs: int) -> ShardSet:
    """The shards: 50 different images, so that writing them does not take long."""
    random = np.random.default_rng(0)
    images = [photograph(random) for _ in range(50)]
    caption = "a photograph of number {} with some words that a person could write"
    made = (Pair(f"{n:06d}", images[n % len(images)], "jpg", caption.format(n), {"number": n}) for n in range(pairs))
    return write_shards(folder / "A", made, 500)


def peer(shards: ShardSet, preprocess: Any, tokenizer: Any, workers: int) -> Iterable[Any]:
    """webdataset's own reader."""

    def collate(samples: Sequence[tuple[np.ndarray, str]]) -> tuple[torch.Tensor, torch.Tensor]:
        images, captions = zip(*samples, strict=True)
        return torch.from_numpy(np.stack(images)), tokenizer(list(captions))

    dataset = (
        webdataset.WebDataset([str(shards.folder / name) for name in shards.names], shardshuffle=False)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(preprocess, str.strip)
        .batched(BATCH, collation_fn=collate)
    )
    return DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)


def ours(folder: Path, preprocess: Any, tokenizer: Any, workers: int) -> Iterator[Any]:
    """The training's own reader; nothing is cached, and the shards are indexed anew."""
    index_shard.cache_clear()
    settings = LoaderSettings(workers=workers, cache_mb=0)
    pairs = PairDataModule(
        DataSpec("photographs", str(folder)), "target", BATCH, 0, preprocess, tokenizer, loader=settings
    )
    pairs.setup("fit")
    yield from pairs.train_dataloader()
    pairs.teardown("fit")


def seconds_per_pair(reader: Iterable[Any]) -> float:
    """How long a pair takes, with the start of the processes and the opening of the shards."""
    begun = time.perf_counter()
    count = sum(BATCH for _ in reader)
    return (time.perf_counter() - begun) / count


def main() -> None:
    """Print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="the best of this many")
    arguments = parser.parse_args()
    preprocess, tokenizer = Preprocess(PREPROCESS), open_clip.get_tokenizer("ViT-B-32")
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        shards = write_data(folder, arguments.pairs)
        for workers in (0, 2):
            best = {"ours": float("inf"), "peer": float("inf")}
            readers: dict[str, Callable[[], Iterable[Any]]] = {
                "peer": lambda workers=workers: peer(shards, preprocess, tokenizer, workers),
                "ours": lambda workers=workers: ours(folder, preprocess, tokenizer, workers),
            }
            for _ in range(arguments.rounds):
                for name, reader in readers.items():
                    best[name] = min(best[name], seconds_per_pair(reader()))
            line = {
                "name": f"reading_{workers}_workers" if workers else "reading",
                "ratio": best["peer"] / best["ours"],
                "ours": 1 / best["ours"],
                "peer": 1 / best["peer"],
                "unit": "pairs/s",
                "threshold": 0.95,
                "peer_is": "webdataset.WebDataset with the same decoding, resizing and tokenizer",
                "pairs": arguments.pairs,
                "workers": workers,
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
