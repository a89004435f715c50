"""Embeddings of a set by an encoder, streamed: shards → decoded images or captions → fixed chunks → fp16 parts.

Rows are encoded in chunks of 64 that are composed by position within the shard, the last one padded. So each vector is
the same to the last bit for any number of workers, and a part can be made again alone.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from dejavu_lit.data.decode import EMPTY, opened
from dejavu_lit.data.shards import BadPair, ShardIndex, ShardSet
from dejavu_lit.evaluation.embeddings import FINGERPRINT, Embeddings, check_vectors, open_part, read_keys, write_part
from dejavu_lit.models.encoder import Encoder
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked, read_object, write_json
from dejavu_lit.utils.parallel import threads, threads_wanted
from dejavu_lit.utils.progress import progress

__all__ = ["CHUNK", "Embeddings", "embed", "encode_captions"]

CHUNK = 64  # rows encoded at once
SCHEMA = 1

log = logging.getLogger(__name__)
Modality = Literal["image", "text"]


def embed(
    encoder: Encoder,
    shards: ShardSet,
    modality: Modality,
    folder: Path | str,
    limit: int | None = None,
    workers: int = 2,
    bad_share: float = 0.05,
) -> Embeddings:
    """Embed the images or the captions of a set into ``folder``, or take up what is there.

    Whole shards are embedded, as many as ``limit`` needs, and whole parts are kept: another limit adds parts.

    Args:
        limit: how many pairs of the set, from its start; all by default.
        workers: threads that read and decode; on a CPU at least as many as it has cores, since they encode images, too.
        bad_share: pairs that can't be used are skipped, counted and logged, until they are more than ten and more than
            this share of the set.

    Returns:
        The embeddings of the first ``limit`` pairs, those skipped left out.

    Raises:
        UserError: a folder made by another model or from other data, too many bad pairs, no usable one, or a vector with
            NaN or zero norm.
    """
    folder = Path(folder)
    write_missing(encoder, shards, modality, folder, limit, workers, bad_share)
    names = [Path(name).stem for name in shards.names[: _shards_of(shards, limit)]]
    if all(not read_keys(folder, name) for name in names):
        raise UserError(f"no pair of {shards.folder} can be used; see the log for the reasons")
    found = Embeddings.open(folder)
    if limit is None or limit >= len(shards):
        return found
    first = {key for shard in range(len(names)) for key in shards.index(shard).keys[: limit - shards.starts[shard]]}
    return found.first(sum(key in first for key in found.keys))


def _shards_of(shards: ShardSet, limit: int | None) -> int:
    """How many shards hold the first ``limit`` pairs."""
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
    """Write the parts that ``embed`` needs and that are not there; of ``share`` = (i, n) every n-th shard from the i-th on."""
    about = {
        "schema": SCHEMA,
        "model": encoder.fingerprint,
        "name": encoder.name,
        "data": shards.fingerprint(),
        "modality": modality,
        "chunk": CHUNK,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):  # other ranks come at the same time
        skipped = _take_up(folder, about)
    names = [Path(name).stem for name in shards.names[: _shards_of(shards, limit)]]
    missing = [shard for shard in range(share[0], len(names), share[1]) if not _whole(folder, names[shard])]
    what = f"{'images' if modality == 'image' else 'captions'} of {shards.folder.name}"
    with progress(
        None, f"embedding {what}", total=sum(shards.sizes[shard] for shard in missing), unit=what.split()[0]
    ) as bar:
        for shard, keys, vectors, bad in _encode(encoder, shards, missing, modality, workers):
            for key, reason in bad.items():
                log.warning("skipped %s of %s: %s", key, shards.folder, reason)
            if bad:
                skipped = _note_skipped(folder, about, bad)
            if len(skipped) > 10 and len(skipped) > bad_share * len(shards):
                key, reason = next(iter(skipped.items()))
                raise UserError(
                    f"{len(skipped)} of {len(shards)} pairs of {shards.folder} cannot be used, the first is {key} ({reason}); "
                    "mend the data"
                )
            check_vectors(vectors, f"{encoder.name} on {shards.folder / shards.names[shard]}", keys)
            write_part(folder, names[shard], keys, vectors)
            bar.update(shards.sizes[shard])


def _note_skipped(folder: Path, about: dict[str, object], bad: dict[str, str]) -> dict[str, str]:
    """Add pairs to the folder's list of skipped ones; gives the whole list, those of other ranks included."""
    with locked(folder / ".lock"):
        skipped = _skipped(read_object(folder / FINGERPRINT), folder) | bad
        write_json(folder / FINGERPRINT, {**about, "skipped": skipped})
    return skipped


def _take_up(folder: Path, about: dict[str, object]) -> dict[str, str]:
    """Check or write the folder's fingerprint; gives {key: reason} of the pairs skipped so far."""
    path = folder / FINGERPRINT
    if not path.exists():
        if folder.is_dir() and any(folder.glob("*.npy")):
            raise UserError(
                f"{folder} holds embeddings without {FINGERPRINT}, so nobody knows of what; remove the folder"
            )
        write_json(path, {**about, "skipped": {}})
        return {}
    found = read_object(path)
    for key, what in (
        ("model", "the model"),
        ("data", "the data"),
        ("modality", "the modality"),
        ("chunk", "the chunk"),
        ("schema", "the format"),
    ):
        if found.get(key) != about[key]:
            raise UserError(
                f"the embeddings in {folder} were made otherwise: {what} differs; remove that folder to have them made anew"
            )
    return _skipped(found, folder)


def _skipped(about: dict[str, object], folder: Path) -> dict[str, str]:
    """{key: reason} in a fingerprint; raises UserError where it is damaged."""
    skipped = about.get("skipped", {})
    if not isinstance(skipped, dict):
        raise UserError(f"{folder / FINGERPRINT} is damaged (its list of skipped pairs); remove the folder")
    return skipped


def _whole(folder: Path, name: str) -> bool:
    """Whether a part is there and its two files agree."""
    if not (folder / f"{name}.npy").exists():
        return False
    with suppress(UserError):
        return len(open_part(folder, name)) == len(read_keys(folder, name))
    return False


Piece = tuple[list[str], list[Any] | np.ndarray, dict[str, str]]


def _encode(
    encoder: Encoder, shards: ShardSet, wanted: Sequence[int], modality: Modality, workers: int
) -> Iterator[tuple[int, list[str], np.ndarray, dict[str, str]]]:
    """(shard, keys, float16 [m, d], {skipped key: reason}) for each shard wanted.

    Threads work on a few chunks ahead, across the borders of shards: memory is bounded by the window. On a CPU a thread
    also encodes the images that it decoded, alone, so that no library's threads wait for each other.
    """
    alone = modality == "image" and encoder.device.type == "cpu"
    count = max(workers, threads_wanted()) if alone else max(workers, 1)
    with threads(count) as pool:
        queue: deque[tuple[int, Future[Piece]]] = deque()
        chunks = ((shard, start) for shard in wanted for start in range(0, max(shards.sizes[shard], 1), CHUNK))
        keys: list[str] = []
        blocks: list[np.ndarray] = []
        bad: dict[str, str] = {}
        try:
            while True:
                while len(queue) < 2 * count + 1 and (chunk := next(chunks, None)) is not None:
                    shard, start = chunk
                    queue.append((shard, pool.submit(read_chunk, encoder, shards.index(shard), start, modality, alone)))
                if not queue:
                    return
                shard, future = queue.popleft()
                found, content, skipped = future.result()
                if found:
                    vectors = content if isinstance(content, np.ndarray) else encode_chunk(encoder, content, modality)
                    blocks.append(vectors.astype(np.float16))
                keys += found
                bad |= skipped
                if not queue or queue[0][0] != shard:
                    yield shard, keys, np.concatenate(blocks) if blocks else np.zeros((0, 0), np.float16), bad
                    keys, blocks, bad = [], [], {}
        finally:
            for _, future in queue:
                future.cancel()


def read_chunk(encoder: Encoder, index: ShardIndex, start: int, modality: Modality, encode: bool) -> Piece:
    """The usable rows of one chunk: keys, images (uint8 [3, h, w]), captions or vectors, and {key: why it is not used}."""
    keys: list[str] = []
    content: list[Any] = []
    bad: dict[str, str] = {}
    for position in range(start, min(start + CHUNK, len(index))):
        key = index.keys[position]
        try:
            pair = index.read(position, image=modality == "image")
            if modality == "image":
                content.append(encoder.preprocess(decode_image(pair.image)))
            elif pair.caption:
                content.append(pair.caption)
            else:
                raise BadPair(EMPTY)
        except BadPair as error:
            bad[key] = str(error)
        else:
            keys.append(key)
    return keys, encode_chunk(encoder, content, modality) if encode and keys else content, bad


def decode_image(data: bytes) -> Image.Image | torch.Tensor:
    """An image from the bytes of its file: decoded pixels, uint8 [3, height, width], where it is in RGB.

    Raises:
        BadPair: it does not decode, or has too many pixels.
    """
    with opened(data) as image:
        if image.mode == "RGB" and image.format == "JPEG" and data.endswith(b"\xff\xd9"):
            # The same library and the same pixels as Pillow's, without its copies. A file cut short is left to Pillow.
            with suppress(RuntimeError):
                pixels: torch.Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
                return pixels
        image.load()
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) if image.mode == "RGB" else image


def encode_captions(encoder: Encoder, captions: Sequence[str]) -> np.ndarray:
    """float32 [n, d], unit vectors, encoded in the same fixed chunks; for prompts and other short lists."""
    starts = range(0, len(captions), CHUNK)
    return np.concatenate([encode_chunk(encoder, list(captions[s : s + CHUNK]), "text") for s in starts])


def encode_chunk(encoder: Encoder, content: list[Any], modality: Modality) -> np.ndarray:
    """float32 [m, d] of up to 64 rows: padded by repeating the first, so that the encoder always sees one shape."""
    padded = content + content[:1] * (CHUNK - len(content))
    images = torch.from_numpy(np.stack(padded)) if modality == "image" else None
    vectors = encoder.encode_captions(padded) if images is None else encoder.encode_images(images)
    return vectors[: len(content)].numpy()
