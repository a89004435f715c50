"""What the knobs make of a caption: each word independently, anew each epoch, never all of them, and nothing at none."""

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
    mask_words,
    replace_words,
    shuffle_words,
    train_caption,
    vocabulary,
)
from dejavu_lit.mitigation import Mitigation

CAPTION = "Lalabu and Regupu with a spoon at the kitchen"


VOCABULARY = tuple("abcdefghij")


def test_with_every_knob_at_none_the_caption_is_the_very_same():
    caption = "  two  spaces\tkept "
    assert train_caption(caption, ("another",), Mitigation(), (), 0, 0, "k") is caption
    assert mask_words(caption, 0, 0, 0, "k") is caption
    assert replace_words(caption, 0, (), 0, 0, "k") is caption
    assert shuffle_words(caption, 0, 0, 0, "k") is caption
    assert first_words(caption, None) is caption


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


def test_masking_draws_as_it_always_did():
    """Runs of earlier versions are repeated: the draws are Python's own, seeded with seed, epoch and key."""
    drawn = [mask_words("one two three four five", 0.5, 0, epoch, "k") for epoch in range(4)]
    assert drawn == ["one two four", "two", "two three four five", "five"]


def test_words_are_replaced_independently_with_the_probability_asked_and_drawn_evenly():
    texts = [replace_words("one two three", 0.25, VOCABULARY, 0, epoch, "k").split() for epoch in range(4000)]
    assert all(len(words) == 3 for words in texts)
    new = [[word in VOCABULARY for word in words] for words in texts]
    for place in range(3):
        assert abs(sum(n[place] for n in new) / 4000 - 0.25) < 0.03
    assert abs(sum(n[0] and n[2] for n in new) / 4000 - 0.0625) < 0.015
    drawn = Counter(word for words in texts for word in words if word in VOCABULARY)
    assert all(abs(drawn[word] / drawn.total() - 0.1) < 0.02 for word in VOCABULARY)
    assert all(replace_words("one two", 1, VOCABULARY, 0, e, "k") != "one two" for e in range(50))


def test_every_order_of_the_words_comes_equally_often_and_only_with_the_probability_asked():
    orders = Counter(shuffle_words("one two three", 1, 0, epoch, "k") for epoch in range(6000))
    assert set(orders) == {" ".join(order) for order in permutations(["one", "two", "three"])}
    assert all(abs(count / 6000 - 1 / 6) < 0.02 for count in orders.values())
    half = sum(shuffle_words("one  two", 0.5, 0, epoch, "k") == "one  two" for epoch in range(4000))
    assert abs(half / 4000 - 0.5) < 0.03  # the untouched ones keep their blanks


def test_each_of_the_captions_is_chosen_equally_often():
    drawn = Counter(choose_caption("first", ("first", "second", "third"), 0, epoch, "k") for epoch in range(3000))
    assert all(abs(drawn[text] / 3000 - 1 / 3) < 0.04 for text in ("first", "second", "third"))
    assert choose_caption("alone", (), 0, 0, "k") == "alone"


def test_a_pair_without_other_captions_is_trained_on_its_own():
    assert train_caption("my own", (), Mitigation(caption_choice=True), (), 0, 0, "k") == "my own"


def test_a_probability_is_what_the_draw_stays_below():
    """Exactly at the draw nothing happens, just above it does: so 0 is never, and 1 always."""

    def at_and_above(stream):
        draw = Random(stream).random()
        return draw, nextafter(draw, 1)

    replaced = [replace_words("word", p, ("new",), 0, 0, "k") for p in at_and_above("random/0/0/k")]
    assert replaced == ["word", "new"]
    shuffled = ["  " in shuffle_words("one  two", p, 0, 0, "k") for p in at_and_above("shuffle/0/0/k")]
    assert shuffled == [True, False]  # only the untouched caption keeps its blanks
    masked = ["first" in mask_words("first b c d e f g h", p, 0, 0, "k") for p in at_and_above("0/0/k")]
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
def test_whatever_is_combined_at_least_one_word_stays_and_the_draw_is_repeated(
    others, mask, random, shuffle, choice, words, epoch
):
    others = tuple(text for text in others if text.split())
    knobs = Mitigation(mask, random, shuffle, choice, words)
    texts = {train_caption(CAPTION, others, knobs, VOCABULARY, 1, epoch, "k") for _ in range(2)}
    assert len(texts) == 1
    left = texts.pop().split()
    assert 1 <= len(left) <= (words or 100)
    source = {word for text in (CAPTION, *others) for word in text.split()}
    assert set(left) <= source | set(VOCABULARY)


def test_the_order_of_the_knobs_is_choose_shorten_drop_replace_shuffle():
    knobs = Mitigation(0.4, 0.4, 1.0, True, 4)
    for epoch in range(50):
        by_hand = choose_caption("own", ("a b c d e f", "u v w x y z"), 3, epoch, "k")
        by_hand = mask_words(first_words(by_hand, 4), 0.4, 3, epoch, "k")
        by_hand = shuffle_words(replace_words(by_hand, 0.4, VOCABULARY, 3, epoch, "k"), 1.0, 3, epoch, "k")
        assert train_caption("own", ("a b c d e f", "u v w x y z"), knobs, VOCABULARY, 3, epoch, "k") == by_hand


def test_switching_one_knob_on_leaves_the_draws_of_another_as_they_were():
    for epoch in range(20):
        masked = mask_words(CAPTION, 0.5, 0, epoch, "k")
        shuffled = train_caption(CAPTION, (), Mitigation(text_mask=0.5, text_shuffle=1), (), 0, epoch, "k")
        assert sorted(masked.split()) == sorted(shuffled.split())


@pytest.mark.parametrize("knob", [{"text_random": 0.5}, {"text_shuffle": 1.0}, {"caption_choice": True}])
def test_every_draw_changes_with_seed_epoch_and_key(knob):
    def drawn(seed, epoch, key):
        return train_caption(CAPTION, tuple("abcdefghij"), Mitigation(**knob), VOCABULARY, seed, epoch, key)

    assert len({drawn(0, 0, f"k{i}") for i in range(20)}) > 5
    assert len({drawn(0, i, "k") for i in range(20)}) > 5
    assert len({drawn(i, 0, "k") for i in range(20)}) > 5


def test_the_vocabulary_is_the_captions_words_each_once():
    assert vocabulary(["red cat", "red  dog", ""]) == ("cat", "dog", "red")
