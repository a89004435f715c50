"""What ``--help`` of a command says: what it is for with worked commands, the config groups with a line each, its own options.

All of it is read from conf/: the commands are ``hydra.help.header``, options and their comments stand in the files themselves.
"""

from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

GROUPS = {
    "data": "images and captions",
    "model": "architecture",
    "recipe": "epochs, batch, learning rate",
    "mitigation": "against memorization; the knobs combine, mitigation.KNOB=VALUE",
    "trainer": "where it is computed",
    "logger": "dashboards beside metrics.csv",
    "evaluate": "what is measured, as evaluate.OPTION=VALUE",
    "experiment": "a study that is ready to run",
    "annotator": "who finds the objects",
}
HIDDEN = ("hydra", "_self_")
WIDTH, INDENT = 120, 14
GROUPS_HEAD = (
    "Groups: GROUP=NAME chooses a file of conf/GROUP, GROUP.OPTION=VALUE changes an option of it; * is the default.\n"
)
OPTIONS_HEAD = "Options of this command, as they stand by default:\n"
FOOT = """--cfg job shows every option with the value that it has, --cfg job --package GROUP those of a group;
-m with values separated by commas runs all combinations; --hydra-help says what else Hydra offers."""


def text(conf: Path, command: str) -> str:
    """The help of one command.

    Args:
        conf: the folder of the configuration; command: the name of its file there.
    """
    source = (conf / f"{command}.yaml").read_text(encoding="utf-8")
    config: dict[str, Any] = yaml.safe_load(source)
    header = str(((config.get("hydra") or {}).get("help") or {}).get("header", "")).rstrip()
    groups, options = [], []
    for group, chosen in _defaults(config):
        if group == "evaluate" and chosen is None:  # its options are this command's own
            included = (conf / "evaluate" / "default.yaml").read_text(encoding="utf-8")
            options.append(_options(included))
            groups += [(g, c) for g, c in _defaults(yaml.safe_load(included))]
        else:
            groups.append((group, chosen))
    options.insert(0, _options(source))
    body = "\n".join(f"  {line}" if line else "" for part in options for line in part)
    lines = [line for group, chosen in groups for line in _group(conf / group, chosen)]
    return "\n\n".join([header, *([GROUPS_HEAD + "\n".join(lines)] if lines else []), OPTIONS_HEAD + body, FOOT])


def _defaults(config: dict[str, Any]) -> list[tuple[str, str | None]]:
    """(group, the choice by default) of a defaults list; (evaluate, None) where that group's options are taken as one's own."""
    found: list[tuple[str, str | None]] = []
    for entry in config.get("defaults", []):
        if isinstance(entry, str):
            continue
        ((name, chosen),) = entry.items()
        group, _, package = str(name).lstrip("/").removeprefix("override ").partition("@")
        if group not in HIDDEN:
            found.append((group, None if package == "_here_" else str(chosen or "")))
    return found


def _group(folder: Path, chosen: str | None) -> list[str]:
    """A group's line: what it is about and its choices, wrapped."""
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    choices = ", ".join(f"{name}*" if name == chosen else name for name in names)
    words = GROUPS[folder.name] + (f": {choices}" if names != ["default"] else "")
    return wrap(words, WIDTH, initial_indent=f"  {folder.name:{INDENT - 2}}", subsequent_indent=" " * INDENT)


def _options(source: str) -> list[str]:
    """The lines of a file of options, without its first comment, its defaults list and what it tells Hydra."""
    kept: list[str] = []
    skipping = True
    for line in source.splitlines():
        if line and not line[0].isspace() and not line.startswith(("-", "#")):
            skipping = line.startswith(("defaults:", "hydra:"))
        if not skipping and "_target_:" not in line:
            kept.append(line)
    while kept and not kept[-1]:
        kept.pop()
    return kept
