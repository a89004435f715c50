"""The time left that a training logs is that of the steps of this call, wherever it resumed; long epochs log their steps."""

import logging
import re
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel

from dejavu_lit.training import progress
from dejavu_lit.training.progress import EpochLogger

SECONDS_PER_STEP = 10
STEPS = 4  # per epoch
EPOCHS = 10


class Clock(Callback):
    """A clock that each step moves by ``SECONDS_PER_STEP``."""

    now = 1000.0

    def on_train_batch_end(self, *args, **options):
        self.now += SECONDS_PER_STEP


def fit(folder, clock, epochs, checkpoint=None, steps=-1):
    """Train ``epochs`` epochs, at most ``steps`` steps in all, and return the trainer."""
    saved = ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    trainer = pl.Trainer(
        max_epochs=epochs,
        max_steps=steps,
        limit_train_batches=STEPS,
        limit_val_batches=0,
        accelerator="cpu",
        callbacks=[clock, EpochLogger(True), saved],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(BoringModel(), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("steps", [2 * STEPS, 2 * STEPS + 1, 3 * STEPS - 1])
def test_a_resumed_run_counts_the_steps_of_this_call_alone(tmp_path, monkeypatch, caplog, steps):
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    fit(tmp_path, clock, EPOCHS, steps=steps)
    clock.now += 5000  # the run lay still
    caplog.set_level(logging.INFO)
    caplog.clear()
    fit(tmp_path, clock, EPOCHS, str(tmp_path / f"step={steps}.ckpt"))
    left = [int(seconds) for seconds in re.findall(r"(\d+) s left", caplog.text)]
    assert left[-8:] == [SECONDS_PER_STEP * STEPS * epochs for epochs in range(7, -1, -1)]


def test_a_long_epoch_logs_its_steps(tmp_path, monkeypatch, caplog):
    clock = Clock()
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 2 * SECONDS_PER_STEP)
    caplog.set_level(logging.INFO)
    fit(tmp_path, clock, 2)
    lines = [record.message for record in caplog.records if record.name == "dejavu_lit.training.progress"]
    assert lines[0] == "epoch 1/2: step 2 of 4, 60 s left"
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/2"] * 3 + ["epoch 2/2"] * 3
    assert lines[-1].endswith(" 0 s left")
