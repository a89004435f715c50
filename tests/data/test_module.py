"""What the data module asks of its options: the batch of each rank, and how batches are prepared ahead."""

import pytest
import torch
from torch.utils.data import DataLoader

from dejavu_lit.data.module import LoaderSettings, PairDataModule
from dejavu_lit.data.shards import write_shards
from dejavu_lit.models.preprocess import Preprocess
from dejavu_lit.utils.errors import UserError
from tests.data.test_stream import CONFIG, pair, spelled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    write_shards(out / "A", [pair(number) for number in range(24)], 10)
    return out


def module(folder, batch: int = 4, **options) -> PairDataModule:
    loader = LoaderSettings(cache_mb=0, **options)
    return PairDataModule(folder, "target", batch, 3, Preprocess(CONFIG), spelled, loader=loader)


def test_a_batch_that_does_not_divide_by_the_ranks_is_refused(folder):
    pairs = module(folder, 12)
    assert [pairs.per_rank(world) for world in (1, 2, 3, 4, 6, 12)] == [12, 6, 4, 3, 2, 1]
    with pytest.raises(UserError, match=r"recipe\.batch=12 does not divide by 5 ranks; choose a multiple of 5"):
        pairs.per_rank(5)
    with pytest.raises(UserError, match="does not divide by 8 ranks"):
        pairs.plan(0, 8)


@pytest.mark.parametrize(("workers", "prefetch", "pin"), [(1, 3, False), (2, 7, True), (0, 7, True)])
def test_batches_are_prepared_ahead_as_the_options_say(folder, monkeypatch, workers, prefetch, pin):
    made: list[DataLoader] = []
    init = DataLoader.__init__

    def noted(self: DataLoader, *arguments, **options) -> None:
        init(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(DataLoader, "__init__", noted)
    pairs = module(folder, workers=workers, prefetch=prefetch, pin_memory=pin)
    pairs.setup("fit")
    batch = next(iter(pairs.train_dataloader()))
    pairs.teardown("fit")
    assert len(batch["index"]) == 4
    assert batch["images"].is_pinned() == (pin and torch.cuda.is_available())
    (loader,) = made
    assert (loader.num_workers, loader.pin_memory) == (workers, pin)
    assert loader.prefetch_factor == (prefetch if workers else None)


def test_a_side_is_target_or_reference(folder):
    with pytest.raises(UserError, match="side=left must be target"):
        PairDataModule(folder, "left", 4, 3, Preprocess(CONFIG), spelled)


def test_without_pairs_enough_for_each_rank_there_is_no_validation(folder, tmp_path):
    assert module(folder).val_dataloader() == []
    write_shards(tmp_path / "A", [pair(number) for number in range(8)], 10)
    write_shards(tmp_path / "V", [pair(number) for number in range(8, 10)], 10)
    assert module(tmp_path).val_dataloader() != []
    left_out = frozenset(pair(number).key for number in range(8, 10))
    pairs = PairDataModule(tmp_path, "target", 4, 3, Preprocess(CONFIG), spelled, exclude=left_out)
    assert pairs.val_dataloader() == []
