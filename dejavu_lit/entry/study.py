"""``mitigate.py`` and ``evaluate.py sweep=``: the runs of a study, trained where missing, evaluated and ranked."""

import logging
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dejavu_lit.dashboards import tagged
from dejavu_lit.entry.data import data_spec, pinned
from dejavu_lit.entry.evaluation import run_evaluation, show_report
from dejavu_lit.entry.frame import plain
from dejavu_lit.errors import UserError
from dejavu_lit.typed import build

log = logging.getLogger(__name__)


def mitigate(cfg: DictConfig, out: Path) -> None:
    """Train and evaluate every setting, and rank them."""
    config = plain(cfg)
    if config["launcher"] != "local":
        raise UserError(
            f"launcher={config['launcher']} is not known; use launcher=local, or train.py -m with a launcher of Hydra"
        )
    from dejavu_lit import study
    from dejavu_lit.files import locked
    from dejavu_lit.launch import identity

    if not config["settings"]:
        raise UserError(
            "there are no settings; choose experiment=NAME, or name some: +settings.mask=['mitigation.text_mask=0.5']"
        )
    runs: dict[Path, dict[str, Any]] = {}
    known: dict[str, Path] = {}
    cells = []
    for name, overrides in config["settings"].items():
        for size in config["sizes"]:
            for seed in config["seeds"]:
                cell = study.Cell(name, tuple(overrides), size, seed, out, out)
                paths = {}
                for side in study.SIDES:
                    settings = _run_config(overrides, side, size, seed)
                    path = known.setdefault(identity(settings), out / "runs" / f"{cell.label}-{side}")
                    paths[side] = path
                    runs.setdefault(path, settings)
                cells.append(study.Cell(name, tuple(overrides), size, seed, **paths))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", wait=False):
        data_spec(next(iter(runs.values()))["data"])
        failed = study.train_missing(runs)
        evaluate_study(out, config, cells, failed)


def _run_config(overrides: list[str], side: str, size: int | None, seed: int) -> dict[str, Any]:
    """The configuration of one run: this command's own, with the setting's overrides on top."""
    given = list(HydraConfig.get().overrides.task)
    composed = hydra.compose("mitigate", [*given, *overrides])
    config = plain(composed)
    own = {name: config[name] for name in ("data", "model", "recipe", "mitigation", "trainer", "logger")}
    own["data"] = {**pinned(own["data"]), "train_size": size if size is not None else own["data"]["train_size"]}
    own["logger"] = tagged(own["logger"], overrides)
    return {**own, "side": side, "seed": seed}


def evaluate_sweep(out: Path, config: dict[str, Any]) -> None:
    """Evaluate every two runs below ``sweep`` that differ in ``side`` alone, and collect the table in ``out``."""
    from dejavu_lit.study import pair_runs

    cells, alone = pair_runs(Path(config["sweep"]))
    for path in alone:
        log.warning("%s has no partner (the same settings with the other side); left out", path)
    if not cells:
        raise UserError(f"no two runs below {config['sweep']} differ in side alone; train the missing sides")
    shared = {name: config[name] for name in ("utility_loss", "logger")}
    evaluate_study(out, {"evaluate": config, **shared}, cells, {})


def evaluate_study(out: Path, config: dict[str, Any], cells: list[Any], failed: dict[Path, str]) -> None:
    from dejavu_lit import study
    from dejavu_lit.report.dashboard import log_study
    from dejavu_lit.summary import show_study

    logger = build(config["logger"], "logger")

    def one(cell: Any, folder: Path) -> Any:
        return run_evaluation(
            {**config["evaluate"], "target": str(cell.target), "reference": str(cell.reference)}, folder
        )

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
