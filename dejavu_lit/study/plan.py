"""The plan of a study: its cells, the runs that they need, and which of them are read off a longer run's checkpoint.

Two runs are one where they compute the same, whatever they are called. A run that differs from a longer one in
``mitigation.stop_epoch`` alone is that run's checkpoint, bit for bit, because the learning-rate schedule keeps its horizon:
it is not trained, and the longer run is told to keep the checkpoint, as long as it has not passed that epoch.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dejavu_lit.measure.recompute import STATISTICS, WHERE
from dejavu_lit.study.runs import epochs, finished
from dejavu_lit.study.table import ASKED, SIDES, Cell, asked, label
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, locked, read_json
from dejavu_lit.utils.run_directory import PARTNER, decisive, difference, identity, read_config

# With these a run's end is not a longer run's checkpoint of that epoch: training may stop before it.
OWN_END = ("early_stopping", "gap_budget")
METRICS = "metrics.json"


@dataclass(frozen=True)
class Wanted:
    """One row that the study is to have: the configurations of its two runs and of its evaluation."""

    name: str
    overrides: tuple[str, ...]
    train_size: int | None
    seed: int
    runs: Mapping[str, Mapping[str, Any]]  # by side
    evaluation: Mapping[str, Any]
    series: str | None = None


@dataclass(frozen=True)
class Plan:
    """The cells in the order of the settings, and every run that they need with its configuration."""

    cells: tuple[Cell, ...]
    runs: Mapping[Path, Mapping[str, Any]]

    @property
    def stages(self) -> list[dict[Path, Mapping[str, Any]]]:
        """The runs in the order of training: before the targets whose gaps are watched, what they are measured against."""
        watched = {path for path, config in self.runs.items() if (config.get("gaps") or {}).get("reference")}
        parts = ({p: c for p, c in self.runs.items() if (p in watched) is later} for later in (False, True))
        return [part for part in parts if part]

    @property
    def to_train(self) -> list[Path]:
        """The runs that are not finished."""
        return [path for path in self.runs if not finished(path)]

    @property
    def evaluations(self) -> dict[Path, bool]:
        """{folder of an evaluation: whether it is there, with the settings that are asked for}."""
        return {c.folder: _evaluated(c.folder, asked(c)) for c in self.cells if c.folder is not None}


def make_plan(out: Path, wanted: Sequence[Wanted]) -> Plan:
    """Find the run of every wanted row among those in ``out``, those that are planned and their checkpoints.

    Raises:
        UserError: a folder that the plan needs holds a run with other settings.
    """
    runs = _Runs(out / "runs", [config for one in wanted for config in one.runs.values()])
    for one in sorted(
        wanted, key=lambda one: -epochs(one.runs["target"])
    ):  # so that a run is named after its own setting
        for side in SIDES:
            runs.place(one.runs[side], f"{label(one.name, one.train_size, one.seed)}-{side}")
    folders: dict[str, Path] = {}
    cells = []
    for one in wanted:
        name = label(one.name, one.train_size, one.seed)
        places = {side: runs.place(one.runs[side], f"{name}-{side}") for side in SIDES}
        cell = Cell(
            one.name,
            one.overrides,
            one.train_size,
            one.seed,
            places["target"][0],
            places["reference"][0],
            {side: epoch for side, (_, epoch) in places.items() if epoch is not None},
            one.series,
            evaluation=one.evaluation,
        )
        key = fingerprint([places, one.evaluation])
        cells.append(replace(cell, folder=folders.setdefault(key, _folder(out / "evaluations", name, asked(cell)))))
    for cell in cells:
        _link(cell, runs.needed)
    return Plan(tuple(cells), runs.needed)


def _folder(parent: Path, name: str, wanted: Mapping[str, Any]) -> Path:
    """The folder of an evaluation: its name, with a fingerprint where another evaluation has that name already."""
    saved = parent / name / ASKED
    if not saved.is_file() or difference(_fixed(read_json(saved)), _fixed(wanted)) is None:
        return parent / name
    return parent / f"{name}-{fingerprint(_fixed(wanted))[:8]}"


def _fixed(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation cannot change in its folder: all but statistics and where it is computed."""
    kept = {name: value for name, value in wanted["evaluation"].items() if name not in (*STATISTICS, *WHERE)}
    return {**wanted, "evaluation": kept}


def _evaluated(folder: Path, wanted: Mapping[str, Any]) -> bool:
    if not (folder / METRICS).is_file():
        return False
    if not (folder / ASKED).is_file():
        return True
    one, other = (
        {**asked, "evaluation": {n: v for n, v in asked["evaluation"].items() if n not in WHERE}}
        for asked in (read_json(folder / ASKED), wanted)
    )
    return difference(one, other) is None


def _link(cell: Cell, runs: Mapping[Path, dict[str, Any]]) -> None:
    """Give a target whose gaps are watched its reference, and have that keep a checkpoint of every epoch measured."""
    target, reference = runs[cell.target], runs[cell.reference]
    gaps = target.get("gaps") or {}
    if gaps.get("reference") != PARTNER:
        return
    due = set(range(gaps["every"], epochs(target) + 1, gaps["every"]))
    if not due:
        raise UserError(f"gaps.every={gaps['every']} is more than the {epochs(target)} epochs of {cell.name}; lower it")
    end = epochs(reference)  # which is measured against as it is
    if not finished(cell.target) and (lacking := [e for e in sorted(due - {end}) if not _will_keep(cell.reference, e)]):
        raise UserError(
            f"{cell.name} is measured after every {gaps['every']} epochs against {cell.reference}, which kept no checkpoint of "
            f"epoch {', '.join(map(str, lacking))}; set gaps.every to a multiple that it kept, or choose another out="
        )
    target["gaps"] = {**gaps, "reference": str(cell.reference)}
    reference["trainer"]["checkpoint_at"] = sorted(due.union(reference["trainer"].get("checkpoint_at", [])))


class _Runs:
    """The runs of a study by what they compute; ``needed`` collects those that the cells use."""

    def __init__(self, folder: Path, wanted: Sequence[Mapping[str, Any]]) -> None:
        self.folder = folder
        self.needed: dict[Path, dict[str, Any]] = {}
        self.there: dict[str, dict[int, Path]] = {}  # {what is computed: {epochs: directory}}
        for path in sorted(folder.glob("*/config.yaml")):
            saved = read_config(path.parent)
            self.there.setdefault(_base(saved), {}).setdefault(epochs(saved), path.parent)
        self.longest: dict[str, Mapping[str, Any]] = {}
        for config in wanted:
            longest = self.longest.setdefault(_base(config), config)
            if epochs(config) > epochs(longest):
                self.longest[_base(config)] = config
        self.new: dict[tuple[str, int], Path] = {}

    def place(self, config: Mapping[str, Any], name: str) -> tuple[Path, int | None]:
        """Where the weights of a run are to be had: its directory, and the epoch where that run goes on after it."""
        base, last = _base(config), epochs(config)
        there = self.there.get(base, {})
        if last in there and finished(there[last]):
            return self._need(there[last], config), None
        for longer in sorted(there):
            keeps = _will_keep if longer == epochs(self.longest[base]) else _keeps  # only what is wanted is told more
            if longer > last and keeps(there[longer], last):
                return self._told(self._need(there[longer], read_config(there[longer])), last), last
        longest = self.longest[base]
        if epochs(longest) > last and epochs(longest) not in there:
            return self._told(self._need(self._directory(longest, base, name), longest), last), last
        return self._need(there.get(last) or self._directory(config, base, name), config), None

    def _directory(self, config: Mapping[str, Any], base: str, name: str) -> Path:
        """A directory for a run that is not there yet: the one of the same run, else one called ``name``."""
        path = self.new.setdefault((base, epochs(config)), self.folder / name)
        if (path / "config.yaml").is_file():
            changed = difference(read_config(path), config)
            raise UserError(f"{path} holds a run with other settings ({changed}); choose another out= or remove it")
        return path

    def _told(self, path: Path, epoch: int) -> Path:
        """Have a run that is not finished keep the checkpoint of an epoch."""
        kept = self.needed[path]["trainer"]
        if not finished(path):
            kept["checkpoint_at"] = sorted({*kept.get("checkpoint_at", []), epoch})
        return path

    def _need(self, path: Path, config: Mapping[str, Any]) -> Path:
        self.needed.setdefault(path, {**config, "trainer": dict(config["trainer"])})
        return path


def _base(config: Mapping[str, Any]) -> str:
    """Fingerprint of what a run computes, whenever it stops."""
    mitigation = dict(decisive(config)["mitigation"])
    if all(mitigation.get(name) is None for name in OWN_END):
        mitigation["stop_epoch"] = None
    return identity({**config, "mitigation": mitigation})


def _keeps(run: Path, epoch: int) -> bool:
    """Whether a run that was begun holds the checkpoint of an epoch, or is set to keep it."""
    if (run / "checkpoints" / f"epoch={epoch:04d}.ckpt").is_file() or finished(run):
        return (run / "checkpoints" / f"epoch={epoch:04d}.ckpt").is_file()
    trainer = read_config(run)["trainer"]
    return epoch in trainer.get("checkpoint_at", []) or epoch % int(trainer["checkpoint_epochs"]) == 0


def _will_keep(run: Path, epoch: int) -> bool:
    """Whether a run holds the checkpoint of an epoch, or can still be told to keep it."""
    if not (run / "config.yaml").is_file() or _keeps(run, epoch):
        return True
    return not finished(run) and _begun(run) < epoch and not _at_work(run)


def _begun(run: Path) -> int:
    """The last epoch, counted from 1, that a run has begun; 0 where it starts anew."""
    table = run / "metrics.csv"
    if not (run / "checkpoints" / "last.ckpt").is_file() or not table.is_file():
        return 0
    with open(table, newline="") as file:
        return max((int(row["epoch"]) + 1 for row in csv.DictReader(file)), default=0)


def _at_work(run: Path) -> bool:
    """Whether a training that an earlier call began goes on there: it has read its settings already."""
    try:
        with locked(run / ".lock", wait=False):
            return False
    except UserError:
        return True
