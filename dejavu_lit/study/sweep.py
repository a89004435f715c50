"""The runs of a multirun as cells of a study: two runs whose configurations differ only in ``side`` form a pair."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dejavu_lit.measure.records import SIDES
from dejavu_lit.study.cells import Cell, folder_name
from dejavu_lit.training.settings import TrainingRun
from dejavu_lit.utils.config import flatten, to_plain
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint
from dejavu_lit.utils.progress import progress
from dejavu_lit.utils.run_directory import NOT_IDENTIFYING, RunDirectory, identity

# Not part of a setting's name: these have a column of their own or change nothing that is computed.
UNNAMED = (*NOT_IDENTIFYING, "side", "seed", "data.train_size")
# Of the options of how a run is computed, these may change its figures: rounding and the order of the pairs.
ROUNDING = ("trainer.precision", "trainer.devices", "trainer.num_nodes", "trainer.loader.workers")
Pair = dict[str, tuple[Path, TrainingRun]]  # {side: directory and settings}, whose settings differ only in side


def pair_runs(folder: Path) -> tuple[list[Cell], list[str]]:
    """The finished runs below ``folder`` as cells, in the order of the jobs, and one message per run that is skipped.

    Raises UserError if there is no finished run.
    """
    pairs, skipped = _finished_runs(folder)
    if not pairs:
        raise UserError(f"sweep={folder} has no finished runs; give the folder of a multirun of dejavu train")
    for pair in pairs:
        if len(pair) < len(SIDES):
            skipped += [f"{run} has no partner (the same settings with the other side)" for run, _ in pair.values()]
    return _cells([pair for pair in pairs if len(pair) == len(SIDES)]), skipped


def _finished_runs(folder: Path) -> tuple[list[Pair], list[str]]:
    """The finished runs by configuration, and a message for each that is not finished or twice there."""
    pairs: dict[str, Pair] = {}
    skipped = []
    paths = sorted(folder.glob("**/config.yaml"), key=_natural_order)
    for path in progress(paths, "reading runs", unit="run"):
        if path.match("wandb/*/files/config.yaml"):  # a copy that wandb keeps of a run's settings
            continue
        run, directory = path.parent, RunDirectory(path.parent)
        try:
            saved = directory.config()
        except UserError as error:
            if directory.finished or directory.last_checkpoint.parent.is_dir():
                raise
            skipped.append(str(error))  # of something else than a run
            continue
        if (side := saved.get("side")) not in SIDES:
            continue
        if not directory.finished:
            skipped.append(f"{run} is not finished; run the same dejavu train again to resume it")
            continue
        key = identity({name: value for name, value in saved.items() if name != "side"})
        key += json.dumps([value for name, value in flatten(saved) if name in ROUNDING])
        pair = pairs.setdefault(key, {})
        if side in pair:
            skipped.append(f"{run} is the same run as {pair[side][0]}")
            continue
        pair[side] = run, directory.read(TrainingRun)
    return list(pairs.values()), skipped


def _cells(pairs: list[Pair]) -> list[Cell]:
    """One cell per pair, named by the settings that vary between the pairs."""
    configs = [pair["target"][1] for pair in pairs]
    settings = [dict(_named_settings(config)) for config in configs]
    names = dict.fromkeys(name for values in settings for name in values)
    varied = [name for name in names if len({json.dumps(values.get(name)) for values in settings}) > 1]
    # Halves with one seed each are pooled, as in a study; otherwise each is a setting, pooled over its seeds.
    if len({(config.data.half, config.seed) for config in configs}) == len({config.data.half for config in configs}):
        varied = [name for name in varied if name != "data.half"]
    overrides = [tuple(f"{name}={_as_override(values.get(name))}" for name in varied) for values in settings]
    return [
        Cell(
            name=name,
            overrides=chosen,
            train_size=config.data.train_size,
            seed=config.seed,
            half=config.data.half,
            target=pair["target"][0],
            reference=pair["reference"][0],
        )
        for pair, config, chosen, name in zip(pairs, configs, overrides, _names(overrides), strict=True)
    ]


def _names(settings: Sequence[Sequence[str]]) -> list[str]:
    """The names of settings: their overrides, with a fingerprint where folder names would not tell them apart."""
    names = [",".join(overrides) or "all" for overrides in settings]
    folders = Counter(folder_name(name, None, 0).casefold() for name in dict.fromkeys(names))
    return [f"{n} {fingerprint(n)[:8]}" if folders[folder_name(n, None, 0).casefold()] > 1 else n for n in names]


def _natural_order(path: Path) -> list[str]:
    """A sort key that puts job 10 after job 2."""
    return [re.sub(r"\d+", lambda digits: digits[0].zfill(20), part) for part in path.parts]


def _as_override(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _named_settings(run: TrainingRun) -> Iterator[tuple[str, Any]]:
    """The settings of a run that may name its cell, by their dotted names."""
    # With a gap budget, the way gaps are measured decides when training stops.
    budget = run.mitigation.gap_budget is not None
    for name, value in flatten(to_plain(run)):
        unnamed = any(name == prefix or name.startswith(f"{prefix}.") for prefix in UNNAMED)
        measured = budget and name.startswith("gaps.") and name != "gaps.reference"
        if not unnamed or name in ROUNDING or measured:
            yield name, value
