"""``dejavu train``: train one model, the target or the reference."""

from dataclasses import replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dejavu_lit.cli.app import command
from dejavu_lit.cli.options import Train
from dejavu_lit.training.resume import run_training
from dejavu_lit.utils.distributed import current_ranks, rank
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.printable import argument, print_next
from dejavu_lit.utils.wandb import with_tags


def train(settings: Train, out: Path) -> None:
    """Train one model."""
    is_multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    is_parallel = settings.trainer.devices != 1 or settings.trainer.num_nodes != 1
    if is_multirun and is_parallel and current_ranks().world == 1:  # the two launchers would start each other endlessly
        raise UserError(
            "--multirun cannot start several processes per job; use hydra/launcher=slurm, which sets "
            "hydra.launcher.tasks_per_node to trainer.devices, or one device per job (trainer.devices=1)"
        )
    if is_parallel and not is_multirun and settings.out is None:
        raise UserError("several processes need a common output directory; give out=DIR")
    run_training(replace(settings, logger=with_tags(settings.logger, HydraConfig.get().overrides.task)), out)
    if rank() == 0 and not is_multirun:
        sides: dict[str, object] = {"target": "TARGET", "reference": "REFERENCE", settings.side: out}
        second = "reference" if settings.side == "target" else "target"
        print_next(
            f"dejavu train … side={second} {argument('out', sides[second])}    # the other side, with the same options",
            f"dejavu evaluate {argument('target', sides['target'])} {argument('reference', sides['reference'])}",
        )


main = command("train", train)
