"""The commands: ``dejavu COMMAND``, the same as ``python -m dejavu_lit COMMAND``; train.py and its kin call them, too.

They turn the config's leaves into typed values and call the package; nothing heavy is imported before the settings are
known to be right.
"""

import sys

from dejavu_lit.cli import annotate as objects
from dejavu_lit.cli import dedup as duplicates
from dejavu_lit.cli import evaluate as evaluation
from dejavu_lit.cli import mitigate as study
from dejavu_lit.cli import power as planning
from dejavu_lit.cli import prepare as data
from dejavu_lit.cli import report
from dejavu_lit.cli import resume as resuming
from dejavu_lit.cli import train as training
from dejavu_lit.cli.app import command
from dejavu_lit.utils.errors import suggest

train = command("train", training.train)
evaluate = command("evaluate", evaluation.evaluate)
mitigate = command("mitigate", study.mitigate)
prepare = command("prepare", data.prepare)
annotate = command("annotate", objects.annotate)
dedup = command("dedup", duplicates.dedup)
power = command("power", planning.power)
COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "mitigate": mitigate,
    "prepare": prepare,
    "annotate": annotate,
    "dedup": dedup,
    "power": power,
    "report": report.main,
    "resume": resuming.main,
}


def main() -> None:
    """Run the command that the first argument names, with the arguments after it."""
    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "--help", sys.argv[2:]
    if name in ("-h", "--help"):
        print(overview())
    elif name in COMMANDS:
        COMMANDS[name](arguments)
    else:
        known = ", ".join(COMMANDS)
        print(f"error: dejavu {name} is not a command{suggest(name, COMMANDS)}; choose one of {known}", file=sys.stderr)
        sys.exit(1)


def overview() -> str:
    """What ``dejavu --help`` prints: one line per command."""
    lines = [f"  {name:10}{str(run.__doc__).splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join(
        [
            "Measure and mitigate déjà vu memorization in CLIP-style models.\n",
            "dejavu COMMAND [OPTION=VALUE …]\n",
            *lines,
            "\ndejavu COMMAND --help shows the options of a command.",
        ]
    )
