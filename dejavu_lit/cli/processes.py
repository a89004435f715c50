"""``trainer`` of commands that do not train: how many processes share the work, in which shares, on which device."""

import logging
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from typing import NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dejavu_lit.training.settings import TrainerSettings
from dejavu_lit.utils.distributed import Ranks, check_ranks, current_ranks
from dejavu_lit.utils.errors import UserError, killed_by
from dejavu_lit.utils.exit_codes import fail
from dejavu_lit.utils.parallel import thread_count

READ = ("accelerator", "devices", "num_nodes")  # of trainer; its other options apply to training only
PARENT = "DEJAVU_RANKS_OF"  # the process that started the ranks of this machine
log = logging.getLogger(__name__)


def processes(trainer: TrainerSettings, shared: bool) -> Ranks:
    """This process among those that ``trainer`` asks for, which are started here unless torchrun or srun did.

    ``shared``: whether all processes know the output directory. Raises UserError if torchrun or srun started another
    number, for several nodes or a multirun without them, and for all GPUs of a machine without any.
    """
    _check()
    ranks, devices, nodes = current_ranks(), trainer.devices, trainer.num_nodes
    check_ranks(devices, nodes, one_is_default=True)
    if ranks.world == 1 and devices < 0:
        import torch

        if not (devices := torch.cuda.device_count()):
            raise UserError("trainer.devices=-1 means all GPUs, but this machine has none; give trainer.devices=N")
    if max(ranks.world, devices * nodes) > 1 and not shared:
        raise UserError("several processes need a common output directory; give out=DIR")
    if ranks.world == 1 and devices * nodes > 1:
        if nodes > 1:
            raise UserError(
                f"trainer.num_nodes={nodes}: processes on other machines cannot be started from here; start the command with "
                "srun or torchrun"
            )
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError("--multirun cannot start several processes per job; use torchrun or srun, or omit -m")
        _launch_ranks(devices)
    _end_with_parent()
    if ranks.rank > 0:
        logging.getLogger("dejavu_lit").setLevel(logging.WARNING)  # only rank 0 logs its progress
    return ranks


def _launch_ranks(count: int) -> NoReturn:
    """Start this command as ``count`` ranks, as torchrun does, and exit with their code; the first failure ends the others."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, thread_count() // count)))
    os.environ[PARENT] = str(os.getpid())
    ranks = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=secrets.token_hex(8),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(ranks, sys.executable)(*sys.orig_argv[1:])
    except ChildFailedError as error:
        # Of failures within a second a killed rank's comes first: it could not say anything itself.
        rank, failure = min(error.failures.items(), key=lambda item: (item[1].exitcode >= 0, item[1].timestamp))
        if (code := failure.exitcode) < 0:
            fail(f"rank {rank} was {killed_by(-code)}; run the same command again to continue", 128 - code)
        sys.exit(code)
    except SignalException as error:
        sys.exit(128 + int(error.sigval))
    sys.exit(0)


def _end_with_parent() -> None:
    """Let a rank started by ``_launch_ranks`` exit when that process is killed; it would keep the directory locked."""
    parent = int(os.environ.get(PARENT, 0))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if parent and "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def _check() -> None:
    for override in HydraConfig.get().overrides.task:
        group, _, name = override.lstrip("+~").partition("=")[0].partition(".")
        if group == "trainer" and name and name not in READ:
            instead = (
                "use workers=N for the threads that read and decode (annotator.workers=N for annotate)"
                if name.startswith("loader.workers")
                else f"this command uses only {', '.join(READ)} of trainer"
            )
            raise UserError(f"trainer.{name} applies to training only; {instead}")


def parse_share(text: str | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(i, n): this process annotates every n-th shard from the i-th on; from ``"3/10"``.

    None: from the SLURM array and the ranks of torchrun or srun, combined, or else all shards. Raises UserError for
    another form, and for an array whose numbers have gaps.
    """
    if text is None:
        task, tasks = _slurm_array_task(environment)
        ranks = current_ranks(environment)
        return task * ranks.world + ranks.rank, tasks * ranks.world
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f"part={text} must be NUMBER/OF with NUMBER from 0 to OF - 1, e.g. part=3/10")
    return int(match[1]), int(match[2])


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
