"""The batch stream of one rank: pairs in the order of the epoch plan, with mitigations applied to captions and images.

A pair is read from its shard or from a cache of decoded images; its caption is drawn for the epoch and tokenized.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info

from dejavu_lit.data.captions import train_caption
from dejavu_lit.data.decode import EMPTY_CAPTION, open_image
from dejavu_lit.data.epoch import EpochPlan
from dejavu_lit.data.shards import BadPair, ShardIndex, ShardSet, caption_candidates, index_shard
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.progress import progress

log = logging.getLogger(__name__)

Preprocess = Callable[[Image.Image], np.ndarray]  # → uint8, the model's input or the whole image
Augment = Callable[[np.ndarray, str], np.ndarray]  # RGB uint8 [h, w, 3] and the seed of its draws → uint8 [3, h, w]
Tokenizer = Callable[[list[str]], torch.Tensor]  # → int64 [n, context]
Batch = dict[str, Any]
LoadedPair = tuple[np.ndarray, str, tuple[str, ...]]  # image, the pair's caption, caption candidates

ESTIMATE_AFTER = 100  # images; their mean size then predicts the memory for all


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """The whole image as RGB, uint8 [height, width, 3]."""
    return np.asarray(image.convert("RGB"))


def load_pair(index: ShardIndex, position: int, preprocess: Preprocess) -> LoadedPair:
    """One pair of a shard, its image preprocessed; raises BadPair if it cannot be used."""
    pair = index.read(position)
    with open_image(pair.image) as image:
        return preprocess(image), pair.caption, caption_candidates(pair)


class ImageCache:
    """The first pairs of a set, loaded once and kept in memory."""

    def __init__(self, pairs: list[LoadedPair | BadPair]) -> None:
        self._pairs = pairs

    @classmethod
    def fill(cls, shards: ShardSet, count: int, preprocess: Preprocess, limit: int) -> "ImageCache | None":
        """Load the first ``count`` pairs; None if their images would take more than ``limit`` bytes."""
        pairs: list[LoadedPair | BadPair] = []
        used = 0
        positions = ((s, p) for s in range(len(shards.names)) for p in range(shards.sizes[s]))
        for shard, position in progress(islice(positions, count), "decoding", count, "image"):
            try:
                pair = load_pair(shards.index(shard), position, preprocess)
                pairs.append(pair)
                used += pair[0].nbytes
            except BadPair as bad:
                pairs.append(bad)
            if used > limit or (len(pairs) >= min(ESTIMATE_AFTER, count) and used / len(pairs) * count > limit):
                return None
        return cls(pairs)

    def get(self, position: int) -> LoadedPair:
        """The pair at a position in the set; raises the BadPair with which loading it failed."""
        pair = self._pairs[position]
        if isinstance(pair, BadPair):
            raise pair
        return pair


class TokenCache:
    """A tokenizer that tokenizes each caption once: for sets that fit into memory and captions that never change."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Tokens, int64 [n, context]."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if new:
            self._known.update(zip(new, self._tokenizer(new), strict=True))
        return torch.stack([self._known[caption] for caption in captions])


class PairStream(IterableDataset[Batch]):
    """The batches of one rank, from the epoch and step last given to ``start_at``; each worker yields its own stretch.

    ``position`` holds that epoch and step. In shared memory it reaches the worker processes, which follow it in their
    next iteration. ``knobs`` act on the captions; ``augment``, if given, replaces ``preprocess``. A batch has

    - ``images``: uint8 [b, 3, h, w], ``tokens``: int64 [b, context],
    - ``index``: int64 [b], the pairs' positions in the set,
    - ``replaced``: the number of unreadable pairs, each replaced by the next readable one of the stretch, so that counts
      never change,
    - ``unreadable``: {position in the set: reason} of the pairs that were skipped.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: EpochPlan,
        rank: int,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        knobs: Mitigation | None = None,
        vocabulary: Sequence[str] = (),
        augment: Augment | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        self.shards, self.plan, self.rank = shards, plan, rank
        self.position = torch.tensor([plan.epoch, 0])  # int64: epoch, step in the epoch
        self.tokenizer, self.knobs, self.vocabulary = tokenizer, knobs or Mitigation(), vocabulary
        self._unreadable: dict[tuple[int, int], str] = {}  # {(shard, position): reason}, each read once in this process
        self.preprocess, self.augment, self.cache = preprocess if augment is None else rgb_pixels, augment, cache

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Make the next iteration yield the batches of ``epoch`` from ``step`` on."""
        self.position.copy_(torch.tensor([epoch, step]))

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        if info is not None and self.cache is None:  # every epoch needs other shards, whose indexes would pile up
            index_shard.cache_clear()
        epoch, offset = self.position.tolist()
        batches = list(replace(self.plan, epoch=epoch).batches(self.rank, info.id if info else 0, offset))
        stretch = np.concatenate(batches) if batches else np.zeros((0, 2), dtype=np.int64)
        for start in range(0, len(stretch), self.plan.batch):
            planned = range(start, start + self.plan.batch)
            unreadable: dict[int, str] = {}
            pairs = [self._next_readable(epoch, stretch, i, unreadable) for i in planned]
            entries = stretch[[i for i, _, _ in pairs]]
            yield {
                "images": torch.from_numpy(np.stack([image for _, image, _ in pairs])),
                "tokens": self.tokenizer([caption for _, _, caption in pairs]),
                "index": torch.from_numpy(self.shards.starts[entries[:, 0]] + entries[:, 1]),
                "replaced": sum(i != j for i, (j, _, _) in zip(planned, pairs, strict=True)),
                "unreadable": unreadable,
            }

    def _next_readable(
        self, epoch: int, stretch: np.ndarray, start: int, unreadable: dict[int, str]
    ) -> tuple[int, np.ndarray, str]:
        """The first readable pair from ``start`` on, wrapping around; adds the skipped ones to ``unreadable``.

        Returns:
            Its position in the stretch, its image and its caption.
        """
        for i in chain(range(start, len(stretch)), range(start)):
            shard, position = map(int, stretch[i])
            if (shard, position) not in self._unreadable:
                try:
                    return i, *self._read(epoch, shard, position)
                except BadPair as reason:
                    key = self.shards.index(shard).keys[position]
                    log.warning("skipped %s in %s: %s", key, self.shards.names[shard], reason)
                    self._unreadable[shard, position] = str(reason)
            unreadable[int(self.shards.starts[shard]) + position] = self._unreadable[shard, position]
        raise UserError(f"none of {len(stretch)} pairs of {self.shards.folder} can be read; prepare the data again")

    def _read(self, epoch: int, shard: int, position: int) -> tuple[np.ndarray, str]:
        index = self.shards.index(shard)
        if self.cache is None:
            image, caption, candidates = load_pair(index, position, self.preprocess)
        else:
            image, caption, candidates = self.cache.get(int(self.shards.starts[shard]) + position)
        if not caption:
            raise BadPair(EMPTY_CAPTION)
        seed, key = self.plan.seed, index.keys[position]
        if self.augment is not None:
            image = self.augment(image, f"{seed}/{epoch}/{key}")
        return image, train_caption(caption, candidates, self.knobs, self.vocabulary, seed, epoch, key)
