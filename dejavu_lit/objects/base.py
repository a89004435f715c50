"""The interface of an annotator: its identity, its vocabulary, and the objects of one shard's images.

A new annotator is one dataclass in one file of ``annotators/``, whose fields are its options, and a name in the table there;
another package adds one by an entry point of the group ``dejavu_lit.annotators``. It looks at images (a ``Detector``), or gets
the objects from elsewhere, by the pair's key or JSON (a ``Lookup``).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from dejavu_lit.data.decode import open_image
from dejavu_lit.data.objects import Annotation, Annotator, Failed
from dejavu_lit.data.shards import BadPair, Pair, ShardIndex, ShardSet
from dejavu_lit.utils.distributed import current_ranks
from dejavu_lit.utils.errors import UserError, check_at_least, check_range, device_failed, first_line, lacks_memory
from dejavu_lit.utils.parallel import map_ahead

SCORE_SLACK = 1e-6  # scores may exceed 0..1 by this much: sums of rounded probabilities do
BATCHES_AHEAD = 2  # batches decoded while the model works on one
REASON_LENGTH = 200  # characters of an exception that go into the artifact


@dataclass(frozen=True)
class Shard:
    """A shard to annotate: the name of its set ("A", "P", …), and its number among the set's shards."""

    set: str
    shards: ShardSet
    number: int

    @property
    def index(self) -> ShardIndex:
        """Its pairs. Not kept here: the indexes of all shards would fill the memory."""
        return self.shards.index(self.number)


class Source(ABC):
    """An annotator as ``annotate`` sees it."""

    @property
    @abstractmethod
    def annotator(self) -> Annotator:
        """What goes into the artifact's metadata; it differs whenever the objects may differ.

        Name, version of the package, hash of the weights or of the data that the objects are taken from, threshold,
        config and fingerprint of the vocabulary.
        """

    @property
    def labels(self) -> Sequence[str] | None:
        """Every label that it may give; None if unknown beforehand."""
        return None

    @abstractmethod
    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row per image, in the shard's order; ``Failed`` for an image that could not be annotated.

        Raises UserError if no image can be annotated: missing weights, a missing package, contradictory options.
        """


@dataclass(frozen=True)
class Detections:
    """The objects detected in one image: labels [m], scores [m] in 0..1, boxes [m][4] as x, y, width, height in pixels."""

    labels: Sequence[str]
    scores: Sequence[float]
    boxes: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Detector(Source):
    """An annotator that looks at images. A subclass gives ``annotator``, ``labels`` and ``detect``; it loads its model in
    a ``cached_property``, so that wrong options are reported before anything heavy is imported."""

    threshold: float = 0.05
    """Lowest score that is kept; the evaluation's own threshold must not be lower."""
    batch: int = 8
    """Images per call of ``detect``."""
    workers: int = 2
    """Threads that decode images ahead of the model."""
    device: str = "cpu"
    """A torch device; with ``cuda`` each local rank of torchrun or srun uses its own GPU."""

    def __post_init__(self) -> None:
        check_range(self, "annotator.", "[0, 1]", "threshold")
        check_at_least(self, "annotator.", batch=1, workers=1)

    @property
    def local_device(self) -> str:
        from dejavu_lit.models.encoder import torch_device  # imports torch

        return str(torch_device(current_ranks().device(self.device)))

    @abstractmethod
    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """The objects of at most ``batch`` RGB images of any sizes, with score ≥ ``threshold``, in the same order.

        Any exception except UserError is blamed on the images: they are tried again one by one, and those that fail again are
        recorded as ``Failed``, unless memory runs out or the GPU fails.
        """

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row per image; a batch never spans two shards, so one part can be redone alone."""
        pairs = zip(shard.index.keys, shard.index.pairs(), strict=True)
        images = map_ahead(_decode, pairs, self.workers, BATCHES_AHEAD * self.batch)
        while items := list(islice(images, self.batch)):
            rows = self._annotate_batch([(key, image) for key, image in items if isinstance(image, Image.Image)])
            for key, image in items:
                yield rows[key] if isinstance(image, Image.Image) else Failed(key, str(image))

    def _annotate_batch(self, items: list[tuple[str, Image.Image]]) -> dict[str, Annotation | Failed]:
        """{key: row} of the images; if the batch fails, they are tried one by one."""
        try:
            detections = self.detect([image for _, image in items]) if items else []
            return {key: _validated(key, objects) for (key, _), objects in zip(items, detections, strict=True)}
        except UserError:
            raise
        except Exception as error:  # a detector may raise anything for an odd image, or run out of memory
            if len(items) > 1:
                return {key: row for item in items for key, row in self._annotate_batch([item]).items()}
            if lacks_memory(error):
                raise
            if device_failed(error):
                raise UserError(
                    f"annotator.device={self.device} failed ({first_line(error)}); run the same command again to continue"
                ) from None
            key, reason = items[0][0], " ".join(f"{type(error).__name__}: {error}".split())
            return {key: Failed(key, reason[:REASON_LENGTH])}


class Lookup(Source):
    """An annotator that gets the objects by the pair's key, caption or JSON; the image is not read."""

    @abstractmethod
    def annotation(self, pair: Pair) -> Annotation:
        """The objects of one pair, whose ``image`` is empty; raises BadPair if they are unknown, ValueError if malformed."""

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row per image; raises UserError for malformed objects (scores outside 0..1, boxes of three numbers)."""
        for key, pair in zip(shard.index.keys, shard.index.pairs(image=False), strict=True):
            try:
                if isinstance(pair, BadPair):
                    raise pair
                yield _validated(key, self.annotation(pair))
            except BadPair as bad:
                yield Failed(key, str(bad))
            except (ValueError, TypeError, OverflowError) as error:
                raise UserError(
                    f"{key} of {shard.index.path}: {error}; fix the input of annotator={self.annotator.name}"
                ) from None


def _decode(item: tuple[str, Pair | BadPair]) -> tuple[str, Image.Image | BadPair]:
    key, pair = item
    try:
        if isinstance(pair, BadPair):
            raise pair
        with open_image(pair.image) as image:
            return key, image.convert("RGB")
    except BadPair as bad:
        return key, bad


def _validated(key: str, objects: Detections | Annotation) -> Annotation:
    if not len(objects.labels) == len(objects.scores) == len(objects.boxes) or any(len(b) != 4 for b in objects.boxes):
        raise ValueError("labels, scores and boxes differ in number, or a box does not have four numbers")
    if not all(map(math.isfinite, (*objects.scores, *(side for box in objects.boxes for side in box)))):
        raise ValueError("scores or boxes are not finite numbers")
    if not all(-SCORE_SLACK <= score <= 1 + SCORE_SLACK for score in objects.scores):
        raise ValueError("a score does not lie between 0 and 1")
    return Annotation(key, objects.labels, objects.scores, objects.boxes)
