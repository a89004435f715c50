"""A study: which runs belong together, what is trained and evaluated for them, and the table in which settings are compared.

A setting is a name and a list of overrides; a cell is one (setting, training size, seed), with a target and a reference
run under the same mitigation. Runs are found again by their configuration, so nothing is trained twice; a setting that
differs from a longer run in its stop epoch alone is read off that run's checkpoint.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dejavu_lit.measure.controls import BLOCKS, compare, found, pool
from dejavu_lit.measure.population import Resampling
from dejavu_lit.measure.recompute import read_evaluation
from dejavu_lit.measure.records import Records
from dejavu_lit.study.ranking import add_words, comparable, pool_differences, rank
from dejavu_lit.study.runs import FINISHED, epochs
from dejavu_lit.utils.errors import UserError, spoken
from dejavu_lit.utils.io import atomic, read_json, write_json
from dejavu_lit.utils.provenance import provenance
from dejavu_lit.utils.run_directory import read_config

log = logging.getLogger(__name__)

SCHEMA = 1
SIDES = ("target", "reference")
ASKED = "asked.json"  # in the folder of an evaluation: what a study asked for


@dataclass(frozen=True)
class Cell:
    """One row of the study: a setting at one training size and seed, its two runs and its evaluation."""

    name: str
    overrides: tuple[str, ...]
    train_size: int | None
    seed: int
    target: Path
    reference: Path
    epochs: Mapping[str, int] = field(default_factory=dict)  # by side, where the run goes on after the stop epoch
    series: str | None = None
    folder: Path | None = None  # of its evaluation, which several cells may share
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # the settings of its evaluation

    @property
    def label(self) -> str:
        """A name for its folder: the setting, the size where one was chosen, and the seed."""
        return label(self.name, self.train_size, self.seed)

    def side(self, name: str) -> str:
        """The model of one side, as ``dejavu evaluate`` names it: RUN or RUN@EPOCH."""
        run = self.target if name == "target" else self.reference
        return f"{run}@{self.epochs[name]}" if name in self.epochs else str(run)


def label(name: str, train_size: int | None, seed: int) -> str:
    """A folder's name for a setting, its size where one was chosen, and the seed."""
    size = f"-n{train_size}" if train_size is not None else ""
    return f"{re.sub(r'[^A-Za-z0-9_.=-]+', '-', name).strip('.-') or 'setting'}{size}-s{seed}"


def evaluation_folder(out: Path, cell: Cell) -> Path:
    """Where a cell's evaluation is written in the study's folder ``out``."""
    return cell.folder or out / "evaluations" / cell.label


def asked(cell: Cell) -> dict[str, Any]:
    """What decides a cell's evaluation: its two models, by the names of their directories, and its settings."""
    return {**{side: Path(cell.side(side)).name for side in SIDES}, "evaluation": dict(cell.evaluation)}


def at_stop(cell: Cell) -> Cell:
    """The cell with its reference as it was when a gap budget ended its target: models of different age differ in quality."""
    stopped = read_json(cell.target / FINISHED).get("stopped") or {}
    if stopped.get("by") != "gap_budget" or "target" in cell.epochs:
        return cell
    epoch = int(stopped["epoch"])
    if not (cell.reference / "checkpoints" / f"epoch={epoch:04d}.ckpt").is_file():
        log.warning("%s was stopped after epoch %d, of which %s kept nothing", cell.target, epoch, cell.reference)
        return cell
    return replace(cell, epochs={"reference": epoch})


def row(out: Path, cell: Cell, metrics: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One row of study.json from one metrics.json; ``seconds`` is what training both sides took, up to the stop epoch."""
    return {
        "name": cell.name,
        "overrides": list(cell.overrides),
        "series": cell.series,
        "public": metrics["settings"].get("public"),
        "data": metrics["settings"].get("data"),
        "objects": metrics["settings"].get("objects"),
        "train_size": cell.train_size or metrics["counts"]["records"] + metrics["counts"]["without_objects"],
        "seed": cell.seed,
        "knobs": knobs(cell.target, cell.epochs.get("target")),
        **{block: metrics[block] for block in BLOCKS},
        "utility": metrics["utility"],
        "exposure": metrics["exposure"],
        "seconds": sum(_seconds(getattr(cell, side), cell.epochs.get(side)) for side in SIDES),
        "metrics": os.path.relpath(folder / "metrics.json", out),
    }


def _seconds(run: Path, epoch: int | None) -> float:
    record = read_json(run / FINISHED)
    return float(record["seconds"]) * (epoch / record["epochs"] if epoch is not None else 1)


def knobs(run: Path, epoch: int | None = None) -> dict[str, Any]:
    """Every knob of a run's mitigation with the value that it had: the recipe's own where it was not set."""
    if not (run / "config.yaml").is_file():
        return {}
    config = read_config(run)
    values = {name: value for name, value in config["mitigation"].items() if name != "_target_"}
    recipe = config["recipe"]
    own = {"weight_decay": recipe.get("weight_decay"), "stop_epoch": recipe["epochs"]}
    own |= {"logit_scale_max": recipe.get("logit_scale_max", 100.0)}
    if not config["model"]["init"]:
        own["logit_scale_init"] = round(1 / 0.07, 4)
    values |= {name: value for name, value in own.items() if values.get(name) is None}
    return values | {"stop_epoch": epoch if epoch is not None else epochs(config)}


def evaluate_cells(
    out: Path, cells: Sequence[Cell], evaluate: Callable[[Cell, Path], Mapping[str, Any]], failed: Mapping[Path, str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Evaluate every cell whose two runs are there: the rows of study.json, and the reasons of the cells without one."""
    rows, lost = [], {}
    for number, cell in enumerate(cells):
        if broken := [path for path in (cell.target, cell.reference) if path in failed]:
            lost[cell.label] = f"training of {broken[0].name} failed: {failed[broken[0]]}"
            continue
        folder = evaluation_folder(out, cell)
        log.info("evaluating %d of %d: %s", number + 1, len(cells), cell.label)
        try:
            cell = at_stop(cell)
            rows.append(row(out, cell, evaluate(cell, folder), folder))
        except (UserError, OSError) as error:
            lost[cell.label] = spoken(error) if isinstance(error, OSError) else str(error)
            log.error("%s: %s", cell.label, lost[cell.label])
        except Exception as error:  # whatever it is, it must not take the other settings along
            lost[cell.label] = f"{type(error).__name__}: {error}"
            log.exception("%s", cell.label)
    return rows, lost


def conclude(
    out: Path, rows: Sequence[Mapping[str, Any]], lost: Mapping[str, str], utility_loss: float
) -> dict[str, Any]:
    """Write study.json and study.parquet (one row a cell, figures in columns of their own) and return the former.

    Args:
        rows: as ``row`` makes them; lost: {cell: why it has no row}.
        utility_loss: largest drop of zero-shot accuracy that a recommended setting may cost, as a share (0.02: two points).
    """
    differences, incomparable = _differences(out, rows)
    pooled = _pooled(rows, pool_differences(differences))
    study = {
        "schema": SCHEMA,
        "settings": list(rows),
        "pooled": pooled,
        "differences": differences,
        "incomparable": incomparable,
        **rank(rows, pooled, utility_loss),
        "rule": f"largest drop of symmetric PPG whose utility loss is at most {utility_loss:g} and whose difference holds",
        "failed": dict(lost),
        "provenance": provenance(),
    }
    write_json(out / "study.json", study)
    flat = [dict(_flat(one)) for one in rows]
    names = list(dict.fromkeys(name for one in flat for name in one))
    table = pa.table({name: _column([one.get(name) for one in flat]) for name in names})
    with atomic(out / "study.parquet") as part:
        pq.write_table(table, part)
    return study


def _pooled(rows: Sequence[Mapping[str, Any]], differences: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Each (setting, size) over its seeds: means, spread, t intervals, whether memorization was found, and how much less."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for one in rows:
        groups.setdefault((one["name"], one["train_size"]), []).append(one)
    return [
        {
            "name": name,
            "train_size": size,
            "series": group[0].get("series"),
            "public": group[0].get("public"),
            "seeds": [r["seed"] for r in group],
            **pool(group),
            "found": found(group),
            "difference": differences.get((name, size)),
        }
        for (name, size), group in groups.items()
    ]


def _differences(out: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Every row against the first comparable setting's of the same size and seed, pair by pair on the same records.

    Returns:
        (the differences, {name, train_size, seed, against, reason} of each row that has none although it should).
    """
    kept: dict[str, tuple[Records, Records | None]] = {}  # of the defaults, which are compared with many

    def records(one: Mapping[str, Any], metrics: Mapping[str, Any]) -> tuple[Records, Records | None]:
        folder, settings = (out / one["metrics"]).parent, metrics["settings"]
        public = read_json(folder / "context.json")["public"]
        sets = read_evaluation(folder, settings["objects"], settings["threshold"], public)[0]
        return sets["population"], sets.get("swapped")

    def same(one: Mapping[str, Any]) -> tuple[Any, ...]:
        return *comparable(one), one["train_size"], one["seed"]

    firsts = {comparable(one): one["name"] for one in reversed(rows)}
    made, lost = [], []
    for other in rows:
        named = (r for r in rows if same(r) == same(other) and r["name"] == firsts[comparable(other)])
        first = next(named, None)
        if first is None or first["name"] == other["name"]:
            continue
        about = {name: other[name] for name in ("name", "train_size", "seed")} | {"against": first["name"]}
        try:
            metrics = read_json(out / first["metrics"])
            if first["metrics"] not in kept:
                kept[first["metrics"]] = records(first, metrics)
            theirs = records(other, read_json(out / other["metrics"]))
            settings = metrics["settings"]
            resampling = Resampling(**{field.name: settings[field.name] for field in fields(Resampling)})
            block = compare(kept[first["metrics"]], theirs, metrics["k"], settings["top_m"], resampling)
        except UserError as error:  # one pair that cannot be compared must not take the table along
            log.warning("%s is not compared with %s: %s", other["name"], first["name"], error)
            lost.append({**about, "reason": str(error)})
            continue
        made.append(add_words({**about, **block}))
    return made, lost


def _flat(one: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in one.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, list):
            yield name, json.dumps(value)
        else:
            yield name, value


def _column(values: list[Any]) -> "pa.Array":
    """A column of plain values; texts where the settings gave it values of several kinds."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if value is None else str(value) for value in values])
