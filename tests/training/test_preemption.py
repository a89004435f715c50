"""What ends a training after a signal, without training."""

import os
import signal
from types import SimpleNamespace

import pytest

from dejavu_lit.training.preemption import Preemption
from dejavu_lit.utils.exit_codes import signals_kept


def test_term_after_ctrl_c_ends_the_training_of_a_study_within_an_allocation(tmp_path, monkeypatch):
    """Ctrl-C reaches the study and its training, to which the study sends TERM; TERM alone would let it go on."""
    trainer = SimpleNamespace(global_step=1, global_rank=0, loggers=[], world_size=1)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    told, interrupted = Preemption(tmp_path / "last.ckpt"), Preemption(tmp_path / "last.ckpt")
    told._handle(signal.SIGTERM, None)
    told.on_train_epoch_start(trainer, None)
    assert told.caught == 0
    for number in (signal.SIGINT, signal.SIGTERM):
        interrupted._handle(number, None)
    with pytest.raises(SystemExit) as end:
        interrupted.on_train_epoch_start(trainer, None)
    assert end.value.code == 128 + signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
        interrupted._handle(signal.SIGINT, None)


@pytest.mark.parametrize("scontrol", [None, "#!/bin/sh\nexit 1\n"], ids=["missing", "refused"])
def test_a_job_that_slurm_does_not_requeue_ends_as_elsewhere(tmp_path, monkeypatch, caplog, scontrol):
    if scontrol is not None:
        (tmp_path / "scontrol").write_text(scontrol)
        (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    trainer = SimpleNamespace(global_step=1, global_rank=0, loggers=[], world_size=1)
    warned = Preemption(tmp_path / "last.ckpt")
    warned._handle(signal.SIGUSR1, None)
    with pytest.raises(SystemExit) as end:
        warned.on_train_epoch_start(trainer, None)
    assert end.value.code == 128 + signal.SIGUSR1
    assert "SLURM did not requeue the job" in caplog.text


@pytest.mark.parametrize("sent", [[signal.SIGTERM, signal.SIGUSR1], [signal.SIGUSR1, signal.SIGTERM]])
def test_a_warning_before_the_training_requeues_the_job_at_its_first_epoch(sent, tmp_path, monkeypatch):
    """It would end a process that still loads its data, and SLURM requeues no job that ends by itself."""
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/called\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    trainer = SimpleNamespace(global_step=0, global_rank=0, loggers=[], world_size=1)
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with signals_kept():
        for number in sent:
            os.kill(os.getpid(), number)
        warned = Preemption(tmp_path / "last.ckpt")
        found = {number: signal.getsignal(number) for number in numbers}
        warned.listen()
        for number, handler in found.items():  # as Lightning does after fit
            signal.signal(number, handler)
        with pytest.raises(SystemExit) as end:
            warned.on_train_epoch_start(trainer, None)
    assert end.value.code == 128 + signal.SIGUSR1
    assert (tmp_path / "called").read_text() == "requeue 7\n"
    assert [signal.getsignal(number) for number in numbers] == before
