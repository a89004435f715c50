"""A run and its directory: started again, killed, resumed, or started with other settings."""

import csv
import json
import shutil
import tempfile
import time
from pathlib import Path

import open_clip
import pytest
import torch
import yaml

from tests.conftest import SMALL, call, run, weights
from tests.starter import starter


def rows(folder):
    if not (folder / "metrics.csv").exists():
        return []
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_directory_contains_every_artifact(runs, scenes):
    out = runs["target"]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["side"] == "target"
    assert config["data"]["dir"] == str(scenes)
    record = json.loads((out / "run.json").read_text())
    assert record["steps"] == record["batches"] == 12  # 96 pairs, batches of 16, two epochs
    assert record["exposure"] == {"mean": 2.0, "min": 2, "max": 2}
    assert record["provenance"]["versions"]["torch"] == torch.__version__.split("+")[0]
    assert {p.name for p in (out / "checkpoints").iterdir()} == {"epoch=0001.ckpt", "epoch=0002.ckpt", "last.ckpt"}
    for path in (out / "checkpoints").iterdir():
        torch.load(path, weights_only=True)
    assert {r["metric"] for r in rows(out)} >= {"loss", "val_loss", "val_accuracy", "logit_scale", "lr", "pairs/s"}


def test_plain_open_clip_loads_the_trained_weights(runs):
    last = torch.load(runs["target"] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{runs['target'] / 'model'}")
    for name, value in model.state_dict().items():
        assert torch.equal(value, last[f"model.{name}"]), name


def test_a_finished_run_says_so_and_stops(runs, scenes):
    before = (runs["target"] / "run.json").read_bytes()
    done = call("train", "side=target", f"data.dir={scenes}", f"out={runs['target']}", *SMALL)
    assert "finished" in done.stderr
    assert f"\n  dejavu evaluate target={runs['target']} reference=REFERENCE\n" in done.stdout
    assert (runs["target"] / "run.json").read_bytes() == before


def test_other_settings_in_the_same_directory_are_refused_by_name(runs, scenes):
    done = run("train", "side=target", f"data.dir={scenes}", f"out={runs['target']}", *SMALL, "seed=5", check=False)
    assert done.returncode == 1
    assert "seed: 0 → 5" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unfinished_run_whose_config_was_edited_is_refused_by_name(runs, tmp_path):
    run_directory = shutil.copytree(runs["target"], tmp_path / "run")
    (run_directory / "run.json").unlink()
    before = (run_directory / "config.yaml").read_text()
    config = yaml.safe_load(before)
    for changed, message in (
        ({"side": "reference"}, "side: target → reference"),
        ({"recipe": {**config["recipe"], "epochs": 4}}, "recipe.epochs: 2 → 4"),
        ({"data": {**config["data"], "seed": 3}}, "data.seed: 0 → 3"),
        (
            {"mitigation": {**config["mitigation"], "logit_scale_fixed": 9.0}},
            "mitigation.logit_scale_fixed: null → 9.0",
        ),
    ):
        (run_directory / "config.yaml").write_text(yaml.safe_dump({**config, **changed}))
        done = run("resume", str(run_directory), check=False)
        assert done.returncode == 1
        assert f"changed after it was started ({message}); restore its config.yaml" in done.stderr
    (run_directory / "config.yaml").write_text(before)
    run("resume", str(run_directory))
    assert all(torch.equal(value, weights(runs["target"])[name]) for name, value in weights(run_directory).items())


def test_the_same_seed_gives_the_same_weights(runs, scenes, tmp_path):
    run("train", "side=target", f"data.dir={scenes}", f"out={tmp_path / 'again'}", *SMALL)
    target, again = weights(runs["target"]), weights(tmp_path / "again")
    assert all(torch.equal(target[name], again[name]) for name in target)
    reference = weights(runs["reference"])
    assert any(not torch.equal(target[name], reference[name]) for name in target)


@pytest.mark.parametrize(("workers", "precision"), [pytest.param(0, "32-true", marks=pytest.mark.slow), (2, "64-true")])
def test_a_killed_run_ends_with_the_weights_of_an_undisturbed_one(scenes, tmp_path, workers, precision):
    options = [*SMALL, "recipe.epochs=6", "mitigation.text_mask=0.3", "trainer.checkpoint_steps=1"]
    options += [
        f"trainer.loader.workers={workers}",
        f"trainer.precision={precision}",
        "trainer.checkpoint_epochs=100",
        f"data.dir={scenes}",
        "side=target",
    ]
    run("train", *options, f"out={tmp_path / 'undisturbed'}")
    process = starter().start("train", [*options, f"out={tmp_path / 'killed'}"], tmp_path / "log")
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not (last.exists() and len(rows(tmp_path / "killed")) > 8):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    assert not (tmp_path / "killed" / "run.json").exists()
    state = torch.load(last, weights_only=True)
    assert 0 < state["global_step"] < 36
    assert 0 < state["seconds"] < 1000
    plan = {name.replace(" per rank", " a rank"): value for name, value in state["plan"].items()}  # its earlier name
    assert plan != state["plan"]
    torch.save({**state, "plan": plan, "seconds": 1000.0}, last)  # as if training had taken that long so far
    done = run("train", *options, f"out={tmp_path / 'killed'}")
    record = json.loads((tmp_path / "killed" / "run.json").read_text())
    assert 1000 < record["seconds"] < 2000
    assert record["pairs_per_second"] < 1  # 6 epochs of 96 pairs in more than 1,000 seconds, rounded to one decimal
    assert "resuming" in done.stderr
    undisturbed, killed = weights(tmp_path / "undisturbed"), weights(tmp_path / "killed")
    assert all(torch.equal(undisturbed[name], killed[name]) for name in undisturbed)
    timing = ("pairs/s", "pairs/s/rank")
    metrics = [[r for r in rows(tmp_path / n) if r["metric"] not in timing] for n in ("undisturbed", "killed")]
    assert metrics[0] == metrics[1]
    exposure = [json.loads((tmp_path / n / "run.json").read_text())["exposure"] for n in ("undisturbed", "killed")]
    assert exposure[0] == exposure[1]


def test_a_checkpoint_is_written_in_its_own_folder_only(scenes, tmp_path, monkeypatch):
    """The folder of temporary files may be another file system: the file would be copied, and a kill would truncate it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    out, options = tmp_path / "run", ["side=target", f"data.dir={scenes}", *SMALL, "recipe.epochs=1"]
    assert call("train", *options, f"out={out}").returncode == 0
    names = {path.name for path in (out / "checkpoints").iterdir()}
    assert names == {"epoch=0001.ckpt", "last.ckpt"}


@pytest.mark.parametrize("base_is", ["changed", "gone"])
def test_a_resumed_run_needs_nothing_of_its_base(base_is, runs, scenes, tmp_path):
    """Its weights are in the checkpoint, its preprocessing and tokenizer in model/."""
    base = Path(shutil.copytree(runs["reference"] / "model", tmp_path / "base"))
    options = ["side=target", f"data.dir={scenes}", *SMALL, f"model.init=local-dir:{base}"]
    for name in ("whole", "resumed"):
        assert call("train", *options, f"out={tmp_path / name}").returncode == 0
    (tmp_path / "resumed/run.json").unlink()  # as if it had been killed before its end
    config = json.loads((base / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    if base_is == "changed":
        (base / "open_clip_config.json").write_text(json.dumps(config))
    else:
        shutil.rmtree(base)
    done = call("train", *options, f"out={tmp_path / 'resumed'}")
    assert done.returncode == 0, done.stderr
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    configs = [(tmp_path / name / "model/open_clip_config.json").read_text() for name in ("whole", "resumed")]
    assert configs[0] == configs[1]


def test_a_stop_epoch_does_not_change_the_learning_rate(scenes, tmp_path):
    base = ["side=target", f"data.dir={scenes}", *SMALL, "recipe.epochs=4", "trainer.log_every=1"]
    run("train", *base, f"out={tmp_path / 'full'}")
    run("train", *base, "mitigation.stop_epoch=2", f"out={tmp_path / 'stopped'}")
    full, stopped = (
        {r["step"]: r["value"] for r in rows(tmp_path / name) if r["metric"] == "lr"} for name in ("full", "stopped")
    )
    assert len(stopped) == 12
    assert len(full) == 24
    assert all(full[step] == value for step, value in stopped.items())
    assert json.loads((tmp_path / "stopped" / "run.json").read_text())["epochs"] == 2
    checkpoint = torch.load(tmp_path / "full" / "checkpoints" / "epoch=0002.ckpt", weights_only=True)["state_dict"]
    exported = weights(tmp_path / "stopped")
    assert all(torch.equal(exported[name], checkpoint[f"model.{name}"]) for name in exported)


def test_the_logit_scale_is_clamped_after_every_step(scenes, tmp_path):
    options = ["side=target", f"data.dir={scenes}", *SMALL, "trainer.log_every=1"]
    run("train", *options, "mitigation.logit_scale_max=10", f"out={tmp_path / 'run'}")
    scales = [float(r["value"]) for r in rows(tmp_path / "run") if r["metric"] == "logit_scale"]
    assert len(scales) == 12
    assert max(scales) <= 10 * (1 + 1e-6)
    assert max(scales) == pytest.approx(10)  # it starts at 14.3, so the clamp was applied


def test_clipping_accumulation_and_bf16_work_together(scenes, tmp_path):
    options = ["recipe.gradient_clip=0.1", "recipe.accumulate=2", "trainer.precision=bf16-mixed"]
    done = call("train", "side=target", f"data.dir={scenes}", f"out={tmp_path / 'run'}", *SMALL, *options)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["batches"], record["steps"]) == (12, 12)


def test_an_image_that_does_not_decode_is_replaced_and_counted(scenes, tmp_path):
    from dejavu_lit.data.shards import index_shard

    broken = tmp_path / "scenes"
    shutil.copytree(scenes, broken)
    index = index_shard(broken / "A" / "00000.tar")
    offset, size, _ = index.members[3]["png"]
    with open(index.path, "r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)
    done = run(
        "train", "side=target", f"data.dir={broken}", f"out={tmp_path / 'run'}", *SMALL, "trainer.loader.bad_share=0.1"
    )
    assert index.keys[3] in done.stderr
    assert sum(float(r["value"]) for r in rows(tmp_path / "run") if r["metric"] == "replaced") == 2  # once per epoch
    done = run("train", "side=target", f"data.dir={broken}", f"out={tmp_path / 'strict'}", *SMALL, check=False)
    assert done.returncode == 1
    assert "bad_share" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["mitigation.text_mas=0.3"], "did you mean 'mitigation.text_mask'?"),
        (
            ["data=scenes", "data.reader.cont=5"],
            "data.reader.cont is not an option (did you mean 'data.reader.count'?)",
        ),
        (["mitigation.text_mask=1.5"], "mitigation.text_mask=1.5"),
        (["side=left"], "side=left"),
        (["data.train_size=97"], "data.train_size=97"),
        (["recipe.batch=200"], "96 training pairs"),
        (["data.dir={tmp}/nowhere", "data.automatic=false"], "/nowhere"),
        (["model=vit_b_23"], "vit_b_32"),
        (["model.init=ViT-B-32@{tmp}/nowhere.pt"], "/nowhere.pt"),
        (["recipe.lr=-1"], "recipe.lr=-1"),
        (["recipe.lr=abc"], "recipe.lr=abc must be a number"),
        (["data=cocoo"], "did you mean 'coco'?"),
        (["trainer.precision=bf17"], "bf17"),
    ],
)
def test_a_users_mistake_is_one_sentence(scenes, tmp_path, options, message):
    done = call(
        "train",
        "side=target",
        f"data.dir={scenes}",
        f"out={tmp_path / 'run'}",
        *SMALL,
        *(o.format(tmp=tmp_path) for o in options),
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_two_processes_share_one_run_and_the_planned_exposure(scenes, tmp_path):
    out = tmp_path / "run"
    run("train", "side=target", f"data.dir={scenes}", f"out={out}", *SMALL, "trainer.devices=2", ranks=2)
    record = json.loads((out / "run.json").read_text())
    assert record["plan"] == {"world": 2, "workers": 0, "batch": 8, "seed": 0}
    assert record["steps"] == 12
    assert record["exposure"] == {"mean": 2.0, "min": 2, "max": 2}
    steps = [r["step"] for r in rows(out) if r["metric"] == "val_loss"]
    assert len(steps) == 2  # metrics are written once, not once per rank


def test_a_multirun_with_several_processes_per_job_is_refused(scenes, tmp_path):
    done = run(
        "train",
        "-m",
        "side=target,reference",
        f"data.dir={scenes}",
        f"out={tmp_path}",
        f"hydra.sweep.dir={tmp_path}",
        "trainer.devices=2",
        check=False,
    )
    assert done.returncode == 1
    assert "tasks_per_node" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_side_is_required(scenes):
    done = call("train", f"data.dir={scenes}")
    assert done.returncode == 1
    assert "side is missing" in done.stderr
