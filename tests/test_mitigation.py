"""The knobs as options: their ranges, what excludes what, and the presets."""

import pytest
import yaml

from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT, call

PRESETS = sorted(path.stem for path in (ROOT / "conf" / "mitigation").glob("*.yaml"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text_mask": 1.0}, "text_mask=1.0 must be at least 0 and below 1"),
        ({"text_mask": -0.1}, "text_mask"),
        ({"text_mask": float("nan")}, "text_mask=nan"),
        ({"text_random": 1.1}, "text_random=1.1 must be at least 0 and at most 1"),
        ({"text_shuffle": -1.0}, "text_shuffle"),
        ({"caption_words": 0}, "caption_words=0 must be at least 1"),
        ({"patch_dropout": 1.0}, "patch_dropout"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"ema": 1.0}, "ema=1.0"),
        ({"gradient_noise": -0.5}, "gradient_noise=-0.5 must be at least 0 and finite"),
        ({"logit_scale_fixed": 10.0, "logit_scale_max": 50.0}, "logit_scale_fixed and mitigation.logit_scale_max"),
        ({"logit_scale_init": 80.0, "logit_scale_max": 50.0}, "logit_scale_init=80.0 is above"),
        ({"logit_scale_init": 0.07}, "multiplier"),
        ({"logit_scale_fixed": float("nan")}, "logit_scale_fixed=nan is the multiplier"),
        ({"logit_scale_max": float("inf")}, "logit_scale_max=inf is the multiplier"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": float("nan")}, "weight_decay=nan must be at least 0 and finite"),
        ({"gradient_noise": float("inf")}, "gradient_noise=inf must be"),
        ({"text_noise": float("inf")}, "text_noise=inf must be"),
        ({"stop_epoch": 0}, "stop_epoch"),
        ({"early_stopping": "los"}, "early_stopping=los must be loss or accuracy"),
        ({"early_patience": 3}, "early_patience=3 needs mitigation.early_stopping"),
        ({"early_stopping": "loss", "early_patience": 0}, "early_patience=0"),
        ({"gap_budget": 1.0}, "gap_budget=1.0"),
        ({"lora_rank": -1}, "lora_rank=-1 must be at least 0"),
        ({"text_noise": -0.1}, "text_noise=-0.1"),
        ({"unlocked_groups": 1}, "unlocked_groups=1 needs mitigation.lock_image or mitigation.lock_text"),
    ],
)
def test_contradictions_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        Mitigation(**options)


def test_what_may_reach_the_end_of_its_range_does():
    Mitigation(text_random=1, text_shuffle=1, ema=0, early_stopping="loss", early_patience=1)


def test_none_changes_nothing():
    assert yaml.safe_load((ROOT / "conf" / "mitigation" / "none.yaml").read_text()) is None


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "none"])
def test_a_preset_says_what_it_does_and_changes_that_knob_alone(preset):
    text = (ROOT / "conf" / "mitigation" / f"{preset}.yaml").read_text()
    assert text.startswith("# ")
    values = yaml.safe_load(text)
    assert {name for name in values if name != "early_patience"} == {next(n for n in values if n.startswith(preset))}
    built = Mitigation(**values)
    assert all(getattr(built, name) != getattr(Mitigation(), name) for name in values)


def test_presets_and_overrides_combine():
    done = call("train", "side=target", "mitigation=text_mask", "mitigation.ema=0.99", "--cfg", "job")
    shown = yaml.safe_load(done.stdout)["mitigation"]
    assert shown["text_mask"] == 0.5
    assert shown["ema"] == 0.99
    assert shown["label_smoothing"] == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("mitigation.image_augment=perhaps", "mitigation.image_augment=perhaps must be true or false"),
        ("mitigation.caption_words=2.5", "mitigation.caption_words=2.5 must be a whole number or null"),
        ("mitigation.early_stopping=true", "mitigation.early_stopping=true must be loss or accuracy"),
        ("mitigation.ema=yes", "mitigation.ema=yes must be a number or null"),
        ("mitigation.patch_dropot=0.5", "did you mean 'mitigation.patch_dropout'?"),
        ("mitigation=label_smoothin", "label_smoothing"),
    ],
)
def test_a_wrong_type_or_name_is_one_sentence(tmp_path, option, words):
    done = call("train", "side=target", f"out={tmp_path}", option)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.strip().count("\n") == 0
