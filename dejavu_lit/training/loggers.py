"""Lightning's loggers for a training run: ``metrics.csv`` always, Weights & Biases and TensorBoard on request."""

import csv
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pytorch_lightning import loggers
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from dejavu_lit.utils.distributed import rank
from dejavu_lit.utils.errors import first_line
from dejavu_lit.utils.io import name_file_in_errors, no_links, write_text
from dejavu_lit.utils.run_directory import METRICS
from dejavu_lit.utils.wandb import LoggerSettings, quiet, starting, wandb_options

log = logging.getLogger(__name__)

UPLOAD_SECONDS = 60  # wandb may upload for this long at the end; a job has about as long after its warning signal


class CsvLogger(Logger):
    """``metrics.csv`` with rows of step, epoch, metric, value: appended to, never replaced, truncated if a run resumes.

    Lightning's own CSVLogger deletes the file when a run resumes.
    """

    FIELDS = ("step", "epoch", "metric", "value")

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / METRICS

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row per metric of a step; ``epoch`` among them is their epoch."""
        is_new = not self.path.exists()
        with name_file_in_errors(self.path), open(self.path, "a", newline="", opener=no_links) as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(self.FIELDS)
            epoch = int(metrics.get("epoch", 0))
            writer.writerows((step or 0, epoch, name, value) for name, value in metrics.items() if name != "epoch")

    def resume(self, step: int) -> None:
        """Drop the rows from ``step`` on, which will be computed again."""
        if not self.path.exists():
            return
        with open(self.path, newline="", encoding="utf-8", errors="replace") as file:  # a crash may leave anything
            complete = (row for row in csv.DictReader(file) if all(row.get(name) for name in self.FIELDS))
            rows = [row for row in complete if row["step"].isdecimal() and int(row["step"]) < step]
        lines = [",".join(self.FIELDS), *(",".join(str(row[name]) for name in self.FIELDS) for row in rows)]
        write_text(self.path, "\n".join(lines) + "\n")


class WandbLogger(loggers.WandbLogger):
    """Lightning's logger for the wandb run in ``out``, which it also ends. If wandb fails later, training goes on with a warning.

    We do not control wandb's process: SLURM ends it with the first TERM to the job, while the training may continue.
    If training had already started (``resumed``), even a failed start is only a warning.
    """

    def __init__(self, out: Path, offline: bool, resumed: bool, options: Mapping[str, Any]) -> None:
        # An absolute folder: wandb's own process writes there, and may work in another. mode None: as WANDB_MODE says.
        super().__init__(save_dir=out.resolve(), mode="offline" if offline else None, **options)
        self._ended = False
        with self._survived() if resumed else nullcontext(), starting(offline):
            _ = self.experiment

    @property
    def experiment(self) -> Any:
        """The wandb run; None once it has ended."""
        return None if self._ended else super().experiment

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._survived():
            if not self._ended:
                super().log_metrics(metrics, step)

    def finalize(self, status: str) -> None:
        """End the wandb run, or the next job of a multirun would continue it."""
        with self._survived():
            if not self._ended:
                self.experiment.finish(exit_code=int(status == "failed"))
                self._end()

    @contextmanager
    def _survived(self) -> Iterator[None]:
        """A block in which wandb may fail: a warning, and its run ends."""
        try:
            yield
        except Exception as error:  # of many classes: from wandb, its mailbox, the system
            if "DataLoader" in str(error):  # torch may raise this anywhere when a loader process was killed
                raise
            log.warning(
                "wandb failed (%s); metrics.csv is complete, and `wandb sync` may still upload what wandb had received",
                first_line(error),
            )
            self._end()

    def _end(self) -> None:
        import wandb

        self._ended = True
        with suppress(Exception):
            wandb.teardown()  # its process writes the end of the file only now, and would print a traceback at exit
        wandb.run = None  # it keeps a run whose process was killed, and the next job's logger would take it


def training_loggers(
    out: Path, settings: LoggerSettings, side: str, config: Mapping[str, Any], step: int | None
) -> list[Logger]:
    """The loggers of the run in ``out``; ranks above 0 have the CSV logger alone, which does nothing there.

    ``step``: where a resumed run continues, so that repeated steps replace what was logged; None for a new run.
    """
    csv_logger = CsvLogger(out)
    writers: list[Logger] = [csv_logger]
    if rank() > 0:
        return writers
    csv_logger.resume(step or 0)  # without a checkpoint, every step is repeated
    if settings.wandb is not None:
        import wandb

        client_settings = wandb.Settings(
            silent=quiet(), console="off", finish_timeout=UPLOAD_SECONDS, finish_timeout_raises=True
        )
        options = wandb_options(out, settings.wandb, side) | {"config": config, "settings": client_settings}
        writers.append(WandbLogger(out, settings.wandb.offline, step is not None, options))
    if settings.tensorboard:
        writers.append(loggers.TensorBoardLogger(out, name="tensorboard", version="", purge_step=step or 0))
    return writers
