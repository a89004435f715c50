"""Lightning's loggers of one training run: ``metrics.csv`` always, Weights & Biases and TensorBoard where asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from dejavu_lit.dashboards import LoggerSettings, quiet, wandb_options
from dejavu_lit.launch import CsvLog, plain, rank


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
        from pytorch_lightning.loggers import WandbLogger

        options = wandb_options(out, settings.wandb, side)
        loggers.append(
            WandbLogger(
                save_dir=out.resolve(),  # wandb's own process writes there, and may stand in another folder
                offline=settings.wandb.offline,
                config=plain(config),
                settings=wandb.Settings(silent=quiet(), console="off"),
                **options,
            )
        )
    if settings.tensorboard:
        from pytorch_lightning.loggers import TensorBoardLogger

        loggers.append(TensorBoardLogger(out, name="tensorboard", version="", purge_step=step))
    return loggers


def finish(settings: LoggerSettings) -> None:
    """End wandb's run, or the next job of a multirun would go on in it."""
    if settings.wandb is not None and rank() == 0:
        import wandb

        wandb.finish()
