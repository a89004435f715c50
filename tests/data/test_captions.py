"""Text masking: each word independently, anew each epoch, never all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu_lit.data.captions import mask_words
from dejavu_lit.errors import UserError
from dejavu_lit.mitigation import Mitigation

CAPTION = "Lalabu and Regupu with a spoon at the kitchen"


def test_probability_zero_changes_nothing_to_the_letter():
    assert mask_words("  two  spaces\tkept ", 0, 0, 0, "k") == "  two  spaces\tkept "


@given(st.text(max_size=60), st.floats(0.01, 0.99), st.integers(0, 5), st.text(max_size=8))
def test_what_is_left_are_the_captions_words_in_order(caption, probability, epoch, key):
    left = mask_words(caption, probability, 1, epoch, key).split()
    words = iter(caption.split())
    assert all(word in words for word in left)  # a subsequence
    assert bool(left) == bool(caption.split())  # at least one word stays


def test_words_are_dropped_independently_with_the_probability_asked():
    kept = [set(mask_words(CAPTION, 0.3, 0, epoch, "k").split()) for epoch in range(4000)]
    for word in set(CAPTION.split()):
        assert abs(sum(word in k for k in kept) / 4000 - 0.7) < 0.03
    both = sum({"Lalabu", "Regupu"} <= k for k in kept) / 4000
    assert abs(both - 0.49) < 0.03


def test_if_all_are_dropped_each_word_stays_equally_often():
    left = [mask_words("red green blue", 0.99, 0, epoch, "k") for epoch in range(3000)]
    single = [text for text in left if " " not in text]
    assert len(single) > 2900
    for word in ("red", "green", "blue"):
        assert abs(single.count(word) / len(single) - 1 / 3) < 0.04


def test_the_draw_depends_on_seed_epoch_and_key_alone():
    draws = {mask_words(CAPTION, 0.5, seed, epoch, key) for seed in (0, 1) for epoch in (0, 1) for key in "ab"}
    assert len(draws) > 4
    assert mask_words(CAPTION, 0.5, 3, 4, "k") == mask_words(CAPTION, 0.5, 3, 4, "k")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text_mask": 1.0}, "text_mask=1.0"),
        ({"text_mask": -0.1}, "text_mask"),
        ({"logit_scale_fixed": 10.0, "logit_scale_max": 50.0}, "logit_scale_fixed and mitigation.logit_scale_max"),
        ({"logit_scale_init": 80.0, "logit_scale_max": 50.0}, "logit_scale_init=80.0 is above"),
        ({"logit_scale_init": 0.07}, "multiplier"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"stop_epoch": 0}, "stop_epoch"),
    ],
)
def test_contradictions_are_refused_by_name(options, words):
    with pytest.raises(UserError, match=words):
        Mitigation(**options)
