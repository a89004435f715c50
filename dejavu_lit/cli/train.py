"""``dejavu train``: train one model, the target or the reference."""

from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Train
from dejavu_lit.training.resume import run_training
from dejavu_lit.training.settings import TrainerSettings
from dejavu_lit.utils.distributed import current_ranks, rank
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.printable import argument, print_next
from dejavu_lit.utils.wandb import with_tags


def train(settings: Train, out: Path) -> None:
    """Train one model."""
    _refuse_own_launcher(settings.trainer)
    if settings.out is None and _is_parallel(settings.trainer) and HydraConfig.get().mode == RunMode.RUN:
        raise UserError("several processes need one output directory; give out=DIR")
    run_training(replace(settings, logger=with_tags(settings.logger, HydraConfig.get().overrides.task)), out)
    if rank() == 0 and HydraConfig.get().mode == RunMode.RUN:
        sides: dict[str, object] = {"target": "TARGET", "reference": "REFERENCE", settings.side: out}
        second = "reference" if settings.side == "target" else "target"
        print_next(
            f"dejavu train … side={second} out={sides[second]}    # the other side, with the same options",
            f"dejavu evaluate {argument('target', sides['target'])} {argument('reference', sides['reference'])}",
        )


def _is_parallel(trainer: TrainerSettings) -> bool:
    return trainer.devices != 1 or trainer.num_nodes != 1


def _refuse_own_launcher(trainer: TrainerSettings) -> None:
    """Refuse a multirun whose jobs would start processes: Hydra's and Lightning's launchers start each other endlessly."""
    if HydraConfig.get().mode == RunMode.MULTIRUN and _is_parallel(trainer) and current_ranks().world == 1:
        raise UserError(
            "--multirun cannot start several processes per job; use hydra/launcher=slurm, which sets "
            "hydra.launcher.tasks_per_node to trainer.devices, or one device per job (trainer.devices=1)"
        )


main = command("train", train)
