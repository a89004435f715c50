"""What ``annotate`` asks of an annotator: who it is, its vocabulary, and the objects of one shard's images.

A new annotator is one class in one file of this folder, and one file in conf/annotator that names it by ``_target_``. It
looks at images (a ``Detector``), or knows the objects from elsewhere, by the pair's key or JSON (a ``Lookup``).
"""

import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from dejavu_lit.data.decode import opened
from dejavu_lit.data.objects import Annotation, Annotator, Failed
from dejavu_lit.data.shards import BadPair, Pair, ShardIndex
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.parallel import threads

SLACK = 1e-6  # of scores beyond 0..1: sums of rounded probabilities


@dataclass(frozen=True)
class Shard:
    """One shard to annotate, and the name of its set ("A", "P", …)."""

    set: str
    index: ShardIndex


class Source(Protocol):
    """An annotator, as the runner sees it."""

    @property
    def annotator(self) -> Annotator:
        """What goes into the artifact's metadata: it differs whenever the objects may differ."""

    @property
    def labels(self) -> Sequence[str] | None:
        """Every label that it may give; None where that is not known beforehand."""

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row an image, in the shard's order; ``Failed`` for an image that could not be annotated.

        Raises UserError for what makes annotating pointless: no weights, no package, options that contradict each other.
        """


@dataclass(frozen=True)
class Detections:
    """The objects found in one image: labels [m], scores [m] in 0..1, boxes [m][4] as x, y, width, height in pixels."""

    labels: Sequence[str]
    scores: Sequence[float]
    boxes: Sequence[Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Detector(ABC):
    """An annotator that looks at images. A subclass gives ``annotator``, ``labels`` and ``detect``; its model is loaded
    on the first use of a ``cached_property``, so that wrong options end before anything heavy is imported."""

    threshold: float = 0.05
    """Lowest score that is kept. What counts is decided by the evaluation's own threshold, which must not be lower."""
    batch: int = 8
    """Images that ``detect`` gets at once."""
    workers: int = 2
    """Threads that read and decode ahead."""
    device: str = "cpu"
    """A device of torch; with ``cuda`` each local rank of torchrun or srun takes a GPU of its own, see ``place``."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"annotator.threshold={self.threshold} must lie between 0 and 1")
        for name in ("batch", "workers"):
            if getattr(self, name) < 1:
                raise UserError(f"annotator.{name}={getattr(self, name)} must be at least 1")

    @property
    def place(self) -> str:
        """The device of this process."""
        if self.device != "cuda":
            return self.device
        import torch

        local = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))
        return f"cuda:{local % max(1, torch.cuda.device_count())}"

    @property
    @abstractmethod
    def annotator(self) -> Annotator:
        """Name, version of the package, weights' hash, threshold, config and fingerprint of the vocabulary."""

    @property
    @abstractmethod
    def labels(self) -> Sequence[str]:
        """The names of the classes."""

    @abstractmethod
    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """The objects of at most ``batch`` RGB images of any sizes, with score ≥ ``threshold``, in the same order.

        Any exception but UserError is taken as the images' fault: they are tried again one by one, and what fails then
        is listed.
        """

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row an image; batches never cross the border of a shard, so a part can be made again alone."""
        for items in self._decoded(shard):
            found = dict(self._found([(key, image) for key, image in items if isinstance(image, Image.Image)]))
            for key, image in items:
                yield found[key] if isinstance(image, Image.Image) else Failed(key, str(image))

    def _decoded(self, shard: Shard) -> Iterator[list[tuple[str, Image.Image | BadPair]]]:
        """The images of a shard in batches, read and decoded by threads one batch ahead."""

        def image(position: int) -> tuple[str, Image.Image | BadPair]:
            try:
                pair = shard.index.read(position)
                with opened(pair.image) as found:
                    return pair.key, found.convert("RGB")
            except BadPair as bad:
                return shard.index.keys[position], bad

        count = len(shard.index)
        with threads(self.workers) as pool:
            ahead: deque[list[Future[tuple[str, Image.Image | BadPair]]]] = deque()
            for start in range(0, count, self.batch):
                ahead.append([pool.submit(image, at) for at in range(start, min(start + self.batch, count))])
                if len(ahead) > 2:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]

    def _found(self, items: list[tuple[str, Image.Image]]) -> Iterator[tuple[str, Annotation | Failed]]:
        if not items:
            return
        try:
            found = [
                _checked(key, one) for (key, _), one in zip(items, self.detect([p for _, p in items]), strict=True)
            ]
        except UserError:
            raise
        except Exception as error:  # a detector may raise anything for an odd image, or run out of memory
            if len(items) == 1:
                yield items[0][0], Failed(items[0][0], " ".join(f"{type(error).__name__}: {error}".split())[:200])
                return
            for item in items:
                yield from self._found([item])
        else:
            yield from zip((key for key, _ in items), found, strict=True)


class Lookup(ABC):
    """An annotator that knows the objects by the pair's key, caption or JSON; the image is not read."""

    @property
    @abstractmethod
    def annotator(self) -> Annotator:
        """Name, version, and the hash of what the objects are taken from as ``weights``."""

    @property
    def labels(self) -> Sequence[str] | None:
        """None: the vocabulary is what occurs."""
        return None

    @abstractmethod
    def annotation(self, pair: Pair) -> Annotation:
        """The objects of one pair, whose ``image`` is empty; raises BadPair where they are not known."""

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row an image; raises UserError for objects that are no objects (scores beyond 0..1, boxes of three)."""
        for position, key in enumerate(shard.index.keys):
            try:
                found = self.annotation(shard.index.read(position, image=False))
            except BadPair as bad:
                yield Failed(key, str(bad))
                continue
            try:
                yield _checked(key, found)
            except ValueError as error:
                raise UserError(
                    f"{key} of {shard.index.path}: {error}; mend what annotator={self.annotator.name} takes the objects from"
                ) from None


def _checked(key: str, found: Detections | Annotation) -> Annotation:
    if not len(found.labels) == len(found.scores) == len(found.boxes) or any(len(box) != 4 for box in found.boxes):
        raise ValueError("labels, scores and boxes disagree in number, or a box has not four")
    if not all(map(math.isfinite, (*found.scores, *(side for box in found.boxes for side in box)))):
        raise ValueError("scores or boxes are not finite numbers")
    if not all(-SLACK <= score <= 1 + SLACK for score in found.scores):
        raise ValueError("a score does not lie between 0 and 1")
    return Annotation(key, found.labels, found.scores, found.boxes)


@contextmanager
def needs(annotator: str, page: str) -> Iterator[None]:
    """Around the import of an optional package: where it is absent, one sentence names it and its installation page."""
    try:
        yield
    except ModuleNotFoundError as missing:
        raise UserError(f"annotator={annotator} needs the package {missing.name}; install it as {page} says") from None
