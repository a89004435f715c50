"""Whether a run's gaps are measured while it trains, and against which reference: what ``gaps.*`` means to dejavu train."""

import copy
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.seed import isolate_rng

from dejavu_lit.data.prepared import MANIFEST, TRAINED_ON, DataSpec
from dejavu_lit.evaluation.audited_model import Side
from dejavu_lit.models.open_clip_encoder import OpenClipEncoder
from dejavu_lit.training.clip_module import ClipModule
from dejavu_lit.training.ema import averaged
from dejavu_lit.training.gap_sample import GapSettings, Gauge, Reference
from dejavu_lit.utils.distributed import rank
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256
from dejavu_lit.utils.run_directory import PARTNER

log = logging.getLogger(__name__)


@dataclass
class GapCallback(Callback):
    """Measures on rank 0, logs to every logger, and ends the training where the lower bound of PPG exceeds ``budget``.

    ``rows`` and ``stopped`` are part of the checkpoint, so a resumed run goes on with them.
    """

    data: DataSpec
    side: str
    settings: GapSettings
    reference: Reference
    identity: str  # of the reference, wherever it lies
    budget: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    stopped: dict[str, Any] | None = None
    seconds: float = 0.0  # spent here, of the last call

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far, and against what."""
        return {"reference": self.identity, "rows": self.rows, "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the rows; raises UserError where they were measured against another reference."""
        if state_dict["reference"] != self.identity:
            raise UserError(
                f"this run's gaps were measured against {state_dict['reference']} and cannot go on against {self.identity}; "
                "give the former as gaps.reference, or another out="
            )
        self.rows, self.stopped = list(state_dict["rows"]), state_dict["stopped"]

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Draw the samples, or end at once where the budget was exceeded before."""
        self._gauge: Gauge | None = None
        self._encoder: OpenClipEncoder | None = None
        if self.stopped is not None:
            trainer.should_stop = True
        elif trainer.is_global_zero:
            started = time.perf_counter()
            with isolate_rng():
                self._gauge = Gauge(self.data, self.side, self.settings, self.reference)
            self.seconds += time.perf_counter() - started

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Measure where it is time to; every rank learns the outcome, and all of them stop or none."""
        done = trainer.current_epoch + 1
        if done % self.settings.every:
            return
        started = time.perf_counter()
        with isolate_rng():  # loading a reference draws the weights that it then overwrites
            row = self._gauge.measure(self._copy(trainer, cast(ClipModule, module)), done) if self._gauge else None
        row = trainer.strategy.broadcast(row)
        assert row is not None
        self.rows.append(row)
        figures = {f"gap/{name}": value for name, value in row.items() if name not in ("epoch", "against")}
        for logger in trainer.loggers:  # with the step of the epoch's last batch, as Lightning logs the end of an epoch
            logger.log_metrics({**figures, "epoch": trainer.current_epoch}, step=trainer.global_step - 1)
        self._conclude(trainer, row)
        self.seconds += time.perf_counter() - started

    def _copy(self, trainer: pl.Trainer, module: ClipModule) -> OpenClipEncoder:
        """The model as it would be exported now, in a network of its own: modes and gradients of the trained one stay."""
        if self._encoder is None:
            network = copy.deepcopy(module.model).float()
            self._encoder = OpenClipEncoder("training", network, {}, module.pairs.tokenizer, str(module.device))
        with averaged(trainer, module):
            self._encoder.model.load_state_dict(module.model.state_dict())
        return self._encoder

    def _conclude(self, trainer: pl.Trainer, row: Mapping[str, Any]) -> None:
        if trainer.is_global_zero:
            log.info(
                "epoch %d: PPG %.3f [%.3f, %.3f], corrected %.3f, against %s",
                *(row[name] for name in ("epoch", "ppg", "ppg_low", "ppg_high", "corrected_ppg", "against")),
            )
        if self.budget is None or row["ppg_low"] <= self.budget:
            return
        interval = [row["ppg_low"], row["ppg_high"]]
        self.stopped = {"by": "gap_budget", "epoch": row["epoch"], "ppg": row["ppg"], "ci95": interval}
        trainer.should_stop = True
        if trainer.is_global_zero:
            log.info("stopping: the lower bound of PPG exceeds mitigation.gap_budget=%g", self.budget)

    def report(self) -> dict[str, Any]:
        """What run.json says of the gaps."""
        return {"reference": self.reference.name, "rows": self.rows, "seconds": round(self.seconds, 2)}


def gap_callback(
    out: Path, side: str, data: DataSpec, settings: GapSettings, budget: float | None, epochs: int
) -> GapCallback | None:
    """The callback of the run in ``out``; None where no gaps are asked for.

    Args:
        side: of the run: its own set is measured, A or B; budget: ``mitigation.gap_budget``.
        epochs: that the run trains; a measurement must fall into them.

    Raises:
        UserError: a budget without a reference, or a reference that is not there, not finished, or trained on this data.
    """
    if settings.reference is None:
        if budget is not None and side == "target":
            raise UserError(
                f"mitigation.gap_budget={budget} needs a reference to measure against; give gaps.reference=RUN, a finished "
                "run with side=reference"
            )
        if budget is not None:
            log.info("mitigation.gap_budget=%g stops the target; this reference trains to its end", budget)
        return None
    if settings.reference == PARTNER:
        raise UserError("gaps.reference=partner is for dejavu mitigate, which knows the partner; give a finished run")
    if settings.every > epochs:
        raise UserError(f"gaps.every={settings.every} is more than the {epochs} epochs that are trained; lower it")
    reference = Side(settings.reference, out / "embeddings")
    _check(reference, side, data)
    return GapCallback(data, side, settings, reference, reference.identity, budget)


def _check(reference: Side, side: str, data: DataSpec) -> None:
    what = f"gaps.reference={reference.name}"
    if reference.run is None:
        if reference.given is not None and not reference.given.is_dir():
            raise UserError(f"{what}: there is no folder {reference.given}")
        if reference.given is None and rank() == 0:
            _ = reference.encoder
        return
    if not (reference.run / "run.json").is_file():
        raise UserError(f"{what} is not finished; start dejavu train again in it, and then this run")
    if reference.trained_on == TRAINED_ON[side]:
        raise UserError(f"{what} was trained on {TRAINED_ON[side]} as this run is; give a run of the other side")
    if reference.record.get("data") != file_sha256(data.folder / MANIFEST):
        raise UserError(f"{what} was trained on other data than {data.folder}; give a run on the same data")


log = logging.getLogger(__name__)
