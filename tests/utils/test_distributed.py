"""Which ranks the environment gives to this process, and which of them were left over in the shell."""

import os

import pytest
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from dejavu_lit.utils.distributed import (
    COMMAND,
    LEFT_OVER,
    check_ranks,
    forget_left_over_ranks,
    lightning_environment,
    rank,
)
from dejavu_lit.utils.errors import UserError

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
SRUN = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}


@pytest.fixture(autouse=True)
def _no_ranks(monkeypatch):
    for name in [*LEFT_OVER, "MASTER_ADDR", COMMAND]:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "left_over",
    [
        {"LOCAL_RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"NODE_RANK": "1"},
        {"MASTER_ADDR": "n1", "NODE_RANK": "1"},  # of a training on several nodes
        {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "1"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "1"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "4"},
        {COMMAND: "1", "LOCAL_RANK": "1"},  # of a command that has ended
    ],
)
def test_left_over_ranks_are_forgotten(left_over):
    os.environ.update(left_over)
    forget_left_over_ranks()
    assert rank() == 0
    assert not set(LEFT_OVER) & set(os.environ)


@pytest.mark.parametrize(
    ("given", "devices", "nodes"),
    [
        (TORCHRUN, 1, 1),  # which trainer does not need to know
        (SRUN, 1, 1),
        ({COMMAND: str(os.getppid()), "NODE_RANK": "0", "LOCAL_RANK": "1"}, 2, 1),  # started by Lightning
        ({"MASTER_ADDR": "n1", "NODE_RANK": "1"}, 1, 2),  # set on each node
    ],
)
def test_ranks_of_a_launcher_are_kept(given, devices, nodes):
    os.environ.update(given)
    forget_left_over_ranks(devices, nodes)
    assert rank() == 1
    assert set(given) <= set(os.environ)


@pytest.mark.parametrize("given", [TORCHRUN, SRUN])
def test_another_number_of_processes_than_asked_for_is_a_sentence(given):
    os.environ.update(given)
    check_ranks(2, 1)
    check_ranks(1, 2)
    check_ranks(-1, 1)  # all of the node, however many
    check_ranks(1, 1, one_is_default=True)
    for devices, nodes in ((1, 1), (2, 2), (4, 1)):
        with pytest.raises(
            UserError, match=rf"ask for {devices * nodes} processes, but 2 were started; match torchrun"
        ):
            check_ranks(devices, nodes)


@pytest.mark.parametrize("given", [ALLOCATION, {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}])
def test_a_process_alone_is_not_compared(given):
    os.environ.update(given)
    for devices in (1, 4):
        check_ranks(devices, 1)


def test_what_lightning_sets_after_the_first_call_is_kept():
    forget_left_over_ranks(2)
    os.environ.update({"LOCAL_RANK": "0", "NODE_RANK": "0"})  # for a second training of the same program
    forget_left_over_ranks(2)
    assert os.environ["LOCAL_RANK"] == "0"


def test_one_process_of_torchrun_is_rank_0():
    os.environ.update({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "NODE_RANK": "1"})
    forget_left_over_ranks()
    assert rank() == 0


def test_lightning_takes_only_tasks_of_srun_for_tasks():
    assert lightning_environment() == []
    os.environ.update(ALLOCATION)
    (environment,) = lightning_environment()
    assert isinstance(environment, LightningEnvironment)
    os.environ.update({**SRUN, "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "bash"})
    (environment,) = lightning_environment()
    assert isinstance(environment, SLURMEnvironment)
    os.environ.update(TORCHRUN)
    assert lightning_environment() == []


def test_tasks_without_a_number_per_node_are_a_sentence():
    os.environ.update(SRUN)
    with pytest.raises(UserError, match="--ntasks-per-node"):
        lightning_environment()
