"""``dejavu power``."""

from pathlib import Path

from omegaconf import DictConfig

from dejavu_lit.cli.app import command, plain


def power(cfg: DictConfig, out: Path) -> None:
    """Compute how many records and seed pairs a gap needs."""
    from dejavu_lit.study.power import format_sample, required_sample

    config = plain(cfg)
    print(format_sample(required_sample(config["metrics"], config["gap"], config["power"], config["figure"])))


main = command("power", power)
