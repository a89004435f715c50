"""The runs of a multirun as cells of a study: those whose configurations differ in ``side`` alone belong together."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dejavu_lit.study.runs import FINISHED
from dejavu_lit.study.table import SIDES, Cell
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.run_directory import HOW, identity, read_config

APART = (*HOW, "side", "seed", "data.train_size")  # has a column of its own, or changes nothing of what is computed
# Of how a run is computed this may change its figures: rounding and the order of the pairs.
ROUNDING = ("trainer.precision", "trainer.devices", "trainer.num_nodes", "trainer.loader.workers")


def pair_runs(folder: Path) -> tuple[list[Cell], list[str]]:
    """The finished runs below ``folder`` as cells, in the order of the jobs; settings are named by what varies.

    Returns:
        (cells, a sentence for every run that is left out: not finished, trained twice, or without a partner).

    Raises:
        UserError: no such folder, or no finished run there.
    """
    if not folder.is_dir():
        raise UserError(f"sweep={folder} is no folder; give that of a multirun of dejavu train")
    found: dict[str, dict[str, Path]] = {}
    configs: dict[str, dict[str, Any]] = {}
    left_out = []
    for path in sorted(folder.glob("**/config.yaml"), key=_natural):
        run, config = path.parent, read_config(path.parent)
        if config.get("side") not in SIDES:
            continue
        if not (run / FINISHED).is_file():
            left_out.append(f"{run} is not finished; the same dejavu train goes on with it")
            continue
        key = identity({name: value for name, value in config.items() if name != "side"})
        key += json.dumps([value for name, value in _flat(config) if name in ROUNDING])
        if config["side"] in found.setdefault(key, {}):
            left_out.append(f"{run} is the same run as {found[key][config['side']]}")
            continue
        found[key][config["side"]] = run
        configs[key] = config
    if not found:
        raise UserError(f"{folder} holds no finished runs; give the folder of a multirun of dejavu train")
    pairs = {key: runs for key, runs in found.items() if set(runs) == set(SIDES)}
    for runs in (runs for key, runs in found.items() if key not in pairs):
        left_out += [f"{run} has no partner (the same settings with the other side)" for run in runs.values()]
    values = {key: dict(_settings(configs[key])) for key in pairs}
    names = dict.fromkeys(name for settings in values.values() for name in settings)
    varied = [n for n in names if len({json.dumps(v.get(n)) for v in values.values()}) > 1]
    cells = []
    for key, runs in pairs.items():
        config = configs[key]
        typed = tuple(f"{name}={_typed(values[key].get(name))}" for name in varied)
        cells.append(
            Cell(
                ",".join(typed) or "all",
                typed,
                config["data"]["train_size"],
                config["seed"],
                runs["target"],
                runs["reference"],
            )
        )
    return cells, left_out


def _natural(path: Path) -> list[Any]:
    """Job 10 after job 2."""
    return [[(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", text) if part]
            for text in path.parts]  # fmt: skip


def _typed(value: Any) -> str:
    """A value as one types it in an override."""
    return str(value) if isinstance(value, str) else json.dumps(value)


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings of a run by their dotted names, without those that are kept apart."""
    budget = config["mitigation"].get("gap_budget") is not None  # then how gaps are measured decides when a run ends
    for name, value in _flat(config):
        apart = any(name == one or name.startswith(f"{one}.") for one in APART)
        measured = budget and name.startswith("gaps.") and name != "gaps.reference"
        if not apart or name in ROUNDING or measured:
            yield name, value


def _flat(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, value
