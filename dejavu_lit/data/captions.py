"""Training captions: what the mitigations make of a caption before it is tokenized, anew each epoch.

``train_caption`` applies the knobs in this order: choose one of the pair's captions (``caption_choice``), keep its first
words (``caption_words``), drop words (``text_mask``), replace words (``text_random``), change their order
(``text_shuffle``). Every draw depends on (seed, epoch, key) alone, never on the order in which pairs are read, and each
knob has its own, so that switching one on leaves the others' draws as they were. CLIP's tokenizer has no mask token, so
masking a word means dropping it (called text masking or text randomization in Jayaraman, Guo, Chaudhuri, NeurIPS 2024).
A word is what stands between blanks; a knob at its none value returns the caption untouched, to the letter.
"""

import random
from collections.abc import Iterable, Sequence

from dejavu_lit.mitigation import Mitigation


def train_caption(
    caption: str,
    others: Sequence[str],
    knobs: Mitigation,
    vocabulary: Sequence[str],
    seed: int,
    epoch: int,
    key: str,
) -> str:
    """The caption that is trained on in one epoch: at least one word wherever ``caption`` has one.

    Args:
        caption: the pair's own.
        others: all captions that the pair has; may be empty.
        vocabulary: what ``text_random`` draws from (see ``vocabulary``); unused where that is 0.
    """
    if knobs.caption_choice:
        caption = choose_caption(caption, others, seed, epoch, key)
    caption = first_words(caption, knobs.caption_words)
    caption = mask_words(caption, knobs.text_mask, seed, epoch, key)
    caption = replace_words(caption, knobs.text_random, vocabulary, seed, epoch, key)
    return shuffle_words(caption, knobs.text_shuffle, seed, epoch, key)


def choose_caption(caption: str, others: Sequence[str], seed: int, epoch: int, key: str) -> str:
    """One of ``others``, each as likely; ``caption`` itself where there are none."""
    return random.Random(f"choice/{seed}/{epoch}/{key}").choice(others) if others else caption


def first_words(caption: str, limit: int | None) -> str:
    """The first ``limit`` words; all of them where it is None."""
    if limit is None or len(words := caption.split()) <= limit:
        return caption
    return " ".join(words[:limit])


def mask_words(caption: str, probability: float, seed: int, epoch: int, key: str) -> str:
    """Drop each word with ``probability`` (0 ≤ p < 1), independently; if none is left, one drawn uniformly stays."""
    if probability == 0:
        return caption
    words = caption.split()
    if not words:
        return caption
    draw = random.Random(f"{seed}/{epoch}/{key}")
    kept = [word for word in words if draw.random() >= probability]
    return " ".join(kept or [draw.choice(words)])


def replace_words(caption: str, probability: float, vocabulary: Sequence[str], seed: int, epoch: int, key: str) -> str:
    """Replace each word with ``probability``, independently, by a word of ``vocabulary``, each as likely."""
    if probability == 0:
        return caption
    draw = random.Random(f"random/{seed}/{epoch}/{key}")
    return " ".join(draw.choice(vocabulary) if draw.random() < probability else word for word in caption.split())


def shuffle_words(caption: str, probability: float, seed: int, epoch: int, key: str) -> str:
    """With ``probability``, put the words in an order drawn uniformly (which may be the one they had)."""
    if probability == 0:
        return caption
    draw = random.Random(f"shuffle/{seed}/{epoch}/{key}")
    if draw.random() >= probability:
        return caption
    words = caption.split()
    draw.shuffle(words)
    return " ".join(words)


def vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """The different words of the captions, sorted."""
    return tuple(sorted({word for caption in captions for word in caption.split()}))
