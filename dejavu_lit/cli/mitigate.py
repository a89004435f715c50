"""``dejavu mitigate`` and ``dejavu evaluate sweep=``: the runs of a study, trained where missing, evaluated and ranked."""

import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dejavu_lit.cli.app import command, plain
from dejavu_lit.cli.study_settings import check_loss, check_options, wanted
from dejavu_lit.evaluation.run import run_evaluation
from dejavu_lit.report.report import show_report
from dejavu_lit.utils.config import build
from dejavu_lit.utils.distributed import ALONE, Ranks
from dejavu_lit.utils.errors import UserError, suggest

if TYPE_CHECKING:
    from dejavu_lit.cli.gate import Gate
    from dejavu_lit.study.runs import Launcher
    from dejavu_lit.study.table import Cell

log = logging.getLogger(__name__)


def mitigate(cfg: DictConfig, out: Path) -> None:
    """Train and evaluate every setting, and rank them."""
    config = plain(cfg)
    check_options(config)
    launcher = _launcher(config)
    rows = wanted(config)
    from dejavu_lit.report.terminal import show_plan
    from dejavu_lit.study.plan import make_plan
    from dejavu_lit.study.runs import train_missing
    from dejavu_lit.utils.io import locked

    plan = make_plan(out, rows)
    show_plan(plan)
    if config["plan_only"]:
        return
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", wait=False):
        failed: dict[Path, str] = {}
        for runs in plan.stages:  # a target whose reference failed could only say that it is not there
            ready = {p: c for p, c in runs.items() if Path((c.get("gaps") or {}).get("reference") or "") not in failed}
            failed |= train_missing(ready, launcher)
        evaluate_study(out, config, plan.cells, failed)


def _launcher(config: Mapping[str, Any]) -> "Launcher":
    """What trains the runs: ``launcher=``."""
    from dejavu_lit.study.runs import LAUNCHERS
    from dejavu_lit.study.slurm import SlurmLauncher

    launchers: dict[str, Launcher] = {**LAUNCHERS, "slurm": SlurmLauncher(build(config["slurm"], "slurm"))}
    name = config["launcher"]
    if name not in launchers:
        raise UserError(f"launcher={name} is unknown{suggest(str(name), launchers)}; there are {', '.join(launchers)}")
    return launchers[name]


def evaluate_sweep(out: Path, config: dict[str, Any], gate: "Gate | None", ranks: Ranks) -> None:
    """Evaluate every two runs below ``sweep`` that differ in ``side`` alone, each shared by all ranks; the table in ``out``."""
    from dejavu_lit.cli.gate import EXIT_CODE
    from dejavu_lit.study.sweep import pair_runs
    from dejavu_lit.study.table import at_stop, evaluation_folder

    check_loss(config["utility_loss"])
    with ranks.step():
        cells, left_out = pair_runs(Path(config["sweep"]))
        if ranks.rank == 0:
            for sentence in left_out:
                log.warning("left out: %s", sentence)
        if not cells:
            raise UserError(f"no two runs below {config['sweep']} differ in side alone; train the missing sides")
    cells = ranks.first(cells)  # a run may have ended while they looked
    shared = {name: config[name] for name in ("utility_loss", "logger")}
    if ranks.rank > 0:
        for cell in cells:
            with suppress(Exception):  # rank 0 tells of it, and goes on with the next one, too
                sides = _sides(at_stop(cell))
                run_evaluation({**config, **sides}, evaluation_folder(out, cell), ranks)
        return
    found = evaluate_study(out, {"evaluate": config, **shared}, cells, {}, ranks)
    if gate is not None and (fails := [name for name, metrics in found.items() if gate.fails(metrics)]):
        print(f"fail_if holds for {', '.join(fails)}: {gate.text}", file=sys.stderr)
        sys.exit(EXIT_CODE)


def evaluate_study(
    out: Path,
    config: Mapping[str, Any],
    cells: "list[Cell] | tuple[Cell, ...]",
    failed: Mapping[Path, str],
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Evaluate every cell, write and show the study, and return each cell's metrics.json by its label."""
    from dejavu_lit.report.dashboard import log_study
    from dejavu_lit.report.terminal import show_study
    from dejavu_lit.study import table as study
    from dejavu_lit.utils.io import write_json

    logger = build(config["logger"], "logger")
    found: dict[str, Any] = {}
    planned = {cell.label: study.asked(cell) for cell in cells}

    def one(cell: "Cell", folder: Path) -> Any:
        if cell.folder is not None and not (folder / "context.json").is_file():
            write_json(folder / study.ASKED, planned[cell.label])
        found[cell.label] = run_evaluation({**config["evaluate"], **cell.evaluation, **_sides(cell)}, folder, ranks)
        if cell.folder is not None:  # its statistics are those of now
            write_json(folder / study.ASKED, planned[cell.label])
        return found[cell.label]

    rows, lost = study.evaluate_cells(out, cells, one, failed)
    if rows:
        show_study(study.conclude(out, rows, lost, config["utility_loss"]), out)
        page = show_report(config["evaluate"], out)
        log_study(logger, out, config["evaluate"]["report"]["redact"], page.parent if page else None)
    if lost:
        raise UserError(
            f"{len(lost)} of {len(cells)} settings have no result: "
            + "; ".join(f"{label} ({why})" for label, why in lost.items())
        )
    return found


def _sides(cell: "Cell") -> dict[str, str]:
    from dejavu_lit.study.table import SIDES

    return {side: cell.side(side) for side in SIDES}


main = command("mitigate", mitigate)
