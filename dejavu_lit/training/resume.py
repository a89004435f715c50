"""Starts or continues a training from a run's settings."""

import logging
from pathlib import Path

from dejavu_lit.data.epoch import epoch_plan, pairs_per_rank
from dejavu_lit.data.prepared import TRAINED_ON, pinned, ready
from dejavu_lit.evaluation.run import check_model
from dejavu_lit.models.model_name import architectures, check_architecture
from dejavu_lit.training.settings import TrainerSettings, TrainingRun
from dejavu_lit.utils.config import take
from dejavu_lit.utils.distributed import check_ranks, current_ranks, forget_left_over_ranks, rank
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.exit_codes import clean_exit, signals_kept
from dejavu_lit.utils.printable import log_warnings
from dejavu_lit.utils.run_directory import PARTNER, RunDirectory


@signals_kept()
def run_training(run: TrainingRun, out: Path | str) -> Path:
    """Train in ``out``, or continue the run there; device, models and data are checked before anything is written."""
    forget_left_over_ranks(run.trainer.devices, run.trainer.num_nodes)
    check_ranks(run.trainer.devices, run.trainer.num_nodes)
    if rank() > 0:
        logging.getLogger("dejavu_lit").setLevel(logging.WARNING)  # only rank 0 logs its progress
    directory = RunDirectory(Path(out))
    if not directory.started:
        run.data.check_options()
    if not directory.finished:
        check_models(run, resumed=directory.started)
        check_device(run.trainer)
    # Data of a started run that are missing are elsewhere, as another working directory may be: they are not prepared again.
    run = take(TrainingRun, run, data=pinned(run.data) if directory.started else ready(run.data))
    if not directory.finished:
        check_data(run)
    with directory.opened(run):
        from dejavu_lit.training.train import train

        return train(run, Path(out))


def check_data(run: TrainingRun) -> None:
    """Raise UserError for data that were not prepared, or that cannot fill the training size and a batch."""
    run.data.check()
    world = max(1, run.trainer.devices) * run.trainer.num_nodes
    batch = pairs_per_rank(run.recipe.batch, world)
    if run.data.shards is not None:
        epoch_plan([run.data.training_pairs(run.side)], 0, 0, world, 1, batch)
        return
    pairs = run.data.shard_set(TRAINED_ON[run.side])
    excluded = run.data.local_exclusions(pairs)
    epoch_plan(pairs.sizes, 0, 0, world, 1, batch, run.data.prefix, run.data.repeat, excluded)


def check_device(trainer: TrainerSettings) -> None:
    """Raise UserError if this machine does not have the GPUs of a training."""
    if trainer.accelerator not in ("gpu", "cuda"):
        return
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={trainer.accelerator}: no GPU found; choose trainer=cpu, or a machine with a GPU"
        )
    # Under a launcher each process may see its own GPU alone.
    if current_ranks().world == 1 and trainer.devices > (found := torch.cuda.device_count()):
        raise UserError(
            f"trainer.devices={trainer.devices}: this machine has {found}; give at most that many, or -1 for all"
        )


def check_models(run: TrainingRun, resumed: bool = False) -> None:
    """Raise UserError for an unknown architecture, the name of one for another, or a missing reference or weights.

    A ``resumed`` run has its model itself.
    """
    if run.model.config is None:
        check_architecture(run.model.name)
    elif run.model.name in architectures() and not resumed:
        raise UserError(
            f"model.name={run.model.name} is an architecture of open_clip, but model.config would be trained; for that "
            f"architecture give model=vit_b_32 model.name={run.model.name} without model.config, else model.name another name"
        )
    if run.model.init is not None and not resumed:
        check_model("model.init", run.model.init)
    if run.gaps.reference not in (None, PARTNER):
        check_model("gaps.reference", run.gaps.reference)


def resume(out: Path) -> None:
    log_warnings()
    logging.getLogger("dejavu_lit").setLevel(logging.INFO)
    with clean_exit():
        run_training(RunDirectory(out).read(TrainingRun), out)
