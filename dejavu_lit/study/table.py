"""The table of a study: the evaluations of its cells, and study.json, in which the settings are compared."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dejavu_lit.evaluation.context import CONTEXT
from dejavu_lit.evaluation.run import run_evaluation
from dejavu_lit.measure.controls import (
    compare_settings,
    few_records_sentence,
    memorization_found,
    pool_blocks,
    pool_seeds,
)
from dejavu_lit.measure.figures import BLOCKS, MEMBERSHIP
from dejavu_lit.measure.recompute import read_evaluation, schema_error
from dejavu_lit.measure.records import SIDES, Records
from dejavu_lit.measure.roc import FPRS
from dejavu_lit.measure.settings import Resampling
from dejavu_lit.study import ranking
from dejavu_lit.study.cells import REQUEST, Cell, evaluation_request, match_stop_epoch
from dejavu_lit.study.halves import write_memorization
from dejavu_lit.training.settings import TrainingRun
from dejavu_lit.utils.config import flatten, to_plain
from dejavu_lit.utils.distributed import SINGLE_PROCESS, Ranks
from dejavu_lit.utils.errors import UserError, error_sentence
from dejavu_lit.utils.io import atomic, fingerprint, read_json, read_json_object, write_json
from dejavu_lit.utils.progress import progress
from dejavu_lit.utils.provenance import provenance
from dejavu_lit.utils.run_directory import RunDirectory

log = logging.getLogger(__name__)

SCHEMA = 1  # of study.json
OPEN_CLIP_LOGIT_SCALE = math.log(1 / 0.07)  # the initial value, unless a config, a checkpoint or a knob sets another


def evaluate_cells(
    out: Path, cells: Sequence[Cell], failed: Mapping[Path, str], ranks: Ranks = SINGLE_PROCESS
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Evaluate every cell whose two runs were trained; ``failed``: {run directory: why its training failed}.

    Returns (the rows of study.json, {cell label: why it has no row}).
    """
    rows, failures = [], {}
    sizes: dict[str, list[dict[str, Any]]] = {}  # the rows that train on as many pairs
    for number, cell in enumerate(cells, start=1):
        if broken := [path for path in (cell.target, cell.reference) if path in failed]:
            failures[cell.label] = f"training of {broken[0].name} failed: {failed[broken[0]]}"
            continue
        log.info("evaluating %d of %d: %s", number, len(cells), cell.label)
        try:
            request = evaluation_request(cell)
            if ranks.world == 1 and not (cell.folder / REQUEST).is_file():
                write_json(cell.folder / REQUEST, request)
            cell = match_stop_epoch(cell)
            metrics = run_evaluation(cell.pair, cell.folder, ranks)
            write_json(cell.folder / REQUEST, request)  # the statistics may have changed
            rows.append(study_row(out, cell, metrics))
            data = RunDirectory(cell.target).config()["data"]
            sizes.setdefault(fingerprint([cell.train_size, {**data, "half": None}]), []).append(rows[-1])
        except Exception as error:  # of any kind: one setting must not stop the others
            sentence = error_sentence(error)
            failures[cell.label] = sentence or f"{type(error).__name__}: {error}"
            log.error("%s: %s", cell.label, failures[cell.label], exc_info=None if sentence else error)
    # A half may lack a group of duplicates that fits into neither side.
    for group in sizes.values():
        largest = max(row["train_size"] for row in group)
        for row in group:
            row["train_size"] = largest
    return rows, failures


def study_row(out: Path, cell: Cell, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One row of study.json from one metrics.json; ``seconds`` is the training time of both sides, up to the stop epoch.

    ``train_size`` has the duplicates that were left out; of an unfinished run it is how many pairs were measured.
    """
    measured = metrics["counts"]["records"] + metrics["counts"]["without_objects"]
    return {
        "name": cell.name,
        "overrides": list(cell.overrides),
        "series": cell.series,
        "public": metrics["settings"].get("public"),
        "data": metrics["settings"].get("data"),
        "objects": metrics["settings"].get("objects"),
        "train_size": cell.train_size or int(RunDirectory(cell.target).record().get("train_size", measured)),
        "seed": cell.seed,
        "half": cell.half,
        "knobs": knobs(cell.target, cell.epochs.get("target")),
        **{block: metrics[block] for block in BLOCKS},
        "base": metrics.get("base"),
        "utility": metrics["utility"],
        "beats_blind": (metrics.get("blind") or {}).get("beaten"),
        "few_records": bool(few_records_sentence(metrics["counts"])),
        "membership": membership_summary(metrics.get("membership")),
        "exposure": metrics["exposure"],
        "seconds": sum(_training_seconds(getattr(cell, side), cell.epochs.get(side)) for side in SIDES),
        "metrics": os.path.relpath(cell.folder / "metrics.json", out),
    }


def membership_summary(board: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The scoreboard of one evaluation without its curves and details."""
    if board is None:
        return None
    parts = ("auc", "tpr_at_fpr", "swapped", "symmetric", "unseen", "control", "spearman")
    scores = {name: entry and {part: entry[part] for part in parts} for name in MEMBERSHIP for entry in [board[name]]}
    return scores | {"epsilon": board["epsilon"] and board["epsilon"]["epsilon"]}


def _training_seconds(run: Path, epoch: int | None) -> float:
    record = RunDirectory(run).record()
    return float(record["seconds"]) * (epoch / record["epochs"] if epoch is not None else 1)


def knobs(run: Path, epoch: int | None = None) -> dict[str, Any]:
    """Every knob of a run's mitigation with the value in effect: the recipe's if the mitigation does not set it."""
    if not RunDirectory(run).exists:
        return {}
    settings = RunDirectory(run).read(TrainingRun)
    recipe = settings.recipe
    values: dict[str, Any] = to_plain(settings.mitigation)
    defaults = {"weight_decay": recipe.weight_decay, "logit_scale_max": recipe.logit_scale_max}
    if not settings.model.init:
        initial = (settings.model.config or {}).get("init_logit_scale", OPEN_CLIP_LOGIT_SCALE)
        defaults["logit_scale_init"] = round(math.exp(initial), 4)
    values |= {name: value for name, value in defaults.items() if values.get(name) is None}
    return values | {"stop_epoch": epoch if epoch is not None else settings.epochs}


def write_study(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    failures: Mapping[str, str],
    utility_loss: float,
    cells: Sequence[Cell] = (),
) -> dict[str, Any]:
    """Write study.json and study.parquet (one row per cell, one column per figure) and return the contents of the former.

    Args:
        rows: from ``study_row``; failures: {cell label: why it has no row}.
        utility_loss: largest loss of utility that a recommended setting may have, as a share (0.02: two points).
        cells: all that were planned; the first is the default even if it has no row.
    """
    differences, incomparable = _differences(out, rows, ranking.default_names(rows, cells))
    pooled = _pool_settings(rows, ranking.pool_differences(differences), write_memorization(out, rows))
    study = {
        "schema": SCHEMA,
        "settings": list(rows),
        "pooled": pooled,
        "differences": differences,
        "incomparable": incomparable,
        **ranking.rank(rows, pooled, utility_loss, cells),
        "rule": (
            f"largest drop of symmetric PPG whose utility loss is at most {utility_loss:g} and whose 95 % interval is above 0"
        ),
        "failed": dict(failures),
        "provenance": provenance(),
    }
    with suppress(UserError, KeyError):  # missing or damaged
        earlier = read_json_object(out / "study.json")
        if json.loads(json.dumps({**study, "provenance": None})) == {**earlier, "provenance": None}:
            study["provenance"] = earlier["provenance"]  # the same file, so that nothing is rendered again
    write_json(out / "study.json", study)
    flat = [
        {name: json.dumps(value) if isinstance(value, list) else value for name, value in flatten(row)} for row in rows
    ]
    names = dict.fromkeys(name for row in flat for name in row)
    table = pa.table({name: [row.get(name) for row in flat] for name in names})
    with atomic(out / "study.parquet") as part:
        pq.write_table(table, part)
    return study


def read_study(path: Path) -> dict[str, Any]:
    """A study.json, which may come from elsewhere; raises UserError if it is missing, damaged or of another schema."""
    study = read_json_object(path, SCHEMA)
    if not study.get("settings"):
        raise UserError(f"{path} has no settings; run dejavu mitigate again")
    if (damage := schema_error(study, "dejavu_lit.study", "study.schema.json")) is not None:
        raise UserError(f"{path} is damaged ({damage}); run dejavu mitigate again")
    return study


def _pool_settings(
    rows: Sequence[Mapping[str, Any]], differences: Mapping[Any, Any], memorization: Mapping[Any, Any]
) -> list[dict[str, Any]]:
    """Each (setting, size) over its seeds or halves: means, spread, t intervals, the verdict, the difference to the default."""
    return [
        {
            "name": name,
            "train_size": size,
            "series": group[0].get("series"),
            "public": group[0].get("public"),
            "seeds": [row["seed"] for row in group],
            "halves": [row.get("half", 0) for row in group],
            **pool_blocks(group),
            "membership": _pool_membership(group),
            "memorization": memorization.get((name, size)),
            "found": memorization_found(group, ranking.unit_of(group)),
            "difference": differences.get((name, size)),
        }
        for (name, size), group in ranking.by_setting(rows).items()
    ]


def _pool_membership(group: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{score: {mean, sd, ci95} of the symmetric AUC, and tpr_at_fpr: {fpr: the same of the mean over both directions}}."""
    pooled: dict[str, Any] = {}
    for score in MEMBERSHIP:
        entries = [(row.get("membership") or {}).get(score) or {} for row in group]
        pooled[score] = _pool([entry.get("symmetric") for entry in entries])
        if pooled[score] is not None:
            pooled[score]["tpr_at_fpr"] = {
                str(fpr): _pool([_mean_tpr(entry, str(fpr)) for entry in entries]) for fpr in FPRS
            }
    return pooled


def _pool(figures: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    values = [figure["value"] for figure in figures if figure is not None]
    return pool_seeds(values) if values and len(values) == len(figures) else None


def _mean_tpr(entry: Mapping[str, Any], fpr: str) -> dict[str, float] | None:
    """The mean of the TPRs of A under the target and of B under the reference."""
    both = [direction["tpr_at_fpr"][fpr] for direction in (entry, entry["swapped"])]
    return {"value": sum(tpr["value"] for tpr in both) / 2} if None not in both else None


def _differences(
    out: Path, rows: Sequence[Mapping[str, Any]], default_of: Mapping[tuple[Any, ...], str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The gaps of the comparable default minus every row's, at the same size, seed and half, on the same records.

    Returns (the differences, the rows that could not be compared, with the reason).
    """

    def place(row: Mapping[str, Any], name: str) -> tuple[Any, ...]:
        return name, row["train_size"], ranking.seed_and_half(row), ranking.comparison_key(row)

    by_place = {place(row, row["name"]): row for row in reversed(rows)}
    default_records = cache(_read_records)  # those of a default are compared with many
    differences, incomparable = [], []
    units = {key: ranking.unit_of(group) for key, group in ranking.by_setting(rows).items()}
    for row in progress(rows, "comparing settings", unit="row"):
        default_name = default_of[ranking.comparison_key(row)]
        if row["name"] == default_name:
            continue
        entry = {name: row[name] for name in ("name", "train_size", "seed")}
        entry |= {"half": row.get("half", 0), "against": default_name}
        try:
            if (default := by_place.get(place(row, default_name))) is None:
                of_row = f"{row['train_size']} pairs, seed {row['seed']} and half {entry['half']}"
                raise UserError(f"{default_name} has no result for {of_row}")
            path = out / default["metrics"]
            metrics = read_json(path)
            records = default_records(path), _read_records(out / row["metrics"])
            settings = metrics["settings"]
            resampling = Resampling(**{field.name: settings[field.name] for field in fields(Resampling)})
            difference = compare_settings(*records, metrics["k"], settings["top_m"], resampling)
        except UserError as error:  # one pair of rows that cannot be compared must not cost the whole table
            log.warning("%s is not compared with %s: %s", row["name"], default_name, error)
            incomparable.append({**entry, "reason": str(error)})
            continue
        differences.append(ranking.add_verdict({**entry, **difference}, units[row["name"], row["train_size"]]))
    return differences, incomparable


def _read_records(metrics: Path) -> tuple[Records, Records | None]:
    """The records of A, and of B if it was measured, of the evaluation with this metrics.json."""
    settings, public = read_json(metrics)["settings"], read_json(metrics.parent / CONTEXT)["public"]
    of = (settings["objects"], settings["threshold"], public)
    sets = read_evaluation(metrics.parent, *of, blocks=("population", "swapped"))[0]
    return sets["population"], sets.get("swapped")
