"""The gauge: PPG, PRG and AUCG of a model as it stands, on fixed samples of pairs, against a reference.

It consists of the parts of an evaluation (fixed chunks, exact search, scores, blocks), so on the same records it gives the
figures of ``dejavu evaluate``. What does not change between two measurements is kept: the decoded public images, and the
reference's neighbors.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image

from dejavu_lit.data.exclude import prefix
from dejavu_lit.data.objects import Objects, read_objects
from dejavu_lit.data.prepared import TRAINED_ON, DataSpec
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.data.splits import seeded_hash
from dejavu_lit.evaluation.embed import CHUNK, Modality, encode_captions, encode_chunk, read_chunk
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.evaluation.search import search
from dejavu_lit.measure.controls import blocks
from dejavu_lit.measure.population import FIGURES, Resampling, outcomes
from dejavu_lit.measure.scores import Scores, score
from dejavu_lit.models.encoder import Encoder
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.parallel import threads, threads_wanted

log = logging.getLogger(__name__)

ROOM = 2**30  # bytes of public images kept decoded; a larger public set is decoded anew at every measurement


@dataclass(frozen=True)
class GapSettings:
    """Whether and how the gaps are measured while training; without a reference they are not."""

    reference: str | None = None  # RUN (its checkpoint of the same epoch where it kept one) | RUN@EPOCH | MODEL | …
    every: int = 5  # epochs between two measurements
    sample: int = 500  # pairs with objects of each of the two sets
    public: int | None = 512  # public images searched, in whole chunks of 64 drawn by hash; None: all
    k: int = 10  # neighbors
    threshold: float = 0.5  # lowest annotator score that counts

    def __post_init__(self) -> None:
        for name in ("every", "sample", "public", "k"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"gaps.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"gaps.threshold={self.threshold} must lie between 0 and 1")


class Reference(Protocol):
    """The other model, as the measurement needs it; ``sides.Side`` is one."""

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def captions_only(self) -> bool:
        """Whether it compares captions with the captions of the public set."""

    @property
    def encoder(self) -> Encoder:
        """The model."""

    def at(self, epoch: int, device: str) -> "Reference":
        """The same as it was after ``epoch`` epochs, where that is to be had."""

    def saved(self, shards: ShardSet, name: str, modality: Modality) -> Embeddings | None:
        """Embeddings of the whole set ``name`` that are there already."""


@dataclass(frozen=True)
class Sample:
    """The pairs of one set that are measured: keys and captions [n], and their objects."""

    name: str
    keys: list[str]
    captions: list[str]
    truth: Objects

    @classmethod
    def draw(cls, shards: ShardSet, objects: Objects, count: int, members: Sequence[str]) -> "Sample":
        """The ``count`` pairs of smallest hash among ``members`` that have objects; a larger sample holds them, too.

        Raises:
            UserError: not one pair has objects.
        """
        kept = {key for key, number in zip(objects.keys, objects.counts(), strict=True) if number}
        keys = [key for key in members if key in kept]
        first = np.argsort(seeded_hash(keys, 0, "gaps"), kind="stable")[:count]
        wanted = {keys[row] for row in first}
        captions: dict[str, str] = {}
        for shard in range(len(shards.names)) if wanted else ():
            index = shards.index(shard)
            for position, key in enumerate(index.keys):
                if key in wanted:
                    try:
                        captions[key] = index.read(position, image=False).caption
                    except BadPair as bad:
                        log.warning("left out of the gaps: %s", bad)
        found = [key for key, caption in captions.items() if caption]
        if not found:
            raise UserError(f"no pair of {shards.folder} has an object, so no gap can be measured; check data.objects=")
        return cls(shards.folder.name, found, [captions[key] for key in found], objects.take(found))


class Images:
    """The images of a set as vectors of any encoder; decoded once a preprocessing where they fit into ``ROOM``."""

    def __init__(self, shards: ShardSet, count: int | None = None) -> None:
        """``count``: how many at least, in whole chunks of smallest hash; all by default."""
        places = [(shard, start) for shard, size in enumerate(shards.sizes) for start in range(0, size, CHUNK)]
        hashes = seeded_hash([f"{shards.names[shard]}/{start}" for shard, start in places], 0, "gaps")
        chosen = np.argsort(hashes, kind="stable")[: None if count is None else -(-count // CHUNK)]
        self.shards, self.places = shards, [places[row] for row in sorted(chosen)]
        self._kept: dict[str, dict[tuple[int, int], tuple[list[str], np.ndarray]]] = {}

    def vectors(self, encoder: Encoder) -> tuple[list[str], np.ndarray]:
        """(keys [n], float16 [n, d]) of the images that can be used, bit for bit as ``embed`` makes them."""
        kept = self._kept.setdefault(encoder.pixels, {})
        fits = encoder.preprocess(Image.new("RGB", (8, 8))).nbytes * CHUNK * len(self.places) <= ROOM
        alone = encoder.device.type == "cpu"

        def work(place: tuple[int, int]) -> tuple[list[str], np.ndarray]:
            keys, images = kept.get(place) or _stacked(encoder, self.shards, *place)
            if fits:
                kept[place] = keys, images
            return keys, encode_chunk(encoder, list(images), "image") if alone and keys else images

        names: list[str] = []
        found = []
        with threads() as pool:
            ahead = 4 * threads_wanted()  # chunks: what is decoded and not yet encoded is bounded
            for first in range(0, len(self.places), ahead):
                for keys, content in pool.map(work, self.places[first : first + ahead]):
                    if keys:
                        names += keys
                        found.append(content if alone else encode_chunk(encoder, list(content), "image"))
        if not found:
            raise UserError(f"no image of {self.shards.folder} can be used; prepare the data again")
        return names, np.concatenate(found).astype(np.float16)


def _stacked(encoder: Encoder, shards: ShardSet, shard: int, start: int) -> tuple[list[str], np.ndarray]:
    """One chunk's keys and images, uint8 [m, 3, h, w]."""
    keys, content, _ = read_chunk(encoder, shards.index(shard), start, "image", False)
    return keys, np.stack(cast(list[np.ndarray], content)) if keys else np.zeros(0, np.uint8)


@dataclass(frozen=True)
class Judged:
    """The reference's part of a measurement: the public keys that both sides have, sorted, and its scores by block."""

    name: str
    keys: list[str]
    public: Objects
    scores: Mapping[str, Scores]


class Gauge:
    """Measures any encoder against the reference on fixed samples of the run's own set and of H.

    Raises:
        UserError: no objects, a set that is not there, public images that were trained on.
    """

    def __init__(self, data: DataSpec, side: str, settings: GapSettings, reference: Reference) -> None:
        self.settings, self.reference = settings, reference
        self._sets = {"population": data.shards(TRAINED_ON[side]), "null": data.shards("H")}
        self._public = ShardSet.open(data.public_folder())
        self._name = data.public_sets.get(data.public, self._public.folder.name)
        folder = data.objects_folder()
        places = [*(folder / shards.folder.name for shards in self._sets.values()), folder / self._name]
        objects, _ = read_objects(places, settings.threshold)
        self._objects = objects[-1]
        self._excluded = data.excluded
        self.samples = {}
        for (name, shards), found, size in zip(self._sets.items(), objects, (data.train_size, None), strict=False):
            members, _ = prefix(shards, size, data.excluded)
            if shared := set(members) & set(self._objects.keys):
                raise UserError(
                    f"data.public={data.public} holds {len(shared)} keys of {shards.folder}, the first is {min(shared)}; "
                    "search other public images"
                )
            self.samples[name] = Sample.draw(shards, found, settings.sample, members)
        self._images = Images(self._public, settings.public)
        self._judged: Judged | None = None

    def measure(self, encoder: Encoder, epoch: int) -> dict[str, Any]:
        """{epoch, against, ppg, prg, aucg, null_ppg, corrected_ppg, ppg_low, ppg_high} after ``epoch`` epochs."""
        keys, vectors = self._images.vectors(encoder)
        judged = self._judge(epoch, keys, str(encoder.device))
        found = {}
        for name, sample in self.samples.items():
            queries = encode_captions(encoder, sample.captions).astype(np.float16)
            own = self._score(queries, keys, vectors, judged.keys, judged.public, sample)
            found[name] = outcomes(own, judged.scores[name], self.settings.k)
        made = blocks(found["population"], found["null"], None, Resampling())
        population, null, corrected = (made[name] for name in ("population", "null", "corrected"))
        assert population is not None
        assert null is not None
        assert corrected is not None
        low, high = population.interval(0)
        figures = dict(zip(FIGURES, map(float, population.value), strict=True))
        figures |= {"null_ppg": float(null.value[0]), "corrected_ppg": float(corrected.value[0])}
        return {"epoch": epoch, "against": judged.name, **figures, "ppg_low": low, "ppg_high": high}

    def _judge(self, epoch: int, keys: list[str], device: str) -> Judged:
        """The reference's scores, searched once for each model that it stands for."""
        side = self.reference.at(epoch, device)
        if self._judged is not None and self._judged.name == side.name:
            return self._judged
        names, vectors = self._public_of(side)
        common = sorted((set(keys) & set(names)) - self._excluded)
        public = self._objects.take(common)
        scores = {}
        for name, sample in self.samples.items():
            saved = side.saved(self._sets[name], sample.name, "text")
            queries = saved.load(sample.keys) if saved else encode_captions(side.encoder, sample.captions)
            scores[name] = self._score(queries.astype(np.float16), names, vectors, common, public, sample)
        self._judged = Judged(side.name, common, public, scores)
        return self._judged

    def _public_of(self, side: Reference) -> tuple[list[str], np.ndarray]:
        """The reference's view of the public set: keys [n] and vectors float16 [n, d]."""
        if saved := side.saved(self._public, self._name, "text" if side.captions_only else "image"):
            return list(saved.keys), saved.load()
        if not side.captions_only:
            return self._images.vectors(side.encoder)
        keys: list[str] = []
        captions: list[str] = []
        for shard, start in self._images.places:
            found, content, _ = read_chunk(side.encoder, self._public.index(shard), start, "text", False)
            keys, captions = keys + found, captions + cast(list[str], content)
        return keys, encode_captions(side.encoder, captions).astype(np.float16)

    def _score(
        self, queries: np.ndarray, names: list[str], vectors: np.ndarray, common: list[str], public: Objects, on: Sample
    ) -> Scores:
        """One model's scores of a sample, searched among the public keys ``common``."""
        rows = {key: row for row, key in enumerate(names)}
        neighbors, _ = search(queries, [vectors[[rows[key] for key in common]]], self.settings.k)
        return score(neighbors, public, on.truth, [self.settings.k])
