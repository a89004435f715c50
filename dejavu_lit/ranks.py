"""The processes that share the embedding of one evaluation, as torchrun or srun started them.

    torchrun --nproc_per_node=8 evaluate.py …        srun --ntasks-per-node=8 python evaluate.py …

Each embeds every so-manieth shard, and rank 0 alone goes on with what all have written.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

HOURS = 24  # that ranks wait for the slowest one


@dataclass(frozen=True)
class Ranks:
    """This process among the others: its number, theirs, and its number on this node."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def device(self, name: str) -> str:
        """The device of this rank: ``cuda`` stands for a GPU of its own."""
        return f"cuda:{self.local}" if name == "cuda" and self.world > 1 else name


def started() -> Ranks:
    """Who this process is; rank 0 of 1 where neither torchrun nor srun started several."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    if (
        "SLURM_STEP_NUM_TASKS" in os.environ
    ):  # of srun; a batch script itself is one process, whatever SLURM_NTASKS says
        return Ranks(*(int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "STEP_NUM_TASKS", "LOCALID")))
    return Ranks()


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Wait at the end of the block until all ranks are there; one that has died ends the others with an exception."""
    import torch.distributed as dist
    from lightning_fabric.plugins.environments import SLURMEnvironment

    method = "env://"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        slurm = SLURMEnvironment(auto_requeue=False)
        method = f"tcp://{slurm.main_address}:{slurm.main_port}"
    wait = timedelta(hours=HOURS)
    dist.init_process_group("gloo", init_method=method, rank=ranks.rank, world_size=ranks.world, timeout=wait)
    try:
        yield
        dist.barrier()
    finally:
        dist.destroy_process_group()
