"""Thumbnails: small WebP files of the pictures on the cards, cut once from the shards and found again by name.

A name is a hash of shard, key, size and the picture's own bytes: it tells nothing of the key, another picture under the same
key has another name, and a picture that several pages show is one file.
"""

import io
import logging
import shutil
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dejavu_lit.data.pictures import opened
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.utils.progress import progress

QUALITY = 60  # of WebP: artefacts stay below what a card of this size shows
log = logging.getLogger(__name__)


def thumbnails(
    shards: ShardSet, keys: Iterable[str], size: int, folder: Path, earlier: Path | None = None
) -> dict[str, str]:
    """Make the thumbnails of ``keys`` in ``folder``, none wider or higher than ``size`` pixels.

    Args:
        earlier: a folder of thumbnails made before, from which those still wanted are taken over.

    Returns:
        {key: name below folder}; pictures that cannot be had are left out and counted in the log.
    """
    wanted = set(keys)
    names: dict[str, str] = {}
    missing = len(wanted)
    with progress(None, f"thumbnails of {shards.folder.name}", total=len(wanted), unit="picture") as bar:
        for number, shard in enumerate(shards.names):
            if not missing:
                break
            index = shards.index(number)
            stamp = f"{shards.folder.name}/{shard}/{size}/{QUALITY}"
            for position, key in enumerate(index.keys):
                if key not in wanted:
                    continue
                missing -= 1
                bar.update()
                try:
                    picture = index.read(position).image
                    digest = sha256(f"{stamp}/{key}/".encode() + picture).hexdigest()[:20]
                    name = f"{digest[:2]}/{digest[2:]}.webp"
                    if not _there(folder / name, earlier / name if earlier else None):
                        small = shrink(picture, size)
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        (folder / name).write_bytes(small)
                except BadPair as error:
                    log.debug("%s has no thumbnail: %s", key, error)
                else:
                    names[key] = name
    if lost := len(wanted) - len(names):
        log.warning("%d of %d pictures of %s cannot be shown", lost, len(wanted), shards.folder)
    return names


def _there(path: Path, earlier: Path | None) -> bool:
    if path.exists():
        return True
    if earlier is None or not earlier.is_file():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(earlier, path)
    return True


def shrink(picture: bytes, size: int) -> bytes:
    """``picture`` upright, in RGB and at most ``size`` pixels a side, as WebP without metadata.

    Raises:
        BadPair: it does not decode, or has too many pixels.
    """
    with opened(picture) as image:
        image.draft("RGB", (size, size))
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):  # 16 bits a pixel: the upper 8 are what can be seen
            upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
        upright.thumbnail((size, size))
        flat = Image.new("RGB", upright.size, "white")
        rgba = upright.convert("RGBA")
        flat.paste(rgba, mask=rgba.getchannel("A"))
    out = io.BytesIO()
    flat.save(out, "WEBP", quality=QUALITY, method=4)
    return out.getvalue()
