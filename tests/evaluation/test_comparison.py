"""In which options two runs were trained differently."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.comparison import _check_training, training_differences
from dejavu_lit.evaluation.settings import PairEvaluation
from dejavu_lit.utils.config import to_plain
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from tests.conftest import call

CONFIG: dict[str, Any] = {
    "recipe": {"epochs": 25, "lr": 0.001},
    "model": {"name": "tiny", "config": {"embed_dim": 32, "vision_cfg": {"width": 32}}},
    "mitigation": {"text_mask": 0, "stop_epoch": None},
}


def run(folder: Path, config: dict[str, Any], pairs: int = 2000, epochs: int = 25) -> AuditedModel:
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"schema": 2, **config}))
    write_json(folder / "run.json", {"schema": 1, "train_size": pairs, "epochs": epochs})
    return AuditedModel(str(folder), folder / "embeddings")


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    target = run(tmp_path / "target", CONFIG)
    assert training_differences(target, run(tmp_path / "alike", CONFIG, pairs=2100)) == {}  # 5 % more is alike
    assert training_differences(target, run(tmp_path / "more", CONFIG, pairs=2101)) == {"pairs": [2000, 2101]}
    mitigated = CONFIG | {"mitigation": {"text_mask": 0.5, "stop_epoch": 10}, "recipe": CONFIG["recipe"] | {"lr": 0.01}}
    wider = mitigated | {"model": {"name": "tiny", "config": {"embed_dim": 32, "vision_cfg": {"width": 64}}}}
    assert training_differences(target, run(tmp_path / "other", wider, pairs=500, epochs=10)) == {
        "epochs": [25, 10],
        "recipe.lr": [0.001, 0.01],
        "mitigation.text_mask": [0, 0.5],
        "model.config.vision_cfg.width": [32, 64],
        "pairs": [2000, 500],
    }


def test_epochs_are_named_once_if_both_were_trained_to_their_end(tmp_path: Path) -> None:
    target = run(tmp_path / "target", CONFIG)
    shorter = CONFIG | {"recipe": CONFIG["recipe"] | {"epochs": 10}}
    assert training_differences(target, run(tmp_path / "ended", shorter, epochs=10)) == {"epochs": [25, 10]}
    assert training_differences(target, run(tmp_path / "stopped", shorter, epochs=5)) == {
        "epochs": [25, 5],
        "recipe.epochs": [25, 10],
    }


def test_it_is_unknown_how_other_models_were_trained(tmp_path: Path) -> None:
    target = run(tmp_path / "target", CONFIG)
    assert training_differences(target, AuditedModel("ViT-B-32@openai", tmp_path)) is None


def test_random_halves_of_two_seeds_are_not_compared(tmp_path: Path) -> None:
    data = DataSpec("mine", dir=str(tmp_path), half=1)
    target, reference = (
        run(tmp_path / side, CONFIG | {"side": side, "data": to_plain(replace(data, seed=seed))})
        for side, seed in (("target", 0), ("reference", 5))
    )
    evaluation = PairEvaluation(target=target.name, reference=reference.name)
    with pytest.raises(UserError, match=r"different random halves \(1 of data\.seed=0, 1 of data\.seed=5\)"):
        _check_training(target, reference, evaluation, data)


def test_a_set_of_which_no_pair_is_measured_is_named(scenes: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("\n".join(ShardSet.open(scenes / "H").keys()))
    pair = [f"{side}={runs[side]}" for side in ("target", "reference")]
    done = call("evaluate", *pair, f"data.exclude={tmp_path / 'keys.txt'}", f"out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert f"of 0 pairs of {scenes / 'H'} to measure, none has caption embeddings" in done.stderr
