"""Training captions: the mitigations applied to a caption before it is tokenized, drawn independently in each epoch.

``train_caption`` applies the knobs in this order: choose one of the pair's captions (``caption_choice``), keep its
first words (``caption_words``), drop words (``text_mask``), replace words (``text_random``), change their order
(``text_shuffle``). Every draw depends on (seed, epoch, key) alone, never on the order in which pairs are read. Each
knob has its own random stream, so switching one on does not change the draws of the others. CLIP's tokenizer has no
mask token, so masking a word means dropping it (text masking or text randomization in Jayaraman, Guo, Chaudhuri,
NeurIPS 2024). What a word is: ``utils.words``. A knob that is off returns the caption unchanged, including its white
space.
"""

import random
from collections.abc import Iterable, Sequence

from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.words import join_words, split_words


def train_caption(
    caption: str, candidates: Sequence[str], knobs: Mitigation, vocabulary: Sequence[str], seed: str
) -> str:
    """The caption to train on in one epoch: at least one word if ``caption`` has one.

    Args:
        caption: the pair's own; candidates: those that ``caption_choice`` draws from, may be empty.
        vocabulary: the words that ``text_random`` draws from (see ``vocabulary``).
        seed: of the draws, here and below: ``SEED/EPOCH/KEY``.
    """
    if knobs.caption_choice:
        caption = choose_caption(caption, candidates, seed)
    caption = first_words(caption, knobs.caption_words)
    caption = mask_words(caption, knobs.text_mask, seed)
    caption = replace_words(caption, knobs.text_random, vocabulary, seed)
    return shuffle_words(caption, knobs.text_shuffle, seed)


def choose_caption(caption: str, candidates: Sequence[str], seed: str) -> str:
    """One of ``candidates``, drawn uniformly; ``caption`` itself if there are none."""
    return random.Random(f"choice/{seed}").choice(candidates) if candidates else caption


def first_words(caption: str, limit: int | None) -> str:
    """The first ``limit`` words; None keeps all."""
    if limit is None or len(words := split_words(caption)) <= limit:
        return caption
    return join_words(words[:limit])


def mask_words(caption: str, probability: float, seed: str) -> str:
    """Drop each word independently with ``probability`` (0 ≤ p < 1); if none is left, one drawn uniformly stays."""
    if probability == 0 or not (words := split_words(caption)):
        return caption
    draw = random.Random(seed)
    remaining = [word for word in words if draw.random() >= probability]
    return join_words(remaining or [draw.choice(words)])


def replace_words(caption: str, probability: float, vocabulary: Sequence[str], seed: str) -> str:
    """Replace each word independently with ``probability`` by a word drawn uniformly from ``vocabulary``."""
    if probability == 0:
        return caption
    draw = random.Random(f"random/{seed}")
    words = split_words(caption)
    return join_words([draw.choice(vocabulary) if draw.random() < probability else word for word in words])


def shuffle_words(caption: str, probability: float, seed: str) -> str:
    """With ``probability``, put the words in an order drawn uniformly (possibly the original one)."""
    if probability == 0:
        return caption
    draw = random.Random(f"shuffle/{seed}")
    if draw.random() >= probability:
        return caption
    words = split_words(caption)
    draw.shuffle(words)
    return join_words(words)


def vocabulary(captions: Iterable[str]) -> tuple[str, ...]:
    """The distinct words of the captions, sorted."""
    return tuple(sorted({word for caption in captions for word in split_words(caption)}))


def idle_knobs(captions: Iterable[str], knobs: Mitigation) -> list[str]:
    """The text knobs that are on and can change none of the captions, because all are too short."""
    longest = max(len(split_words(caption)) for caption in captions)
    limit = longest if knobs.caption_words is None else knobs.caption_words
    idle = ["caption_words"] if knobs.caption_words is not None and limit >= longest else []
    return idle + [name for name in ("text_mask", "text_shuffle") if getattr(knobs, name) and min(limit, longest) < 2]
