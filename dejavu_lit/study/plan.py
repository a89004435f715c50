"""The plan of a study: its cells, the runs they need, and which runs are read from a checkpoint of a longer run.

Runs that compute the same are one run, whatever their names. A run that differs from a longer one only in
``mitigation.stop_epoch`` equals that run's checkpoint bit for bit, because the learning-rate schedule keeps its horizon.
Such a run is not trained; the longer run keeps the checkpoint instead, unless it has already passed that epoch.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dejavu_lit.measure.recompute import MODEL_FREE_OPTIONS, PLACEMENT_OPTIONS
from dejavu_lit.study.runs import check_same_run, finished, planned_epochs
from dejavu_lit.study.table import REQUEST, SIDES, Cell, evaluation_request, label
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, locked, read_json
from dejavu_lit.utils.run_directory import PARTNER, first_difference, identifying_settings, identity, read_config

# These may stop training early, so the end of such a run is not a longer run's checkpoint of that epoch.
STOPPING_KNOBS = ("early_stopping", "gap_budget")
METRICS = "metrics.json"


@dataclass(frozen=True)
class PlannedRow:
    """One row of the study to come: the configurations of its two runs and of its evaluation."""

    name: str
    overrides: tuple[str, ...]
    train_size: int | None
    seed: int
    runs: Mapping[str, Mapping[str, Any]]
    """The configuration of each side's run."""
    evaluation: Mapping[str, Any]
    series: str | None = None
    half: int = 0

    @property
    def label(self) -> str:
        """The name of its folders: the setting, the size if one was chosen, the seed, and the half beyond the first."""
        return label(self.name, self.train_size, self.seed, self.half)


@dataclass(frozen=True)
class Plan:
    """The cells in the order of the settings, and the configuration of every run they need."""

    cells: tuple[Cell, ...]
    runs: Mapping[Path, Mapping[str, Any]]

    @property
    def stages(self) -> list[dict[Path, Mapping[str, Any]]]:
        """The runs in training order: targets whose gaps are watched come after the references they are measured against."""
        watched = {path for path, config in self.runs.items() if (config.get("gaps") or {}).get("reference")}
        parts = ({p: c for p, c in self.runs.items() if (p in watched) is later} for later in (False, True))
        return [part for part in parts if part]

    @property
    def to_train(self) -> list[Path]:
        """The runs that are not finished."""
        return [path for path in self.runs if not finished(path)]

    @property
    def evaluations(self) -> dict[Path, bool]:
        """{folder of an evaluation: whether it is complete, with the requested settings}."""
        return {c.folder: _is_evaluated(c.folder, evaluation_request(c)) for c in self.cells if c.folder is not None}


def make_plan(out: Path, rows: Sequence[PlannedRow]) -> Plan:
    """Assign two runs to every row: existing runs in ``out``, new runs, or checkpoints of longer ones.

    Raises:
        UserError: a folder that the plan needs contains a run with other settings.
    """
    runs = _Runs(out / "runs", [config for row in rows for config in row.runs.values()])
    # The longest first, so that each run is named after its own setting.
    for row in sorted(rows, key=lambda row: -planned_epochs(row.runs["target"])):
        for side in SIDES:
            runs.locate(row.runs[side], f"{row.label}-{side}")
    folders: dict[str, Path] = {}
    cells = []
    for row in rows:
        locations = {side: runs.locate(row.runs[side], f"{row.label}-{side}") for side in SIDES}
        cell = Cell(
            row.name,
            row.overrides,
            row.train_size,
            row.seed,
            locations["target"][0],
            locations["reference"][0],
            {side: epoch for side, (_, epoch) in locations.items() if epoch is not None},
            row.series,
            evaluation=row.evaluation,
            half=row.half,
        )
        folder = _evaluation_folder(out / "evaluations", row.label, evaluation_request(cell))
        key = fingerprint([locations, row.evaluation])
        cells.append(replace(cell, folder=folders.setdefault(key, folder)))
    for cell in cells:
        _link_gap_reference(cell, runs.needed)
    return Plan(tuple(cells), runs.needed)


def _evaluation_folder(parent: Path, name: str, request: Mapping[str, Any]) -> Path:
    """The folder of an evaluation: its name, plus a fingerprint if another evaluation already uses that name."""
    saved = parent / name / REQUEST
    if not saved.is_file() or first_difference(_fixed(read_json(saved)), _fixed(request)) is None:
        return parent / name
    return parent / f"{name}-{fingerprint(_fixed(request))[:8]}"


def _fixed(request: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a request that cannot change within a folder: all but the statistics and the choice of hardware."""
    return _without(request, (*MODEL_FREE_OPTIONS, *PLACEMENT_OPTIONS))


def _is_evaluated(folder: Path, request: Mapping[str, Any]) -> bool:
    if not (folder / METRICS).is_file():
        return False
    if not (folder / REQUEST).is_file():
        return True
    saved = read_json(folder / REQUEST)
    return first_difference(_without(saved, PLACEMENT_OPTIONS), _without(request, PLACEMENT_OPTIONS)) is None


def _without(request: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A request without some of its evaluation's settings."""
    evaluation = {name: value for name, value in request["evaluation"].items() if name not in names}
    return {**request, "evaluation": evaluation}


def _link_gap_reference(cell: Cell, runs: Mapping[Path, dict[str, Any]]) -> None:
    """Give a target whose gaps are watched its reference run, which must keep a checkpoint of every measured epoch."""
    target, reference = runs[cell.target], runs[cell.reference]
    gaps = target.get("gaps") or {}
    if gaps.get("reference") != PARTNER:
        return
    measured = set(range(gaps["every"], planned_epochs(target) + 1, gaps["every"]))
    if not measured:
        raise UserError(
            f"gaps.every={gaps['every']} is more than the {planned_epochs(target)} epochs of {cell.name}; lower it"
        )
    end = planned_epochs(reference)  # needs no checkpoint: it is the finished model
    if not finished(cell.target):
        missing = [epoch for epoch in sorted(measured - {end}) if not _can_keep_checkpoint(cell.reference, epoch)]
        if missing:
            raise UserError(
                f"{cell.name} is measured every {gaps['every']} epochs against {cell.reference}, which kept no checkpoint "
                f"of epoch {', '.join(map(str, missing))}; set gaps.every to a multiple that it kept, or choose another out="
            )
    target["gaps"] = {**gaps, "reference": str(cell.reference)}
    reference["trainer"]["checkpoint_at"] = sorted(measured.union(reference["trainer"].get("checkpoint_at", [])))


class _Runs:
    """The runs of a study, looked up by what they compute; ``needed`` collects those that the cells use."""

    def __init__(self, folder: Path, planned: Sequence[Mapping[str, Any]]) -> None:
        self.folder = folder
        self.needed: dict[Path, dict[str, Any]] = {}
        self.existing: dict[str, dict[int, Path]] = {}  # {base identity: {epochs: directory}}
        for path in sorted(folder.glob("*/config.yaml")):
            saved = read_config(path.parent)
            self.existing.setdefault(_base_identity(saved), {}).setdefault(planned_epochs(saved), path.parent)
        self.longest: dict[str, Mapping[str, Any]] = {}  # {base identity: the longest planned configuration}
        for config in planned:
            longest = self.longest.setdefault(_base_identity(config), config)
            if planned_epochs(config) > planned_epochs(longest):
                self.longest[_base_identity(config)] = config
        self.new: dict[tuple[str, int], Path] = {}

    def locate(self, config: Mapping[str, Any], name: str) -> tuple[Path, int | None]:
        """The directory with the weights of a run, and the epoch to read if the run in it is longer."""
        base, last = _base_identity(config), planned_epochs(config)
        existing = self.existing.get(base, {})
        if last in existing and finished(existing[last]):
            return self._add(existing[last], config), None
        for longer in sorted(existing):
            # Only runs that are still planned can be given more checkpoints to keep.
            keeps = _can_keep_checkpoint if longer == planned_epochs(self.longest[base]) else _keeps_checkpoint
            if longer > last and keeps(existing[longer], last):
                path = self._add(existing[longer], read_config(existing[longer]))
                return self._keep_checkpoint(path, last), last
        longest = self.longest[base]
        if planned_epochs(longest) > last and planned_epochs(longest) not in existing:
            path = self._add(self._new_directory(longest, base, name), longest)
            return self._keep_checkpoint(path, last), last
        return self._add(existing.get(last) or self._new_directory(config, base, name), config), None

    def _new_directory(self, config: Mapping[str, Any], base: str, name: str) -> Path:
        """A directory for a run that does not exist yet: the one already assigned to it, else one called ``name``."""
        path = self.new.setdefault((base, planned_epochs(config)), self.folder / name)
        if (path / "config.yaml").is_file():
            check_same_run(path, read_config(path), config)
        return path

    def _keep_checkpoint(self, path: Path, epoch: int) -> Path:
        """Make an unfinished run keep the checkpoint of an epoch."""
        trainer = self.needed[path]["trainer"]
        if not finished(path):
            trainer["checkpoint_at"] = sorted({*trainer.get("checkpoint_at", []), epoch})
        return path

    def _add(self, path: Path, config: Mapping[str, Any]) -> Path:
        self.needed.setdefault(path, {**config, "trainer": dict(config["trainer"])})
        return path


def _base_identity(config: Mapping[str, Any]) -> str:
    """Fingerprint of what a run computes, regardless of its stop epoch."""
    mitigation = dict(identifying_settings(config)["mitigation"])
    if all(mitigation.get(name) is None for name in STOPPING_KNOBS):
        mitigation["stop_epoch"] = None
    return identity({**config, "mitigation": mitigation})


def _keeps_checkpoint(run: Path, epoch: int) -> bool:
    """Whether an existing run has the checkpoint of an epoch, or is configured to keep it."""
    if (run / "checkpoints" / f"epoch={epoch:04d}.ckpt").is_file():
        return True
    if finished(run):
        return False
    trainer = read_config(run)["trainer"]
    return epoch in trainer.get("checkpoint_at", []) or epoch % int(trainer["checkpoint_epochs"]) == 0


def _can_keep_checkpoint(run: Path, epoch: int) -> bool:
    """Whether a run has the checkpoint of an epoch, or can still be configured to keep it."""
    if not (run / "config.yaml").is_file() or _keeps_checkpoint(run, epoch):
        return True
    return not finished(run) and _last_started_epoch(run) < epoch and not _is_training(run)


def _last_started_epoch(run: Path) -> int:
    """The last epoch, counted from 1, that a run has started; 0 if it has no checkpoint to resume from."""
    table = run / "metrics.csv"
    if not (run / "checkpoints" / "last.ckpt").is_file() or not table.is_file():
        return 0
    with open(table, newline="") as file:
        return max((int(row["epoch"]) + 1 for row in csv.DictReader(file)), default=0)


def _is_training(run: Path) -> bool:
    """Whether a process is training the run right now, which has already read its settings."""
    try:
        with locked(run / ".lock", wait=False):
            return False
    except UserError:
        return True
