"""``dejavu train``: train one side, or go on with a run from its own directory."""

import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dejavu_lit.cli.app import command, plain
from dejavu_lit.training.resume import run_training
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.wandb import tagged


def train(cfg: DictConfig, out: Path) -> None:
    """Train one model."""
    config = plain(cfg)
    _refuse_own_launcher(config)
    if config["out"] is None and config["trainer"]["devices"] != 1 and HydraConfig.get().mode == RunMode.RUN:
        raise UserError("several processes need one directory that all of them know; give out=DIR")
    config["logger"] = tagged(config["logger"], HydraConfig.get().overrides.task)
    run_training(config, out)


def _refuse_own_launcher(config: dict[str, Any]) -> None:
    """Hydra's multirun and Lightning's own process launcher would start each other over and over."""
    launched = {"SLURM_PROCID", "TORCHELASTIC_RUN_ID"} & set(os.environ)
    several = config["trainer"]["devices"] != 1 or config["trainer"]["num_nodes"] != 1
    if HydraConfig.get().mode == RunMode.MULTIRUN and several and not launched:
        raise UserError(
            "--multirun cannot start several processes a job by itself; use hydra/launcher=slurm, which sets "
            "hydra.launcher.tasks_per_node to trainer.devices, or one device a job (trainer.devices=1)"
        )


main = command("train", train)
