"""Text masking: what a caption becomes before it is tokenized, anew each epoch, deterministic in (seed, epoch, key).

CLIP's tokenizer has no mask token, so masking a word means dropping it (called text masking or text randomization in
Jayaraman, Guo, Chaudhuri, NeurIPS 2024).
"""

import random


def mask_words(caption: str, probability: float, seed: int, epoch: int, key: str) -> str:
    """Drop each word with ``probability`` (0 ≤ p < 1), independently; if none is left, one drawn uniformly stays.

    The draw depends on (seed, epoch, key) alone, never on the order in which pairs are read. Probability 0 returns the
    caption untouched, to the letter.
    """
    if probability == 0:
        return caption
    words = caption.split()
    if not words:
        return caption
    draw = random.Random(f"{seed}/{epoch}/{key}")
    kept = [word for word in words if draw.random() >= probability]
    return " ".join(kept or [draw.choice(words)])
