"""An evaluation that two processes share, however they were started, gives the tables and figures of one."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from dejavu_lit.utils.distributed import current_ranks, process_group
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT, SMALL, call, run
from tests.models.tiny import write_clip
from tests.starter import free_port

OPTIONS = ["k=5", "ks=[1,5]", "report.write=false"]
DDP = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Two untrained models on scenes in shards of 20 pairs."""
    base = tmp_path_factory.mktemp("shared")
    data = base / "scenes"
    run("prepare", f"data.dir={data}", "pairs_per_shard=20", *[o for o in SMALL if o.startswith("data.")])
    models = [f"local-dir:{write_clip(base / str(seed), seed)}" for seed in (0, 1)]
    return [
        f"target={models[0]}",
        f"reference={models[1]}",
        "data=scenes",
        f"data.dir={data}",
        "swapped=true",
        *OPTIONS,
    ]


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    """The evaluation by one process."""
    out = tmp_path_factory.mktemp("alone") / "gap"
    done = call("evaluate", *options, f"out={out}")
    assert done.returncode == 0, done.stderr
    return out


def begin(command, environment=None):
    """A process in a session of its own, with the usual handling of signals."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process, seconds=240):
    """(code, what it said); killed with all that it started where it hangs."""
    try:
        out, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out + said


def by_itself(arguments):
    """``trainer=ddp``: the command starts its own ranks."""
    return [begin([sys.executable, str(ROOT / "evaluate.py"), *arguments, *DDP])]


def by_torchrun(arguments):
    """torchrun starts them."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [begin([sys.executable, *launcher, str(ROOT / "evaluate.py"), *arguments])]


def by_srun(arguments):
    """Two processes with the environment of srun's tasks."""
    tasks = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        begin(
            [sys.executable, str(ROOT / "evaluate.py"), *arguments, "trainer.devices=2"],
            {**tasks, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]


def figures(folder):
    """metrics.json without what differs between any two calls."""
    found = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if name != "provenance"}


def same(one, two):
    """Whether two evaluations found the same, to the last bit."""
    for name in ("records", "records_null", "records_swapped"):
        tables = [pq.read_table(folder / f"{name}.parquet") for folder in (one, two)]
        assert tables[0].equals(tables[1]), name
    assert figures(one) == figures(two)
    assert not (two / "neighbors").exists()


# By a real srun in tests/slurm.
@pytest.mark.parametrize(
    "way", [by_itself, *(pytest.param(way, marks=pytest.mark.slow) for way in (by_torchrun, by_srun))]
)
def test_two_processes_give_the_evaluation_of_one(options, alone, tmp_path, way):
    out = tmp_path / "gap"
    for process in way([*options, f"out={out}"]):
        code, said = end(process)
        assert code == 0, said
    same(alone, out)


def held(path):
    """Whether a process holds the lock of a directory."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def embedding(options, out):
    """An evaluation that has started its ranks, and embedded a first part."""
    (process,) = by_itself([*options, f"out={out}"])
    until = time.monotonic() + 300
    while not list(out.glob("embeddings/*/*/*.npy")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    return process


def test_a_rank_that_is_killed_is_named(options, tmp_path):
    """As the system does when memory runs out: the rank itself says nothing."""
    process = embedding(options, tmp_path / "gap")
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    code, said = end(process)
    assert code == 137, said
    assert "error: rank 1 was killed by SIGKILL, often because memory ran out; run the same command again" in said


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_its_ranks_end_with_it(options, alone, tmp_path):
    out = tmp_path / "gap"
    process = embedding(options, out)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    until = time.monotonic() + 300
    while held(out / ".lock"):
        assert time.monotonic() < until
        time.sleep(0.1)
    (process,) = by_itself([*options, "fail_if=population.ppg.value>=-1", f"out={out}"])
    code, said = end(process)
    assert code == 3, said  # of rank 0, that the gate closes
    same(alone, out)


@pytest.mark.slow
def test_a_sweep_is_shared_evaluation_by_evaluation(runs, tmp_path):
    """Two pairs that work, one whose target has lost its model, and one whose records the first rank cannot write."""
    sweep = tmp_path / "sweep"
    for seed in range(4):
        for side in ("target", "reference"):
            one = sweep / f"{seed}{side}"
            shutil.copytree(runs[side], one, ignore=shutil.ignore_patterns("embeddings"))
            config = yaml.safe_load((one / "config.yaml").read_text()) | {"seed": seed}
            (one / "config.yaml").write_text(yaml.safe_dump(config))
    (sweep / "1target" / "model" / "open_clip_model.safetensors").unlink()
    for where in ("alone", "shared"):
        (tmp_path / where / "evaluations" / "all-s2" / "records.parquet").mkdir(parents=True)
    first = call("evaluate", f"sweep={sweep}", *OPTIONS, f"out={tmp_path / 'alone'}")
    shared = run("evaluate", f"sweep={sweep}", *OPTIONS, f"out={tmp_path / 'shared'}", check=False, ranks=2)
    for failed in (first, shared):
        assert failed.returncode == 1, failed.stderr
        assert "2 of 4 settings have no result: all-s1" in failed.stderr
        assert "all-s2/records.parquet: is a directory" in failed.stderr
        assert "Traceback" not in failed.stderr
    one, two = (json.loads((tmp_path / where / "study.json").read_text()) for where in ("alone", "shared"))
    assert [row["seed"] for row in two["settings"]] == [0, 3]
    assert one["settings"] == two["settings"]
    assert one["pooled"] == two["pooled"]
    for name in ("all-s0", "all-s3"):
        same(*(tmp_path / where / "evaluations" / name for where in ("alone", "shared")))


def test_annotating_is_shared(options, tmp_path):
    data = next(o for o in options if o.startswith("data.dir="))
    options = [
        "annotator=captions",
        "annotator.field=other",
        "max_failed=1",
        data,
        "sets=[A,P]",
    ]  # there are none: all fail
    for ranks, name in ((1, "alone"), (2, "shared")):
        run("annotate", *options, f"name={name}", ranks=ranks)
    objects = ROOT / data.partition("=")[2] / "objects"
    parts = [sorted(p.relative_to(objects / n) for p in objects.glob(f"{n}/*/*.parquet")) for n in ("alone", "shared")]
    assert parts[0] == parts[1]
    assert len(parts[0]) == 9
    for part in parts[0]:
        assert pq.read_table(objects / "alone" / part).equals(pq.read_table(objects / "shared" / part))
    listed = [(objects / name / "failed.csv").read_text().splitlines() for name in ("alone", "shared")]
    assert listed[0] == listed[1]
    assert len(listed[0]) == 1 + 96 + 64


@pytest.mark.parametrize(
    ("given", "environment", "said"),
    [
        (["trainer.devices=0"], {}, "trainer.devices=0 must be at least 1"),
        (
            ["trainer.devices=2", "trainer.num_nodes=2"],
            {},
            "trainer.num_nodes=2: processes on other machines cannot be started",
        ),
        (["trainer.precision=bf16-true"], {}, "trainer.precision applies to training only"),
        (
            ["trainer.loader.workers=4"],
            {},
            "trainer.loader.workers applies to training only; use workers=N for the threads that read and decode",
        ),
        (["trainer.devices=2", "out=null"], {}, "give out=DIR"),
        (
            ["trainer.devices=3"],
            {"WORLD_SIZE": "2"},
            "trainer.devices=3 and trainer.num_nodes=1 ask for 3 processes, but 2",
        ),
    ],
)
def test_what_cannot_be_is_a_sentence(given, environment, said, tmp_path, monkeypatch):
    if environment:
        ranks = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", **environment}
        for name, value in ranks.items():
            monkeypatch.setenv(name, value)
    done = call("evaluate", "target=none", "reference=none", f"out={tmp_path}", *given)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert said in done.stderr


def test_a_multirun_starts_no_processes_by_itself(tmp_path):
    options = ["-m", "target=none", "reference=none", "k=1,2", f"out={tmp_path}", "trainer.devices=2"]
    done = call("evaluate", *options, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    assert "--multirun cannot start several processes" in done.stderr


def test_tasks_that_lightning_would_not_count_are_a_sentence(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    for name, value in {"STEP_NUM_TASKS": "2", "NTASKS": "2", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(UserError, match="--ntasks-per-node"), process_group(current_ranks()):
        pass
