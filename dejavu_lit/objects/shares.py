"""The share of the shards that one process annotates: ``part=3/10``, a task of a SLURM array, a rank of torchrun or srun."""

import os
from collections.abc import Mapping

from dejavu_lit.utils.distributed import current_ranks
from dejavu_lit.utils.errors import UserError


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
