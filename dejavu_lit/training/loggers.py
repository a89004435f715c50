"""Lightning's loggers of one training run: ``metrics.csv`` always, Weights & Biases and TensorBoard where asked for."""

import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from dejavu_lit.utils.distributed import rank
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import naming, plain, write_text
from dejavu_lit.utils.wandb import LoggerSettings, open_run, quiet, wandb_options

FINISH = 60  # seconds for the upload of what is left at the end; a job that is warned has about as many
log = logging.getLogger(__name__)


class CsvLog:
    """``metrics.csv`` in rows of step, epoch, metric, value: appended to, never replaced, cut back where a run resumes."""

    FIELDS = ("step", "epoch", "metric", "value")

    def __init__(self, path: Path) -> None:
        self.path = path

    def resume(self, step: int) -> None:
        """Drop the rows of steps that will be done again."""
        if not self.path.exists():
            return
        with open(self.path, newline="") as file:
            whole = (row for row in csv.DictReader(file) if all(row.get(name) for name in self.FIELDS))
            rows = [row for row in whole if row["step"].isdigit() and int(row["step"]) < step]
        lines = [",".join(self.FIELDS), *(",".join(str(row[f]) for f in self.FIELDS) for row in rows)]
        write_text(self.path, "\n".join(lines) + "\n")

    def append(self, step: int, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add one row a metric."""
        new = not self.path.exists()
        with naming(self.path), open(self.path, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(self.FIELDS)
            writer.writerows((step, epoch, name, value) for name, value in metrics.items())


class CsvLogger(Logger):
    """Lightning's side of ``metrics.csv``; its own CSVLogger deletes the file when a run resumes."""

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
        """Nothing: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append the metrics of one step."""
        rest = {name: value for name, value in metrics.items() if name != "epoch"}  # the next logger gets the same dict
        self.log.append(step or 0, int(metrics.get("epoch", 0)), rest)


class WandbLogger(Logger):
    """Lightning's side of wandb's run in ``out``. Once begun, its loss costs one warning and never the training.

    Its own process is beyond our control: SLURM ends it with the first TERM to the job, while the training may go on.

    Args:
        resumed: the training is under way already, so that even a run that cannot begin costs no more than a warning.
        options: keywords of ``wandb.init``.
    """

    def __init__(self, out: Path, offline: bool, resumed: bool, options: Mapping[str, Any]) -> None:
        super().__init__()
        self._begin: Callable[[], Any] = lambda: open_run(out, offline, **options)
        self._resumed = resumed
        self._run: Any = None
        self._over = False

    @property
    def name(self) -> str:
        """The logger's name."""
        return "wandb"

    @property
    def version(self) -> str:
        """Unused: the run directory is the version."""
        return ""

    @property
    def experiment(self) -> Any:
        """wandb's run, begun when Lightning first asks; None when it is over."""
        if self._run is None and not self._over:
            try:
                self._run = self._begin()
                self._attempt(self._axes)
            except UserError as error:
                if not self._resumed:
                    raise
                self._lose(error)
        return self._run

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run begins with them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log the metrics of one step."""
        self._attempt(lambda: self._run.log({**metrics, "trainer/global_step": step or 0}))

    def finalize(self, status: str) -> None:
        """End wandb's run, or the next job of a multirun would go on in it."""
        self._attempt(lambda: self._end(int(status == "failed")))
        self._run, self._over = None, True

    def _end(self, code: int) -> None:
        import wandb

        self._run.finish(exit_code=code)
        wandb.teardown()  # its own process writes the last of the file after ``finish``, and may be ended at any moment

    def _axes(self) -> None:
        self._run.define_metric("trainer/global_step")
        self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)

    def _attempt(self, act: Callable[[], object]) -> None:
        if self._run is None:
            return
        try:
            act()
        except Exception as error:  # of many classes: wandb's, its mailbox's, the system's
            if "DataLoader" in str(error):  # by which torch tells, from anywhere, that a loader's process was killed
                raise
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._run, self._over = None, True
        said = "wandb has gone (%s); metrics.csv has everything, and `wandb sync` may still upload what wandb had got"
        log.warning(said, first_line(error))
        import wandb

        with suppress(Exception):
            wandb.teardown()  # or it would try once more at exit, and tell of it in a traceback


def training_loggers(
    out: Path, settings: LoggerSettings, side: str, config: Mapping[str, Any], step: int | None
) -> list[Logger]:
    """The loggers of the run in ``out``.

    Args:
        side: target or reference, wandb's job type.
        config: the resolved settings.
        step: where a resumed run goes on, so that what is done again replaces what was logged; None for a new one.
    """
    table = CsvLogger(out)
    loggers: list[Logger] = [table]
    if rank() > 0:
        return loggers
    table.log.resume(step or 0)  # without a checkpoint all is done again
    if settings.wandb is not None:
        import wandb

        own = wandb.Settings(silent=quiet(), console="off", finish_timeout=FINISH, finish_timeout_raises=True)
        options = wandb_options(out, settings.wandb, side) | {"config": plain(config), "settings": own}
        loggers.append(WandbLogger(out, settings.wandb.offline, step is not None, options))
    if settings.tensorboard:
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(out, name="tensorboard", version="", purge_step=step))
    return loggers


def finish(loggers: Sequence[Logger]) -> None:
    """End them all, which does no harm where it was done."""
    for logger in loggers:
        logger.finalize("finished")
