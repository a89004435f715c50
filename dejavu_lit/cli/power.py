"""``dejavu power``."""

from pathlib import Path

from omegaconf import DictConfig

from dejavu_lit.cli.app import command, plain


def power(cfg: DictConfig, out: Path) -> None:
    """Compute how many records and seed pairs a gap needs."""
    from dejavu_lit.study import power as plan

    config = plain(cfg)
    print(plan.show(plan.plan(config["metrics"], config["gap"], config["power"], config["figure"])))


main = command("power", power)
