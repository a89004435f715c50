"""``dejavu train``: train one model, the target or the reference."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dejavu_lit.cli.app import command, plain
from dejavu_lit.training.resume import run_training
from dejavu_lit.utils.distributed import current_ranks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.wandb import with_tags


def train(cfg: DictConfig, out: Path) -> None:
    """Train one model."""
    config = plain(cfg)
    _refuse_own_launcher(config)
    if config["out"] is None and config["trainer"]["devices"] != 1 and HydraConfig.get().mode == RunMode.RUN:
        raise UserError("several processes need one output directory; give out=DIR")
    config["logger"] = with_tags(config["logger"], HydraConfig.get().overrides.task)
    run_training(config, out)


def _refuse_own_launcher(config: dict[str, Any]) -> None:
    """Refuse a multirun whose jobs would start processes: Hydra's and Lightning's launchers start each other endlessly."""
    several = config["trainer"]["devices"] != 1 or config["trainer"]["num_nodes"] != 1
    if HydraConfig.get().mode == RunMode.MULTIRUN and several and current_ranks().world == 1:
        raise UserError(
            "--multirun cannot start several processes per job; use hydra/launcher=slurm, which sets "
            "hydra.launcher.tasks_per_node to trainer.devices, or one device per job (trainer.devices=1)"
        )


main = command("train", train)
