"""The cells of a study: a setting at one training size and seed, with a target and a reference run under the same mitigation."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dejavu_lit.evaluation.settings import EvaluationSettings, PairEvaluation, saved_settings
from dejavu_lit.measure.records import SIDES
from dejavu_lit.utils.config import take
from dejavu_lit.utils.io import fingerprint
from dejavu_lit.utils.run_directory import RunDirectory

REQUEST = "asked.json"  # in an evaluation's folder: the models and settings that the study requested
LONGEST = 100  # characters of a setting's name in the names of its folders
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a study: a setting at one training size and seed."""

    name: str
    overrides: tuple[str, ...]
    train_size: int | None
    seed: int
    series: str | None = None
    half: int = 0
    """The random half that its runs train on; 0 is the prepared split."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """The settings of its evaluation."""

    @property
    def label(self) -> str:
        return folder_name(self.name, self.train_size, self.seed, self.half)


@dataclass(frozen=True, kw_only=True)
class Cell(Row):
    """A row with its two runs."""

    target: Path
    reference: Path
    epochs: Mapping[str, int] = field(default_factory=dict)
    """{side: epoch of the checkpoint to use}, for each side whose run is longer than this cell's."""
    folder: Path = Path()
    """The folder of its evaluation, which several cells may share."""

    @property
    def pair(self) -> PairEvaluation:
        """Its evaluation, with its two models."""
        target, reference = map(self.model_name, SIDES)
        return take(PairEvaluation, self.evaluation, target=target, reference=reference)

    def model_name(self, side: str) -> str:
        """The model of one side, as ``dejavu evaluate`` names it: RUN or RUN@EPOCH."""
        run = self.target if side == "target" else self.reference
        return f"{run}@{self.epochs[side]}" if side in self.epochs else str(run)


def folder_name(name: str, train_size: int | None, seed: int, half: int = 0) -> str:
    """The folder name for a setting, its size if one was chosen, the seed, and the half beyond the first.

    It has the name's characters that are safe in paths and URLs, and a fingerprint if there are none or too many.
    """
    dealt = f"-h{half}" if half else ""
    size = f"-n{train_size}" if train_size is not None else ""
    safe = re.sub(r"[^A-Za-z0-9_.=-]+", "-", name).strip(".-")
    if not 0 < len(safe) <= LONGEST:
        safe = f"{safe[:LONGEST] or 'setting'}-{fingerprint(name)[:8]}"
    return f"{safe}{size}-s{seed}{dealt}"


def evaluation_request(cell: Cell) -> dict[str, Any]:
    """What determines a cell's evaluation: the directory names of its two models, and its settings."""
    return {**{side: Path(cell.model_name(side)).name for side in SIDES}, "evaluation": saved_settings(cell.evaluation)}


def match_stop_epoch(cell: Cell) -> Cell:
    """If a gap budget stopped the target, the cell with the reference of that epoch: utility depends on the number of epochs."""
    stopped = RunDirectory(cell.target).record().get("stopped") or {}
    if stopped.get("by") != "gap_budget" or "target" in cell.epochs:
        return cell
    epoch = int(stopped["epoch"])
    if epoch == RunDirectory(cell.reference).record()["epochs"]:
        return cell
    if not RunDirectory(cell.reference).checkpoint(epoch).is_file():
        log.warning("%s stopped after epoch %d, but %s has no checkpoint of it", cell.target, epoch, cell.reference)
        return cell
    return replace(cell, epochs={"reference": epoch})
