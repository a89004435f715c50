"""The run directory: its lock, its saved settings, and which of them identify a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from dejavu_lit.utils.distributed import rank
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import fingerprint, locked, write_text

# Settings that may change when a run is continued: they change where and how it is computed, not what.
NOT_IDENTIFYING = ("out", "trainer", "logger", "gaps")
ENTRIES = 100_000  # of a config.yaml
LONGEST_NUMBER = 256  # bits of a number in it
RUN_SCHEMA = 1  # of run.json
PARTNER = "partner"  # gaps.reference of a study: the reference run of the same setting


def read_config(folder: Path) -> dict[str, Any]:
    """The settings saved in a run directory; raises UserError if there are none."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{folder} is not a run directory (it has no config.yaml); give the out= of dejavu train")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        _room(config, ENTRIES)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date, or not UTF-8
        raise UserError(
            f"{path} is not valid YAML ({first_line(error)}); restore it, or start over in another directory"
        ) from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a mapping of settings; restore it, or start over in another directory")
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


def first_difference(old: Any, new: Any, path: str = "") -> str | None:
    """The first setting in which two configs differ, as ``a.b: old → new``; None if they agree."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        if not path:
            old, new = identifying_settings(old), identifying_settings(new)
        for key in dict.fromkeys([*old, *new]):
            if change := first_difference(old.get(key), new.get(key), f"{path}.{key}" if path else str(key)):
                return change
        return None
    return None if old == new else f"{path}: {old} → {new}"


def identity(config: Mapping[str, Any]) -> str:
    """Fingerprint of what a run computes, whatever its directory, machine and loggers."""
    return fingerprint(identifying_settings(config))


def identifying_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes; with a gap budget, how gaps are measured is one of them."""
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTIFYING}
    mitigation, gaps = config.get("mitigation") or {}, config.get("gaps") or {}
    if mitigation.get("gap_budget") is None:
        return kept
    if config.get("side") == "reference" and gaps.get("reference") is None:  # nothing is measured, so nothing stops it
        return kept | {"mitigation": {**mitigation, "gap_budget": None}}
    return kept | {"gaps": {key: value for key, value in gaps.items() if key != "reference"}}


@contextmanager
def run_directory(out: Path, config: Mapping[str, Any]) -> Iterator[Path]:
    """Lock ``out`` for the time of a run and save ``config`` in it; with several ranks, rank 0 does so for all.

    Raises:
        UserError: another process works there, or it has a run with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    if rank() > 0:
        yield out
        return
    with locked(out / ".lock", wait=False):
        if (out / "config.yaml").exists():
            if changed := first_difference(read_config(out), config):
                raise UserError(f"{out} has a run with other settings ({changed}); choose another out= or remove it")
        else:
            write_text(out / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        yield out
