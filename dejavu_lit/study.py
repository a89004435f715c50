"""A study: which runs belong together, train what is missing, evaluate every pair, compare the settings.

A setting is a name and a list of overrides; a cell is one (setting, training size, seed), with a target and a reference
run under the same mitigation. Runs are found again by their configuration, so nothing is trained twice.
"""

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dejavu_lit.errors import UserError
from dejavu_lit.files import atomic, read_json, write_json, write_text
from dejavu_lit.launch import HOW, difference, identity, provenance, read_config
from dejavu_lit.measure.controls import BLOCKS, compare, found, pool
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.saved import read_evaluation
from dejavu_lit.ranking import frontier, recommend

log = logging.getLogger(__name__)

SCHEMA = 1
SIDES = ("target", "reference")
FINISHED = "run.json"


@dataclass(frozen=True)
class Cell:
    """One row of the study: a setting at one training size and seed, and its two runs."""

    name: str
    overrides: tuple[str, ...]
    train_size: int | None
    seed: int
    target: Path
    reference: Path

    @property
    def label(self) -> str:
        """A name for its folder: the setting, the size where one was chosen, and the seed."""
        size = f"-n{self.train_size}" if self.train_size is not None else ""
        return f"{self.name}{size}-s{self.seed}"


def train_missing(runs: Mapping[Path, Mapping[str, Any]]) -> dict[Path, str]:
    """Train every run that is not finished, one process each, and return the reasons of those that failed.

    Each process resumes its directory from the configuration saved in it, so that one which dies takes no other along.
    """
    todo = [path for path in runs if not (path / FINISHED).is_file()]
    log.info("%d runs: %d to train, %d finished", len(runs), len(todo), len(runs) - len(todo))
    failed: dict[Path, str] = {}
    started = time.perf_counter()
    for number, path in enumerate(todo):
        left = (time.perf_counter() - started) / number * (len(todo) - number) if number else None
        about = f", about {left / 60:.0f} min left for all" if left is not None else ""
        log.info("training %d of %d: %s%s", number + 1, len(todo), path.name, about)
        save_config(path, runs[path])
        done = subprocess.run([sys.executable, "-m", "dejavu_lit.resume", str(path)], stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            failed[path] = f"ended with code {done.returncode}"
            log.error("%s failed (code %d); going on with the others", path, done.returncode)
    return failed


def save_config(path: Path, config: Mapping[str, Any]) -> None:
    """Save a run's configuration; raises UserError where the directory holds another one's."""
    import yaml

    if (path / "config.yaml").is_file():
        if changed := difference(read_config(path), config):
            raise UserError(f"{path} holds a run with other settings ({changed}); choose another out= or remove it")
        return
    write_text(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def evaluate_cells(
    out: Path, cells: Sequence[Cell], evaluate: Callable[[Cell, Path], Mapping[str, Any]], failed: Mapping[Path, str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Evaluate every cell whose two runs are there: the rows of study.json, and the reasons of the cells without one."""
    rows, lost = [], {}
    for cell in cells:
        if broken := [path for path in (cell.target, cell.reference) if path in failed]:
            lost[cell.label] = f"{broken[0].name} {failed[broken[0]]}"
            continue
        folder = out / "evaluations" / cell.label
        try:
            rows.append(row(out, cell, evaluate(cell, folder), folder))
        except UserError as error:
            lost[cell.label] = str(error)
            log.error("%s: %s", cell.label, error)
    return rows, lost


def row(out: Path, cell: Cell, metrics: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One row of study.json from one metrics.json."""
    import os

    return {
        "name": cell.name,
        "overrides": list(cell.overrides),
        "train_size": cell.train_size or metrics["counts"]["records"] + metrics["counts"]["without_objects"],
        "seed": cell.seed,
        **{block: metrics[block] for block in BLOCKS},
        "utility": metrics["utility"],
        "exposure": metrics["exposure"],
        "seconds": sum(read_json(path / FINISHED)["seconds"] for path in (cell.target, cell.reference)),
        "metrics": os.path.relpath(folder / "metrics.json", out),
    }


def conclude(
    out: Path, rows: Sequence[Mapping[str, Any]], lost: Mapping[str, str], utility_loss: float
) -> dict[str, Any]:
    """Write study.json and study.parquet (one row a cell, figures in columns of their own) and return the former.

    Args:
        rows: as ``row`` makes them; lost: {cell: why it has no row}.
        utility_loss: largest drop of zero-shot accuracy that a recommended setting may cost, as a share (0.02: two points).
    """
    differences = _differences(out, rows)
    study = {
        "schema": SCHEMA,
        "settings": list(rows),
        "pooled": _pooled(rows),
        "differences": differences,
        "frontier": frontier(rows),
        "recommended": recommend(rows, differences, utility_loss),
        "rule": f"largest drop of symmetric PPG whose utility loss is at most {utility_loss:g} and whose difference holds",
        "failed": dict(lost),
        "provenance": provenance(),
    }
    write_json(out / "study.json", study)
    flat = [dict(_flat(found)) for found in rows]
    names = list(dict.fromkeys(name for found in flat for name in found))
    table = pa.table({name: [found.get(name) for found in flat] for name in names})
    with atomic(out / "study.parquet") as part:
        pq.write_table(table, part)
    return study


def _pooled(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each (setting, size) over its seeds: means, spread, t intervals, and whether memorization was found."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for found_row in rows:
        groups.setdefault((found_row["name"], found_row["train_size"]), []).append(found_row)
    return [
        {"name": name, "train_size": size, "seeds": [r["seed"] for r in group], **pool(group), "found": found(group)}
        for (name, size), group in groups.items()
    ]


def _differences(out: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every row against the first setting's of the same size and seed, pair by pair on the same records."""
    saved: dict[str, dict[str, Records]] = {}

    def records(found_row: Mapping[str, Any]) -> tuple[tuple[Records, Records | None], dict[str, Any]]:
        path = out / found_row["metrics"]
        metrics = read_json(path)
        if str(path) not in saved:
            settings = metrics["settings"]
            public = read_json(path.parent / "context.json")["public"]
            saved[str(path)] = read_evaluation(path.parent, settings["objects"], settings["threshold"], public)[0]
        sets = saved[str(path)]
        return (sets["population"], sets.get("swapped")), metrics

    made = []
    for other in rows:
        first = next((r for r in rows if (r["train_size"], r["seed"]) == (other["train_size"], other["seed"])), None)
        if first is None or first["name"] == other["name"]:
            continue
        one, metrics = records(first)
        block = compare(one, records(other)[0], metrics["k"], metrics["settings"]["top_m"])
        made.append(
            {
                "name": other["name"],
                "against": first["name"],
                "train_size": other["train_size"],
                "seed": other["seed"],
                **block,
            }
        )
    return made


def _flat(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            yield name, json.dumps(value)
        else:
            yield name, value


def pair_runs(folder: Path) -> tuple[list[Cell], list[str]]:
    """The finished runs below ``folder`` as cells, paired by configurations that differ in ``side`` alone.

    Returns:
        (cells, names of the runs without a partner).

    Raises:
        UserError: no finished run there.
    """
    found: dict[str, dict[str, Path]] = {}
    configs: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"**/{FINISHED}")):
        config = read_config(path.parent)
        key = identity({name: value for name, value in config.items() if name != "side"})
        found.setdefault(key, {})[config["side"]] = path.parent
        configs[key] = config
    if not found:
        raise UserError(f"{folder} holds no finished runs; give the folder of a multirun of train.py")
    pairs = {key: runs for key, runs in found.items() if set(runs) == set(SIDES)}
    alone = [str(path) for key, runs in found.items() if key not in pairs for path in runs.values()]
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
    return cells, alone


def _typed(value: Any) -> str:
    """A value as one types it in an override."""
    return str(value) if isinstance(value, str) else json.dumps(value)


def _settings(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of a run by their dotted names, without side, seed, size and what does not change the outcome."""
    for key, value in config.items():
        name = f"{path}.{key}" if path else str(key)
        if name in (*HOW, "side", "seed", "data.train_size"):
            continue
        if isinstance(value, Mapping):
            yield from _settings(value, name)
        else:
            yield name, value
