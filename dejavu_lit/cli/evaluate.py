"""``dejavu evaluate``: measure one pair of models, or every pair of a sweep."""

from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from dejavu_lit.cli.app import command
from dejavu_lit.cli.gate import Gate
from dejavu_lit.cli.options import Evaluate
from dejavu_lit.cli.processes import device, processes
from dejavu_lit.evaluation.run import check_model, run_evaluation
from dejavu_lit.utils.distributed import Ranks, process_group
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.run_directory import RunDirectory
from dejavu_lit.utils.wandb import with_tags


def evaluate(settings: Evaluate, out: Path) -> None:
    """Measure how much the target remembers beyond the reference."""
    if settings.sweep == "":  # a variable of the shell that is not set would mean the current folder
        raise UserError("sweep= is empty; give the folder of a multirun of dejavu train")
    RunDirectory(out).refuse_training()
    for role in ("target", "reference"):
        if settings.sweep is None:
            check_model(role, getattr(settings, role))
        elif getattr(settings, role) is not None:
            raise UserError(f"sweep={settings.sweep} finds the pairs of runs itself; omit {role}=")
    gate = Gate.parse(settings.fail_if) if settings.fail_if is not None else None
    ranks = processes(settings.trainer, shared=settings.out is not None or settings.sweep is not None)
    settings = replace(settings, device=ranks.device(device(settings.trainer, settings.device)))
    with process_group(ranks):
        if settings.sweep is not None:
            from dejavu_lit.cli.mitigate import evaluate_sweep

            evaluate_sweep(Path(settings.sweep) if settings.out is None else out, settings, gate, ranks)
        elif ranks.rank > 0:
            run_evaluation(settings, out, ranks)
        else:
            _evaluate_pair(settings, out, gate, ranks)


def _evaluate_pair(settings: Evaluate, out: Path, gate: Gate | None, ranks: Ranks) -> None:
    from dejavu_lit.report.dashboard import log_evaluation
    from dejavu_lit.report.report import is_redacted, show_report
    from dejavu_lit.report.terminal import show_evaluation, show_next_steps

    logger = with_tags(settings.logger, HydraConfig.get().overrides.task)
    metrics = run_evaluation(settings, out, ranks)
    show_evaluation(metrics, out)
    page = show_report(settings.report, out)
    log_evaluation(logger, out, is_redacted(settings.report, out))
    show_next_steps(out, page, metrics)
    if gate is not None:
        gate.enforce({"": metrics})


main = command("evaluate", evaluate)
