"""PPG, PRG and AUCG of a model in training, on fixed samples of pairs, against a reference.

The measurement uses the parts of an evaluation (fixed chunks, exact search, scores), so on the same records it gives
the figures of ``dejavu evaluate``. The ranks share the images that are encoded, and all get the figures of one process.
"""

import logging
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchmetrics import MetricCollection

from dejavu_lit.data.halves import POOL
from dejavu_lit.data.key_lists import prefix
from dejavu_lit.data.objects import Objects, check_images, read_objects
from dejavu_lit.data.prepared import TRAINED_ON, DataSpec
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.data.splits import hash_order
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.chunks import CHUNK, Chunk, encode_ahead, encode_captions, read_chunk
from dejavu_lit.evaluation.embeddings import Modality
from dejavu_lit.evaluation.search import search
from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.measure.gaps import estimate, outcomes
from dejavu_lit.measure.scores import Scores, score
from dejavu_lit.models.encoder import Encoder
from dejavu_lit.training.settings import GapSettings
from dejavu_lit.training.torch_metrics import AUCG, PPG, PRG
from dejavu_lit.utils.distributed import gather, group_share
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.parallel import thread_count

log = logging.getLogger(__name__)

IMAGE_CACHE_BYTES = 2**30  # of decoded public images; a larger public set is decoded again at every measurement


@dataclass(frozen=True)
class PairSample:
    """The pairs of one set that are measured: their keys, captions and objects, n each."""

    keys: list[str]
    captions: list[str]
    truth: Objects

    @classmethod
    def draw(cls, shards: ShardSet, objects: Objects, count: int, members: Sequence[str]) -> "PairSample":
        """The ``count`` pairs with the smallest hash among ``members`` with objects; a larger sample contains a smaller one.

        Raises UserError if no pair has objects, or a member was not annotated.
        """
        keys = [key for key, number in zip(members, objects.take(members).counts(), strict=True) if number]
        smallest = hash_order(keys, 0, "gaps")[:count]
        captions = _read_captions(shards, {keys[row] for row in smallest})
        if not captions:
            raise UserError(f"no pair of {shards.folder} has an object, so no gap can be measured; check data.objects=")
        return cls(list(captions), list(captions.values()), objects.take(list(captions)))


def _read_captions(shards: ShardSet, wanted: Set[str]) -> dict[str, str]:
    """{key: caption} of the wanted pairs that have one, in the order of the shards."""
    captions: dict[str, str] = {}
    for index in shards.indexes() if wanted else ():
        for position, key in enumerate(index.keys):
            if key in wanted:
                try:
                    captions[key] = index.read(position, image=False).caption
                except BadPair as bad:
                    log.warning("excluded from the gaps: %s", bad)
    return {key: caption for key, caption in captions.items() if caption}


class ImageSample:
    """The images of a set as vectors of any encoder; decoded once per preprocessing if they fit into the cache."""

    def __init__(self, shards: ShardSet, count: int | None = None) -> None:
        """``count``: the least number of images, in complete chunks of smallest hash; None for all images."""
        chunks = [(shard, start) for shard, size in enumerate(shards.sizes) for start in range(0, size, CHUNK)]
        order = hash_order([f"{shards.names[shard]}/{start}" for shard, start in chunks], 0, "gaps")
        chosen = order[: None if count is None else -(-count // CHUNK)]
        self.shards, self.chunks = shards, [chunks[row] for row in sorted(chosen)]
        self._cache: dict[str, dict[tuple[int, int], Chunk]] = {}  # by preprocessing

    def keys(self) -> list[str]:
        return [key for shard, start in self.chunks for key in self.shards.index(shard).keys[start : start + CHUNK]]

    def fingerprints(self) -> dict[str, str]:
        """{name of a shard without .tar: fingerprint of its images}, of the shards that have some of them."""
        shards = sorted({shard for shard, _ in self.chunks})
        return {Path(self.shards.names[shard]).stem: self.shards.index(shard).images for shard in shards}

    def vectors(self, encoder: Encoder) -> tuple[list[str], np.ndarray]:
        """(keys [n], float16 [n, d]) of the usable images, bit for bit as ``embed`` computes them; every rank must call it.

        Raises UserError if no image can be used.
        """
        encoded = {chunk: part for parts in gather(self._own_vectors(encoder)) for chunk, part in parts.items()}
        parts = [encoded[chunk] for chunk in self.chunks if chunk in encoded]
        if not parts:
            raise UserError(f"no image of {self.shards.folder} can be used; prepare the data again")
        return [key for keys, _ in parts for key in keys], np.concatenate([vectors for _, vectors in parts])

    def _own_vectors(self, encoder: Encoder) -> dict[tuple[int, int], tuple[list[str], np.ndarray]]:
        """{chunk: (keys, vectors)} of this rank's chunks with usable images."""
        rank, world = group_share()
        own = self.chunks[rank::world]
        cache = self._cache.setdefault(encoder.pixels, {})
        fits = encoder.preprocess(Image.new("RGB", (8, 8))).nbytes * CHUNK * len(own) <= IMAGE_CACHE_BYTES

        def load(place: tuple[int, int]) -> Chunk:
            shard, start = place
            chunk = cache.get(place) or read_chunk(encoder, self.shards.index(shard), start)
            if fits:
                cache[place] = chunk
            return chunk

        encoded = encode_ahead(encoder, own, load, "image", thread_count())
        return {place: (keys, vectors) for place, keys, vectors, _ in encoded if keys}


def _gaps(target: Scores, reference: Scores, device: torch.device) -> dict[str, float]:
    """PPG, PRG and AUCG at the first k, to which each rank adds its share of the records; every rank must call it."""
    rank, world = group_share()
    metrics = MetricCollection({"ppg": PPG(), "prg": PRG(), "aucg": AUCG(int(target.truth.max()))}).to(device)
    columns = {"target_hits": target.hits[:, 0], "target_predicted": target.predicted[:, 0], "truth": target.truth}
    columns |= {"reference_hits": reference.hits[:, 0], "reference_predicted": reference.predicted[:, 0]}
    metrics.update(**{name: torch.tensor(column[rank::world], device=device) for name, column in columns.items()})
    values = metrics.compute()
    return {name: float(values[name]) for name in FIGURES}


class GapMeter:
    """Measures any encoder against the reference, on fixed samples of the run's own set and of H.

    Raises UserError for a missing set, no objects or those of other images, public images that are also trained on, and
    fewer of them than ``gaps.k``.
    """

    def __init__(self, data: DataSpec, side: str, settings: GapSettings, reference: AuditedModel) -> None:
        self.settings, self.reference = settings, reference
        self._sets = {"population": data.shard_set(TRAINED_ON[side]), "null": data.shard_set("H")}
        self._public = ShardSet.open(data.public_folder())
        self._name = data.public_name
        folder = data.objects_folder()
        own = POOL if data.half else [TRAINED_ON[side]]  # a random half has pairs of both
        trained = {name: ShardSet.open(data.set_folder(name)) for name in own}
        self._images = ImageSample(self._public, settings.public)
        images = {name: shards.images() for name, shards in {**trained, "H": self._sets["null"]}.items()}
        check_images(folder, images | {self._name: self._images.fingerprints()})
        folders: list[Any] = [[folder / name for name in own], folder / "H", folder / self._name]
        objects, _ = read_objects(folders, settings.threshold)
        self._objects = objects[-1]
        self._excluded = data.excluded
        self.samples: dict[str, PairSample] = {}
        for (name, shards), set_objects, size in zip(self._sets.items(), objects, (data.prefix, None), strict=False):
            members, _ = prefix(shards, size, data.excluded)
            if shared := set(members) & set(self._objects.keys):
                raise UserError(
                    f"data.public={data.public} contains {len(shared)} keys of {shards.folder}, such as {min(shared)}; "
                    "use other public images"
                )
            if reference.embeddings_folder:
                saved = reference.embeddings(shards, shards.folder.name, "text")
                members = [key for key in members if key in saved.rows]
                if not members:
                    raise UserError(
                        f"{reference.name} has no embedding of a pair of {shards.folder}; choose another reference"
                    )
            self.samples[name] = PairSample.draw(shards, set_objects, settings.sample, members)
        searched = set(self._images.keys()) - self._excluded
        if reference.captions_only:
            searched &= self._public_captions.keys()
        elif reference.embeddings_folder:
            searched &= reference.embeddings(self._public, self._name, "image").rows.keys()
        self._objects.take(sorted(searched))  # an image without a row is refused now, not at the first measurement
        if len(searched) < settings.k:
            raise UserError(
                f"gaps.k={settings.k} is more than the {len(searched)} public images that can be searched with {reference.name}; "
                "lower it, or let gaps.public search more"
            )
        self._reference_scores: tuple[str, Objects, dict[str, Scores]] | None = None

    def measure(self, encoder: Encoder, epoch: int) -> dict[str, Any]:
        """{epoch, against, ppg, prg, aucg, null_ppg, corrected_ppg, ppg_low, ppg_high} after ``epoch`` epochs."""
        keys, vectors = self._images.vectors(encoder)
        against, public, theirs = self._score_reference(epoch, keys, str(encoder.device))
        own, gaps = {}, {}
        for name, sample in self.samples.items():
            own[name] = self._score(encode_captions(encoder, sample.captions), keys, vectors, public, sample)
            gaps[name] = _gaps(own[name], theirs[name], encoder.device)
        low, high = estimate(outcomes(own["population"], theirs["population"], self.settings.k)).interval(0)
        figures = gaps["population"] | {"null_ppg": gaps["null"]["ppg"]}
        figures["corrected_ppg"] = figures["ppg"] - figures["null_ppg"]
        return {"epoch": epoch, "against": against, **figures, "ppg_low": low, "ppg_high": high}

    def _score_reference(self, epoch: int, keys: list[str], device: str) -> tuple[str, Objects, dict[str, Scores]]:
        """The reference's name, the images that it shares with the model, its scores per sample; one search per checkpoint."""
        reference = self.reference.at(epoch, device)
        if self._reference_scores is not None and self._reference_scores[0] == reference.name:
            return self._reference_scores
        reference_keys, vectors = self._reference_vectors(reference)
        public = self._objects.take(sorted((set(keys) & set(reference_keys)) - self._excluded))
        scores = {}
        for name, sample in self.samples.items():
            saved = reference.saved(self._sets[name], self._sets[name].folder.name, "text")
            queries = (
                saved.load(sample.keys) if saved is not None else encode_captions(reference.encoder, sample.captions)
            )
            scores[name] = self._score(queries, reference_keys, vectors, public, sample)
        self._reference_scores = reference.name, public, scores
        return self._reference_scores

    def _reference_vectors(self, reference: AuditedModel) -> tuple[list[str], np.ndarray]:
        """The public set as the reference embeds it: keys [n] and vectors float16 [n, d]."""
        modality: Modality = "text" if reference.captions_only else "image"
        if (saved := reference.saved(self._public, self._name, modality)) is not None:
            return list(saved.keys), saved.load()
        if not reference.captions_only:
            return self._images.vectors(reference.encoder)
        captions = self._public_captions
        return list(captions), encode_captions(reference.encoder, list(captions.values())).astype(np.float16)

    @cached_property
    def _public_captions(self) -> dict[str, str]:
        """{key: caption} of the public images that are searched and have a caption."""
        return _read_captions(self._public, set(self._images.keys()))

    def _score(
        self, queries: np.ndarray, keys: list[str], vectors: np.ndarray, public: Objects, sample: PairSample
    ) -> Scores:
        """The scores of one model on a sample; ``keys`` and ``vectors`` are those of its public images."""
        rows = {key: row for row, key in enumerate(keys)}
        neighbors, _ = search(
            queries.astype(np.float16), [vectors[[rows[key] for key in public.keys]]], self.settings.k
        )
        return score(neighbors, public, sample.truth, [self.settings.k])
