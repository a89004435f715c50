"""Starts or continues a training from a run's settings."""

import logging
from pathlib import Path

from dejavu_lit.data.prepared import TRAINED_ON, ready
from dejavu_lit.training.settings import TrainingRun
from dejavu_lit.utils.config import take
from dejavu_lit.utils.distributed import forget_left_over_ranks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.exit_codes import clean_exit
from dejavu_lit.utils.run_directory import RunDirectory


def run_training(run: TrainingRun, out: Path | str) -> Path:
    """Train in ``out``, or continue the run there; returns ``out``.

    The data and the device are checked before anything is written.
    """
    forget_left_over_ranks(run.trainer.devices, run.trainer.num_nodes)
    run = take(TrainingRun, run, data=ready(run.data))
    check_data(run)
    _check_device(run)
    with RunDirectory(Path(out)).opened(run):
        from dejavu_lit.training.train import train

        return train(run, Path(out))


def check_data(run: TrainingRun) -> None:
    """Raise UserError for data that were not prepared, or that cannot fill the training size and a batch."""
    from dejavu_lit.data.epoch import epoch_plan, pairs_per_rank

    run.data.check()
    if run.data.shards is not None:  # raw shards, whose pairs are not counted before the training
        return
    sizes = run.data.shard_set(TRAINED_ON[run.side]).sizes
    world = max(1, run.trainer.devices) * run.trainer.num_nodes
    batch = pairs_per_rank(run.recipe.batch, world)
    epoch_plan(sizes, 0, 0, world, 1, batch, run.data.prefix, run.data.repeat)


def _check_device(run: TrainingRun) -> None:
    if run.trainer.accelerator != "gpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu: no GPU found; choose trainer=cpu, or a machine with a GPU")


def resume(out: Path) -> None:
    """Continue the run in ``out`` with the settings saved there."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dejavu_lit").setLevel(logging.INFO)
    with clean_exit():
        run_training(RunDirectory(out).read(TrainingRun), out)
