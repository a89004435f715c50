"""Embeddings of a set by an encoder, streamed: shards → decoded images or captions → fixed chunks → fp16 parts.

Rows are encoded in chunks of 64 by their position in the shard; the last chunk is padded. So every vector is the same to
the last bit for any number of workers, and any part can be computed again on its own.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from dejavu_lit.data.decode import EMPTY_CAPTION, open_image
from dejavu_lit.data.shards import BadPair, Pair, ShardIndex, ShardSet
from dejavu_lit.evaluation.embeddings import (
    FINGERPRINT,
    Embeddings,
    Modality,
    check_vectors,
    open_part,
    read_keys,
    write_part,
)
from dejavu_lit.models.encoder import Encoder
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked, read_json_object, visible_files, write_json
from dejavu_lit.utils.parallel import thread_count, thread_pool
from dejavu_lit.utils.progress import progress

__all__ = ["CHUNK", "Embeddings", "embed", "encode_captions"]

CHUNK = 64  # rows encoded at once
SCHEMA = 1  # of fingerprint.json
MOST_SKIPPED = 10  # pairs of a set may always be skipped, whatever share of it they are

log = logging.getLogger(__name__)


def embed(
    encoder: Encoder,
    shards: ShardSet,
    modality: Modality,
    folder: Path | str,
    limit: int | None = None,
    workers: int = 2,
    bad_share: float = 0.05,
) -> Embeddings:
    """Embed the images or the captions of a set into ``folder``, or continue if it has some parts already.

    Whole shards are embedded, as many as ``limit`` needs. Complete parts are kept, so another limit adds parts.

    Args:
        limit: number of pairs, from the start of the set; all by default.
        workers: threads that read and decode. On a CPU there are at least as many as cores, because they also encode.
        bad_share: unusable pairs are skipped, counted and logged, unless they are more than ten and more than this share
            of the set.

    Returns:
        The embeddings of the first ``limit`` pairs without the skipped ones.

    Raises:
        UserError: a folder of another model or other data, too many unusable pairs, no usable pair, or a vector with NaN
            or zero norm.
    """
    folder = Path(folder)
    write_missing(encoder, shards, modality, folder, limit, workers, bad_share)
    names = [Path(name).stem for name in shards.names[: _shard_count(shards, limit)]]
    if all(not read_keys(folder, name) for name in names):
        raise UserError(f"no pair of {shards.folder} can be used; see the log for the reasons")
    embeddings = Embeddings.open(folder)
    if limit is None or limit >= len(shards):
        return embeddings
    first = {key for shard in range(len(names)) for key in shards.index(shard).keys[: limit - shards.starts[shard]]}
    return embeddings.first(sum(key in first for key in embeddings.keys))


def _shard_count(shards: ShardSet, limit: int | None) -> int:
    """How many shards contain the first ``limit`` pairs."""
    return int(np.searchsorted(shards.starts, len(shards) if limit is None else min(limit, len(shards))))


def write_missing(
    encoder: Encoder,
    shards: ShardSet,
    modality: Modality,
    folder: Path,
    limit: int | None = None,
    workers: int = 2,
    bad_share: float = 0.05,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Write the missing parts that ``embed`` needs; for ``share`` = (i, n) those of every n-th shard from the i-th on."""
    fingerprint = {
        "schema": SCHEMA,
        "model": encoder.fingerprint,
        "name": encoder.name,
        "data": shards.fingerprint(),
        "modality": modality,
        "chunk": CHUNK,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):  # several ranks start at the same time
        skipped = _check_fingerprint(folder, fingerprint)
    names = [Path(name).stem for name in shards.names[: _shard_count(shards, limit)]]
    missing = [shard for shard in range(share[0], len(names), share[1]) if not _is_complete(folder, names[shard])]
    unit = "images" if modality == "image" else "captions"
    total = sum(shards.sizes[shard] for shard in missing)
    with progress(None, f"embedding {unit} of {shards.folder.name}", total=total, unit=unit) as bar:
        for shard, keys, vectors, bad in _encode(encoder, shards, missing, modality, workers):
            for key, reason in bad.items():
                log.warning("skipped %s of %s: %s", key, shards.folder, reason)
            if bad:
                skipped = _add_skipped(folder, fingerprint, bad)
            if len(skipped) > MOST_SKIPPED and len(skipped) > bad_share * len(shards):
                key, reason = next(iter(skipped.items()))
                raise UserError(
                    f"{len(skipped)} of {len(shards)} pairs of {shards.folder} cannot be used, the first is {key} ({reason}); "
                    "fix the data"
                )
            check_vectors(vectors, f"{encoder.name} on {shards.folder / shards.names[shard]}", keys)
            write_part(folder, names[shard], keys, vectors)
            bar.update(shards.sizes[shard])


def _add_skipped(folder: Path, fingerprint: dict[str, object], bad: dict[str, str]) -> dict[str, str]:
    """Add {key: reason} to the folder's skipped pairs; returns all of them, including those of other ranks."""
    with locked(folder / ".lock"):
        skipped = _skipped(read_json_object(folder / FINGERPRINT), folder) | bad
        write_json(folder / FINGERPRINT, {**fingerprint, "skipped": skipped})
    return skipped


def _check_fingerprint(folder: Path, fingerprint: dict[str, object]) -> dict[str, str]:
    """Check or write the folder's fingerprint; returns {key: reason} of the pairs skipped so far."""
    path = folder / FINGERPRINT
    if not path.exists():
        if visible_files(folder, "*.npy"):
            raise UserError(
                f"{folder} has embeddings without {FINGERPRINT}, so their model and data are unknown; remove the folder"
            )
        write_json(path, {**fingerprint, "skipped": {}})
        return {}
    saved = read_json_object(path)
    for key, name in (
        ("model", "the model"),
        ("data", "the data"),
        ("modality", "the modality"),
        ("chunk", "the chunk"),
        ("schema", "the format"),
    ):
        if saved.get(key) != fingerprint[key]:
            raise UserError(
                f"the embeddings in {folder} do not match: {name} differs; remove that folder to compute them again"
            )
    return _skipped(saved, folder)


def _skipped(fingerprint: dict[str, object], folder: Path) -> dict[str, str]:
    """{key: reason} in a saved fingerprint; raises UserError if it is damaged."""
    skipped = fingerprint.get("skipped", {})
    if not isinstance(skipped, dict):
        raise UserError(f"{folder / FINGERPRINT} is damaged (its list of skipped pairs); remove the folder")
    return skipped


def _is_complete(folder: Path, name: str) -> bool:
    """Whether a part exists and its two files agree."""
    if not (folder / f"{name}.npy").exists():
        return False
    with suppress(UserError):
        return len(open_part(folder, name)) == len(read_keys(folder, name))
    return False


# Of one chunk: keys; images (uint8 [3, h, w]), captions or vectors; {skipped key: reason}.
Chunk = tuple[list[str], list[Any] | np.ndarray, dict[str, str]]


def _encode(
    encoder: Encoder, shards: ShardSet, numbers: Sequence[int], modality: Modality, workers: int
) -> Iterator[tuple[int, list[str], np.ndarray, dict[str, str]]]:
    """(shard number, keys, float16 [m, d], {skipped key: reason}) for each of the shards ``numbers``.

    Threads work a few chunks ahead, across the ends of shards, so this window bounds the memory. On a CPU each thread
    also encodes the images that it decoded, so that no library's own threads wait for each other.
    """
    encode_in_threads = modality == "image" and encoder.device.type == "cpu"
    count = max(workers, thread_count()) if encode_in_threads else max(workers, 1)
    with thread_pool(count) as pool:
        queue: deque[tuple[int, Future[Chunk]]] = deque()
        chunks = ((shard, *chunk) for shard in numbers for chunk in read_chunks(shards.index(shard), modality))
        keys: list[str] = []
        blocks: list[np.ndarray] = []
        bad: dict[str, str] = {}
        try:
            while True:
                while len(queue) < 2 * count + 1 and (chunk := next(chunks, None)) is not None:
                    shard, chunk_keys, pairs = chunk
                    queue.append(
                        (shard, pool.submit(decode_chunk, encoder, chunk_keys, pairs, modality, encode_in_threads))
                    )
                if not queue:
                    return
                shard, future = queue.popleft()
                chunk_keys, content, skipped = future.result()
                if chunk_keys:
                    vectors = content if isinstance(content, np.ndarray) else encode_chunk(encoder, content, modality)
                    blocks.append(vectors.astype(np.float16))
                keys += chunk_keys
                bad |= skipped
                if not queue or queue[0][0] != shard:
                    yield shard, keys, np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float16), bad
                    keys, blocks, bad = [], [], {}
        finally:
            for _, future in queue:
                future.cancel()


def read_chunks(index: ShardIndex, modality: Modality) -> Iterator[tuple[Sequence[str], list[Pair | BadPair]]]:
    """(keys, pairs) of the chunks of a shard, at least one, in one pass over the tar."""
    pairs = index.pairs(image=modality == "image")
    for start in range(0, max(len(index), 1), CHUNK):
        yield index.keys[start : start + CHUNK], list(islice(pairs, CHUNK))


def read_chunk(encoder: Encoder, index: ShardIndex, start: int, modality: Modality) -> Chunk:
    """The usable rows of the one chunk that begins at ``start``, read by its offset."""

    def read(position: int) -> Pair | BadPair:
        try:
            return index.read(position, image=modality == "image")
        except BadPair as bad:
            return bad

    keys = index.keys[start : start + CHUNK]
    pairs = [read(position) for position in range(start, start + len(keys))]
    return decode_chunk(encoder, keys, pairs, modality, encode=False)


def decode_chunk(
    encoder: Encoder, keys: Sequence[str], pairs: Sequence[Pair | BadPair], modality: Modality, encode: bool
) -> Chunk:
    """The usable rows of a chunk; with ``encode`` their vectors."""
    usable: list[str] = []
    content: list[Any] = []
    bad: dict[str, str] = {}
    for key, pair in zip(keys, pairs, strict=True):
        try:
            if isinstance(pair, BadPair):
                raise pair
            if modality == "image":
                content.append(encoder.preprocess(decode_image(pair.image)))
            elif pair.caption:
                content.append(pair.caption)
            else:
                raise BadPair(EMPTY_CAPTION)
        except BadPair as error:
            bad[key] = str(error)
        else:
            usable.append(key)
    return usable, encode_chunk(encoder, content, modality) if encode and usable else content, bad


def decode_image(data: bytes) -> Image.Image | torch.Tensor:
    """An image from the bytes of its file; an RGB image as decoded pixels, uint8 [3, height, width].

    Raises:
        BadPair: it does not decode, or has too many pixels.
    """
    with open_image(data) as image:
        if image.mode == "RGB" and image.format == "JPEG" and data.endswith(b"\xff\xd9"):
            # The same library and pixels as Pillow's, without its copies. Pillow handles truncated files.
            with suppress(RuntimeError):
                pixels: torch.Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
                return pixels
        image.load()
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) if image.mode == "RGB" else image


def encode_captions(encoder: Encoder, captions: Sequence[str]) -> np.ndarray:
    """Unit vectors float32 [n, d], encoded in the same fixed chunks; for prompts and other short lists."""
    starts = range(0, len(captions), CHUNK)
    return np.concatenate([encode_chunk(encoder, list(captions[s : s + CHUNK]), "text") for s in starts])


def encode_chunk(encoder: Encoder, content: list[Any], modality: Modality) -> np.ndarray:
    """float32 [m, d] of up to 64 rows, padded with the first one so that the encoder always sees one shape."""
    padded = content + content[:1] * (CHUNK - len(content))
    images = torch.from_numpy(np.stack(padded)) if modality == "image" else None
    vectors = encoder.encode_captions(padded) if images is None else encoder.encode_images(images)
    return vectors[: len(content)].numpy()
