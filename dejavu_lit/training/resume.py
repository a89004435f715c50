"""Starts or continues a training from a run's configuration."""

import logging
from pathlib import Path
from typing import Any

from dejavu_lit.data.prepared import data_spec, pinned
from dejavu_lit.utils.config import build
from dejavu_lit.utils.distributed import forget_left_over_ranks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.exit_codes import clean_exit
from dejavu_lit.utils.run_directory import read_config, run_directory

SETTINGS = ("mitigation", "model", "recipe", "trainer", "logger", "gaps")  # parts of a config that are built alike


def run_training(config: dict[str, Any], out: Path) -> None:
    """Train in ``out``, or continue the run there.

    The settings are built before anything heavy is imported or written, so a wrong option fails at once.
    """
    if config["side"] not in ("target", "reference"):
        raise UserError(f"side={config['side']} must be target (trains on A) or reference (trains on B)")
    if not isinstance(config["seed"], int):
        raise UserError(f"seed={config['seed']} must be a whole number")
    config = {key: value for key, value in config.items() if key != "out"}
    settings = {name: build(config[name], name) for name in SETTINGS if name in config}  # older runs have no gaps
    config["data"] = pinned(config["data"])
    data = data_spec(config["data"])
    with run_directory(out, config):
        from dejavu_lit.training.settings import TrainingRun
        from dejavu_lit.training.train import train

        train(TrainingRun(config["side"], data, seed=config["seed"], config=config, **settings), out)


def resume(out: Path) -> None:
    """Continue the run in ``out`` from the configuration saved there."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dejavu_lit").setLevel(logging.INFO)
    with clean_exit():
        forget_left_over_ranks()
        run_training(read_config(out), out)
