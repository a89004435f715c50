"""Embeddings of a set by an encoder, streamed: shards → decoded images or captions → fixed chunks → fp16 parts."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.data.shards import BadPair, Pair, ShardSet
from dejavu_lit.evaluation.chunks import CHUNK, Chunk, decode_chunk, encode_ahead, read_chunks
from dejavu_lit.evaluation.embeddings import FINGERPRINT, Modality, check_vectors, open_part, read_keys, write_part
from dejavu_lit.models.encoder import Encoder
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import locked, read_json_object, visible_files, write_json
from dejavu_lit.utils.progress import progress

SCHEMA = 1  # of fingerprint.json
MOST_SKIPPED = 10  # pairs of a set may always be skipped, whatever share of it they are
BAD_SHARE = 0.05  # of a set may be skipped

log = logging.getLogger(__name__)


def embed(
    encoder: Encoder,
    shards: ShardSet,
    modality: Modality,
    folder: Path,
    limit: int | None = None,
    workers: int = 2,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Embed the images or the captions of a set into ``folder``, or continue if it has some parts already.

    Whole shards are embedded, as many as the first ``limit`` pairs need; for ``share`` = (i, n) every n-th shard from the i-th
    on. Complete parts are kept, so another limit adds parts. Unusable pairs are skipped, counted and logged. ``workers``
    threads read and decode; on a CPU there are at least as many as cores, because they also encode. Raises UserError for a
    folder of another model or other data, too many unusable pairs, or a vector with NaN, infinity or zero norm.
    """
    fingerprint = {
        "schema": SCHEMA,
        "model": encoder.fingerprint,
        "name": encoder.name,
        "data": shards.fingerprint,
        "modality": modality,
        "chunk": CHUNK,
    }
    folder.mkdir(parents=True, exist_ok=True)
    skipped = _update_fingerprint(folder, fingerprint, {})
    count = np.searchsorted(shards.starts, len(shards) if limit is None else min(limit, len(shards)))  # of shards
    names = [Path(name).stem for name in shards.names[:count]]
    missing = [shard for shard in range(share[0], len(names), share[1]) if not _is_complete(folder, names[shard])]
    unit = "images" if modality == "image" else "captions"
    total = sum(shards.sizes[shard] for shard in missing)
    with progress(None, f"embedding {unit} of {shards.folder.name}", total=total, unit=unit) as bar:
        for shard, keys, vectors, bad in _encode(encoder, shards, missing, modality, workers):
            for key, reason in bad.items():
                log.warning("skipped %s of %s: %s", key, shards.folder, reason)
            if bad:
                skipped = _update_fingerprint(folder, fingerprint, bad)
            if len(skipped) > MOST_SKIPPED and len(skipped) > BAD_SHARE * len(shards):
                key, reason = next(iter(skipped.items()))
                raise UserError(
                    f"{len(skipped)} of {len(shards)} pairs of {shards.folder} cannot be used, the first is {key} ({reason}); "
                    "fix the data"
                )
            check_vectors(vectors, f"{encoder.name} on {shards.folder / shards.names[shard]}", keys)
            write_part(folder, names[shard], keys, vectors)
            bar.update(shards.sizes[shard])


def _update_fingerprint(folder: Path, fingerprint: dict[str, Any], skipped: dict[str, str]) -> dict[str, str]:
    """Check or write the folder's fingerprint, and add {key: reason} of skipped pairs; returns those of all ranks so far."""
    path = folder / FINGERPRINT
    with locked(folder / ".lock"):
        exists = path.exists()
        if not exists and visible_files(folder, "*.npy"):
            raise UserError(
                f"{folder} has embeddings without {FINGERPRINT}, so their model and data are unknown; remove the folder"
            )
        saved: dict[str, Any] = read_json_object(path) if exists else fingerprint
        for name, value in fingerprint.items():
            if name != "name" and saved.get(name) != value:  # one model may have several names
                raise UserError(
                    f"the embeddings in {folder} do not match: the {name} differs; remove that folder to compute them again"
                )
        with explained(f"{path} is damaged: skipped", "remove the folder to compute the embeddings again"):
            skipped = {**saved.get("skipped", {}), **skipped}
        if skipped != saved.get("skipped"):
            write_json(path, {**fingerprint, "skipped": skipped})
    return skipped


def _is_complete(folder: Path, name: str) -> bool:
    """Whether a part exists and its two files agree."""
    if not (folder / f"{name}.npy").exists():
        return False
    with suppress(UserError):
        return len(open_part(folder, name)) == len(read_keys(folder, name))
    return False


def _encode(
    encoder: Encoder, shards: ShardSet, numbers: Sequence[int], modality: Modality, workers: int
) -> Iterator[tuple[int, list[str], np.ndarray, dict[str, str]]]:
    """(shard number, keys, float16 [m, d], {skipped key: reason}) for each of the shards ``numbers``."""

    def decode(item: tuple[int, Sequence[str], list[Pair | BadPair]]) -> Chunk:
        return decode_chunk(encoder, *item[1:], modality)

    chunks = ((shard, *chunk) for shard in numbers for chunk in read_chunks(shards.index(shard), modality))
    encoded = encode_ahead(encoder, chunks, decode, modality, workers)
    for shard, parts in groupby(encoded, key=lambda part: part[0][0]):
        _, keys, vectors, skipped = zip(*parts, strict=True)
        blocks = [block for block in vectors if len(block)]
        bad = dict(item for some in skipped for item in some.items())
        yield shard, [*chain(*keys)], np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float16), bad
