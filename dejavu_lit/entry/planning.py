"""``python -m dejavu_lit.plan``."""

from pathlib import Path

from omegaconf import DictConfig

from dejavu_lit.entry.frame import plain


def plan(cfg: DictConfig, out: Path) -> None:
    """Say how many records and seed pairs a gap needs to be seen."""
    from dejavu_lit import plan

    config = plain(cfg)
    print(plan.show(plan.plan(config["metrics"], config["gap"], config["power"], config["figure"])))
