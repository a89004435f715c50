"""The scan of a source: every pair read once and checked, its image hashed; kept in parts, so that it can be resumed.

A part has PART keys of the sorted list. Parts do not depend on the number of workers; complete ones are read back.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dejavu_lit.data.decode import EMPTY_CAPTION, caption_candidates, open_image
from dejavu_lit.data.near_duplicates import content_digest, perceptual_hash
from dejavu_lit.data.readers.base import Reader
from dejavu_lit.data.shards import BadPair
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import atomic, fingerprint
from dejavu_lit.utils.parallel import map_unordered
from dejavu_lit.utils.progress import progress

ARRAYS = ("digests", "hashes", "hashed", "captions", "bad", "keys")
PART = 500  # pairs: a few seconds of work, so little is lost and the bar moves
TOLERATED = 10  # unusable pairs that are accepted whatever max_skipped is: a few in a small source say nothing
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """The usable pairs of a source, sorted by key, and the skipped ones: {reason: keys}.

    keys [n]; digests uint64 [n, 2] of the images' bytes; hashes uint64 [n], perceptual, where ``hashed`` bool [n];
    several_captions: how many of the pairs have more than one.
    """

    keys: list[str]
    digests: np.ndarray
    hashes: np.ndarray
    hashed: np.ndarray
    skipped: dict[str, list[str]]
    several_captions: int = 0


@dataclass(frozen=True)
class _Source:
    reader: Reader
    folder: Path
    perceptual: bool
    need_captions: bool


def scan(
    reader: Reader,
    keys: Sequence[str],
    folder: Path,
    perceptual: bool,
    workers: int,
    max_skipped: float,
    need_captions: bool = True,
) -> Scan:
    """Read the pairs ``keys`` (sorted) of ``reader``, with parts in ``folder``.

    Args:
        perceptual: whether images get a perceptual hash.
        max_skipped: largest share of unusable pairs; TOLERATED are always accepted.
        need_captions: whether a pair without a caption is unusable; a public set needs none.

    Raises:
        UserError: more unusable pairs than that, or no usable one.
    """
    parts = [(number, list(keys[start : start + PART])) for number, start in enumerate(range(0, len(keys), PART))]
    missing = [part for part in parts if not _is_complete(folder, *part)]
    with progress(None, f"reading {reader.name}", total=len(keys), unit="pair") as bar:
        bar.update(len(keys) - sum(len(part[1]) for part in missing))
        for done in map_unordered(_scan_part, _Source(reader, folder, perceptual, need_captions), missing, workers):
            bar.update(done)
    digests = np.zeros((len(keys), 2), dtype=np.uint64)
    hashes = np.zeros(len(keys), dtype=np.uint64)
    hashed = np.zeros(len(keys), dtype=bool)
    usable = np.ones(len(keys), dtype=bool)
    captions = np.ones(len(keys), dtype=np.int32)
    skipped: dict[str, list[str]] = {}
    for number, part in parts:
        rows = slice(number * PART, number * PART + len(part))
        content = read_arrays(_part_path(folder, number), ARRAYS)
        if content is None:
            raise UserError(f"{_part_path(folder, number)} was damaged while it was read; start the same command again")
        digests[rows], hashes[rows], hashed[rows] = content["digests"], content["hashes"], content["hashed"]
        captions[rows] = content["captions"]
        for row, reason in json.loads(str(content["bad"])).items():
            usable[number * PART + int(row)] = False
            skipped.setdefault(reason, []).append(part[int(row)])
    _report(reader.name, len(keys), skipped, max_skipped)
    usable_keys = [keys[row] for row in np.flatnonzero(usable).tolist()]
    if several := int((captions[usable] > 1).sum()):
        logger.info(
            "%s: %d of %d pairs have several captions, %d in all; the first is the pair's own, and "
            "mitigation.caption_choice=true draws one per epoch",
            *(reader.name, several, len(usable_keys), captions[usable].sum()),
        )
    return Scan(usable_keys, digests[usable], hashes[usable], hashed[usable], dict(sorted(skipped.items())), several)


def decode_and_hash(data: bytes, perceptual: bool) -> int | None:
    """Decode an image; its perceptual hash if ``perceptual`` and if it has one, else None.

    Raises:
        BadPair: it does not decode, or has too many pixels.
    """
    with open_image(data) as image:
        if perceptual:
            return perceptual_hash(image)
        image.load()
        return None


def _part_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _is_complete(folder: Path, number: int, keys: list[str]) -> bool:
    """Whether the part exists and belongs to these keys."""
    content = read_arrays(_part_path(folder, number), ARRAYS)
    return content is not None and str(content["keys"]) == fingerprint(keys)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """{name: array} of a part, an ``.npz``; None if it is missing, or damaged (with a warning)."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names}
    except Exception as error:  # numpy and zipfile raise nearly anything for damaged archives
        logger.warning("%s is damaged (%s); making it again", path, first_line(error))
        return None


def _scan_part(source: _Source, part: tuple[int, list[str]]) -> int:
    number, keys = part
    digests = np.zeros((len(keys), 2), dtype=np.uint64)
    hashes = np.zeros(len(keys), dtype=np.uint64)
    hashed = np.zeros(len(keys), dtype=bool)
    captions = np.ones(len(keys), dtype=np.int32)
    bad: dict[int, str] = {}
    for row, key in enumerate(keys):
        try:
            pair, _ = source.reader.read(key)
            if source.need_captions and not pair.caption:
                raise BadPair(EMPTY_CAPTION)
            value = decode_and_hash(pair.image, source.perceptual)
        except BadPair as reason:
            bad[row] = str(reason)
            continue
        digests[row] = content_digest(pair.image)
        captions[row] = max(1, len(caption_candidates(pair)))
        if value is not None:
            hashes[row], hashed[row] = value, True
    with atomic(_part_path(source.folder, number)) as path, open(path, "wb") as file:
        reasons, identity = np.array(json.dumps(bad)), np.array(fingerprint(keys))
        np.savez(file, digests=digests, hashes=hashes, hashed=hashed, captions=captions, bad=reasons, keys=identity)
    return len(keys)


def _report(source: str, pairs: int, skipped: dict[str, list[str]], max_skipped: float) -> None:
    for reason, keys in sorted(skipped.items()):
        logger.warning("%s: %d pairs skipped, %s: %s", source, len(keys), reason, ", ".join(keys[:5]))
    count = sum(map(len, skipped.values()))
    if count > max(TOLERATED, max_skipped * pairs) or count == pairs:
        reason, keys = max(skipped.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"{count} of {pairs} pairs of the {source} source cannot be used, most often because {reason} "
            f"({len(keys)}, e.g. {keys[0]}); check the source, or allow a larger share with max_skipped="
        )
