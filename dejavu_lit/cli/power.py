"""``dejavu power``."""

from pathlib import Path

from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Power


def power(settings: Power, out: Path) -> None:
    """Compute how many records and seed pairs are needed to detect a gap."""
    from dejavu_lit.study.power import format_sample, required_sample

    print(format_sample(required_sample(settings.metrics, settings.gap, settings.power, settings.figure)))


main = command("power", power)
