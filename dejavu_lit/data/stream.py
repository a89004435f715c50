"""The batches of one rank, epoch by epoch: pairs in the order of the plan, captions and images as the knobs have them."""

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
from dejavu_lit.data.decode import EMPTY, LONGEST_CAPTION, opened
from dejavu_lit.data.epoch import EpochPlan
from dejavu_lit.data.shards import BadPair, Pair, ShardIndex, ShardSet, index_shard
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.progress import progress

log = logging.getLogger(__name__)

Preprocess = Callable[[Image.Image], np.ndarray]
Augment = Callable[[np.ndarray, str], np.ndarray]  # RGB uint8 [h, w, 3] and what its draws depend on → uint8 [3, h, w]
Tokenizer = Callable[[list[str]], torch.Tensor]
Batch = dict[str, Any]
Load = Callable[[Image.Image], np.ndarray]
Loaded = tuple[np.ndarray, str, tuple[str, ...]]  # image, the pair's caption, all captions that it has


FEW = 100  # images after which the memory for all of them is foreseen


def pixels(image: Image.Image) -> np.ndarray:
    """The whole image as RGB, uint8 [height, width, 3]."""
    return np.asarray(image.convert("RGB"))


def load_pair(index: ShardIndex, position: int, load: Load) -> Loaded:
    """One pair of a shard, its image as ``load`` makes it; raises BadPair where it cannot be used."""
    pair = index.read(position)
    with opened(pair.image) as image:
        return load(image), pair.caption, other_captions(pair)


def other_captions(pair: Pair) -> tuple[str, ...]:
    """The list ``captions`` of the pair's JSON, from which ``mitigation.caption_choice`` draws; often empty."""
    listed = pair.meta.get("captions")
    if not isinstance(listed, list):
        return ()
    texts = (text.strip() for text in listed if isinstance(text, str))
    return tuple(text for text in texts if 0 < len(text) <= LONGEST_CAPTION)


class ImageCache:
    """The first pairs of a set, loaded once."""

    def __init__(self, pairs: list[Loaded | BadPair]) -> None:
        self._pairs = pairs

    @classmethod
    def fill(cls, shards: ShardSet, count: int, load: Load, limit: int) -> "ImageCache | None":
        """The first ``count`` pairs; None where their images would take more than ``limit`` bytes."""
        pairs: list[Loaded | BadPair] = []
        used = 0
        places = ((s, p) for s in range(len(shards.names)) for p in range(shards.sizes[s]))
        for shard, position in progress(islice(places, count), "decoding", count, "image"):
            try:
                pair = load_pair(shards.index(shard), position, load)
                pairs.append(pair)
                used += pair[0].nbytes
            except BadPair as bad:
                pairs.append(bad)
            if used > limit or (len(pairs) >= min(FEW, count) and used / len(pairs) * count > limit):
                return None
        return cls(pairs)

    def get(self, position: int) -> Loaded:
        """The pair at a position in the set; raises the BadPair that was met while loading it."""
        pair = self._pairs[position]
        if isinstance(pair, BadPair):
            raise pair
        return pair


class TokenCache:
    """A tokenizer that tokenizes each caption once: for sets that fit into memory, with captions that stay the same."""

    def __init__(self, tokenizer: Callable[[list[str]], torch.Tensor]) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> torch.Tensor:
        """Tokens int64 [n, context]."""
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._known]
        if new:
            self._known.update(zip(new, self._tokenizer(new), strict=True))
        return torch.stack([self._known[caption] for caption in captions])


class PairStream(IterableDataset[Batch]):
    """The batches of one rank in the epoch and from the step that ``begin`` told last; each worker gives its own stretch.

    Processes that have a copy hear of ``begin`` where ``begins`` is shared memory, and follow it in their next iteration.
    A batch holds ``images`` uint8 [b, 3, h, w], ``tokens`` int64 [b, context], ``index`` int64 [b] (the pair's position
    in the set), ``replaced`` (an int: pairs that could not be read and were replaced by the next readable one of the same
    stretch, so that counts never change) and ``unreadable`` ({index: reason} of the pairs passed over). ``knobs`` act on
    the captions; ``augment``, where given, makes the input of the image instead of ``preprocess``.
    """

    def __init__(
        self,
        shards: ShardSet,
        plan: EpochPlan,
        rank: int,
        preprocess: Preprocess,
        tokenizer: Tokenizer,
        knobs: Mitigation | None = None,
        words: Sequence[str] = (),
        augment: Augment | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        self.shards, self.plan, self.rank = shards, plan, rank
        self.begins = torch.tensor([plan.epoch, 0])  # int64: the epoch and the step in it
        self.tokenizer, self.knobs, self.words = tokenizer, knobs or Mitigation(), words
        self.load, self.augment, self.cache = preprocess if augment is None else pixels, augment, cache

    def begin(self, epoch: int, step: int = 0) -> None:
        """Let the next iteration give the batches of ``epoch`` from ``step`` on."""
        self.begins.copy_(torch.tensor([epoch, step]))

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        if info is not None and self.cache is None:  # each epoch brings it other shards, whose indexes would pile up
            index_shard.cache_clear()
        epoch, offset = self.begins.tolist()
        batches = list(replace(self.plan, epoch=epoch).batches(self.rank, info.id if info else 0, offset))
        stretch = np.concatenate(batches) if batches else np.zeros((0, 2), dtype=np.int64)
        for start in range(0, len(stretch), self.plan.batch):
            wanted = range(start, start + self.plan.batch)
            unreadable: dict[int, str] = {}
            found = [self._readable(epoch, stretch, i, unreadable) for i in wanted]
            entries = stretch[[i for i, _, _ in found]]
            yield {
                "images": torch.from_numpy(np.stack([image for _, image, _ in found])),
                "tokens": self.tokenizer([caption for _, _, caption in found]),
                "index": torch.from_numpy(self.shards.starts[entries[:, 0]] + entries[:, 1]),
                "replaced": sum(i != j for i, (j, _, _) in zip(wanted, found, strict=True)),
                "unreadable": unreadable,
            }

    def _readable(
        self, epoch: int, stretch: np.ndarray, start: int, bad: dict[int, str]
    ) -> tuple[int, np.ndarray, str]:
        """The first pair of the stretch from ``start`` on (then from its beginning) that can be read; notes the others."""
        for i in chain(range(start, len(stretch)), range(start)):
            shard, position = map(int, stretch[i])
            try:
                return i, *self._read(epoch, shard, position)
            except BadPair as reason:
                key = self.shards.index(shard).keys[position]
                log.warning("skipped %s in %s: %s", key, self.shards.names[shard], reason)
                bad[int(self.shards.starts[shard]) + position] = str(reason)
        raise UserError(f"none of {len(stretch)} pairs of {self.shards.folder} can be read; prepare the data again")

    def _read(self, epoch: int, shard: int, position: int) -> tuple[np.ndarray, str]:
        index = self.shards.index(shard)
        if self.cache is None:
            image, caption, others = load_pair(index, position, self.load)
        else:
            image, caption, others = self.cache.get(int(self.shards.starts[shard]) + position)
        if not caption:
            raise BadPair(EMPTY)
        seed, key = self.plan.seed, index.keys[position]
        if self.augment is not None:
            image = self.augment(image, f"{seed}/{epoch}/{key}")
        return image, train_caption(caption, others, self.knobs, self.words, seed, epoch, key)
