"""``trainer`` of a command that trains nothing: how many processes share its work, and on what."""

import logging
import os
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dejavu_lit.utils.distributed import Ranks, end_with_parent, start, started
from dejavu_lit.utils.errors import UserError

READ = ("accelerator", "devices", "num_nodes")  # of trainer; the rest is about training
log = logging.getLogger(__name__)


def processes(trainer: dict[str, Any], shared: bool) -> Ranks:
    """This process among those that ``trainer`` asks for; where nobody has started them, they are, and this one ends with them.

    Args:
        shared: whether all of them would know the directory that they write to.

    Raises:
        UserError: another number than torchrun or srun started, several nodes or a multirun without them, no GPU to count.
    """
    _check(trainer)
    ranks, devices, nodes = started(), trainer["devices"], trainer["num_nodes"]
    if ranks.world > 1:
        if devices > 0 and devices * nodes not in (1, ranks.world):
            raise UserError(
                f"trainer.devices={devices} and trainer.num_nodes={nodes} are {devices * nodes} processes, and "
                f"{ranks.world} were started; give the numbers of torchrun or srun, or leave both out"
            )
    else:
        devices = _count(devices)
    if max(ranks.world, devices * nodes) > 1 and not shared:
        raise UserError("several processes share one evaluation in a directory that all know; give out=DIR")
    if ranks.world == 1 and devices * nodes > 1:
        if nodes > 1:
            raise UserError(
                f"trainer.num_nodes={nodes}: no process can start others on other machines; start the command on all of them by "
                "srun or torchrun"
            )
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError("--multirun cannot start several processes a job by itself; use torchrun or srun, or no -m")
        start(devices)
    end_with_parent()
    if ranks.rank > 0:
        logging.getLogger("dejavu_lit").setLevel(logging.WARNING)  # rank 0 tells the story
    return ranks


def _check(trainer: dict[str, Any]) -> None:
    for override in HydraConfig.get().overrides.task:
        group, _, name = override.lstrip("+~").partition("=")[0].partition(".")
        if group == "trainer" and name and name not in READ:
            instead = (
                "the threads that read and decode here are workers=N, and of annotate annotator.workers=N"
                if name.startswith("loader.workers")
                else f"of trainer, only {', '.join(READ)} matter here"
            )
            raise UserError(f"trainer.{name} is about training; {instead}")
    for name in ("devices", "num_nodes"):
        value = trainer[name]
        if type(value) is not int or not (value > 0 or (name, value) == ("devices", -1)):
            also = ", or -1 for all GPUs" if name == "devices" else ""
            raise UserError(f"trainer.{name}={value} must be a whole number, at least 1{also}")


def _count(devices: int) -> int:
    """``devices``, the GPUs of this machine for −1."""
    if devices > 0:
        return devices
    import torch

    if not (found := torch.cuda.device_count()):
        raise UserError("trainer.devices=-1 stands for all GPUs, and there are none here; give trainer.devices=N")
    return found


def device(trainer: dict[str, Any], given: str | None) -> str:
    """``device=`` where it is given, else what ``trainer.accelerator`` says: the CPU where that finds no GPU."""
    if given is not None:
        return given
    if trainer["accelerator"] == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        log.warning("trainer.accelerator=%s: there is no GPU here, so it is done on the CPU", trainer["accelerator"])
    return "cpu"
