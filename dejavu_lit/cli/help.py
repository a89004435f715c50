"""What ``--help`` of a command says: its purpose with worked commands, the config groups with a line each, its own options.

Options, their types and sentences are those of the dataclass in ``options.py``; the rest is read from conf/.
"""

from collections.abc import Iterable
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill, wrap
from typing import Any

import yaml

from dejavu_lit.cli.options import COMMANDS
from dejavu_lit.objects.annotators import ANNOTATORS
from dejavu_lit.utils.config import Option, options

GROUPS = {
    "data": "images and captions",
    "model": "architecture",
    "recipe": "epochs, batch, learning rate",
    "mitigation": "against memorization; mitigation.NAME=VALUE, in any combination",
    "trainer": "devices, precision, checkpoints",
    "logger": "dashboards beside metrics.csv",
    "experiment": "a study that is ready to run",
    "annotator": "how objects are found",
}
WIDTH, INDENT = min(120, get_terminal_size((120, 24)).columns), 14  # columns
GROUPS_HEAD = (
    "Groups: GROUP=NAME chooses a file of conf/GROUP, GROUP.OPTION=VALUE changes an option of it; * is the default."
)
OPTIONS_HEAD = "Options of this command with their defaults (???: required):"
FOOT = (
    "--cfg job shows every option with its value, --cfg job --package GROUP those of a group; "
    "-m with values separated by commas runs all combinations; --hydra-help shows the options of Hydra."
)


def text(conf: Path, command: str) -> str:
    """The help of one command, whose file is in the folder ``conf``."""
    config: dict[str, Any] = yaml.safe_load((conf / f"{command}.yaml").read_text(encoding="utf-8"))
    groups = [line for group, chosen in defaults(config) for line in _group(conf, group, chosen)]
    parts = [config["hydra"]["help"]["header"].rstrip()]
    if groups:
        parts.append("\n".join([fill(GROUPS_HEAD, WIDTH), *groups]))
    return "\n\n".join([*parts, own_text(own_options(command)), fill(FOOT, WIDTH)])


def own_text(known: Iterable[Option]) -> str:
    """The options of a command, each with its default and its sentence."""
    return "\n".join([fill(OPTIONS_HEAD, WIDTH), *(line for option in known for line in _option(option))])


def defaults(config: dict[str, Any]) -> list[tuple[str, str | None]]:
    """(group, the choice by default) of a command's defaults list."""
    entries = [item for entry in config["defaults"] if isinstance(entry, dict) for item in entry.items()]
    return [(group, chosen) for group, chosen in entries if group in GROUPS]


def own_options(command: str) -> list[Option]:
    return [option for option in options(COMMANDS[command]) if option.name.partition(".")[0] not in GROUPS]


def choices(conf: Path, group: str) -> list[str]:
    return sorted(ANNOTATORS.places if group == "annotator" else (p.stem for p in (conf / group).glob("*.yaml")))


def _group(conf: Path, group: str, chosen: str | None) -> list[str]:
    names = ", ".join(f"{name}*" if name == chosen else name for name in choices(conf, group))
    first = f"  {group:{INDENT - 2}}"
    return wrap(f"{GROUPS[group]}: {names}", WIDTH, initial_indent=first, subsequent_indent=" " * INDENT)


def _option(option: Option) -> list[str]:
    name = option.name if option.group and not option.default else f"{option.name}={option.default}"
    first = f"  {name}  # "
    return wrap(option.meaning, WIDTH, initial_indent=first, subsequent_indent=" " * 6, break_long_words=False)
