"""Settings of a training outside their ranges are refused when they are read."""

from dataclasses import replace

import pytest

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.settings import LoaderSettings
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.training.settings import GapSettings, Recipe, TrainerSettings, TrainingRun
from dejavu_lit.utils.errors import UserError

RECIPE = Recipe(epochs=1, batch=8, lr=0.1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("beta1", -0.1),
        ("beta2", 1.0),
        ("eps", -1.0),
        ("weight_decay", -0.1),
        ("weight_decay", float("nan")),
        ("lr", float("inf")),
        ("logit_scale_max", 0.0),
        ("gradient_clip", 0.0),
    ],
)
def test_a_recipe_outside_its_ranges_is_refused(option, value):
    with pytest.raises(UserError, match=rf"recipe\.{option}={value} must be "):
        replace(RECIPE, **{option: value})


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        (TrainerSettings, {"timeout_min": float("inf")}, r"trainer\.timeout_min=inf must be above 0 and finite"),
        (TrainerSettings, {"precision": "transformer-engine"}, r"trainer\.precision=transformer-engine is unknown"),
        (TrainerSettings, {"devices": 0}, r"trainer\.devices=0 must be at least 1, or -1 for all"),
        (TrainerSettings, {"devices": -2}, r"trainer\.devices=-2 must be at least 1, or -1 for all"),
        (TrainerSettings, {"checkpoint_at": [5, 0]}, r"trainer\.checkpoint_at=\[5, 0\] must be a list of epochs"),
        (GapSettings, {"threshold": float("nan")}, r"gaps\.threshold=nan must be at least 0 and at most 1"),
        (LoaderSettings, {"bad_share": float("nan")}, r"trainer\.loader\.bad_share=nan must be"),
        (LoaderSettings, {"prefetch": 0}, r"trainer\.loader\.prefetch=0 must be at least 1"),
    ],
)
def test_other_settings_outside_their_ranges_are_refused(settings, options, message):
    with pytest.raises(UserError, match=message):
        settings(**options)


def test_an_empty_init_is_refused_and_fine_tuning_needs_one():
    with pytest.raises(UserError, match=r"model\.init= is empty; give a model, or null"):
        ModelSpec("tiny", init="")
    with pytest.raises(UserError, match=r"mitigation\.lora_rank=4 fine-tunes a model, and there is none"):
        TrainingRun(
            data=DataSpec("made"),
            model=ModelSpec("tiny"),
            recipe=RECIPE,
            mitigation=Mitigation(lora_rank=4),
            side="target",
        )


def test_a_seed_is_one_of_32_bits():
    run = TrainingRun(data=DataSpec("made"), model=ModelSpec("tiny"), recipe=RECIPE, side="target")
    assert replace(run, seed=2**32 - 1).seed == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"seed={seed} must be a whole number from 0 to 4294967295"):
            replace(run, seed=seed)


def test_an_average_needs_weights_of_32_bits():
    run = TrainingRun(
        data=DataSpec("made"), model=ModelSpec("tiny"), recipe=RECIPE, mitigation=Mitigation(ema=0.9), side="target"
    )
    replace(run, trainer=TrainerSettings(precision="bf16-mixed"))
    with pytest.raises(UserError, match=r"mitigation\.ema=0\.9 .* trainer\.precision=bf16-true"):
        replace(run, trainer=TrainerSettings(precision="bf16-true"))
