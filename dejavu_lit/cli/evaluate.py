"""``dejavu evaluate``: measure one pair of models, or every pair of a sweep."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dejavu_lit.cli.app import command, plain
from dejavu_lit.cli.processes import device, processes
from dejavu_lit.evaluation.run import run_evaluation
from dejavu_lit.report.report import show_report
from dejavu_lit.utils.config import build
from dejavu_lit.utils.distributed import Ranks, process_group
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.wandb import with_tags

if TYPE_CHECKING:
    from dejavu_lit.cli.gate import Gate


def evaluate(cfg: DictConfig, out: Path) -> None:
    """Measure how much the target remembers beyond the reference."""
    config = plain(cfg)
    absent = [name for name in ("target", "reference") if config[name] is None]
    if absent and config["sweep"] is None:
        raise UserError(f"{absent[0]} is missing; give {absent[0]}=RUN or a model")
    from dejavu_lit.cli.gate import Gate

    gate = Gate.parse(str(config["fail_if"])) if config["fail_if"] is not None else None
    ranks = processes(config["trainer"], shared=config["out"] is not None or config["sweep"] is not None)
    config["device"] = ranks.device(device(config["trainer"], config["device"]))
    with process_group(ranks):
        if config["sweep"] is not None:
            from dejavu_lit.cli.mitigate import evaluate_sweep

            evaluate_sweep(Path(config["sweep"]) if config["out"] is None else out, config, gate, ranks)
        elif ranks.rank > 0:
            run_evaluation(config, out, ranks)
        else:
            _evaluate_pair(config, out, gate, ranks)


def _evaluate_pair(config: dict[str, Any], out: Path, gate: "Gate | None", ranks: Ranks) -> None:
    """Evaluate one pair of models and show the result."""
    from dejavu_lit.cli.gate import EXIT_CODE
    from dejavu_lit.report.dashboard import log_evaluation
    from dejavu_lit.report.terminal import show_evaluation, show_next_steps

    logger = build(with_tags(config["logger"], HydraConfig.get().overrides.task), "logger")
    metrics = run_evaluation(config, out, ranks)
    show_evaluation(metrics, out)
    page = show_report(config, out)
    log_evaluation(logger, out, config["report"]["redact"], page.parent / "figures" if page else None)
    show_next_steps(out, page, study=False)
    if gate is not None and gate.fails(metrics):
        print(f"fail_if holds: {gate.text}", file=sys.stderr)
        sys.exit(EXIT_CODE)


main = command("evaluate", evaluate)
