"""The scan: every pair of a source read once, judged, and its image hashed; kept in parts, so that it can go on.

A part holds PART keys of the sorted list. Parts do not depend on the number of workers, and whole ones are read back.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dejavu_lit.data.decode import EMPTY, opened
from dejavu_lit.data.near_duplicates import content_digest, perceptual_hash
from dejavu_lit.data.readers.base import Reader
from dejavu_lit.data.shards import BadPair
from dejavu_lit.utils.errors import UserError, first_line
from dejavu_lit.utils.io import atomic, fingerprint
from dejavu_lit.utils.parallel import spread
from dejavu_lit.utils.progress import progress

ARRAYS = ("digests", "hashes", "hashed", "bad", "keys")
PART = 500  # pairs: a few seconds' work, so little is lost and the bar moves
FEW = 10  # so many unusable pairs are never too many
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """The usable pairs of a source, sorted by key, and why the others are not: {reason: keys}.

    keys [n]; digests uint64 [n, 2] of the images' bytes; hashes uint64 [n], perceptual, where ``hashed`` bool [n].
    """

    keys: list[str]
    digests: np.ndarray
    hashes: np.ndarray
    hashed: np.ndarray
    skipped: dict[str, list[str]]


@dataclass(frozen=True)
class _Source:
    reader: Reader
    folder: Path
    perceptual: bool


def scan(reader: Reader, keys: Sequence[str], folder: Path, perceptual: bool, workers: int, max_skipped: float) -> Scan:
    """Read the pairs ``keys`` (sorted) of ``reader``, with parts in ``folder``.

    Args:
        perceptual: whether images get a perceptual hash.
        max_skipped: largest share of unusable pairs; FEW are always accepted.

    Raises:
        UserError: more unusable pairs than that.
    """
    parts = [(number, list(keys[at : at + PART])) for number, at in enumerate(range(0, len(keys), PART))]
    open_parts = [part for part in parts if not _whole(folder, *part)]
    with progress(None, f"reading {reader.name}", total=len(keys), unit="pair") as bar:
        bar.update(len(keys) - sum(len(part[1]) for part in open_parts))
        for done in spread(_scan_part, _Source(reader, folder, perceptual), open_parts, workers):
            bar.update(done)
    digests = np.zeros((len(keys), 2), dtype=np.uint64)
    hashes = np.zeros(len(keys), dtype=np.uint64)
    hashed = np.zeros(len(keys), dtype=bool)
    usable = np.ones(len(keys), dtype=bool)
    skipped: dict[str, list[str]] = {}
    for number, part in parts:
        rows = slice(number * PART, number * PART + len(part))
        content = read_arrays(_part(folder, number), ARRAYS)
        if content is None:
            raise UserError(f"{_part(folder, number)} was damaged while it was read; start the same command again")
        digests[rows], hashes[rows], hashed[rows] = content["digests"], content["hashes"], content["hashed"]
        for row, reason in json.loads(str(content["bad"])).items():
            usable[number * PART + int(row)] = False
            skipped.setdefault(reason, []).append(part[int(row)])
    _report(reader.name, len(keys), skipped, max_skipped)
    kept = [keys[row] for row in np.flatnonzero(usable).tolist()]
    return Scan(kept, digests[usable], hashes[usable], hashed[usable], dict(sorted(skipped.items())))


def look(data: bytes, perceptual: bool) -> int | None:
    """Decode an image, and give its perceptual hash if asked for and if it has one.

    Raises:
        BadPair: it does not decode, or has too many pixels.
    """
    with opened(data) as image:
        if perceptual:
            return perceptual_hash(image)
        image.load()
        return None


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _whole(folder: Path, number: int, keys: list[str]) -> bool:
    """Whether the part is there and of these keys."""
    content = read_arrays(_part(folder, number), ARRAYS)
    return content is not None and str(content["keys"]) == fingerprint(keys)


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """{name: array} of a part, an ``.npz``; None where it is not there, and with a warning where it is damaged."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in names}
    except Exception as error:  # of damaged archives numpy and zipfile raise nearly anything
        logger.warning("%s is damaged (%s) and made again", path, first_line(error))
        return None


def _scan_part(source: _Source, part: tuple[int, list[str]]) -> int:
    number, keys = part
    digests = np.zeros((len(keys), 2), dtype=np.uint64)
    hashes = np.zeros(len(keys), dtype=np.uint64)
    hashed = np.zeros(len(keys), dtype=bool)
    bad: dict[int, str] = {}
    for row, key in enumerate(keys):
        try:
            pair, _ = source.reader.read(key)
            if not pair.caption:
                raise BadPair(EMPTY)
            value = look(pair.image, source.perceptual)
        except BadPair as reason:
            bad[row] = str(reason)
            continue
        digests[row] = content_digest(pair.image)
        if value is not None:
            hashes[row], hashed[row] = value, True
    with atomic(_part(source.folder, number)) as path, open(path, "wb") as file:
        bad_rows, of = np.array(json.dumps(bad)), np.array(fingerprint(keys))
        np.savez(file, digests=digests, hashes=hashes, hashed=hashed, bad=bad_rows, keys=of)
    return len(keys)


def _report(source: str, pairs: int, skipped: dict[str, list[str]], max_skipped: float) -> None:
    for reason, keys in sorted(skipped.items()):
        logger.warning("%s: %d pairs are skipped, %s: %s", source, len(keys), reason, ", ".join(keys[:5]))
    count = sum(map(len, skipped.values()))
    if count > max(FEW, max_skipped * pairs) or count == pairs:
        reason, keys = max(skipped.items(), key=lambda item: len(item[1]))
        raise UserError(
            f"{count} of {pairs} pairs of the {source} source cannot be used, most often because {reason} "
            f"({len(keys)}, e.g. {keys[0]}); check the source, or allow a larger share by max_skipped="
        )
