"""The batch stream of one rank: pairs in the order of the epoch plan, with mitigations applied to captions and images.

A webdataset ``DataPipeline`` of four stages: pairs are read from their shards (or from a cache of decoded images) in the
plan's order, decoded with their caption drawn for the epoch, replaced where they are unreadable, and batched.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import IterableDataset, get_worker_info
from webdataset import DataPipeline, batched
from webdataset import utils as webdataset_utils

from dejavu_lit.data.captions import train_caption
from dejavu_lit.data.decode import EMPTY_CAPTION, caption_candidates, open_image
from dejavu_lit.data.epoch import EpochPlan
from dejavu_lit.data.shards import BadPair, Pair, ShardSet, index_shard, read_pairs
from dejavu_lit.mitigation import Mitigation
from dejavu_lit.utils.errors import UserError, error_sentence, first_line
from dejavu_lit.utils.progress import progress

log = logging.getLogger(__name__)
webdataset_utils.enforce_security = True  # webdataset opens no address itself, runs nothing and unpickles nothing

Preprocess = Callable[[Image.Image], np.ndarray]  # → uint8, the model's input or the whole image
Augment = Callable[[np.ndarray, str], np.ndarray]  # RGB uint8 [h, w, 3] and the seed of its draws → uint8 [3, h, w]
Tokenizer = Callable[[list[str]], torch.Tensor]  # → int64 [n, context]
Batch = dict[str, Any]
LoadedPair = tuple[np.ndarray, str, tuple[str, ...]]  # image, the pair's caption, caption candidates

ESTIMATE_AFTER = 100  # images; their mean size then predicts the memory for all


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """The whole image as RGB, uint8 [height, width, 3]."""
    return np.asarray(image.convert("RGB"))


def load_pair(pair: Pair | BadPair, preprocess: Preprocess) -> LoadedPair:
    """A pair with its image preprocessed; raises BadPair if it cannot be used."""
    if isinstance(pair, BadPair):
        raise pair
    with open_image(pair.image) as image:
        return preprocess(image), pair.caption, caption_candidates(pair)


def load_images(shards: ShardSet, count: int, preprocess: Preprocess, limit: int) -> list[LoadedPair | BadPair] | None:
    """The first ``count`` pairs of a set, to be kept in memory; None if their images take more than ``limit`` bytes."""
    loaded: list[LoadedPair | BadPair] = []
    used = 0
    for pair in progress(islice(read_pairs(shards), count), "decoding", count, "image"):
        try:
            loaded.append(item := load_pair(pair, preprocess))
            used += item[0].nbytes
        except BadPair as bad:
            loaded.append(bad)
        if used > limit or (len(loaded) >= min(ESTIMATE_AFTER, count) and used / len(loaded) * count > limit):
            return None
    return loaded


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


@dataclass
class Sample:
    """A pair on its way into a batch."""

    index: int  # its position in the set
    image: np.ndarray
    caption: str
    skipped: Sequence[tuple[int, str]] = ()  # (index, reason) of each unreadable pair that it replaces


@dataclass(eq=False, repr=False)
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

    shards: ShardSet
    plan: EpochPlan
    rank: int
    preprocess: Preprocess
    tokenizer: Tokenizer
    knobs: Mitigation = field(default_factory=Mitigation)
    vocabulary: Sequence[str] = ()
    augment: Augment | None = None
    cache: Sequence[LoadedPair | BadPair] | None = None

    def __post_init__(self) -> None:
        self.place = str(self.shards.folder)  # where the pairs come from, for messages
        self.position = torch.tensor([self.plan.epoch, 0])  # int64: epoch, step in the epoch
        self._unreadable: dict[int, str] = {}  # {position in the set: reason}, each decoded once in this process
        if self.augment is not None:
            self.preprocess = rgb_pixels

    def start_at(self, epoch: int, step: int = 0) -> None:
        """Make the next iteration yield the batches of ``epoch`` from ``step`` on."""
        self.position.copy_(torch.tensor([epoch, step]))

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        if info is not None and self.cache is None:  # every epoch needs other shards, whose indexes would pile up
            index_shard.cache_clear()
        epoch, offset = self.position.tolist()
        plan, place = replace(self.plan, epoch=epoch), (self.rank, info.id if info else 0, offset)
        rest, stretch = plan.parts(*place), plan.parts(*place, whole=True)
        stages = partial(self._read, rest), partial(self._decode, epoch), partial(self._replace, epoch, stretch)
        return iter(DataPipeline(*stages, batched(self.plan.batch, collation_fn=self.collate, partial=False)))

    def _read(self, parts: Iterable[np.ndarray]) -> Iterator[tuple[int, str, Pair | LoadedPair | BadPair]]:
        """(position in the set, key, pair) of the planned entries, [m, 2] of each shard, which is read once."""
        for entries in parts:
            index, start = self.shards.index(int(entries[0, 0])), int(self.shards.starts[entries[0, 0]])
            positions = entries[:, 1].tolist()
            if self.cache is not None:
                pairs: Iterable[Pair | LoadedPair | BadPair] = (self.cache[start + position] for position in positions)
            else:
                pairs = index.pairs(positions)
            for position, pair in zip(positions, pairs, strict=True):
                yield start + position, index.keys[position], pair

    def _decode(
        self, epoch: int, pairs: Iterable[tuple[int, str, Pair | LoadedPair | BadPair]]
    ) -> Iterator[Sample | tuple[int, str]]:
        """The samples of an epoch, or (position in the set, reason) of an unreadable pair."""
        for index, key, pair in pairs:
            if index not in self._unreadable:
                try:
                    yield self.sample(index, key, epoch, pair)
                    continue
                except BadPair as reason:
                    log.warning("skipped %s in %s: %s", key, self.place, reason)
                    self._unreadable[index] = str(reason)
            yield index, self._unreadable[index]

    def sample(self, index: int, key: str, epoch: int, pair: Pair | LoadedPair | BadPair) -> Sample:
        """A pair with this epoch's draws; raises BadPair if it is unreadable or its caption empty."""
        image, caption, candidates = pair if isinstance(pair, tuple) else load_pair(pair, self.preprocess)
        if not caption:
            raise BadPair(EMPTY_CAPTION)
        seed = f"{self.plan.seed}/{epoch}/{key}"
        if self.augment is not None:
            image = self.augment(image, seed)
        return Sample(index, image, train_caption(caption, candidates, self.knobs, self.vocabulary, seed))

    def _replace(
        self, epoch: int, stretch: Iterable[np.ndarray], samples: Iterable[Sample | tuple[int, str]]
    ) -> Iterator[Sample]:
        """The next readable sample in the place of each unreadable one, and the first of ``stretch`` in that of the last ones.

        ``stretch`` includes what was done before a resumed run, which thus replaces the last ones by the same sample.
        """
        waiting: list[tuple[int, str]] = []
        for sample in samples:
            if not isinstance(sample, Sample):
                waiting.append(sample)
                continue
            yield from (replace(sample, skipped=[bad]) for bad in waiting)
            yield sample
            waiting.clear()
        if not waiting:
            return
        whole = self._decode(epoch, self._read(stretch))
        if (first := next((sample for sample in whole if isinstance(sample, Sample)), None)) is None:
            raise UserError(f"none of {len(waiting)} pairs of {self.shards.folder} can be read; prepare the data again")
        yield from (replace(first, skipped=[bad]) for bad in waiting)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        tensors = {
            "images": torch.from_numpy(np.stack([sample.image for sample in samples])),
            "tokens": self.tokenizer([sample.caption for sample in samples]),
            "index": torch.tensor([sample.index for sample in samples]),
        }
        if get_worker_info() is not None:  # torch does it later, and drops the batch if that fails
            try:
                for tensor in tensors.values():
                    tensor.share_memory_()
            except RuntimeError as error:
                if error_sentence(error) is not None:  # of another limit
                    raise
                raise UserError(
                    f"a process of the data loader cannot pass on a batch ({first_line(error)}); enlarge /dev/shm (docker run "
                    "--shm-size=8g), or lower trainer.loader.workers or trainer.loader.prefetch"
                ) from None
        return {
            **tensors,
            "replaced": sum(len(sample.skipped) for sample in samples),
            "unreadable": {index: reason for sample in samples for index, reason in sample.skipped},
        }
