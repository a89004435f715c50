"""The knobs in complete runs: without knobs nothing changes, bit for bit, and each survives a kill within an epoch."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import pytorch_lightning as pl
import torch
import yaml
from open_clip.loss import ClipLoss

from dejavu_lit.data.module import PairDataModule
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.models.build import build_model
from dejavu_lit.models.preprocess import Preprocess
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.training.clip_module import ClipModule, learning_rate_factor, split_by_decay
from dejavu_lit.training.settings import Recipe
from dejavu_lit.training.stopping import NonFiniteLossStop
from dejavu_lit.utils.errors import UserError
from tests.conftest import SMALL, call, record, weights


class Killed(BaseException):
    """Ends a run in the middle."""


def train(scenes: Path, out: Path, *options: str) -> Path:
    done = call("train", "side=target", f"data.dir={scenes}", f"out={out}", *SMALL, *options)
    assert done.returncode == 0, done.stderr
    return out


def killed(scenes: Path, out: Path, step: int, *options: str) -> Path:
    """A run that dies before step ``step``, as in a power failure, and is started again."""
    hook = ClipModule.on_train_batch_start

    def fail(module: ClipModule, batch: object, index: int) -> None:
        if module.trainer.global_step == step:
            raise Killed
        hook(module, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipModule, "on_train_batch_start", fail)
        with pytest.raises(Killed):
            train(scenes, out, *options)
    assert not (out / "run.json").exists()
    return train(scenes, out, *options)


def same_weights(first_run: Path, second_run: Path) -> bool:
    first, second = weights(first_run), weights(second_run)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_without_knobs_a_run_is_open_clips_model_and_loss_under_adamw(scenes, tmp_path):
    """The same twelve steps, written out without any knob, end with the same weights."""
    out = train(scenes, tmp_path / "run", "trainer.trim=false")  # the model as open_clip computes it
    config = yaml.safe_load((out / "config.yaml").read_text())
    recipe = Recipe(**config["recipe"])
    pl.seed_everything(0, verbose=False)
    model = build_model(ModelSpec(**config["model"]), out / "model")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out / 'model'}")
    preprocess = Preprocess(model.visual.preprocess_cfg)
    pairs = PairDataModule(DataSpec("scenes", str(scenes)), "target", recipe.batch, 0, preprocess, tokenizer)
    matrices, exempt = split_by_decay(model)
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    betas = (recipe.beta1, recipe.beta2)
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=betas, eps=recipe.eps, fused=True)
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    step = 0
    for epoch in range(2):
        loader = pairs.train_dataloader()
        for batch in loader.batches(epoch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * learning_rate_factor(step, recipe, 12)
            images, texts, scale = model((batch["images"].float() - mean) / std, batch["tokens"])
            optimizer.zero_grad()
            ClipLoss()(images, texts, scale).backward()
            optimizer.step()
            model.logit_scale.data.clamp_(0, torch.log(torch.tensor(100.0)).item())
            step += 1
    trained = weights(out)
    assert step == 12
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())


# Several knobs at once: that all of them go on exactly shows that each does.
RESUMED = {
    "captions and images": [
        *("mitigation.text_mask=0.2", "mitigation.text_random=0.3", "mitigation.text_shuffle=0.5"),
        *("mitigation.image_augment=true", "trainer.loader.workers=2", "mitigation.label_smoothing=0.2"),
    ],
    "noise and patches": [
        *("mitigation.gradient_noise=0.5", "recipe.gradient_clip=1.0", "mitigation.text_noise=0.3"),
        *("mitigation.patch_dropout=0.5", "recipe.accumulate=2"),
    ],
    "ema": ["mitigation.ema=0.9"],
    "adapters": ["mitigation.lora_rank=4", "mitigation.ema=0.9", "model.init=BASE"],
    "locked": ["mitigation.lock_image=true", "mitigation.unlocked_groups=1", "model.init=BASE"],
    "locked text": ["mitigation.lock_text=true", "model.init=BASE"],
}


@pytest.mark.parametrize("knob", RESUMED)
def test_a_run_killed_within_an_epoch_ends_with_the_weights_of_an_undisturbed_one(scenes, runs, tmp_path, knob):
    options = [option.replace("BASE", str(runs["reference"])) for option in RESUMED[knob]]
    options.append("trainer.checkpoint_steps=1")
    undisturbed = train(scenes, tmp_path / "undisturbed", *options)
    again = killed(scenes, tmp_path / "killed", 4 if knob == "noise and patches" else 8, *options)
    assert same_weights(undisturbed, again)
    assert not same_weights(undisturbed, runs["target"])  # the knob has an effect
    lasts = [torch.load(out / "checkpoints" / "last.ckpt", weights_only=True) for out in (undisturbed, again)]
    for name in ("state_dict", "current_model_state", "averaging_state"):
        assert all(torch.equal(lasts[0][name][key], lasts[1][name][key]) for key in lasts[0].get(name, ()))


def test_the_average_is_exported_and_training_continues_from_the_weights(scenes, runs, tmp_path):
    out = train(scenes, tmp_path / "run", "mitigation.ema=0.9")
    exported = weights(out)
    epoch = torch.load(out / "checkpoints" / "epoch=0002.ckpt", weights_only=True)["state_dict"]
    last = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    plain = torch.load(runs["target"] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in exported.items():
        assert torch.equal(value, epoch[f"model.{name}"]), name
        assert torch.equal(last["current_model_state"][f"model.{name}"], plain[f"model.{name}"]), name
    assert not same_weights(out, runs["target"])


def test_a_run_killed_after_its_last_step_exports_the_average_too(scenes, tmp_path):
    options = ["mitigation.ema=0.9"]
    undisturbed = train(scenes, tmp_path / "undisturbed", *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dejavu_lit.training.train._write_results", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(scenes, tmp_path / "killed", *options)
    assert same_weights(undisturbed, train(scenes, tmp_path / "killed", *options))


# With this learning rate the accuracy hardly changes, so it soon stops improving.
EARLY = ["mitigation.early_stopping=accuracy", "mitigation.early_patience=2", "recipe.epochs=30", "recipe.lr=1e-6"]


def test_training_stops_when_v_stops_improving_and_stays_stopped(scenes, tmp_path):
    undisturbed = train(scenes, tmp_path / "undisturbed", *EARLY)
    finished = record(undisturbed)
    stopped = finished["stopped"]
    assert (stopped["by"], stopped["metric"], stopped["epochs_without_better"]) == ("early_stopping", "val_accuracy", 2)
    assert stopped["epoch"] == finished["epochs"] < 30
    assert finished["steps"] == finished["batches"] == 6 * finished["epochs"]
    assert finished["exposure"]["mean"] == finished["epochs"]
    rows = (undisturbed / "metrics.csv").read_text().splitlines()
    values = [float(row.split(",")[3]) for row in rows if ",val_accuracy," in row]
    assert len(values) == finished["epochs"]
    assert max(values[:-2]) == max(values) == pytest.approx(stopped["best"])
    assert all(max(values[: n - 2]) < max(values[n - 2 : n]) for n in range(3, len(values)))  # not one epoch too late

    again = killed(scenes, tmp_path / "killed", 6 * (finished["epochs"] - 1) + 2, *EARLY, "trainer.checkpoint_steps=1")
    assert same_weights(undisturbed, again)
    assert record(again)["stopped"] == stopped

    with pytest.MonkeyPatch.context() as patch:  # killed between the decision to stop and the end
        patch.setattr("dejavu_lit.training.train._write_results", lambda *args: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(scenes, tmp_path / "late", *EARLY)
    late = train(scenes, tmp_path / "late", *EARLY)
    assert same_weights(undisturbed, late)
    varying = dict.fromkeys(("seconds", "pairs_per_second", "provenance"))
    assert {**record(late), **varying} == {**finished, **varying}


def test_a_run_that_is_not_stopped_early_records_null(runs):
    assert record(runs["target"])["stopped"] is None


def test_weights_are_checked_at_every_logged_step_and_before_they_are_saved(tmp_path):
    module = torch.nn.Linear(2, 1)
    stop, trainer = NonFiniteLossStop(tmp_path / "last.ckpt"), SimpleNamespace(global_step=20, log_every_n_steps=20)
    stop.on_train_batch_end(trainer, module)
    with torch.no_grad():
        module.weight[0, 1] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinite at step 20 \(no checkpoint was saved before\)"):
        stop.on_train_batch_end(trainer, module)
    trainer.global_step = 21
    stop.on_train_batch_end(trainer, module)
    with pytest.raises(UserError, match="NaN or infinite at step 21"):
        stop.on_save_checkpoint(trainer, module, {})


def test_early_stopping_without_a_validation_set_is_refused(scenes, tmp_path):
    shutil.copytree(scenes, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "V")
    done = call("train", "side=target", f"data.dir={tmp_path / 'data'}", f"out={tmp_path / 'run'}", *SMALL, EARLY[0])
    assert done.returncode == 1
    assert "mitigation.early_stopping=accuracy needs a validation set" in done.stderr
    assert "Traceback" not in done.stderr
