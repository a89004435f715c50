"""Training pairs as arrays and captions: decoded one at a time, or once for all epochs where memory allows."""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch
from PIL import Image

from dejavu_lit.data.decode import LONGEST_CAPTION
from dejavu_lit.data.pictures import opened
from dejavu_lit.data.shards import BadPair, Pair, ShardIndex, ShardSet
from dejavu_lit.utils.progress import progress

Load = Callable[[Image.Image], np.ndarray]
Loaded = tuple[np.ndarray, str, tuple[str, ...]]  # picture, the pair's caption, all captions that it has
FEW = 100  # pictures after which the memory for all of them is foreseen


def pixels(picture: Image.Image) -> np.ndarray:
    """The whole picture as RGB, uint8 [height, width, 3]."""
    return np.asarray(picture.convert("RGB"))


def load_pair(index: ShardIndex, position: int, load: Load) -> Loaded:
    """One pair of a shard, its picture as ``load`` makes it; raises BadPair where it cannot be used."""
    pair = index.read(position)
    with opened(pair.image) as picture:
        return load(picture), pair.caption, other_captions(pair)


def other_captions(pair: Pair) -> tuple[str, ...]:
    """The list ``captions`` of the pair's JSON, from which ``mitigation.caption_choice`` draws; often empty."""
    listed = pair.meta.get("captions")
    if not isinstance(listed, list):
        return ()
    texts = (text.strip() for text in listed if isinstance(text, str))
    return tuple(text for text in texts if 0 < len(text) <= LONGEST_CAPTION)


class PictureCache:
    """The first pairs of a set, loaded once."""

    def __init__(self, pairs: list[Loaded | BadPair]) -> None:
        self._pairs = pairs

    @classmethod
    def fill(cls, shards: ShardSet, count: int, load: Load, limit: int) -> "PictureCache | None":
        """The first ``count`` pairs; None where their pictures would take more than ``limit`` bytes."""
        pairs: list[Loaded | BadPair] = []
        used = 0
        places = ((s, p) for s in range(len(shards.names)) for p in range(shards.sizes[s]))
        for shard, position in progress(islice(places, count), "decoding", count, "picture"):
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
