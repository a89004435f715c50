"""The data module's options: the batch of each rank, prefetching, sides and validation."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from benchmarks.shards import write_shards
from dejavu_lit.data.module import PairDataModule
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.settings import LoaderSettings
from dejavu_lit.models.preprocess import Preprocess
from dejavu_lit.utils.errors import UserError
from tests.data.test_stream import CONFIG, char_tokens, pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs")
    write_shards(out / "A", [pair(number) for number in range(24)], 10)
    return out


def module(folder, batch: int = 4, **options) -> PairDataModule:
    loader = LoaderSettings(cache_mb=0, **options)
    return PairDataModule(
        DataSpec("x", str(folder)), "target", batch, 3, Preprocess(CONFIG), char_tokens, loader=loader
    )


def test_a_batch_that_is_not_divisible_by_the_ranks_is_rejected(folder):
    pairs = module(folder, 12)
    for world, batch in ((1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)):
        pairs.trainer = SimpleNamespace(world_size=world)
        assert pairs.plan.batch == batch
    pairs.trainer = SimpleNamespace(world_size=5)
    with pytest.raises(UserError, match=r"recipe\.batch=12 is not divisible by the 5 ranks; choose a multiple of 5"):
        _ = pairs.plan


@pytest.mark.parametrize(("workers", "prefetch", "pin"), [(1, 3, False), (2, 7, True), (0, 7, True)])
def test_loader_options_reach_the_dataloader(folder, monkeypatch, workers, prefetch, pin):
    loaders: list[DataLoader] = []
    init = DataLoader.__init__

    def recording_init(self: DataLoader, *arguments, **options) -> None:
        init(self, *arguments, **options)
        loaders.append(self)

    monkeypatch.setattr(DataLoader, "__init__", recording_init)
    pairs = module(folder, workers=workers, prefetch=prefetch, pin_memory=pin)
    pairs.setup("fit")
    batch = next(iter(pairs.train_dataloader()))
    pairs.teardown("fit")
    assert len(batch["index"]) == 4
    pinned = pin and torch.cuda.is_available()
    assert batch["images"].is_pinned() == pinned
    (loader,) = loaders
    assert (loader.num_workers, loader.pin_memory) == (workers, pinned)
    assert loader.prefetch_factor == (prefetch if workers else None)


def test_no_validation_without_enough_pairs_for_each_rank(folder, tmp_path):
    assert module(folder).val_dataloader() == []
    write_shards(tmp_path / "A", [pair(number) for number in range(8)], 10)
    write_shards(tmp_path / "V", [pair(number) for number in range(8, 10)], 10)
    assert module(tmp_path).val_dataloader() != []
    (tmp_path / "keys.txt").write_text("\n".join(pair(number).key for number in range(8, 10)))
    data = DataSpec("x", str(tmp_path), exclude=str(tmp_path / "keys.txt"))
    pairs = PairDataModule(data, "target", 4, 3, Preprocess(CONFIG), char_tokens)
    assert pairs.val_dataloader() == []


def test_images_that_do_not_fit_into_memory_are_not_kept(folder):
    pairs = module(folder)
    pairs.setup("fit")
    assert pairs._cache is None
    pairs.loader = LoaderSettings(cache_mb=1)
    pairs.setup("fit")
    assert pairs._cache is not None
    assert len(pairs._cache) == 24
