"""Membership scores of pairs under one model, from its embeddings.

cosine     s(z) = ⟨f(image), f(caption)⟩; Ko et al., ICCV 2023
alignment  s(z) − ½ (mean_j ⟨f(image), f(caption_j)⟩ + mean_j ⟨f(image_j), f(caption)⟩), j over 512 other pairs of H;
           Wang et al., ICLR 2025 (CLIPMem, arXiv 2502.07830), without augmentations
loss       log-probability of the right caption among itself and the same 512 captions, plus that of the right image, halved
"""

from collections.abc import Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from dejavu_lit.data.splits import hash_order
from dejavu_lit.utils.parallel import for_blocks

OTHERS = 512  # pairs of H that each pair is compared with
MODEL_SCORES = ("cosine", "alignment", "loss")
ROWS = 1024  # pairs at once in each thread, which bounds the memory: 2 MiB per matrix of cosines


class OtherPairs:
    """Pairs of H that all pairs are compared with: unit vectors float32 [m + 1, d] by one model, of which m count per pair.

    A pair that is one of them skips itself; any other skips the last one. ``rows``: {key: row}.
    """

    def __init__(self, keys: Sequence[str], images: np.ndarray, captions: np.ndarray) -> None:
        """The pairs ``keys`` of H, at least two, with their vectors [m + 1, d]."""
        self.images, self.captions = _unit(images), _unit(captions)
        self.rows = {key: row for row, key in enumerate(keys)}


def drawn_others(keys: Sequence[str]) -> list[str]:
    """The keys of H whose pairs all others are compared with: the 513 with the smallest hash."""
    return [keys[row] for row in hash_order(keys, 0, "membership")[: OTHERS + 1].tolist()]


def model_scores(
    keys: Sequence[str],
    images: np.ndarray,
    captions: np.ndarray,
    others: OtherPairs,
    logit_scale: float | None,
) -> dict[str, np.ndarray]:
    """The scores of n pairs under one model, float64 [n] each.

    Args:
        keys: the pairs' keys; images, captions: their vectors, float [n, d], of any norm.
        logit_scale: the multiplier 1/τ of the model's cosines in its loss; None leaves ``loss`` out.
    """
    last = len(others.rows) - 1
    skipped = np.array([others.rows.get(key, last) for key in keys], np.int64)
    names = MODEL_SCORES if logit_scale is not None else MODEL_SCORES[:2]
    scores = {name: np.empty(len(keys)) for name in names}

    def score(start: int) -> None:
        rows = slice(start, start + ROWS)
        columns = _score_rows(_unit(images[rows]), _unit(captions[rows]), others, skipped[rows], logit_scale)
        for name, values in zip(names, columns, strict=False):
            scores[name][rows] = values

    # The threads share the rows out; a BLAS with threads of its own would make each product wait for the others'.
    with threadpool_limits(1, "blas"):
        for_blocks(score, len(keys), ROWS)
    return scores


def _score_rows(
    images: np.ndarray, captions: np.ndarray, others: OtherPairs, skipped: np.ndarray, logit_scale: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """cosine, alignment and loss of some pairs; pair i is compared with all others but number ``skipped[i]``."""
    own = np.einsum("nd,nd->n", images, captions)
    count, every_row = len(others.rows) - 1, np.arange(len(own))
    means, losses = np.zeros(len(own)), np.zeros(len(own))
    for vectors, partners in ((images, others.captions), (captions, others.images)):
        cosines = vectors @ partners.T
        cosines[every_row, skipped] = 0
        means += cosines.sum(axis=1) / count / 2
        if logit_scale is not None:
            cosines[every_row, skipped] = -np.inf
            peaks = cosines.max(axis=1)
            cosines -= peaks[:, None]
            cosines *= np.float32(logit_scale)
            np.exp(cosines, out=cosines)
            # Without the pair's own term, 1, next to which a confident model's others would vanish.
            others_term = np.log(cosines.sum(axis=1, dtype=np.float64)) + logit_scale * (peaks - own).astype(np.float64)
            losses -= np.logaddexp(0, others_term) / 2
    return own, own - means, losses


def _unit(vectors: np.ndarray) -> np.ndarray:
    values = np.array(vectors, np.float32)
    values /= np.sqrt(np.einsum("nd,nd->n", values, values))[:, None]  # np.linalg.norm takes three times as long
    return values
