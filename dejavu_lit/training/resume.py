"""Train in a run directory, or continue the run that is there."""

import logging
from pathlib import Path
from typing import Any

from dejavu_lit.data.prepared import data_spec, pinned
from dejavu_lit.utils.config import build
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.exit_codes import ending


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
