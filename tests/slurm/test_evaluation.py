"""evaluate.py and annotate as two tasks of one step of a job: the tables and parts of one process."""

import json
import sys

import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT, SMALL, run
from tests.models.tiny import write_clip
from tests.slurm.conftest import sbatch


@pytest.mark.slow
def test_two_tasks_evaluate_and_annotate_as_one_process(cluster, tmp_path):
    data = tmp_path / "scenes"
    run("prepare", f"data.dir={data}", "pairs_per_shard=20", *[o for o in SMALL if o.startswith("data.")])
    sides = ("target", "reference")
    models = [f"{side}=local-dir:{write_clip(tmp_path / side, seed)}" for seed, side in enumerate(sides)]
    evaluation = [*models, "data=scenes", f"data.dir={data}", "swapped=true", "k=5", "ks=[1,5]", "report.write=false"]
    objects = ["annotator=captions", "annotator.field=other", "max_failed=1", f"data.dir={data}", "sets=[A,P]"]
    evaluate, annotate = f"{ROOT / 'evaluate.py'}", "-m dejavu_lit annotate"
    two = f"out={tmp_path / 'two'}"
    steps = [
        f"srun {sys.executable} {evaluate} {words([*evaluation, two])}",
        f"srun {sys.executable} {annotate} {words([*objects, 'name=two'])}",
    ]
    job = sbatch(cluster, tmp_path, "set -e\n" + "\n".join(steps))
    run("evaluate", *evaluation, f"out={tmp_path / 'one'}")
    run("annotate", *objects, "name=one")
    assert cluster.wait(job) == "COMPLETED", (tmp_path / f"{job}.log").read_text()
    for name in ("records.parquet", "records_null.parquet", "records_swapped.parquet"):
        one, two = (pq.read_table(tmp_path / where / name).to_pylist() for where in ("one", "two"))
        assert one == two
    one, two = (json.loads((tmp_path / where / "metrics.json").read_text()) for where in ("one", "two"))
    for name in ("population", "null", "swapped", "symmetric", "by_k", "sample", "utility", "counts"):
        assert one[name] == two[name]
    parts = sorted(path.relative_to(data / "objects" / "one") for path in data.glob("objects/one/*/*.parquet"))
    assert len(parts) == 9
    for part in parts:
        assert pq.read_table(data / "objects/one" / part).equals(pq.read_table(data / "objects/two" / part))


def words(options):
    return " ".join(f"'{option}'" for option in options)
