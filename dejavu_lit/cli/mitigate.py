"""``dejavu mitigate`` and ``dejavu evaluate sweep=``: the runs of a study, trained if missing, evaluated and ranked."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Evaluate, Mitigate
from dejavu_lit.cli.processes import device
from dejavu_lit.cli.study_settings import check_options, planned_rows
from dejavu_lit.evaluation.run import run_evaluation
from dejavu_lit.evaluation.settings import EvaluationSettings, ReportSettings
from dejavu_lit.utils.config import take
from dejavu_lit.utils.distributed import SINGLE_PROCESS, Ranks
from dejavu_lit.utils.errors import UserError, check_range
from dejavu_lit.utils.io import locked
from dejavu_lit.utils.run_directory import RunDirectory

if TYPE_CHECKING:
    from dejavu_lit.cli.gate import Gate
    from dejavu_lit.study.cells import Cell

log = logging.getLogger(__name__)


def mitigate(settings: Mitigate, out: Path | str) -> Path:
    """Train and evaluate every setting, and rank them; returns ``out``."""
    out = Path(out)
    RunDirectory(out).refuse_training()
    check_options(settings)
    rows = planned_rows(settings, out)
    from dejavu_lit.report.terminal import show_plan
    from dejavu_lit.study.plan import make_plan
    from dejavu_lit.study.runs import Launcher, train_here, train_missing
    from dejavu_lit.study.slurm import train_by_slurm

    launcher: Launcher = partial(train_by_slurm, settings.slurm) if settings.launcher == "slurm" else train_here
    plan = make_plan(out, rows)
    show_plan(plan)
    if settings.plan_only:
        return out
    on = device(settings.trainer, settings.evaluate.device)  # with its warning before the trainings
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", wait=False):
        failed: dict[Path, str] = {}
        for runs in plan.stages:
            # A target whose reference failed is not trained: it could only report that the reference is missing.
            ready = {path: run for path, run in runs.items() if Path(run.gaps.reference or "") not in failed}
            failed |= train_missing(ready, launcher)
        cells = [replace(c, evaluation=replace(c.evaluation, device=c.evaluation.device or on)) for c in plan.cells]
        evaluate_study(out, settings, settings.evaluate.report, cells, failed)
    return out


def evaluate_sweep(out: Path, settings: Evaluate, gate: "Gate | None", ranks: Ranks) -> None:
    """Evaluate all pairs of runs below ``sweep`` that differ only in ``side``; the ranks share each, the table is in ``out``."""
    from dejavu_lit.report.report import read_evaluations
    from dejavu_lit.study.cells import match_stop_epoch
    from dejavu_lit.study.sweep import pair_runs

    check_range(settings, "", "[0, 1]", "utility_loss")
    with ExitStack() as lock:
        with ranks.step():
            cells, skipped = pair_runs(Path(str(settings.sweep)))
            if ranks.rank == 0:
                for message in skipped:
                    log.warning("skipped: %s", message)
            if not cells:
                raise UserError(f"no two runs below {settings.sweep} differ only in side; train the missing sides")
            if ranks.rank == 0:
                lock.enter_context(locked(out / ".lock", wait=False))
        cells = ranks.first(cells)  # the ranks may disagree: a run may finish while they read the folder
        measured = take(EvaluationSettings, settings)
        cells = [replace(c, evaluation=measured, folder=out / "evaluations" / c.label) for c in cells]
        if ranks.rank > 0:
            for cell in cells:
                with suppress(Exception):  # rank 0 reports it and also continues with the next cell
                    run_evaluation(match_stop_epoch(cell).pair, cell.folder, ranks)
            return
        evaluate_study(out, settings, settings.report, cells, {}, ranks)
    if gate is not None:
        gate.enforce(read_evaluations(out))


def evaluate_study(
    out: Path,
    settings: Evaluate | Mitigate,
    report: ReportSettings,
    cells: "Sequence[Cell]",
    failed: Mapping[Path, str],
    ranks: Ranks = SINGLE_PROCESS,
) -> None:
    """Evaluate every cell, write and show the study.

    Raises UserError if some cells have no result; the others are written.
    """
    from dejavu_lit.report.dashboard import log_study
    from dejavu_lit.report.report import is_redacted, show_report
    from dejavu_lit.report.terminal import show_next_steps, show_study
    from dejavu_lit.study.table import evaluate_cells, write_study

    rows, failures = evaluate_cells(out, cells, failed, ranks)
    if rows:
        study = write_study(out, rows, failures, settings.utility_loss, cells)
        show_study(study, out)
        page = show_report(report, out)
        log_study(settings.logger, out, is_redacted(report, out))
        show_next_steps(out, page, study, of_sweep=isinstance(settings, Evaluate))
    if failures:
        reasons = "; ".join(f"{label} ({reason})" for label, reason in failures.items())
        raise UserError(f"{len(failures)} of {len(cells)} settings have no result: {reasons}")


main = command("mitigate", mitigate)
