"""The plan of a study: its cells, the runs they need, and which runs are read from a checkpoint of a longer run.

Runs that compute the same are one run, whatever their names. A run that differs from a longer one only in
``mitigation.stop_epoch`` equals that run's checkpoint bit for bit, because the learning-rate schedule keeps its horizon.
Such a run is not trained; the longer run keeps the checkpoint instead, unless it was started without keeping that epoch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dejavu_lit.evaluation.settings import saved_settings
from dejavu_lit.measure.recompute import MODEL_FREE_OPTIONS, PLACEMENT_OPTIONS, RECORD_FILES
from dejavu_lit.measure.records import SIDES
from dejavu_lit.study.cells import REQUEST, Cell, Row, evaluation_request
from dejavu_lit.study.runs import keeping
from dejavu_lit.training.settings import TrainerSettings, TrainingRun
from dejavu_lit.utils.config import take, to_plain
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, read_json
from dejavu_lit.utils.progress import progress
from dejavu_lit.utils.run_directory import PARTNER, RunDirectory, first_difference, identifying_settings, identity

# These may stop training early, so the end of such a run is not a longer run's checkpoint of that epoch.
STOPPING_KNOBS = ("early_stopping", "gap_budget")


@dataclass(frozen=True, kw_only=True)
class PlannedRow(Row):
    """A row of the study to come."""

    runs: Mapping[str, TrainingRun]
    """The settings of each side's run."""


@dataclass(frozen=True)
class Plan:
    """The cells in the order of the settings, and the settings of every run they need."""

    cells: tuple[Cell, ...]
    runs: Mapping[Path, TrainingRun]

    @property
    def stages(self) -> list[dict[Path, TrainingRun]]:
        """The runs in training order: targets that measure gaps while training come after the references that they need."""
        return [{p: r for p, r in self.runs.items() if bool(r.gaps.reference) is later} for later in (False, True)]

    @property
    def to_train(self) -> list[Path]:
        """The runs that are not finished."""
        return [path for path in self.runs if not RunDirectory(path).finished]

    @property
    def evaluations(self) -> dict[Path, bool]:
        """{folder of an evaluation: whether it is complete, with the requested settings}."""
        return {c.folder: _is_evaluated(c.folder, evaluation_request(c)) for c in self.cells}


def make_plan(out: Path, rows: Sequence[PlannedRow]) -> Plan:
    """Assign two runs to every row: existing runs in ``out``, new runs, or checkpoints of longer ones.

    Raises UserError if a folder that the plan needs contains a run with other settings.
    """
    runs = _Runs(out / "runs", [run for row in rows for run in row.runs.values()])
    # The longest first, so that each run is named after its own setting.
    for row in sorted(rows, key=lambda row: -row.runs["target"].epochs):
        for side in SIDES:
            runs.locate(row.runs[side], f"{row.label}-{side}")
    folders: dict[str, Path] = {}
    cells = []
    for row in rows:
        locations = {side: runs.locate(row.runs[side], f"{row.label}-{side}") for side in SIDES}
        epochs = {side: epoch for side, (_, epoch) in locations.items() if epoch is not None}
        paths = {side: path for side, (path, _) in locations.items()}
        cell = take(Cell, row, **paths, epochs=epochs, folder=out / "evaluations" / row.label)
        folder = _evaluation_folder(cell.folder, evaluation_request(cell))
        key = fingerprint([locations, saved_settings(row.evaluation)])
        cells.append(replace(cell, folder=folders.setdefault(key, folder)))
    for cell in cells:
        _link_gap_reference(cell, runs.needed)
    return Plan(tuple(cells), runs.needed)


def _evaluation_folder(folder: Path, request: Mapping[str, Any]) -> Path:
    """The folder of an evaluation, with a fingerprint in its name if another evaluation already has it."""
    may_change = (*MODEL_FREE_OPTIONS, *PLACEMENT_OPTIONS)  # within a folder
    if _has_request(folder, request, may_change):
        return folder
    return folder.with_name(f"{folder.name}-{fingerprint(_without(request, may_change))[:8]}")


def _is_evaluated(folder: Path, request: Mapping[str, Any]) -> bool:
    files = ("metrics.json", RECORD_FILES["population"])
    return all((folder / name).is_file() for name in files) and _has_request(folder, request, PLACEMENT_OPTIONS)


def _has_request(folder: Path, request: Mapping[str, Any], ignored: Sequence[str]) -> bool:
    """Whether the request saved in a folder, if there is one, differs from this one at most in the ignored settings."""
    if not (folder / REQUEST).is_file():
        return True
    saved = read_json(folder / REQUEST)
    return first_difference(_without(saved, ignored), _without(request, ignored)) is None


def _without(request: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A request without some of its evaluation's settings."""
    evaluation = {name: value for name, value in request["evaluation"].items() if name not in names}
    return {**request, "evaluation": evaluation}


def _link_gap_reference(cell: Cell, runs: dict[Path, TrainingRun]) -> None:
    """Give a target that measures gaps while training its reference run, which must keep a checkpoint of every measured epoch."""
    target, reference = runs[cell.target], runs[cell.reference]
    every = target.gaps.every
    if target.gaps.reference != PARTNER:
        return
    measured = set(range(every, target.epochs + 1, every))
    if not measured:
        raise UserError(f"gaps.every={every} must be at most {target.epochs}, the last epoch of {cell.name}")
    end = reference.epochs  # needs no checkpoint: it is the finished model
    if RunDirectory(cell.reference).started and not RunDirectory(cell.target).finished:
        missing = [epoch for epoch in sorted(measured - {end}) if not _keeps_checkpoint(cell.reference, epoch)]
        if missing:
            raise UserError(
                f"{cell.name} is measured with gaps.every={every} against {cell.reference}, which kept no checkpoint "
                f"of epoch {', '.join(map(str, missing))}; set gaps.every to a multiple of which it kept every epoch, or choose "
                "another out="
            )
    runs[cell.target] = replace(target, gaps=replace(target.gaps, reference=str(cell.reference)))
    runs[cell.reference] = keeping(reference, measured)


class _Runs:
    """The runs of a study, looked up by what they compute; ``needed`` collects those that the cells use."""

    def __init__(self, folder: Path, planned: Sequence[TrainingRun]) -> None:
        self.folder = folder
        self.needed: dict[Path, TrainingRun] = {}
        self.existing: dict[str, dict[int, Path]] = {}  # {base identity: {epochs: directory}}
        for path in progress(sorted(folder.glob("*/config.yaml")), "reading earlier runs", unit="run"):
            saved = RunDirectory(path.parent).read(TrainingRun)
            self.existing.setdefault(_base_identity(saved), {}).setdefault(saved.epochs, path.parent)
        self.longest: dict[str, TrainingRun] = {}  # {base identity: the longest planned run}
        self.taken: set[Path] = set()  # existing directories of planned runs
        for run in planned:
            base = _base_identity(run)
            self.longest[base] = max(self.longest.get(base, run), run, key=lambda run: run.epochs)
            if run.epochs in self.existing.get(base, {}):
                self.taken.add(self.existing[base][run.epochs])
        self.new: dict[tuple[str, int], Path] = {}

    def locate(self, run: TrainingRun, name: str) -> tuple[Path, int | None]:
        """The directory with the weights of a run, and the epoch to read if the run in it is longer."""
        base, last = _base_identity(run), run.epochs
        existing = self.existing.get(base, {})
        if last in existing and RunDirectory(existing[last]).finished:
            return self._add(existing[last], run), None
        for longer in sorted(existing):
            if longer > last and _keeps_checkpoint(existing[longer], last):
                return self._add(existing[longer], RunDirectory(existing[longer]).read(TrainingRun)), last
        longest = self.longest[base]
        both = [existing[epochs] for epochs in (longest.epochs, last) if epochs in existing]
        if longest.epochs > last and (
            longest.epochs not in existing or not any(RunDirectory(path).started for path in both)
        ):
            path = self._add(existing.get(longest.epochs) or self._new_directory(longest, base, name), longest)
            self.needed[path] = keeping(self.needed[path], [last])
            return path, last
        return self._add(existing.get(last) or self._new_directory(run, base, name), run), None

    def _new_directory(self, run: TrainingRun, base: str, name: str) -> Path:
        """The directory assigned to a new run: one called ``name``, in which no other run may have been started."""
        if (base, run.epochs) not in self.new:
            path = self.folder / name
            if path in self.taken:  # by a run that another setting needs
                path = path.with_name(f"{name}-{fingerprint([base, run.epochs])[:8]}")
            RunDirectory(path).check(run)
            self.new[base, run.epochs] = path
        return self.new[base, run.epochs]

    def _add(self, path: Path, run: TrainingRun) -> Path:
        self.needed.setdefault(path, run)
        return path


def _base_identity(run: TrainingRun) -> str:
    """Fingerprint of what a run computes, regardless of its stop epoch."""
    settings = to_plain(run)
    mitigation = dict(identifying_settings(settings)["mitigation"])
    if all(mitigation[name] is None for name in STOPPING_KNOBS):
        mitigation["stop_epoch"] = None
    return identity({**settings, "mitigation": mitigation})


def _keeps_checkpoint(run: Path, epoch: int) -> bool:
    """Whether an existing run has the checkpoint of an epoch, or is configured to keep it."""
    directory = RunDirectory(run)
    if directory.checkpoint(epoch).is_file():
        return True
    return not directory.finished and directory.read(TrainerSettings, "trainer").keeps(epoch)
