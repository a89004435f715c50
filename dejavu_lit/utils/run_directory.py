"""What every entry point shares: the run directory, its lock and settings, provenance, and the loggers' files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dejavu_lit.utils.distributed import rank
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import fingerprint, locked, write_text

# What may differ between the first and a later call in the same directory: it changes where and how, not what.
HOW = ("out", "trainer", "logger", "gaps")
ENTRIES = 100_000  # of a config.yaml
LONGEST_NUMBER = 256  # bits of a number in it
RUN_SCHEMA = 1  # of run.json
PARTNER = "partner"  # as gaps.reference of a study: the reference run of the same setting


def read_config(folder: Path) -> dict[str, Any]:
    """The settings saved in a run or evaluation; raises UserError where there are none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is no run directory (it has no config.yaml); give one that dejavu train made")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        _room(config, ENTRIES)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 40th of May, or no UTF-8
        raise UserError(
            f"{path} is not valid YAML ({first_line(error)}); restore it or start again in another directory"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a mapping of settings; restore it or start again in another directory")
    return config


def _room(value: Any, room: int, depth: int = 0) -> int:
    """What is left of ``room`` entries; raises ValueError where none is, or no end: a reference may stand for much more."""
    if room <= 0 or depth > 50:
        raise ValueError("it is too large, or refers to itself")
    if isinstance(value, int) and value.bit_length() > LONGEST_NUMBER:
        raise ValueError("it holds a number of too many digits")
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            room = _room(inner, room - 1, depth + 1)
    return room


def difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first setting in which two configs differ, as ``a.b: old → new``; None where they agree."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if not path:
            old, new = decisive(old), decisive(new)
        for key in dict.fromkeys([*old, *new]):
            if found := difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key)):
                return found
        return None
    return None if old == new else f"{path}: {old} → {new}"


def identity(config: Mapping[str, Any]) -> str:
    """Fingerprint of what a run computes, whatever its directory, machine and loggers."""
    return fingerprint(decisive(config))


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes; where gaps may end it, how they are measured is among them."""
    kept = {key: value for key, value in config.items() if key not in HOW}
    mitigation, gaps = config.get("mitigation") or {}, config.get("gaps") or {}
    if mitigation.get("gap_budget") is None:
        return kept
    if config.get("side") == "reference" and gaps.get("reference") is None:  # it is not measured, so nothing ends it
        return kept | {"mitigation": {**mitigation, "gap_budget": None}}
    return kept | {"gaps": {key: value for key, value in gaps.items() if key != "reference"}}


@contextmanager
def run_directory(out: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Own ``out`` for the time of a run, with ``config`` saved in it; of several ranks the first does so for all.

    Raises:
        UserError: another process works there, or it holds a run with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    if rank() > 0:
        yield out
        return
    with locked(out / ".lock", wait=False):
        if (out / "config.yaml").exists():
            if changed := difference(read_config(out), config):
                raise UserError(f"{out} holds a run with other settings ({changed}); choose another out= or remove it")
        else:
            write_text(out / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        yield out
