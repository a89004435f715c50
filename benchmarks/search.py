"""Exact nearest neighbors, 5,000 queries × 100,000 public vectors × 512, k = 100, read from fp16 parts on disk.

    python benchmarks/search.py             two JSON lines: `search` and, where the CPU has bfloat16, `search_bf16`
    python benchmarks/search.py --large     also 5,000,000 × 512 (5 GB on disk, 500 queries): time and peak memory

`search`: our rate (2 · queries · vectors · width operations over the whole time: reading, converting, searching, exact
re-ranking) with `index=flat` over the rate of numpy's float32 matrix product in tiles of its best size; the same with
`index=float32`, which `flat` is where the CPU has no bfloat16, stands beside it as `float32_ratio`. `search_bf16`: the
time of faiss's flat index on the same vectors, already in memory as float32, over that of `index=bf16`. All our results
must be the same. Peers and ours take turns, and the best of each counts.
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

import numpy as np

from dejavu_lit.evaluation.search import search
from dejavu_lit.evaluation.search_index import has_bfloat16
from dejavu_lit.measure.scores import Neighbors

QUERIES, PUBLIC, WIDTH, K, PARTS = 5_000, 100_000, 512, 100, 10
TILES = ((1024, 2048), (5000, 2048), (5000, 4096))  # shapes of the peer's products


def unit(random: np.random.Generator, count: int) -> np.ndarray:
    """Random unit vectors, float32 [count, WIDTH]."""
    vectors = random.standard_normal((count, WIDTH), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def product(queries: np.ndarray, public: np.ndarray, rows: int, columns: int) -> None:
    """All scores, a tile at a time."""
    tile = np.empty((rows, columns), np.float32)
    for first in range(0, len(public), columns):
        part = public[first : first + columns].T
        for start in range(0, len(queries), rows):
            asked = queries[start : start + rows]
            out = tile[: len(asked)] if part.shape[1] == columns else np.empty((len(asked), part.shape[1]), np.float32)
            np.matmul(asked, part, out=out)


def best(rounds: int, **turns: Callable[[], Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Least seconds and last result of each, the turns taken one after another in every round."""
    seconds, results = dict.fromkeys(turns, float("inf")), {}
    for _ in range(rounds):
        for name, turn in turns.items():
            begun = time.perf_counter()
            results[name] = turn()
            seconds[name] = min(seconds[name], time.perf_counter() - begun)
    return seconds, results


def neighbors(queries: np.ndarray, folder: Path, k: int, index: str) -> Neighbors:
    """Search the parts on disk."""
    return search(queries, [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))], k, index)[0]


def speed(rounds: int) -> None:
    """The two claims."""
    random = np.random.default_rng(0)
    queries, public = unit(random, QUERIES), unit(random, PUBLIC)
    stored = queries.astype(np.float16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, part in enumerate(np.array_split(public.astype(np.float16), PARTS)):
            np.save(folder / f"{number:05d}.npy", part)
        indexes = ["flat", "float32", *(["bf16"] if has_bfloat16() else [])]
        begun = time.perf_counter()
        for index in indexes:
            neighbors(stored[:64], folder, 3, index)
        compiling = time.perf_counter() - begun
        turns: dict[str, Callable[[], Any]] = {
            f"sgemm {a}×{b}": lambda a=a, b=b: product(queries, public, a, b) for a, b in TILES
        }
        turns |= {index: lambda index=index: neighbors(stored, folder, K, index) for index in indexes}
        if faiss := _faiss():
            turns["faiss"] = lambda: faiss.knn(queries, public, K, metric=faiss.METRIC_INNER_PRODUCT)
        seconds, found = best(rounds, **turns)
    operations = 2 * QUERIES * PUBLIC * WIDTH / 1e9
    sgemm = operations / min(value for turn, value in seconds.items() if turn.startswith("sgemm"))
    ours = operations / seconds["flat"]
    for index in indexes:
        if not np.array_equal(found[index].rows, found["flat"].rows):
            raise SystemExit(f"index={index} gives other neighbors than index=flat")
    line: dict[str, Any] = {"name": "search", "ratio": ours / sgemm, "ours": ours, "peer": sgemm, "unit": "GFLOP/s"}
    line |= {
        "threshold": 0.85,
        "peer_is": "numpy float32 matrix product",
        "float32_ratio": operations / seconds["float32"] / sgemm,
    }
    line |= {"compile_s": compiling, "seconds": seconds, "bfloat16": has_bfloat16()}
    print(json.dumps(line | {"threads": os.cpu_count()}, ensure_ascii=False), flush=True)
    if "bf16" not in seconds or "faiss" not in seconds:
        return
    line = {"name": "search_bf16", "ratio": seconds["faiss"] / seconds["bf16"], "ours": seconds["bf16"]}
    line |= {"peer": seconds["faiss"], "unit": "s", "threshold": 1.4, "peer_is": "faiss flat"}
    print(json.dumps(line | {"threads": os.cpu_count()}), flush=True)


def large(count: int, index: str) -> None:
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
        neighbors(queries, folder, K, index)
        seconds = time.perf_counter() - begun
    line = {"name": "search_large", "index": index, "vectors": count, "bytes": size, "queries": 500, "seconds": seconds}
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


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="the best of this many")
    parser.add_argument("--large", action="store_true", help="also the search that does not fit in memory")
    parser.add_argument("--vectors", type=int, default=5_000_000, help="of the large search")
    arguments = parser.parse_args()
    speed(arguments.rounds)
    if arguments.large:
        for index in ("flat", "float32"):
            large(arguments.vectors, index)
