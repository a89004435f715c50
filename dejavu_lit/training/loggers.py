"""Lightning's loggers for a training run: ``metrics.csv`` always, Weights & Biases and TensorBoard on request."""

import csv
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning import loggers
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from dejavu_lit.utils.distributed import rank
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import name_file_in_errors, no_links, to_plain_json, write_text
from dejavu_lit.utils.wandb import LoggerSettings, quiet, starting, wandb_options

log = logging.getLogger(__name__)

UPLOAD_SECONDS = 60  # wandb may upload for this long at the end; a job has about as long after its warning signal


class CsvLog:
    """``metrics.csv`` with rows of step, epoch, metric, value: appended to, never replaced, truncated if a run resumes."""

    FIELDS = ("step", "epoch", "metric", "value")

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, step: int) -> None:
        """Drop the rows from ``step`` on, which will be computed again."""
        if not self.path.exists():
            return
        with open(self.path, newline="") as file:
            complete = (row for row in csv.DictReader(file) if all(row.get(name) for name in self.FIELDS))
            rows = [row for row in complete if row["step"].isdigit() and int(row["step"]) < step]
        lines = [",".join(self.FIELDS), *(",".join(str(row[name]) for name in self.FIELDS) for row in rows)]
        write_text(self.path, "\n".join(lines) + "\n")

    def append(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Append one row per metric."""
        is_new = not self.path.exists()
        with name_file_in_errors(self.path), open(self.path, "a", newline="", opener=no_links) as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(self.FIELDS)
            writer.writerows((step, epoch, name, value) for name, value in metrics.items())


class CsvLogger(Logger):
    """Writes Lightning's metrics to ``metrics.csv``; Lightning's own CSVLogger deletes the file when a run resumes."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.log = CsvLog(folder / "metrics.csv")

    @property
    def name(self) -> str:
        """The logger's name."""
        return "csv"

    @property
    def version(self) -> str:
        """Unused: the run directory is the version."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> CsvLog:
        """The file."""
        return self.log

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the metrics of one step."""
        # A copy, since the next logger gets the same dict.
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self.log.append(step or 0, int(metrics.get("epoch", 0)), values)


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger for the wandb run in ``out``, which it also ends. If wandb fails later, training goes on with a warning.

    We do not control wandb's process: SLURM ends it with the first TERM to the job, while the training may continue.

    Args:
        resumed: whether training has already started, so that even a failed start is only a warning.
        options: keyword arguments of ``wandb.init``.
    """

    def __init__(self, out: Path, offline: bool, resumed: bool, options: Mapping[str, Any]) -> None:
        # An absolute folder: wandb's own process writes there, and may work in another. mode None: as WANDB_MODE says.
        super().__init__(save_dir=out.resolve(), mode="offline" if offline else None, **options)
        self._closed = False
        try:
            with starting(offline):
                _ = self.experiment
        except UserError as error:
            if not resumed:
                raise
            self._close(error)

    @property
    def experiment(self) -> Any:
        """The wandb run; None once it is closed."""
        return None if self._closed else super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the metrics of one step."""
        try:
            if not self._closed:
                super().log_metrics(metrics, step)
        except Exception as error:  # of many classes: from wandb, its mailbox, the system
            if "DataLoader" in str(error):  # torch may raise this anywhere when a loader process was killed
                raise
            self._close(error)

    def finalize(self, status: str) -> None:
        """End the wandb run, or the next job of a multirun would continue it."""
        try:
            if not self._closed:
                self.experiment.finish(exit_code=int(status == "failed"))
                self._close()
        except Exception as error:
            self._close(error)

    def _close(self, error: Exception | None = None) -> None:
        self._closed = True
        if error is not None:
            message = (
                "wandb failed (%s); metrics.csv is complete, and `wandb sync` may still upload what wandb had received"
            )
            log.warning(message, first_line(error))
        import wandb

        with suppress(Exception):
            wandb.teardown()  # its process writes the end of the file only now, and would print a traceback at exit
        wandb.run = None  # it keeps a run whose process was killed, and the next job's logger would take it


def training_loggers(
    out: Path, settings: LoggerSettings, side: str, config: Mapping[str, Any], step: int | None
) -> list[Logger]:
    """The loggers of the run in ``out``; ranks above 0 have the CSV logger alone, which does nothing there.

    Args:
        side: target or reference, wandb's job type.
        config: the resolved settings.
        step: where a resumed run continues, so that repeated steps replace what was logged; None for a new run.
    """
    csv_logger = CsvLogger(out)
    writers: list[Logger] = [csv_logger]
    if rank() > 0:
        return writers
    csv_logger.log.resume(step or 0)  # without a checkpoint, every step is repeated
    if settings.wandb is not None:
        import wandb

        client_settings = wandb.Settings(
            silent=quiet(), console="off", finish_timeout=UPLOAD_SECONDS, finish_timeout_raises=True
        )
        options = wandb_options(out, settings.wandb, side) | {
            "config": to_plain_json(config),
            "settings": client_settings,
        }
        writers.append(WandbLogger(out, settings.wandb.offline, step is not None, options))
    if settings.tensorboard:
        writers.append(loggers.TensorBoardLogger(out, name="tensorboard", version="", purge_step=step))
    return writers


def finish_loggers(writers: Sequence[Logger]) -> None:
    """Finalize all loggers; a second call does no harm."""
    for logger in writers:
        logger.finalize("finished")
