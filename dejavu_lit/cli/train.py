"""``dejavu train``: train one side, or go on with a run from its own directory."""

import logging
import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dejavu_lit.cli.app import plain
from dejavu_lit.cli.prepare import data_spec, pinned
from dejavu_lit.utils.config import build
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.exit_codes import ending
from dejavu_lit.utils.wandb import tagged


def train(cfg: DictConfig, out: Path) -> None:
    """Train one model."""
    config = plain(cfg)
    _refuse_own_launcher(config)
    if config["out"] is None and config["trainer"]["devices"] != 1 and HydraConfig.get().mode == RunMode.RUN:
        raise UserError("several processes need one directory that all of them know; give out=DIR")
    config["logger"] = tagged(config["logger"], HydraConfig.get().overrides.task)
    run_training(config, out)


def run_training(config: dict[str, Any], out: Path) -> None:
    """Train, or go on, in ``out``; the small parts are built first, so that a wrong option ends at once."""
    if config["side"] not in ("target", "reference"):
        raise UserError(f"side={config['side']} must be target (trains on A) or reference (trains on B)")
    if not isinstance(config["seed"], int):
        raise UserError(f"seed={config['seed']} must be a whole number")
    from dejavu_lit.utils.run_directory import run_directory

    config = {key: value for key, value in config.items() if key != "out"}
    names = ("mitigation", "model", "recipe", "trainer", "logger", "gaps")
    parts = {name: build(config[name], name) for name in names if name in config}  # older runs know no gaps
    config["data"] = pinned(config["data"])
    data = data_spec(config["data"])
    with run_directory(out, config):
        from dejavu_lit.training.train import train as run

        run(
            out=out,
            side=config["side"],
            data=data,
            seed=config["seed"],
            config=config,
            **parts,
        )


def resume(out: Path) -> None:
    """Go on with the run in ``out`` from the configuration saved there."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dejavu_lit").setLevel(logging.INFO)
    from dejavu_lit.utils.run_directory import read_config

    with ending():
        run_training(read_config(out), out)


def _refuse_own_launcher(config: dict[str, Any]) -> None:
    """Hydra's multirun and Lightning's own process launcher would start each other over and over."""
    launched = {"SLURM_PROCID", "TORCHELASTIC_RUN_ID"} & set(os.environ)
    several = config["trainer"]["devices"] != 1 or config["trainer"]["num_nodes"] != 1
    if HydraConfig.get().mode == RunMode.MULTIRUN and several and not launched:
        raise UserError(
            "--multirun cannot start several processes a job by itself; use hydra/launcher=slurm, which sets "
            "hydra.launcher.tasks_per_node to trainer.devices, or one device a job (trainer.devices=1)"
        )
