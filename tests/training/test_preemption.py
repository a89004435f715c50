"""What ends a training after a signal, without training."""

import signal
from types import SimpleNamespace

import pytest

from dejavu_lit.training.preemption import Preemption
from dejavu_lit.utils.launch import STUDY


def test_term_ends_the_process_of_a_study_within_an_allocation(tmp_path, monkeypatch):
    preemption = Preemption(tmp_path / "last.ckpt")
    trainer = SimpleNamespace(global_step=1, global_rank=0, loggers=[])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv(STUDY, raising=False)
    preemption._end(trainer, signal.SIGTERM)  # goes on until SLURM ends it
    monkeypatch.setenv(STUDY, "1")
    with pytest.raises(SystemExit) as end:
        preemption._end(trainer, signal.SIGTERM)
    assert end.value.code == 128 + signal.SIGTERM
