"""Settings of a training outside their ranges are refused when they are read."""

from dataclasses import replace

import pytest

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.training.settings import Recipe, TrainingRun
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
        ("logit_scale_max", 0.0),
        ("gradient_clip", 0.0),
    ],
)
def test_a_recipe_outside_its_ranges_is_refused(option, value):
    with pytest.raises(UserError, match=rf"recipe\.{option}={value} must be "):
        replace(RECIPE, **{option: value})


def test_a_seed_is_one_of_32_bits():
    run = TrainingRun(data=DataSpec("made"), model=ModelSpec("tiny"), recipe=RECIPE, side="target")
    assert replace(run, seed=2**32 - 1).seed == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"seed={seed} must be a whole number from 0 to 4294967295"):
            replace(run, seed=seed)
