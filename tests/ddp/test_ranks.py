"""Two gloo processes against one: loss, gradients and weights, the pairs each saw, resuming, and ranks that die."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from dejavu_lit.data.epoch import epoch_plan
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.utils.io import read_json, write_json
from tests.conftest import ROOT, SMALL, run, weights
from tests.data.test_epoch import batches

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
BASE = ["side=target", *SMALL]


def start(processes, *arguments, launcher=None):
    """``processes`` by torchrun, or by ``launcher``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [
            *(launcher or (TORCHRUN if processes == 2 else [sys.executable])),
            *map(str, arguments),
            f"trainer.devices={processes}",
        ],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process, seconds=400):
    """What it said; the whole group is killed where it hangs."""
    try:
        said = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return said


def notes(folder, processes, mode, *options):
    """What every rank noted of a training."""
    options = [*BASE, *options, f"out={folder / 'run'}", f"trainer.devices={processes}"]
    run("tests/ddp/ranks", str(folder / "notes"), mode, *options, ranks=processes)
    return [torch.load(folder / "notes" / f"{rank}.pt", weights_only=True) for rank in range(processes)]


@pytest.mark.parametrize(
    "options",
    [
        ["mitigation.label_smoothing=0.1", "mitigation.gradient_noise=0.1", "mitigation.ema=0.9"],
        ["+model.config.init_logit_bias=-10"],  # SigLIP's loss
        pytest.param(["recipe.accumulate=2", "trainer.checkpointing=true"], marks=pytest.mark.slow),
        ["mitigation.lora_rank=4", "mitigation.lock_image=true", "mitigation.unlocked_groups=2", "model.init=BASE"],
        pytest.param(["mitigation.lock_text=true", "model.init=BASE"], marks=pytest.mark.slow),
    ],
    ids=["clip", "siglip", "parts", "adapters", "locked"],
)
def test_two_ranks_compute_what_one_process_does_on_the_same_global_batches(scenes, trained, tmp_path, options):
    options = [
        *[option.replace("BASE", str(trained["reference"])) for option in options],
        f"data.dir={scenes}",
        "recipe.epochs=1",
    ]
    (one,) = notes(tmp_path / "one", 1, "same", *options)
    two = notes(tmp_path / "two", 2, "same", *options)
    assert torch.equal(torch.cat([two[0]["pairs"], two[1]["pairs"]], dim=1), one["pairs"])
    torch.testing.assert_close((two[0]["losses"] + two[1]["losses"]) / 2, one["losses"], rtol=1e-5, atol=1e-6)
    for name, gradient in one["gradients"].items():
        scale = gradient.abs().max()
        for rank in two:
            assert (rank["gradients"][name] - gradient).abs().max() <= 1e-5 * scale + 1e-9, name
    for name in one["weights"]:
        assert torch.equal(two[0]["weights"][name], two[1]["weights"][name]), name
    # All together: AdamW makes whole steps of the rounding errors where a gradient is 0, as those of the keys' biases are.
    trained = [name for name, value in one["weights"].items() if value.is_floating_point() and value.isfinite().all()]
    off = sum((two[0]["weights"][name] - one["weights"][name]).square().sum() for name in trained)
    assert off <= 1e-8 * sum(one["weights"][name].square().sum() for name in trained)


def test_each_pair_is_seen_as_planned_and_both_ranks_end_alike_with_every_knob(scenes, tmp_path):
    options = ["mitigation.text_mask=0.3", "mitigation.patch_dropout=0.25", "mitigation.gradient_noise=0.1"]
    options += [
        "mitigation.ema=0.9",
        "mitigation.text_random=0.1",
        "mitigation.text_noise=0.1",
        "recipe.accumulate=2",
        "trainer.log_every=1",
    ]
    found = notes(tmp_path, 2, "plan", *options, f"data.dir={scenes}")
    shards = ShardSet.open(scenes / "A")
    for rank, noted in enumerate(found):
        plans = [epoch_plan(shards.sizes, 0, epoch, world=2, workers=0, batch=8) for epoch in range(2)]
        planned = [shards.starts[b[:, 0]] + b[:, 1] for plan in plans for b in batches(plan, rank)]
        assert noted["pairs"].tolist() == [batch.tolist() for batch in planned]
        assert noted["waits"] == 0  # Lightning would have all wait for rank 0's word at every step
    seen = torch.cat([noted["pairs"].flatten() for noted in found])
    assert torch.bincount(seen, minlength=96).tolist() == [2] * 96
    for name, value in found[0]["weights"].items():
        assert torch.equal(value, found[1]["weights"][name]), name
    assert json.loads((tmp_path / "run" / "run.json").read_text())["exposure"]["mean"] == 2.0
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    losses = [line for line in lines if line.split(",")[2] == "val_loss"]
    assert len(losses) == 2  # once an epoch, not once a rank


LONG = ["recipe.epochs=25", "trainer.checkpoint_epochs=100", "mitigation.text_mask=0.3", "mitigation.ema=0.9"]


def rows(run):
    return len((run / "metrics.csv").read_text().splitlines()) if (run / "metrics.csv").exists() else 0


def begin(processes, run, *options, launcher=None):
    """A training that has done some steps, however many."""
    process = start(processes, ROOT / "train.py", *BASE, *options, f"out={run}", launcher=launcher)
    wanted, until = random.Random(str(run)).randrange(10, 60), time.monotonic() + 300
    while rows(run) < wanted:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_is_killed_twice_ends_like_an_undisturbed_one(scenes, tmp_path, processes):
    """First by SIGKILL at some step, then by the warning of a scheduler."""
    options = [*LONG, f"data.dir={scenes}", "trainer.checkpoint_steps=7"]
    whole = start(processes, ROOT / "train.py", *BASE, *options, f"out={tmp_path / 'whole'}")
    said = end(whole)
    assert whole.returncode == 0, said
    run = tmp_path / "killed"
    process = begin(processes, run, *options)
    kill_all(process, run)
    before, saved = rows(run), (run / "checkpoints" / "last.ckpt").exists()
    process = start(processes, ROOT / "train.py", *BASE, *options, f"out={run}")
    until = time.monotonic() + 240
    while rows(run) < before + 20 and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(trainers(run)[-1], signal.SIGUSR1)  # one rank is told, all save
    said = end(process)
    assert said.count("SIGUSR1: saved") == 1  # by rank 0
    assert (resumed(said) > 0) == saved
    assert process.returncode == (128 + signal.SIGUSR1 if processes == 1 else 1)
    assert not (run / "run.json").exists()
    process = start(processes, ROOT / "train.py", *BASE, *options, f"out={run}")
    said = end(process)
    assert process.returncode == 0, said
    assert resumed(said) > 0
    one, two = weights(tmp_path / "whole"), weights(run)
    for name, value in one.items():
        if processes == 1:
            assert torch.equal(value, two[name]), name
        else:
            torch.testing.assert_close(value, two[name], rtol=1e-4, atol=1e-5, msg=name)
    records = [json.loads((path / "run.json").read_text()) for path in (tmp_path / "whole", run)]
    assert records[0]["steps"] == records[1]["steps"] == 150
    assert records[0]["exposure"] == records[1]["exposure"]


def resumed(said):
    """The step that a training went on at, 0 if it started over."""
    found = re.search(r"resuming \S+ at step (\d+)", said)
    return int(found.group(1)) if found else 0


def trainers(run):
    """The processes that train in a directory, oldest first; those of torchrun are in sessions of their own."""
    found = subprocess.run(["ps", "-wwo", "pid=,args=", "-e"], capture_output=True, text=True).stdout
    lines = [line.split(None, 1) for line in found.splitlines()]
    return sorted(int(pid) for pid, args in lines if f"out={run} " in args and "torch.distributed.run" not in args)


def kill_all(process, run):
    for pid in [*trainers(run), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return process.communicate()[1]


@pytest.mark.parametrize(
    ("sign", "rank"), [(signal.SIGKILL, 0), pytest.param(signal.SIGSTOP, 1, marks=pytest.mark.slow)]
)
def test_a_rank_that_dies_or_stops_ends_the_others(scenes, tmp_path, sign, rank):
    """With Lightning's own launcher, which has nobody that watches over its ranks."""
    run = tmp_path / "run"
    options = ["recipe.epochs=100000", f"data.dir={scenes}", "trainer.timeout_min=1"]
    process = begin(2, run, *options, launcher=[sys.executable])
    try:
        ranks = trainers(run)
        assert len(ranks) == 2
        os.kill(ranks[rank], sign)
        wanted, until = [ranks[rank]] if sign == signal.SIGSTOP else [], time.monotonic() + 400
        while set(trainers(run)) - set(wanted) and time.monotonic() < until:
            process.poll()  # or it would stay a zombie
            time.sleep(0.2)
        assert set(trainers(run)) <= set(wanted)
        assert process.wait(300) != 0
    finally:
        said = kill_all(process, run)
    assert "Traceback" not in said
    assert "error: the 2 processes lost each other" in said


def test_ranks_say_why_rank_0_could_not_write_the_results(scenes, trained, tmp_path):
    """With Lightning's own launcher: rank 1 lives on, and waits for rank 0."""
    run = tmp_path / "run"
    (run / "run.json").mkdir(parents=True)  # no file can have this name
    shutil.copy(trained["target"] / "config.yaml", run)
    process = start(2, ROOT / "train.py", *BASE, f"data.dir={scenes}", f"out={run}", launcher=[sys.executable])
    said = end(process)
    assert process.returncode == 1
    assert "Traceback" not in said
    problem = f"error: {run / 'run.json'}: is a directory"
    assert sorted(line for line in said.splitlines() if "error:" in line) == [problem, f"{problem} (rank 0 of 2)"]


@pytest.mark.parametrize(
    ("option", "changed"), [("recipe.lr=0.00$((RANK + 1))", "recipe.lr: 0.001"), ("data.dir=DATA$RANK", "manifest")]
)
def test_a_rank_with_other_settings_or_data_is_named_before_anything_is_trained(scenes, tmp_path, option, changed):
    """A copy of the data on one node may be of an earlier preparation; its pairs would be other ones, without a word."""
    for rank in (0, 1):
        shutil.copytree(scenes, tmp_path / f"data{rank}")
    manifest = tmp_path / "data1" / "manifest.json"
    write_json(manifest, read_json(manifest) | {"version": "earlier"})
    given = f'"{option.replace("DATA", str(tmp_path / "data"))}"'
    command = f'exec {sys.executable} train.py "$@" {given} trainer.devices=2 out={tmp_path / "run"}'
    launcher = [*TORCHRUN, "--no-python", "bash", "-c", command, "bash", f"data.dir={scenes}", *BASE]
    said = end(start(2, launcher=launcher))
    assert f"error: rank 1 differs from rank 0 ({changed}" in said
    assert not (tmp_path / "run" / "checkpoints").exists()
