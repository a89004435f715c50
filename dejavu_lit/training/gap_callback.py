"""The callback that measures the gaps of a run while it trains, as ``gaps.*`` and ``mitigation.gap_budget`` say."""

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.seed import isolate_rng

from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.prepared import TRAINED_ON
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.measure.figures import decimal
from dejavu_lit.models.open_clip_encoder import OpenClipEncoder
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.training.clip_module import ClipModule
from dejavu_lit.training.ema import averaged
from dejavu_lit.training.gap_sample import GapMeter
from dejavu_lit.training.progress import write_metrics
from dejavu_lit.training.settings import TrainingRun
from dejavu_lit.utils.distributed import gather
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256
from dejavu_lit.utils.run_directory import PARTNER, RunDirectory

log = logging.getLogger(__name__)


@dataclass
class GapCallback(Callback):
    """Measures on all ranks, logs to every logger, and ends the training if the lower bound of PPG exceeds the budget.

    ``rows``, ``stopped`` and ``seconds`` are part of the checkpoint, so a resumed run continues with them.
    """

    run: TrainingRun
    reference: AuditedModel
    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: dict[str, Any] | None = None
    seconds: float = 0.0  # spent measuring, over all calls

    def _measured_with(self) -> dict[str, Any]:
        options = {name: getattr(self.run.gaps, name) for name in ("sample", "public", "k", "threshold")}
        return {"reference": self.reference.identity, **options}

    def state_dict(self) -> dict[str, Any]:
        return {**self._measured_with(), "rows": self.rows, "stopped": self.stopped, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the rows; raises UserError if they were measured with another reference or other options."""
        for name, value in self._measured_with().items():
            if (earlier := state_dict.get(name, value)) != value:  # an earlier version saved only the reference
                raise UserError(
                    f"this run's gaps were measured with gaps.{name}={earlier} and cannot continue with {value}; "
                    f"set gaps.{name} back to it, or use another out="
                )
        self.rows, self.stopped = list(state_dict["rows"]), state_dict["stopped"]
        self.seconds = state_dict.get("seconds", 0.0)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw the samples, or end at once if the budget was already exceeded."""
        self._encoder: OpenClipEncoder | None = None
        if self.stopped is not None:
            trainer.should_stop = True
        else:
            started = time.perf_counter()
            with isolate_rng():
                self._meter = GapMeter(self.run.data, self.run.side, self.run.gaps, self.reference)
            self.seconds += time.perf_counter() - started

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measure every ``gaps.every`` epochs; every rank gets the same row, so either all ranks stop or none."""
        done = trainer.current_epoch + 1
        if done % self.run.gaps.every:
            return
        started = time.perf_counter()
        with isolate_rng():  # loading a reference draws random weights before it overwrites them
            row = self._meter.measure(self._current_model(trainer, cast(ClipModule, module)), done)
        row = gather(row)[0]  # ranks on different processors may differ in the last bits
        self.rows.append(row)
        figures = {f"gap/{name}": value for name, value in row.items() if name not in ("epoch", "against")}
        write_metrics(trainer, figures)
        self._report_and_stop(trainer, row)
        self.seconds += time.perf_counter() - started

    def _current_model(self, trainer: pl.Trainer, module: ClipModule) -> OpenClipEncoder:
        """A copy of the model as it would be exported now; modes and gradients of the trained model stay untouched."""
        if self._encoder is None:
            network = copy.deepcopy(module.model).float()
            self._encoder = OpenClipEncoder("training", network, {}, module.pairs.tokenizer, str(module.device))
        with averaged(trainer, module):
            self._encoder.model.load_state_dict(module.model.state_dict())
        return self._encoder

    def _report_and_stop(self, trainer: pl.Trainer, row: Mapping[str, Any]) -> None:
        if trainer.is_global_zero:
            figures = (decimal(row[name]) for name in ("ppg", "ppg_low", "ppg_high", "corrected_ppg"))
            log.info("epoch %d: PPG %s [%s, %s], corrected %s, against %s", row["epoch"], *figures, row["against"])
        budget = self.run.mitigation.gap_budget
        if budget is None or row["ppg_low"] <= budget:
            return
        interval = [row["ppg_low"], row["ppg_high"]]
        self.stopped = {"by": "gap_budget", "epoch": row["epoch"], "ppg": row["ppg"], "ci95": interval}
        trainer.should_stop = True
        if trainer.is_global_zero:
            log.info("stopping: the lower bound of PPG exceeds mitigation.gap_budget=%g", budget)

    def report(self) -> dict[str, Any]:
        return {"reference": self.reference.name, "rows": self.rows, "seconds": round(self.seconds, 2)}


def gap_callback(run: TrainingRun, out: Path) -> GapCallback | None:
    """The callback of the run in ``out``, or None if no gaps are to be measured; raises UserError for an unsuitable reference."""
    settings, budget = run.gaps, run.mitigation.gap_budget
    if settings.reference is None:
        if budget is not None and run.side == "target":
            raise UserError(
                f"mitigation.gap_budget={budget} needs a reference to measure against; set gaps.reference=RUN to a "
                "finished run with side=reference"
            )
        if budget is not None:
            log.info("mitigation.gap_budget=%g only stops the target; this reference trains to its end", budget)
        return None
    if settings.reference == PARTNER:
        raise UserError(
            "gaps.reference=partner is for dejavu mitigate, which knows the partner; set it to a finished run"
        )
    if settings.every > run.epochs:
        raise UserError(f"gaps.every={settings.every} must be at most {run.epochs}, the last epoch")
    reference = AuditedModel(settings.reference, out / "embeddings", measured=run.data)
    if reference.run is not None:
        _check_reference_run(reference, reference.run, run)
    if reference.embeddings_folder is None:
        load_encoder(reference.name)  # fails now if the model cannot be loaded; it is not kept
    return GapCallback(run, reference)


def _check_reference_run(reference: AuditedModel, folder: Path, run: TrainingRun) -> None:
    option = f"gaps.reference={reference.name}"
    if not RunDirectory(folder).finished:
        raise UserError(f"{option} is not finished; run dejavu resume {quote(str(folder))}, then start this run")
    if reference.trained_on == TRAINED_ON[run.side]:
        raise UserError(f"{option} was trained on {TRAINED_ON[run.side]}, like this run; use a run of the other side")
    if reference.data is not None and reference.data.deal != run.data.deal:
        raise UserError(
            f"{option} is of another random half than data.half={run.data.half}, so it may have trained on the pairs that "
            "are measured; use a run with the same data.half, data.seed, data.train_size and data.exclude"
        )
    if reference.run_json.get("data") != file_sha256(run.data.folder / MANIFEST):
        raise UserError(
            f"{option} was trained on other data than {run.data.folder}; use a run trained on the same data"
        )
