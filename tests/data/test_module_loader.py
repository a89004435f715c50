"""EpochLoader: worker processes live for the whole training and yield each epoch's pairs from the requested step on."""

import os
import subprocess
import sys
from dataclasses import replace
from multiprocessing import active_children

import pytest
import torch

from benchmarks.shards import write_shards
from dejavu_lit.data.loader import EpochLoader
from dejavu_lit.data.module import PairDataModule
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT
from tests.data.test_epoch import batches
from tests.data.test_stream import module, pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """38 pairs: 9 batches of 4, an uneven number for two processes."""
    out = tmp_path_factory.mktemp("pairs")
    write_shards(out / "A", [pair(number) for number in range(38)], 10)
    write_shards(out / "V", [pair(number) for number in range(40, 48)], 10)
    return out


@pytest.fixture
def pairs(folder):
    """A data module with two worker processes."""
    data_module = module(folder, workers=2)
    yield data_module
    data_module.teardown("fit")


def planned(pairs: PairDataModule, epoch: int, step: int = 0) -> list[list[int]]:
    """The positions in the set of every batch that a loader must yield: one of each worker in turn."""
    plan, starts = replace(pairs.plan, epoch=epoch), pairs.train_set.starts
    streams = [[(starts[b[:, 0]] + b[:, 1]).tolist() for b in batches(plan, 0, worker)] for worker in range(2)]
    turns = [stream[turn] for turn in range(plan.steps) for stream in streams if turn < len(stream)]
    return turns[step:]


def loaded(loader: EpochLoader, epoch: int, step: int = 0) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader.batches(epoch, step)]


def test_processes_persist_and_each_epoch_has_its_own_pairs(pairs):
    before = set(active_children())
    loader = pairs.train_dataloader()
    assert set(active_children()) <= before  # nothing starts before the first batch
    assert loaded(loader, 0) == planned(pairs, 0)
    started = set(active_children()) - before
    assert len(started) == 2
    for epoch in (1, 2, 1):
        assert loaded(loader, epoch) == planned(pairs, epoch)
        assert set(active_children()) - before == started
    assert planned(pairs, 1) != planned(pairs, 2)
    pairs.teardown("fit")
    assert set(active_children()) <= before


def test_processes_persist_if_the_iterator_is_never_exhausted(pairs):
    """Lightning counts the batches and never requests one more."""
    before = set(active_children())
    loader = pairs.train_dataloader()
    first = loader.batches(0, 3)
    assert [next(first)["index"].tolist() for _ in range(6)] == planned(pairs, 0, 3)
    started = set(active_children()) - before
    assert loaded(loader, 1) == planned(pairs, 1)
    assert set(active_children()) - before == started


@pytest.mark.parametrize("taken", [1, 4, 8])
def test_an_abandoned_iteration_does_not_affect_the_next(pairs, taken):
    loader = pairs.train_dataloader()
    abandoned = loader.batches(0)
    assert [next(abandoned)["index"].tolist() for _ in range(taken)] == planned(pairs, 0)[:taken]
    assert loaded(loader, 1) == planned(pairs, 1)
    assert loaded(loader, 2, 5) == planned(pairs, 2, 5)
    assert loaded(loader, 3) == planned(pairs, 3)


def test_validation_and_training_alternate(pairs):
    before = set(active_children())
    train, valid = pairs.train_dataloader(), pairs.val_dataloader()
    for epoch in range(2):
        assert loaded(train, epoch) == planned(pairs, epoch)
        assert sorted(index for batch in valid for index in batch["index"].tolist()) == list(range(8))
    assert len(set(active_children()) - before) == 4
    pairs.teardown("fit")
    assert set(active_children()) <= before


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_not_used(folder, workers):
    pairs = module(folder, workers=workers)
    loader = pairs.train_dataloader()
    state = torch.get_rng_state()
    for epoch in range(2):
        loaded(loader, epoch)
    assert torch.equal(torch.get_rng_state(), state)
    pairs.teardown("fit")


STALLED = """
import sys, time
from multiprocessing import active_children
from pathlib import Path
from tests.data.test_stream import module, char_tokens

calls = 0

def tokenizer(captions):
    global calls
    calls += 1
    while calls > 2:
        time.sleep(1)
    return char_tokens(captions)

pairs = module(Path(sys.argv[1]), workers=2, batch_timeout=20)  # the start may take long
pairs._tokenizer = tokenizer
batches, loader = 0, pairs.train_dataloader()
try:
    for batch in loader.batches(0):
        batches += 1
except RuntimeError as error:
    print(error)
print(batches, flush=True)
"""


@pytest.mark.slow
def test_a_stalled_process_does_not_block_the_exit_of_a_slurm_job(folder):
    """In SLURM, worker processes ignore TERM, with which torch would end them at exit; and nothing calls ``teardown``."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STALLED, str(folder)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["DataLoader timed out after 20 seconds", "4"]


def test_a_batch_that_does_not_fit_into_shared_memory_is_told_at_once(pairs, monkeypatch):
    """As in a container, where /dev/shm has 64 MB; torch would drop the batch and go on."""

    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    loader = pairs.train_dataloader()
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(UserError, match="--shm-size"):
        next(loader.batches(0))


def test_a_batch_that_is_lost_between_the_processes_is_told(pairs, monkeypatch):
    """Whatever torch fails to pass on, it drops: the epoch would have fewer steps, the exposures other pairs."""
    loader = pairs.train_dataloader()
    collate = loader._stream.collate
    lost = planned(pairs, 0)[4]

    def collated(samples):
        batch = collate(samples)
        return {**batch, "unsendable": lambda: 0} if batch["index"].tolist() == lost else batch

    monkeypatch.setattr(loader._stream, "collate", collated)
    seen = []
    with pytest.raises(UserError, match="lost 1 of 9 batches"):  # noqa: PT012
        for batch in loader.batches(0):
            seen.append(batch["index"].tolist())
    assert seen == [batch for batch in planned(pairs, 0) if batch != lost]
