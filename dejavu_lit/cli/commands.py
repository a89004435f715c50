"""``dejavu COMMAND``: which commands there are; nothing else is imported until one is chosen."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from dejavu_lit import __version__
from dejavu_lit.utils.errors import suggest
from dejavu_lit.utils.exit_codes import clean_exit, fail

OVERVIEW = """Measure and mitigate déjà vu memorization in CLIP-style models.

dejavu COMMAND [OPTION=VALUE …]

{}

dejavu COMMAND --help shows the options of a command."""
COMMANDS = {
    "train": "Train one model, the target or the reference.",
    "evaluate": "Measure how much the target remembers beyond the reference.",
    "mitigate": "Train and evaluate every setting of a study, and rank them.",
    "prepare": "Write images and captions as shards, split into sets.",
    "annotate": "Find the objects of prepared images.",
    "dedup": "Find duplicates within and across the sets.",
    "power": "Compute how many records and seed pairs are needed to detect a gap.",
    "report": "Write the report of an evaluation or a study again.",
    "resume": "Continue an interrupted training.",
}
PLAIN = ("report", "resume")  # without Hydra


def main() -> None:
    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "--help", sys.argv[2:]
    with clean_exit():
        if name in ("-h", "--help"):
            lines = "\n".join(f"  {command:10}{summary}" for command, summary in COMMANDS.items())
            print(OVERVIEW.format(lines))
        elif "--version" in sys.argv[1:]:
            print(f"dejavu-lit {__version__}")
        elif name in ("-sc", "--shell-completion"):
            _complete(arguments)
        elif name in COMMANDS:
            import_module(f"dejavu_lit.cli.{name}").main(arguments)
        else:
            known = ", ".join(COMMANDS)
            fail(f"dejavu {name} is not a command{suggest(name, COMMANDS)}; choose one of {known}")


def _complete(arguments: Sequence[str]) -> None:
    """Set up Hydra's shell completion, or answer what it asks about the line typed so far: a command, then its options."""
    name = "train"
    if arguments and arguments[0].startswith("query="):
        program, _, rest = os.environ["COMP_LINE"].partition(" ")
        name, space, options = rest.lstrip().partition(" ")
        if not space:
            print(" ".join(COMMANDS))
        if not space or name in PLAIN or name not in COMMANDS:
            return
        os.environ["COMP_LINE"] = f"{program} {options}"  # Hydra knows of no commands
    import_module(f"dejavu_lit.cli.{name}").main(["-sc", *arguments])
