"""Images and captions through an encoder, in fixed chunks of 64.

Rows are encoded in chunks by their position in the shard; the last chunk is padded. So every vector is the same to the last
bit for any number of workers, and any part can be computed again on its own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from dejavu_lit.data.decode import EMPTY_CAPTION, open_image
from dejavu_lit.data.shards import BadPair, Pair, ShardIndex
from dejavu_lit.evaluation.embeddings import Modality
from dejavu_lit.models.encoder import Encoder
from dejavu_lit.utils.parallel import map_ahead, thread_count

CHUNK = 64  # rows encoded at once
IMAGES_ON_CPU = 16  # of a chunk, which stay in the caches; ViT-B-32 takes 5 % less time, and a last chunk less padding

Item = TypeVar("Item")
# Of one chunk: keys; images (uint8 [3, h, w]) or captions; {skipped key: reason}.
Chunk = tuple[list[str], list[Any], dict[str, str]]


def encode_ahead(
    encoder: Encoder, items: Iterable[Item], load: Callable[[Item], Chunk], modality: Modality, workers: int
) -> Iterator[tuple[Item, list[str], np.ndarray, dict[str, str]]]:
    """(item, keys, float16 [m, d], {skipped key: reason}) for each item, whose chunk ``load`` reads.

    Threads load a few chunks ahead. On a CPU each thread also encodes the images that it loaded, so that no library's own
    threads wait for each other.
    """
    encode_in_threads = modality == "image" and encoder.device.type == "cpu"

    def work(item: Item) -> tuple[Item, list[str], Any, dict[str, str]]:
        keys, content, skipped = load(item)
        return item, keys, encode_chunk(encoder, content, modality) if encode_in_threads and keys else content, skipped

    threads = max(workers, thread_count()) if encode_in_threads else max(workers, 1)
    for item, keys, content, skipped in map_ahead(work, items, threads):
        encoded = encode_in_threads or not keys
        vectors = content if encoded else encode_chunk(encoder, content, modality)
        yield item, keys, np.asarray(vectors, np.float16), skipped


def read_chunks(index: ShardIndex, modality: Modality) -> Iterator[tuple[Sequence[str], list[Pair | BadPair]]]:
    """(keys, pairs) of the chunks of a shard, at least one, in one pass over the tar."""
    pairs = index.pairs(image=modality == "image")
    for start in range(0, max(len(index), 1), CHUNK):
        yield index.keys[start : start + CHUNK], list(islice(pairs, CHUNK))


def read_chunk(encoder: Encoder, index: ShardIndex, start: int) -> Chunk:
    """The usable images of the one chunk that begins at ``start``, read by its offset."""

    def read(position: int) -> Pair | BadPair:
        try:
            return index.read(position)
        except BadPair as bad:
            return bad

    keys = index.keys[start : start + CHUNK]
    pairs = [read(position) for position in range(start, start + len(keys))]
    return decode_chunk(encoder, keys, pairs, "image")


def decode_chunk(encoder: Encoder, keys: Sequence[str], pairs: Sequence[Pair | BadPair], modality: Modality) -> Chunk:
    """The usable rows of a chunk."""
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
    return usable, content, bad


def decode_image(data: bytes) -> Image.Image | torch.Tensor:
    """An image from its file's bytes, an RGB image as pixels uint8 [3, height, width]; raises BadPair if it cannot be used."""
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
    size = IMAGES_ON_CPU if modality == "image" and encoder.device.type == "cpu" else CHUNK
    padded = content + content[:1] * (-len(content) % size)
    if modality == "image":
        batches = torch.from_numpy(np.stack(padded)).split(size)
        vectors = torch.cat([encoder.encode_images(batch) for batch in batches])
    else:
        vectors = encoder.encode_captions(padded)
    return vectors[: len(content)].numpy()
