"""The scan of a source: every pair read once and checked, its image hashed; kept in parts, so that it can be resumed.

A part has PART keys of the sorted list, or is one shard of a prepared set, so it does not depend on the number of workers.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dejavu_lit.data.decode import EMPTY_CAPTION, caption_candidates, open_image
from dejavu_lit.data.near_duplicates import HASH, content_digest, perceptual_hash
from dejavu_lit.data.readers.base import Reader, file_state
from dejavu_lit.data.shard_index import open_shard
from dejavu_lit.data.shards import BadPair, Pair, ShardSet, index_shard
from dejavu_lit.utils.errors import UserError, counted, first_line
from dejavu_lit.utils.io import atomic, fingerprint
from dejavu_lit.utils.parallel import map_unordered
from dejavu_lit.utils.progress import progress

PART = 500  # pairs: a few seconds of work, so little is lost and the bar moves
TOLERATED = 10  # unusable pairs that are accepted whatever max_skipped is: a few in a small source say nothing
# What is known of a pair after its image was read.
FIELDS = np.dtype(
    [
        ("digests", np.uint64, 2),  # of the image's bytes
        ("hashes", np.uint64),  # perceptual, valid where ``hashed``
        ("hashed", np.bool_),  # whether the image has a perceptual hash
        ("captions", np.int32),  # their number, at least 1
        ("usable", np.bool_),  # whether the pair can be used
    ]
)
ImageHashes = np.recarray  # [n] of FIELDS
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """The n usable pairs of a source, sorted by key."""

    keys: list[str]
    images: ImageHashes
    skipped: dict[str, list[str]]  # {reason: keys} of the others

    @property
    def several_captions(self) -> int:
        return int((self.images.captions > 1).sum())


def scan(
    reader: Reader,
    keys: Sequence[str],
    folder: Path,
    workers: int,
    max_skipped: float,
    need_captions: bool = True,
) -> Scan:
    """Read the pairs ``keys`` (sorted) of ``reader``, with parts in ``folder``.

    Args:
        max_skipped: largest share of unusable pairs; TOLERATED are always accepted. UserError is raised for more, or if
            no pair is usable.
        need_captions: whether a pair without a caption is unusable; a public set needs none.
    """
    blocks = [list(keys[start : start + PART]) for start in range(0, len(keys), PART)]
    parts = [Part(folder / f"{n:06d}.npz", fingerprint(block), len(block), block) for n, block in enumerate(blocks)]
    read = partial(_read_pairs, reader, need_captions)
    images, reasons = hash_images(parts, read, workers, f"reading {reader.name}", retry=True)
    skipped: dict[str, list[str]] = {}
    for row, reason in reasons.items():
        skipped.setdefault(reason, []).append(keys[row])
    _report(reader.name, len(keys), skipped, max_skipped)
    rows = np.flatnonzero(images.usable)
    result = Scan([keys[row] for row in rows.tolist()], images[rows].view(ImageHashes), dict(sorted(skipped.items())))
    if several := result.several_captions:
        logger.info(
            "%s: %d of %d pairs have several captions, %d in all; the first is the pair's own, and "
            "mitigation.caption_choice=true draws one per epoch",
            *(reader.name, several, len(rows), result.images.captions.sum()),
        )
    return result


def _read_pairs(
    reader: Reader, need_captions: bool, keys: Sequence[str], rows: Iterable[int]
) -> Iterator[Pair | BadPair]:
    for row in rows:
        try:
            pair, _ = reader.read(keys[row])
            yield pair if pair.caption or not need_captions else BadPair(EMPTY_CAPTION)
        except BadPair as bad:
            yield bad


def _report(source: str, pairs: int, skipped: dict[str, list[str]], max_skipped: float) -> None:
    for reason, keys in sorted(skipped.items()):
        logger.warning("%s: %s skipped, %s: %s", source, counted(len(keys), "pair"), reason, ", ".join(keys[:5]))
    count = sum(map(len, skipped.values()))
    if count > max(TOLERATED, max_skipped * pairs) or count == pairs:
        reason, keys = max(skipped.items(), key=lambda item: len(item[1]))
        remedy = "" if count == pairs else ", or allow a larger share with max_skipped="
        raise UserError(
            f"{count} of {pairs} pairs of the {source} source cannot be used, most often because {reason} "
            f"({len(keys)}, e.g. {keys[0]}); check the source{remedy}"
        )


class Part(NamedTuple):
    """A part of the pairs of a source."""

    path: Path  # of its hashes, an ``.npz``
    identity: str  # fingerprint of what the hashes depend on
    size: int  # number of its pairs
    pairs: Any  # as an argument of the function that reads them


Read = Callable[[Any, Sequence[int]], Iterable[Pair | BadPair]]  # Part.pairs and positions in it → the pairs there
# Of a part: hashes; why a pair is not usable, "" if it is, None: not read yet.
Content = tuple[ImageHashes, list[str | None]]


def hash_images(
    parts: Sequence[Part], read: Read, workers: int, what: str, retry: bool = False
) -> tuple[ImageHashes, dict[int, str]]:
    """The hashes of all parts, in their order, and {row: why it is not usable}; complete parts are read back.

    Args:
        read: importable, or a partial of such a function; what: the name of the progress bar.
        retry: whether the unusable pairs of complete parts are read again, because ``Part.identity`` does not tell whether
            their images have changed.
    """
    contents = [_load(part, retry) for part in parts]
    unread = [reasons.count(None) for _, reasons in contents]
    jobs = [(number, parts[number], contents[number]) for number, count in enumerate(unread) if count]
    total = sum(part.size for part in parts)
    with progress(None, what, total=total, unit="pair", done=total - sum(unread)) as bar:
        for number, content in map_unordered(_hash_part, read, jobs, workers):
            contents[number] = content
            bar.update(unread[number])
    hashes = np.concatenate([np.zeros(0, FIELDS), *(images for images, _ in contents)]).view(ImageHashes)
    reasons = enumerate(chain.from_iterable(why for _, why in contents))
    return hashes, {row: reason for row, reason in reasons if reason}


def hash_sets(sets: Mapping[str, ShardSet], folder: Path, workers: int) -> ImageHashes:
    """The hashes of every image of ``sets``, {name: shards}, with a part per shard in ``folder``."""
    parts = []
    for name, shards in sets.items():
        for shard, size in zip(shards.names, shards.sizes, strict=True):
            if not size:  # img2dataset leaves such shards
                continue
            path = shards.folder / shard
            open_shard(path).close()  # a shard that was evicted from a mirror has no state
            identity = fingerprint([file_state(path), HASH])
            parts.append(Part(folder / name / f"{path.stem}.npz", identity, size, path))
    return hash_images(parts, _shard_pairs, workers, "hashing images")[0]


def _shard_pairs(path: Path, positions: Sequence[int]) -> Iterable[Pair | BadPair]:
    return index_shard(path).pairs(positions)


def decode_and_hash(data: bytes) -> int | None:
    """Decode an image (raises BadPair); its perceptual hash, None if it has none."""
    with open_image(data) as image:
        return perceptual_hash(image)


def _load(part: Part, retry: bool) -> Content:
    """The content of a part; nothing read yet if it is missing, of other pairs, or damaged (with a warning)."""
    try:
        if part.path.exists():
            with np.load(part.path, allow_pickle=False) as content:
                hashes, reasons = content["hashes"], content["reasons"].tolist()
                is_current = str(content["of"]) == part.identity and hashes.dtype == FIELDS
            if is_current and len(hashes) == len(reasons) == part.size:
                return hashes.view(ImageHashes), [None if reason and retry else reason for reason in reasons]
    except Exception as error:  # numpy and zipfile raise nearly anything for damaged archives
        logger.warning("%s is damaged (%s); recomputing it", part.path, first_line(error))
    return np.zeros(part.size, FIELDS).view(ImageHashes), [None] * part.size


def _hash_part(read: Read, job: tuple[int, Part, Content]) -> tuple[int, Content]:
    """Hash the images of a part that were not read yet and save it; returns its number and its content."""
    number, part, (hashes, reasons) = job
    rows = [row for row, reason in enumerate(reasons) if reason is None]
    for row, pair in zip(rows, read(part.pairs, rows), strict=True):
        try:
            if isinstance(pair, BadPair):
                raise pair
            value = decode_and_hash(pair.image)
        except BadPair as reason:
            reasons[row] = str(reason)
            continue
        reasons[row] = ""
        captions = max(1, len(caption_candidates(pair)))
        hashes[row] = (content_digest(pair.image), value or 0, value is not None, captions, True)
    with atomic(part.path) as path, open(path, "wb") as file:
        np.savez(file, hashes=hashes, reasons=np.array(reasons), of=np.array(part.identity))
    return number, (hashes, reasons)
