"""A training step never makes the host wait for the device: reading the values of a tensor on the host fails here."""

import csv
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.utilities import move_data_to_device
from pytorch_lightning.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import dejavu_lit.training.train as training
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.build import build_model, export_config
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.training.clip_module import ClipModule
from dejavu_lit.training.ema import Averaging
from dejavu_lit.training.regularizers import contrastive_loss
from dejavu_lit.training.settings import Recipe
from tests.conftest import SMALL, call
from tests.training.test_clip_module import CONFIG

STEPS = 6  # per epoch of the scenes
READS_VALUES = (  # operations that need values on the host, if only for the size of their output
    "_local_scalar_dense",  # item(), float(), int(), bool()
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique",
    "_unique2",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
)


class NoWaiting(TorchDispatchMode):
    """Refuses operations that make the host wait: those that need values, or copy between host and device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run all other operations."""
        name, inputs = func.overloadpacket.__name__, [t for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)]
        masks = name.startswith(("index", "_index")) and any(t.dtype in (torch.bool, torch.uint8) for t in inputs[1:])
        if name in READS_VALUES or masks:
            raise AssertionError(f"{func} reads values on the host")
        result = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(result) if torch.is_tensor(t)]
        devices = {t.device.type for t in (*inputs, *outputs) if t.dim()}  # scalars are passed with the call
        assert len(devices) < 2, f"{func} copies between the host and the device"
        return result


class NoWaitingOnGPU:
    """The same check, by CUDA itself."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_sync_debug_mode("default")


class Watch(Callback):
    """Applies ``rule`` to what the trainer, the module and all other callbacks do from the start of a batch to its end.

    Steps that log metrics may wait, and so may the first step, which creates what the others use.
    """

    def __init__(self, rule: type[Any]) -> None:
        self.rule, self.stack, self.steps, self.watching = rule, ExitStack(), 0, False

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """Start to watch."""
        if trainer.global_step and (trainer.global_step + 1) % trainer.log_every_n_steps:
            self.stack.enter_context(self.rule())
            self.steps, self.watching = self.steps + 1, True

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop to watch; this is the last callback."""
        self.stack.close()
        self.watching = False


@pytest.fixture
def train(scenes, tmp_path, monkeypatch):
    """Train as train.py does, with options, under ``rule``."""

    def run(*options: str, rule: type[Any] = NoWaiting) -> None:
        build, watch, log = training.build_trainer, Watch(rule), pl.LightningModule.log

        def watched(*arguments: Any) -> pl.Trainer:
            trainer = build(*arguments)
            trainer.callbacks.append(watch)
            return trainer

        def logged(*arguments: Any, **options: Any) -> None:
            assert not (watch.watching and options.get("sync_dist")), "Lightning synchronizes before it reduces"
            log(*arguments, **options)

        monkeypatch.setattr(training, "build_trainer", watched)
        monkeypatch.setattr(pl.LightningModule, "log", logged)
        with watch.stack:
            done = call("train", "side=target", f"data.dir={scenes}", f"out={tmp_path / 'run'}", *SMALL, *options)
        assert done.returncode == 0, done.stderr
        assert watch.steps == 2 * (STEPS - 1) - 1

    return run


SIGLIP = ("+model.config.init_logit_bias=-10", "mitigation.logit_scale_fixed=10", "trainer.trim=false")
ALL = (
    "mitigation.label_smoothing=0.1",
    "mitigation.gradient_noise=0.1",
    "mitigation.ema=0.9",
    "mitigation.patch_dropout=0.5",
    "mitigation.text_noise=0.1",
    "mitigation.logit_scale_max=20",
    "recipe.accumulate=2",
    "trainer.checkpointing=true",
)


@pytest.mark.parametrize("options", [(), SIGLIP, ALL], ids=["plain", "siglip", "all"])
def test_no_step_needs_values_on_the_host(train, options):
    train(*options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("options", [(), SIGLIP, ALL], ids=["plain", "siglip", "all"])
def test_no_step_waits_for_a_gpu(train, options):
    train("trainer=gpu", "trainer.loader.workers=0", *options, rule=NoWaitingOnGPU)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda images: images.sum().item(),
        lambda images: 1 if images.float().mean() > 0 else 0,
        lambda images: images[images > 0],
        lambda images: images.unique(),
    ],
)
def test_a_step_that_waits_is_detected(train, monkeypatch, waiting):
    original = ClipModule.training_step

    def step(module: ClipModule, batch: Any, batch_idx: int) -> torch.Tensor:
        waiting(batch["images"])
        return original(module, batch, batch_idx)

    monkeypatch.setattr(ClipModule, "training_step", step)
    with pytest.raises(AssertionError, match="reads values on the host"):
        train()


@pytest.fixture
def on_meta_device(tmp_path):
    """A module on a device whose values cannot be read, and a batch that was moved there as Lightning does."""
    spec = ModelSpec("tiny", CONFIG)
    export_config(spec, tmp_path)
    knobs = Mitigation(patch_dropout=0.5, label_smoothing=0.1, ema=0.9)
    module = ClipModule(build_model(spec, tmp_path), Recipe(epochs=1, batch=4, lr=1.0), knobs).to("meta").train()
    module._loss = contrastive_loss(False, 0.1, 0, 1).train()
    tokens = torch.tensor([[5, 49407] * 8, [7, 8] * 7 + [49407, 0]]).repeat(2, 1)
    batch = {"images": torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "tokens": tokens, "index": torch.arange(4)}
    return module, move_data_to_device(module.on_before_batch_transfer(batch, 0), torch.device("meta"))


def test_no_tensor_of_the_step_is_on_the_host(on_meta_device):
    module, batch = on_meta_device
    average = Averaging(0.9)
    average.setup(None, module, "fit")
    for step in (1, 2):
        with NoWaiting():
            module._loss(**module._features(batch["images"], batch["captions"])).backward()
            average.on_train_batch_end(SimpleNamespace(global_step=step), module)
    assert all(p.grad is not None and p.grad.device.type == "meta" for p in module.parameters())


def test_open_clips_own_patch_dropout_would_be_detected(on_meta_device):
    from open_clip.transformer import PatchDropout

    module, batch = on_meta_device
    module.model.visual.patch_dropout = PatchDropout(0.5)
    with pytest.raises(AssertionError, match="between the host and the device"), NoWaiting():
        module._features(batch["images"], batch["captions"])


def test_all_metrics_are_logged_at_the_same_steps_whatever_the_length_of_the_epoch(scenes, tmp_path):
    options = [f"data.dir={scenes}", f"out={tmp_path / 'run'}", *SMALL, "trainer.log_every=4", "recipe.lr=0.001"]
    assert call("train", "side=target", *options, "recipe.warmup_steps=8").returncode == 0
    logged: dict[str, list[tuple[int, float]]] = {}
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            logged.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    for metric in ("loss", "lr", "logit_scale", "pairs/s", "pairs/s/rank"):
        assert [step for step, _ in logged[metric]] == [3, 7, 11], metric
    # Those that these steps used: 4/8 of the warm-up, all of it, and 3/4 of the cosine over the other 4 steps.
    assert [value for _, value in logged["lr"]] == pytest.approx([0.0005, 0.001, 0.000146447], rel=1e-5)
    assert all(value > 0 for _, value in logged["pairs/s/rank"])
    assert [value for _, value in logged["pairs/s"]] == pytest.approx([v for _, v in logged["pairs/s/rank"]], abs=1)
