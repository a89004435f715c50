"""Membership scores of 100,000 pairs against 512 others under both models, and their figures, after embedding.

    python benchmarks/membership.py               one JSON line; a few seconds
    python benchmarks/membership.py --growth      also 10,000 to 1,000,000 pairs: time and peak memory

The vectors are random, float16 as they are stored. The cosines are computed in chunks, so memory grows with the vectors alone.
"""

import argparse
import json
import os
import resource
import time
from typing import Any

import numpy as np

from dejavu_lit.measure.model_scores import OTHERS, OtherPairs, model_scores
from dejavu_lit.measure.roc import Auc, attack


def speed(pairs: int, width: int) -> dict[str, Any]:
    """The claim ``membership``: all scores of two models, and the figures of one attack."""
    random = np.random.default_rng(0)
    images, captions = (random.standard_normal((pairs, width), np.float32).astype(np.float16) for _ in range(2))
    keys = [str(i) for i in range(pairs)]
    h_keys = [f"h{i}" for i in range(OTHERS + 1)]
    h_images, h_captions = (random.standard_normal((OTHERS + 1, width), np.float32) for _ in range(2))
    begin, cpu = time.perf_counter(), time.process_time()
    scores = [model_scores(keys, images, captions, OtherPairs(h_keys, h_images, h_captions), 100.0) for _ in range(2)]
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    half = pairs // 2
    figures = attack(scores[0]["alignment"][:half], scores[1]["alignment"][half:])
    assert Auc(scores[0]["loss"], scores[1]["loss"]).value == 0.5  # the same vectors twice
    return {
        "name": "membership",
        "ours": round(seconds, 2),
        "unit": "s",
        "cpu": round(cpu, 2),
        "figures": round(time.perf_counter() - begin - seconds, 2),
        "auc": round(figures["auc"]["value"], 3),
        "pairs": pairs,
        "others": OTHERS,
        "width": width,
        "models": 2,
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "cores": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    """Print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true", help="also time and peak memory up to a million pairs")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    arguments = parser.parse_args()
    print(json.dumps(speed(arguments.pairs, arguments.width)), flush=True)
    if arguments.growth:
        for pairs in (10_000, 100_000, 1_000_000):
            print(json.dumps(speed(pairs, arguments.width)), flush=True)


if __name__ == "__main__":
    main()
