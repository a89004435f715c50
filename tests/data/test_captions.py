"""Caption knobs: independent draws per word and epoch, at least one word remains, and no change if all are off."""

from collections import Counter
from itertools import permutations
from math import nextafter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu_lit.data.captions import (
    choose_caption,
    first_words,
    idle_knobs,
    mask_words,
    replace_words,
    shuffle_words,
    train_caption,
    vocabulary,
)
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.words import split_words

CAPTION = "Lalabu and Regupu with a spoon at the kitchen"


VOCABULARY = tuple("abcdefghij")


def test_with_all_knobs_off_the_caption_is_the_same_object():
    caption = "  two  spaces\tkept "
    assert train_caption(caption, ("another",), Mitigation(), (), "0/0/k") is caption
    assert mask_words(caption, 0, "0/0/k") is caption
    assert replace_words(caption, 0, (), "0/0/k") is caption
    assert shuffle_words(caption, 0, "0/0/k") is caption
    assert first_words(caption, None) is caption


@given(st.text(max_size=60), st.floats(0.01, 0.99), st.integers(0, 5), st.text(max_size=8))
def test_the_remaining_words_are_the_captions_words_in_order(caption, probability, epoch, key):
    left = split_words(mask_words(caption, probability, f"1/{epoch}/{key}"))
    words = iter(split_words(caption))
    assert all(word in words for word in left)  # a subsequence
    assert bool(left) == bool(caption.split())  # at least one word stays


def test_words_are_dropped_independently_with_the_given_probability():
    remaining = [set(mask_words(CAPTION, 0.3, f"0/{epoch}/k").split()) for epoch in range(4000)]
    for word in set(CAPTION.split()):
        assert abs(sum(word in k for k in remaining) / 4000 - 0.7) < 0.03
    both = sum({"Lalabu", "Regupu"} <= k for k in remaining) / 4000
    assert abs(both - 0.49) < 0.03


def test_if_all_words_are_dropped_one_drawn_uniformly_stays():
    left = [mask_words("red green blue", 0.99, f"0/{epoch}/k") for epoch in range(3000)]
    single = [text for text in left if " " not in text]
    assert len(single) > 2900
    for word in ("red", "green", "blue"):
        assert abs(single.count(word) / len(single) - 1 / 3) < 0.04


def test_a_draw_depends_only_on_seed_epoch_and_key():
    draws = {mask_words(CAPTION, 0.5, f"{seed}/{epoch}/{key}") for seed in (0, 1) for epoch in (0, 1) for key in "ab"}
    assert len(draws) > 4
    assert mask_words(CAPTION, 0.5, "3/4/k") == mask_words(CAPTION, 0.5, "3/4/k")


def test_masking_draws_do_not_change_between_versions():
    """Runs of earlier versions stay reproducible: Python's own generator, seeded with seed, epoch and key."""
    drawn = [mask_words("one two three four five", 0.5, f"0/{epoch}/k") for epoch in range(4)]
    assert drawn == ["one two four", "two", "two three four five", "five"]


def test_words_are_replaced_independently_with_the_given_probability_and_drawn_uniformly():
    texts = [replace_words("one two three", 0.25, VOCABULARY, f"0/{epoch}/k").split() for epoch in range(4000)]
    assert all(len(words) == 3 for words in texts)
    new = [[word in VOCABULARY for word in words] for words in texts]
    for position in range(3):
        assert abs(sum(n[position] for n in new) / 4000 - 0.25) < 0.03
    assert abs(sum(n[0] and n[2] for n in new) / 4000 - 0.0625) < 0.015
    drawn = Counter(word for words in texts for word in words if word in VOCABULARY)
    assert all(abs(drawn[word] / drawn.total() - 0.1) < 0.02 for word in VOCABULARY)
    assert all(replace_words("one two", 1, VOCABULARY, f"0/{e}/k") != "one two" for e in range(50))


def test_shuffling_is_uniform_and_happens_with_the_given_probability():
    orders = Counter(shuffle_words("one two three", 1, f"0/{epoch}/k") for epoch in range(6000))
    assert set(orders) == {" ".join(order) for order in permutations(["one", "two", "three"])}
    assert all(abs(count / 6000 - 1 / 6) < 0.02 for count in orders.values())
    half = sum(shuffle_words("one  two", 0.5, f"0/{epoch}/k") == "one  two" for epoch in range(4000))
    assert abs(half / 4000 - 0.5) < 0.03  # unchanged captions keep their white space


def test_captions_are_chosen_uniformly():
    drawn = Counter(choose_caption("first", ("first", "second", "third"), f"0/{epoch}/k") for epoch in range(3000))
    assert all(abs(drawn[text] / 3000 - 1 / 3) < 0.04 for text in ("first", "second", "third"))
    assert choose_caption("alone", (), "0/0/k") == "alone"


def test_a_pair_without_candidates_keeps_its_caption():
    assert train_caption("my own", (), Mitigation(caption_choice=True), (), "0/0/k") == "my own"


def test_a_knob_acts_if_the_draw_is_below_the_probability():
    """A probability equal to the draw does nothing, the next larger one does: so 0 means never and 1 always."""

    def at_and_above(stream):
        draw = Random(stream).random()
        return draw, nextafter(draw, 1)

    replaced = [replace_words("word", p, ("new",), "0/0/k") for p in at_and_above("random/0/0/k")]
    assert replaced == ["word", "new"]
    shuffled = ["  " in shuffle_words("one  two", p, "0/0/k") for p in at_and_above("shuffle/0/0/k")]
    assert shuffled == [True, False]  # only the unchanged caption keeps its white space
    masked = ["first" in mask_words("first b c d e f g h", p, "0/0/k") for p in at_and_above("0/0/k")]
    assert masked == [True, False]


def test_only_the_first_words_are_kept():
    assert first_words("one two  three four", 3) == "one two three"
    assert first_words("one  two", 2) == "one  two"
    assert first_words("one  two", 5) == "one  two"


@given(
    st.lists(st.text(max_size=30), max_size=3),
    st.floats(0, 0.99),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
    st.none() | st.integers(1, 4),
    st.integers(0, 5),
)
def test_any_combination_leaves_a_word_and_is_reproducible(others, mask, random, shuffle, choice, words, epoch):
    others = tuple(text for text in others if text.split())
    knobs = Mitigation(mask, random, shuffle, choice, words)
    texts = {train_caption(CAPTION, others, knobs, VOCABULARY, f"1/{epoch}/k") for _ in range(2)}
    assert len(texts) == 1
    left = split_words(texts.pop())
    assert 1 <= len(left) <= (words or 100)
    source = {word for text in (CAPTION, *others) for word in split_words(text)}
    assert set(left) <= source | set(VOCABULARY)


def test_the_order_of_the_knobs_is_choose_shorten_mask_replace_shuffle():
    knobs = Mitigation(0.4, 0.4, 1.0, True, 4)
    for epoch in range(50):
        expected = choose_caption("own", ("a b c d e f", "u v w x y z"), f"3/{epoch}/k")
        expected = mask_words(first_words(expected, 4), 0.4, f"3/{epoch}/k")
        expected = shuffle_words(replace_words(expected, 0.4, VOCABULARY, f"3/{epoch}/k"), 1.0, f"3/{epoch}/k")
        assert train_caption("own", ("a b c d e f", "u v w x y z"), knobs, VOCABULARY, f"3/{epoch}/k") == expected


def test_switching_a_knob_on_does_not_change_the_draws_of_another():
    for epoch in range(20):
        masked = mask_words(CAPTION, 0.5, f"0/{epoch}/k")
        shuffled = train_caption(CAPTION, (), Mitigation(text_mask=0.5, text_shuffle=1), (), f"0/{epoch}/k")
        assert sorted(masked.split()) == sorted(shuffled.split())


@pytest.mark.parametrize("knob", [{"text_random": 0.5}, {"text_shuffle": 1.0}, {"caption_choice": True}])
def test_every_draw_changes_with_seed_epoch_and_key(knob):
    def drawn(seed, epoch, key):
        return train_caption(CAPTION, tuple("abcdefghij"), Mitigation(**knob), VOCABULARY, f"{seed}/{epoch}/{key}")

    assert len({drawn(0, 0, f"k{i}") for i in range(20)}) > 5
    assert len({drawn(0, i, "k") for i in range(20)}) > 5
    assert len({drawn(i, 0, "k") for i in range(20)}) > 5


def test_the_vocabulary_is_the_distinct_words_of_the_captions():
    assert vocabulary(["red cat", "red  dog", ""]) == ("cat", "dog", "red")


@pytest.mark.parametrize(
    ("captions", "knobs", "idle"),
    [
        (["dog", "cat"], {"text_mask": 0.5, "text_shuffle": 1.0, "text_random": 0.5}, ["text_mask", "text_shuffle"]),
        (["dog", "a cat"], {"text_mask": 0.5, "text_shuffle": 1.0}, []),
        (["a red dog", "红色的狗"], {"caption_words": 4}, ["caption_words"]),
        (["a red dog", "红色的狗"], {"caption_words": 3}, []),
        (["a red dog"], {"caption_words": 1, "text_mask": 0.5}, ["text_mask"]),  # words are cut first
        (["dog"], {"caption_choice": True}, []),
    ],
)
def test_knobs_that_change_no_caption_are_named(captions, knobs, idle):
    assert idle_knobs(captions, Mitigation(**knobs)) == idle


@pytest.mark.parametrize("caption", ["一只红色的狗在绿色的树旁边", "赤い犬が緑の木のそばにいる", "สุนัขสีแดงอยู่ข้างต้นไม้"])
def test_knobs_act_on_the_characters_of_scripts_without_spaces(caption):
    words = split_words(caption)
    assert first_words(caption, 3) == "".join(words[:3])
    masked = [mask_words(caption, 0.5, f"0/{epoch}/k") for epoch in range(200)]
    assert len(set(masked)) > 100
    assert sum(len(split_words(text)) for text in masked) / 200 == pytest.approx(len(words) / 2, rel=0.1)
    assert all(" " not in text for text in masked)
    shuffled = shuffle_words(caption, 1.0, "0/0/k")
    assert shuffled != caption
    assert sorted(split_words(shuffled)) == sorted(words)
    replaced = split_words(replace_words(caption, 0.5, vocabulary(["猫", "x"]), "0/0/k"))
    assert 0 < sum(word in ("猫", "x") for word in replaced) < len(words)
    assert vocabulary([caption]) == tuple(sorted(set(words)))
