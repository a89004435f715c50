"""What is checked before a training writes anything."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.training.resume import check_data, check_device, run_training
from dejavu_lit.training.settings import Recipe, TrainerSettings, TrainingRun
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json


def test_raw_shards_too_few_for_a_batch_are_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"schema": 1, "raw_shards": {"pairs": {"A": 96, "B": 60}}})
    data = DataSpec("stream", dir=str(tmp_path), shards="s.tar", fractions={"A": 0.5, "B": 0.5})
    run = TrainingRun(data=data, model=ModelSpec("tiny"), recipe=Recipe(1, 64, 1e-3), side="target")
    check_data(run)
    with pytest.raises(
        UserError, match=r"^60 training pairs cannot fill one batch \(1 rank × 64 pairs\); lower recipe.batch="
    ):
        check_data(replace(run, side="reference"))
    with pytest.raises(UserError, match=r"^recipe.batch=64 is not divisible by the 3 ranks"):
        check_data(replace(run, trainer=TrainerSettings(devices=3)))


def test_excluded_pairs_fill_no_batch(scenes: Path, tmp_path: Path) -> None:
    keys = ShardSet.open(scenes / "A").keys()
    (tmp_path / "exclude.txt").write_text("\n".join(keys[:90]))
    data = DataSpec("scenes", dir=str(scenes), exclude=str(tmp_path / "exclude.txt"))
    run = TrainingRun(data=data, model=ModelSpec("tiny"), recipe=Recipe(1, 16, 1e-3), side="target")
    check_data(replace(run, side="reference"))
    with pytest.raises(UserError, match=r"^6 training pairs cannot fill one batch \(1 rank × 16 pairs\)"):
        check_data(run)


def test_ranks_that_would_train_side_by_side_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    run = TrainingRun(data=DataSpec("made"), model=ModelSpec("tiny"), recipe=Recipe(1, 64, 1e-3), side="target")
    for trainer, asked in ((TrainerSettings(), 1), (TrainerSettings(devices=2), 2)):
        with pytest.raises(UserError, match=f"ask for {asked} processes, but 4 were started; match torchrun or srun$"):
            run_training(replace(run, trainer=trainer), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_data_of_a_started_run_are_not_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder is another one in another working directory."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    monkeypatch.chdir(tmp_path)
    data = DataSpec("scenes", dir="scenes", automatic=True, reader={"name": "scenes"})
    run = TrainingRun(data=data, model=ModelSpec("ViT-B-32"), recipe=Recipe(1, 16, 1e-3), side="target")
    with pytest.raises(
        UserError, match=rf"^data.dir=scenes does not exist in {tmp_path}; create it with dejavu prepare"
    ):
        run_training(run, tmp_path / "run")
    assert not (tmp_path / "scenes").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_more_gpus_than_there_are_are_refused() -> None:
    count = torch.cuda.device_count()
    check_device(TrainerSettings("gpu", devices=count))
    check_device(TrainerSettings("gpu", devices=-1))
    with pytest.raises(UserError, match=f"trainer.devices={count + 1}: this machine has {count};"):
        check_device(TrainerSettings("gpu", devices=count + 1))
