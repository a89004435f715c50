"""``dejavu resume RUN``: continue the run in a directory from the configuration saved there."""

import sys
from collections.abc import Sequence
from pathlib import Path

USAGE = "dejavu resume RUN\n\nContinues a run of dejavu train or mitigate with the settings saved in its directory."


def main(arguments: Sequence[str] | None = None) -> None:
    """Continue an interrupted training."""
    from dejavu_lit.training.resume import resume

    given = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(given):
        print(USAGE)
    elif len(given) != 1:
        sys.exit(f"usage: {USAGE}")
    else:
        resume(Path(given[0]))
