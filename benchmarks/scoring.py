"""Scoring neighbors against objects, PPG/PRG/AUCG with 100 resamplings included: times faster than plain Python sets.

    python benchmarks/scoring.py                  one JSON line; under half a minute, nearly all of it the peer's
    python benchmarks/scoring.py --growth         also 10,000 to 1,000,000 records × k 100 × 21,000 labels: time and peak memory

The peer is what the literature's code does: a loop over the records, ``numpy.unique`` per neighbor, Python sets, and every
resampling drawn record by record. It runs in the same process on the same data, and the figures must be equal. One run of our
kernels on four records comes first, so that compiling them is timed apart.
"""

import argparse
import json
import os
import resource
import time
from typing import Any

import numpy as np

from dejavu_lit.data.objects import Objects
from dejavu_lit.measure.gaps import estimate, outcomes
from dejavu_lit.measure.scores import Neighbors, score
from dejavu_lit.measure.settings import Resampling

RESAMPLINGS = 100
SHARE = 0.1


def objects(random: np.random.Generator, images: int, labels: int) -> Objects:
    """Images with 1–9 different objects each."""
    counts = random.integers(1, 10, images)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    # Steps of at least 1 below labels / 9 make the codes of an image ascending and different.
    steps = random.integers(1, max(2, labels // 9), starts[-1])
    total = np.cumsum(steps)
    codes = (total - np.repeat(total[starts[:-1]] - random.integers(0, labels // 9, images), counts)).astype(np.int32)
    return Objects(tuple(map(str, range(images))), starts, codes, tuple(f"{i:06d}" for i in range(labels)))


def neighbors(random: np.random.Generator, records: int, images: int, k: int) -> Neighbors:
    """Random neighbors; plain scoring never looks at the distances, so they take no memory."""
    rows = random.integers(0, images, (records, k), dtype=np.int32)
    return Neighbors(rows, np.broadcast_to(np.float32(0), rows.shape))


def ours(sides: list[Neighbors], public: Objects, truth: Objects, k: int) -> dict[str, dict[str, Any]]:
    """The three gaps, with mean and std over the resamplings and a bootstrap of the least size, which the peer has none of."""
    target, reference = (score(side, public, truth, [k]) for side in sides)
    return estimate(outcomes(target, reference, k), Resampling(RESAMPLINGS, SHARE, bootstrap=100)).block()


def plain(sides: list[Neighbors], public: Objects, truth: Objects, k: int) -> dict[str, tuple[float, float, float]]:
    """The peer: {figure: (value, mean, std)}."""
    sets = [set(truth.codes[truth.starts[i] : truth.starts[i + 1]].tolist()) for i in range(len(truth))]
    rates = []
    for side in sides:
        precisions, recalls = [], []
        for i, wanted in enumerate(sets):
            guess: set[int] = set()
            for row in side.rows[i, :k]:
                guess |= set(np.unique(public.codes[public.starts[row] : public.starts[row + 1]]).tolist())
            hits = len(guess & wanted)
            precisions.append(hits / len(guess) if guess else 0.0)
            recalls.append(hits / len(wanted))
        rates.append((np.array(precisions), np.array(recalls)))
    (p_t, r_t), (p_r, r_r) = rates
    per_record = {
        "ppg": (p_t > p_r).astype(float) - (p_t < p_r),
        "prg": (r_t > r_r).astype(float) - (r_t < r_r),
        "aucg": r_t - r_r,
    }
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(sets), round(SHARE * len(sets))) for _ in range(RESAMPLINGS)]
    found = {}
    for name, d in per_record.items():
        means = np.array([d[draw].mean() for draw in draws])
        found[name] = (float(d.mean()), float(means.mean()), float(means.std()))
    return found


def speed(records: int, k: int, labels: int, images: int) -> dict[str, Any]:
    """The claim ``scoring``."""
    random = np.random.default_rng(0)
    public, truth = objects(random, images, labels), objects(random, records, labels)
    sides = [neighbors(random, records, images, k) for _ in range(2)]
    begin = time.perf_counter()
    ours([side[:4] for side in sides], public, truth.take(truth.keys[:4]), k)
    compiling = time.perf_counter() - begin
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        made = ours(sides, public, truth, k)
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    peer = plain(sides, public, truth, k)
    peer_time = time.perf_counter() - begin
    for name, (value, mean, std) in peer.items():
        # The same figures; the two draws of 100 subsamples differ by chance: 10 % and 7 % are one standard deviation.
        assert abs(made[name]["value"] - value) < 1e-12, (name, made[name]["value"], value)
        assert abs(made[name]["mean"] - mean) < 5 * 0.15 * std, (name, made[name]["mean"], mean)
        assert 0.5 < made[name]["std"] / std < 2, (name, made[name]["std"], std)
    best = sorted(times)[len(times) // 2]
    return {
        "name": "scoring",
        "ratio": round(peer_time / best, 1),
        "ours": round(best, 4),
        "peer": round(peer_time, 2),
        "unit": "s",
        "peer_is": "loop over Python sets, numpy.unique per neighbor",
        "first_call": round(compiling, 3),
        "records": records,
        "k": k,
        "labels": labels,
        "cores": len(os.sched_getaffinity(0)),
    }


def growth(records: int, k: int, labels: int, images: int) -> dict[str, Any]:
    """Time and peak memory of one size; the neighbors of one model are made, scored and dropped before the other's."""
    random = np.random.default_rng(0)
    public, truth = objects(random, images, labels), objects(random, records, labels)
    score(neighbors(random, 4, images, k), public, truth.take(truth.keys[:4]), [k])  # compiles
    seconds, scores = 0.0, []
    for _ in range(2):
        side = neighbors(random, records, images, k)
        begin = time.perf_counter()
        scores.append(score(side, public, truth, [k]))
        seconds += time.perf_counter() - begin
        del side
    begin = time.perf_counter()
    estimate(outcomes(*scores, k), Resampling(RESAMPLINGS, SHARE))
    seconds += time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "name": "scoring_growth",
        "records": records,
        "k": k,
        "labels": labels,
        "ours": round(seconds, 2),
        "unit": "s",
        "per_record_us": round(seconds / records * 1e6, 2),
        "peak_mib": round(peak),
    }


def main() -> None:
    """Print the JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", action="store_true", help="also time and peak memory up to a million records")
    parser.add_argument("--records", type=int, default=20_000)
    arguments = parser.parse_args()
    print(json.dumps(speed(arguments.records, 100, 1000, 10_000)), flush=True)
    if arguments.growth:
        for records in (10_000, 100_000, 1_000_000):
            print(json.dumps(growth(records, 100, 21_000, 50_000)), flush=True)


if __name__ == "__main__":
    main()
