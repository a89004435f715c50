"""The processes that share the work of one command: which one this is, and how they connect.

    evaluate.py trainer=ddp trainer.devices=8 …          torchrun --nproc_per_node=8 evaluate.py …
    srun --ntasks-per-node=8 dejavu evaluate …

Each finds its rank in the environment. They share files, and communicate only to wait for each other.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from dejavu_lit.utils.errors import UserError, error_sentence, explained, first_line

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment

HOURS = 24  # ranks wait this long for the slowest one
MINUTES = 30.0  # and this long for each other to start
COMMAND = "DEJAVU_COMMAND"  # the process of a command, which may start further ones through Lightning
# What a launcher sets in each of its processes: rank, number of processes and rank on the node, then what else names it.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
LEFT_OVER = (*TORCHRUN, *SRUN, "NODE_RANK", "GROUP_RANK")

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, number of processes, and rank on this node."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def share(self) -> tuple[int, int]:
        """(i, n): this rank does every n-th piece of the work from the i-th on."""
        return self.rank, self.world

    def device(self, name: str) -> str:
        """The device of this rank: ``cuda`` means its own GPU, also if it sees only one."""
        if name != "cuda" or self.world == 1:
            return name
        import torch

        return f"cuda:{self.local % (torch.cuda.device_count() or self.local + 1)}"

    @contextmanager
    def step(self) -> Iterator[None]:
        """A step of the work that all ranks do: at its end they wait for each other, and if one failed or exited, all fail.

        Another rank's failure is raised as UserError with its message; what this rank raised is passed on.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        message = None if error is None else error_sentence(error) or first_line(error)
        messages = self._gather(message) if self.world > 1 else []
        if error is not None:
            raise error
        for rank, failure in enumerate(messages):
            if failure is not None:
                raise UserError(f"{failure} (rank {rank} of {self.world})")

    def first(self, value: T) -> T:
        """Rank 0's value, on all ranks: they must agree although files may change meanwhile."""
        return self._gather(value)[0] if self.world > 1 else value

    def _gather(self, value: T) -> list[T]:
        remedy = "see its last message, and run the same command to resume"
        with explained(f"another of the {self.world} processes exited", remedy, errors=(RuntimeError,)):
            return gather(value)  # gloo's connection may be closed, or time out


SINGLE_PROCESS = Ranks()


def current_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """Who this process is; rank 0 of 1 if neither torchrun nor srun started several."""
    if _by_torchrun(environment):
        return Ranks(*(int(environment[name]) for name in TORCHRUN[:3]))
    # Set by srun; a batch script itself is one process, whatever SLURM_NTASKS says.
    if set(SRUN) <= set(environment) and int(environment["SLURM_STEP_NUM_TASKS"]) > 1:
        return Ranks(*(int(environment[name]) for name in SRUN))
    return SINGLE_PROCESS


def _by_torchrun(environment: Mapping[str, str]) -> bool:
    return set(TORCHRUN) <= set(environment)


def forget_left_over_ranks(devices: int = 1, nodes: int = 1) -> None:
    """Remove ranks from the environment that no launcher gave to this process: they were left over in the shell.

    Lightning and ``rank`` would take a process alone for one of several, which writes nothing. Launchers are torchrun, srun,
    Lightning in the parent process, and for several nodes a person who sets MASTER_ADDR and NODE_RANK on each. Call it before
    Lightning is imported; only the first call counts, because later ones find what Lightning set for its own processes. A
    command that starts no processes through Lightning has 1 device and 1 node.
    """
    if os.environ.get(COMMAND) == str(os.getpid()):
        return
    by_launcher = _by_torchrun(os.environ) or current_ranks().world > 1
    by_parent = os.environ.get(COMMAND) == str(os.getppid()) and "LOCAL_RANK" in os.environ
    by_person = nodes > 1 and {"MASTER_ADDR", "NODE_RANK"} <= set(os.environ)
    if not (by_launcher or (devices * nodes != 1 and (by_parent or by_person))):
        for name in LEFT_OVER:
            os.environ.pop(name, None)
        os.environ[COMMAND] = str(os.getpid())


def check_ranks(devices: int, nodes: int, one_is_default: bool = False) -> None:
    """Raise UserError if torchrun or srun started another number of processes than ``devices`` (-1: any) per node ask for.

    With ``one_is_default`` the defaults, 1 and 1, accept any number.
    """
    world, asked = current_ranks().world, devices * nodes
    if world > 1 and devices > 0 and asked != world and not (one_is_default and asked == 1):
        raise UserError(
            f"trainer.devices={devices} and trainer.num_nodes={nodes} ask for {asked} processes, but {world} were started; "
            f"match torchrun or srun{', or omit both options' if one_is_default else ''}"
        )


def lightning_environment() -> list["ClusterEnvironment"]:
    """Lightning's plugin for the processes of ``current_ranks`` within SLURM; [] elsewhere and under torchrun.

    Its own guess takes every process of an allocation for a task of srun. Raises UserError if srun's tasks per node are
    unknown.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    if "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    if current_ranks().world == 1:
        return [LightningEnvironment()] if "SLURM_NTASKS" in os.environ else []
    with explained("srun was given --ntasks", "give it --ntasks-per-node instead", errors=(RuntimeError,)):
        return [SLURMEnvironment(auto_requeue=False)]


def group_share() -> tuple[int, int]:
    """(rank, number of ranks) of this process in torch's process group, also of a training; (0, 1) without one."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(value: T) -> list[T]:
    """The values of all ranks of torch's process group, in their order; every rank must call it."""
    import torch.distributed as dist

    values: list[Any] = [value] * group_share()[1]
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


@contextmanager
def process_group(ranks: Ranks) -> Iterator[None]:
    """Connect the ranks during the block, and let none leave before all have reached its end, unless one fails.

    srun counts its timeout from the first task that ends. Only rank 0, which learns of a failure by ``step``, raises the
    UserError; ranks that cannot connect raise one, too.
    """
    if ranks.world == 1:
        yield
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    method, long = "env://", timedelta(hours=HOURS)
    for slurm in lightning_environment():
        method = f"tcp://{slurm.main_address}:{slurm.main_port}"
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    problem = f"rank {ranks.rank} of {ranks.world} could not connect to the others at {where}"
    remedy = "MASTER_ADDR must be the node of rank 0, reachable from all, and MASTER_PORT a free port there"
    with explained(problem, remedy, errors=(RuntimeError, ValueError)):
        store, _, _ = next(rendezvous(method, ranks.rank, ranks.world, timeout=timedelta(minutes=MINUTES)))
        store.set_timeout(long)
        dist.init_process_group("gloo", store=store, rank=ranks.rank, world_size=ranks.world, timeout=long)
    try:
        yield
        with suppress(RuntimeError):  # another rank exited and has logged why
            dist.barrier()
    except UserError:
        if ranks.rank == 0:
            raise
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """0 for the first or only process of a run, else above 0, as set by torchrun, srun or Lightning's launcher."""
    ranks = current_ranks()
    if ranks.world > 1 or _by_torchrun(os.environ):
        return ranks.rank
    return int(os.environ.get("NODE_RANK", 0)) + int(os.environ.get("LOCAL_RANK", 0))
