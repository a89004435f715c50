"""``trainer`` of commands that do not train: how many processes share the work, in which shares, on which device."""

import logging
import os
from collections.abc import Mapping

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dejavu_lit.training.settings import TrainerSettings
from dejavu_lit.utils.distributed import Ranks, check_ranks, current_ranks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.launch import end_with_parent, launch_ranks

READ = ("accelerator", "devices", "num_nodes")  # of trainer; its other options apply to training only
log = logging.getLogger(__name__)


def processes(trainer: TrainerSettings, shared: bool) -> Ranks:
    """This process among those that ``trainer`` asks for, which are started here unless torchrun or srun did.

    Args:
        shared: whether all processes know the output directory.

    Raises:
        UserError: not the number that torchrun or srun started; several nodes or a multirun without them; no GPU.
    """
    _check()
    ranks, devices, nodes = current_ranks(), trainer.devices, trainer.num_nodes
    check_ranks(devices, nodes, one_is_default=True)
    if ranks.world == 1:
        devices = _count(devices)
    if max(ranks.world, devices * nodes) > 1 and not shared:
        raise UserError("several processes need one output directory; give out=DIR")
    if ranks.world == 1 and devices * nodes > 1:
        if nodes > 1:
            raise UserError(
                f"trainer.num_nodes={nodes}: processes on other machines cannot be started from here; start the command with "
                "srun or torchrun"
            )
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError("--multirun cannot start several processes per job; use torchrun or srun, or no -m")
        launch_ranks(devices)
    end_with_parent()
    if ranks.rank > 0:
        logging.getLogger("dejavu_lit").setLevel(logging.WARNING)  # only rank 0 logs its progress
    return ranks


def _check() -> None:
    for override in HydraConfig.get().overrides.task:
        group, _, name = override.lstrip("+~").partition("=")[0].partition(".")
        if group == "trainer" and name and name not in READ:
            instead = (
                "use workers=N for the threads that read and decode, with annotate annotator.workers=N"
                if name.startswith("loader.workers")
                else f"of trainer, this command reads only {', '.join(READ)}"
            )
            raise UserError(f"trainer.{name} applies to training only; {instead}")


def _count(devices: int) -> int:
    """``devices``; for −1 the number of GPUs of this machine."""
    if devices > 0:
        return devices
    import torch

    if not (gpus := torch.cuda.device_count()):
        raise UserError("trainer.devices=-1 means all GPUs, and this machine has none; give trainer.devices=N")
    return gpus


def parse_share(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(i, n): this process annotates every n-th shard from the i-th on; from ``"3/10"``.

    None: from the SLURM array and the ranks of torchrun or srun, combined, or else all shards.

    Raises:
        UserError: not of this form, or an array whose numbers have gaps (the number of its tasks is then unknown).
    """
    if text is None:
        task, tasks = _slurm_array_task(environment)
        ranks = current_ranks(environment)
        return task * ranks.world + ranks.rank, tasks * ranks.world
    try:
        index, count = map(int, str(text).split("/"))
    except ValueError:
        raise UserError(f"part={text} must be NUMBER/OF, counted from 0, e.g. part=3/10") from None
    if not 0 <= index < count:
        raise UserError(f"part={text} must be NUMBER/OF with NUMBER from 0 to OF - 1, e.g. part=3/10")
    return index, count


def _slurm_array_task(environment: Mapping[str, str]) -> tuple[int, int]:
    """(position, number) of tasks of a SLURM array; (0, 1) outside one, and in the job array of Hydra's launcher.

    The tasks of that array are the jobs of a multirun, each with its own settings, and share nothing.
    """
    if "SLURM_ARRAY_TASK_ID" not in environment or environment.get("SUBMITIT_EXECUTOR") == "slurm":
        return 0, 1
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    task, count, first, last, step = (int(environment.get(f"SLURM_ARRAY_TASK_{n}", n == "STEP")) for n in names)
    if not count or (last - first) // step + 1 != count:
        raise UserError(
            f"the SLURM array runs from {first} to {last} but has {count} tasks, so it has gaps; "
            "give this task's share by part=NUMBER/OF, e.g. part=$SLURM_ARRAY_TASK_ID/10"
        )
    return (task - first) // step, count


def device(trainer: TrainerSettings, given: str | None) -> str:
    """``device=`` if given, else the one of ``trainer.accelerator``; the CPU if there is no GPU."""
    if given is not None:
        return given
    if trainer.accelerator == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if current_ranks().local == 0:
        log.warning("trainer.accelerator=%s: no GPU found; using the CPU", trainer.accelerator)
    return "cpu"
