"""Raw shards against prepared data: the same pairs, another split, the same gap; 20 minutes on two cores, as the demo twice."""

import json
import random

import pytest

from dejavu_lit.data.objects import read_part
from dejavu_lit.data.shards import ShardSet, read_pairs, write_shard
from tests.conftest import run

pytestmark = pytest.mark.slow
SETS = "ABHVP"
RAW = [
    "data=stream",
    "data.fractions={A: 0.19, B: 0.19, H: 0.19, V: 0.048, P: 0.38}",
    "data.sizes={A: 1850, B: 1850, H: 1850, V: 450, P: 3850}",
]


def symmetric_ppg(folder, data, objects):
    """Train both models on ``data`` and measure them."""
    for side in ("target", "reference"):
        run("train", f"side={side}", *data, f"out={folder / side}")
    sides = [f"{side}={folder / side}" for side in ("target", "reference")]
    run("evaluate", *sides, *data, f"objects={objects}", f"out={folder / 'gap'}", "report.write=false")
    metrics = json.loads((folder / "gap" / "metrics.json").read_text())
    return metrics["symmetric"]["ppg"]["value"], metrics


def test_the_gap_on_raw_shards_is_that_on_prepared_data(tmp_path):
    prepared = tmp_path / "prepared"
    run("prepare", "data=scenes", f"data.dir={prepared}")
    expected, _ = symmetric_ppg(tmp_path / "on_prepared", ["data=scenes", f"data.dir={prepared}"], "scenes")

    pairs = [pair for name in SETS for pair in read_pairs(ShardSet.open(prepared / name))]
    random.Random(0).shuffle(pairs)
    first = number = 0
    while first < len(pairs):  # of unequal sizes, as img2dataset's are
        size = (1000, 700, 1300)[number % 3]
        with write_shard(tmp_path / "raw" / f"{number:05d}.tar") as write:
            for pair in pairs[first : first + size]:
                write(pair)
        first, number = first + size, number + 1
    tables = [read_part(part)[1] for name in SETS for part in (prepared / "objects/scenes" / name).glob("*.parquet")]
    rows = [row for table in tables for row in table.to_pylist()]
    lines = [f"{row['key']},{';'.join(row['labels'] or [])}\n" for row in rows]
    (tmp_path / "objects.csv").write_text("".join(["key,labels\n", *lines]))
    data = [*RAW, f"data.shards={tmp_path / 'raw'}", f"data.dir={tmp_path / 'samples'}"]
    samples = ["annotator=table", f"annotator.path={tmp_path / 'objects.csv'}"]
    run("prepare", *data)
    run("annotate", *samples, *data)
    found, metrics = symmetric_ppg(tmp_path / "on_raw", data, "table")
    assert found == pytest.approx(expected, abs=0.05)
    assert metrics["raw_shards"]["expected_exposure"]["target"] == pytest.approx(25, abs=1)
