"""Exact nearest neighbors, 5,000 queries × 100,000 public vectors × 512, read from fp16 parts on disk.

    python benchmarks/search.py             two JSON lines: `search_10` and `search_100`, by the number of neighbors
    python benchmarks/search.py --large     also 5,000,000 × 512 (5 GB on disk, 500 queries): time and peak memory

The time of plain faiss (`faiss.knn`, which gets the vectors in memory as float32 and ranks by float32 scores) over the time
of the whole search: reading, converting, searching, exact re-ranking in float64. Both take turns, and the best of each counts.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from dejavu_lit.evaluation.search import search
from dejavu_lit.measure.scores import Neighbors

QUERIES, PUBLIC, WIDTH, PARTS = 5_000, 100_000, 512, 10


def unit(random: np.random.Generator, count: int) -> np.ndarray:
    """Random unit vectors, float32 [count, WIDTH]."""
    vectors = random.standard_normal((count, WIDTH), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def claim_memory() -> None:
    """Use as much memory as a turn needs, and free it.

    A virtual machine may give freed memory back to its host within seconds (free page reporting). Using it again then takes
    0.25 s for 205 MB instead of 0.01 s, which a search would pay in every round for the chunk that it reads, and plain faiss,
    whose vectors stay in memory, in none.
    """
    np.ones((PUBLIC, WIDTH), np.float32)


def best(rounds: int, **turns: Callable[[], Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Least seconds and last result of each, the turns taken one after another in every round."""
    seconds, results = dict.fromkeys(turns, float("inf")), {}
    for _ in range(rounds):
        for name, turn in turns.items():
            claim_memory()
            begun = time.perf_counter()
            results[name] = turn()
            seconds[name] = min(seconds[name], time.perf_counter() - begun)
    return seconds, results


def neighbors(queries: np.ndarray, folder: Path, k: int) -> Neighbors:
    """Search the parts on disk."""
    return search(queries, [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))], k)[0]


def speed(rounds: int) -> None:
    """The claim, for few and for many neighbors."""
    random = np.random.default_rng(0)
    queries, public = unit(random, QUERIES), unit(random, PUBLIC)
    stored = queries.astype(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, part in enumerate(np.array_split(public.astype(np.float16), PARTS)):
            np.save(folder / f"{number:05d}.npy", part)
        for k in (10, 100):
            seconds, _ = best(
                rounds,
                ours=lambda k=k: neighbors(stored, folder, k),
                faiss=lambda k=k: faiss.knn(queries, public, k, metric=faiss.METRIC_INNER_PRODUCT),
            )
            line: dict[str, Any] = {"name": f"search_{k}", "ratio": seconds["faiss"] / seconds["ours"]}
            line |= {"ours": seconds["ours"], "peer": seconds["faiss"], "unit": "s", "threshold": 0.9}
            print(json.dumps(line | {"peer_is": "faiss.knn", "threads": os.cpu_count()}), flush=True)


def large(count: int) -> None:
    """Five million vectors on disk: time and the peak memory of this process."""
    random = np.random.default_rng(0)
    queries = unit(random, 500).astype(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(-(-count // 250_000)):
            rows = min(250_000, count - number * 250_000)
            np.save(folder / f"{number:05d}.npy", unit(random, rows).astype(np.float16))
        size = sum(path.stat().st_size for path in folder.glob("*.npy"))
        _forget_peak()
        begun = time.perf_counter()
        neighbors(queries, folder, 100)
        seconds = time.perf_counter() - begun
    line = {"name": "search_large", "vectors": count, "bytes": size, "queries": 500, "seconds": seconds}
    print(json.dumps(line | {"peak_gb": _peak() / 1e9, "threshold_gb": 2.5}), flush=True)


def _forget_peak() -> None:
    """Making the data took memory that searching does not: start the peak anew where Linux lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """The largest resident size of this process in bytes, pages of memory-mapped files included."""
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024.0
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="the best of this many")
    parser.add_argument("--large", action="store_true", help="also the search that does not fit in memory")
    parser.add_argument("--vectors", type=int, default=5_000_000, help="of the large search")
    arguments = parser.parse_args()
    speed(arguments.rounds)
    if arguments.large:
        large(arguments.vectors)
