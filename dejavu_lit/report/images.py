"""Where the objects are in the images: boxes of the object artifact, with the size of the image that they were found in.

boxes(ShardSet.open("OUT/A"), "OUT/objects/NAME/A", keys, 0.5)["key"]  ->  Boxes(640, 480, [("dog", 12, 30, 200, 150), …])
"""

import io
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps

from dejavu_lit.data.decode import opened
from dejavu_lit.data.objects import read_part
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.utils.progress import progress

MOST = 40  # boxes of one image, those of the largest scores: more cannot be told apart
ORIENTATION, UPRIGHT = 274, 1  # EXIF
Box = tuple[str, float, float, float, float]  # label, and x, y, width, height in pixels
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image and its size in pixels."""

    width: int
    height: int
    found: list[Box]


def boxes(shards: ShardSet, folder: Path, keys: Iterable[str], threshold: float) -> dict[str, Boxes]:
    """The boxes with a score of at least ``threshold`` in the images ``keys``.

    Images without any are left out, and those that are stored turned: their boxes may be of either orientation.
    """
    wanted = pa.array(sorted(set(keys)), pa.string())
    known: dict[str, list[Box]] = {}
    for path in sorted(folder.glob("*.parquet")):
        _, table = read_part(path, ("key", "labels", "scores", "boxes"))
        for row in table.filter(pc.is_in(table["key"], value_set=wanted)).to_pylist():
            if some := _kept(row["labels"] or [], row["scores"] or [], row["boxes"] or [], threshold):
                known[row["key"]] = some
    found: dict[str, Boxes] = {}
    for number in range(len(shards.names) if known else 0):
        index = shards.index(number)
        for position, key in enumerate(index.keys):
            if key not in known:
                continue
            try:
                with opened(index.read(position).image) as image:
                    if image.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT:
                        found[key] = Boxes(image.width, image.height, known[key])
            except BadPair as error:
                log.debug("%s: no boxes are drawn: %s", key, error)
    return found


def _kept(labels: list[str], scores: list[float], places: list[list[float]], threshold: float) -> list[Box]:
    """The boxes that count, those of the largest scores; an object without a place has none."""
    rows = [
        (score, label, place)
        for label, score, place in zip(labels, scores, places, strict=False)
        if score >= threshold and len(place) == 4 and place[2] > 0 and place[3] > 0
    ]
    rows.sort(key=lambda row: -row[0])
    return [(label, place[0], place[1], place[2], place[3]) for _, label, place in rows[:MOST]]


QUALITY = 60  # of WebP: artefacts stay below what a card of this size shows


log = logging.getLogger(__name__)


def thumbnails(
    shards: ShardSet, keys: Iterable[str], size: int, folder: Path, earlier: Path | None = None
) -> dict[str, str]:
    """Make the thumbnails of ``keys`` in ``folder``, none wider or higher than ``size`` pixels.

    Args:
        earlier: a folder of thumbnails made before, from which those still wanted are taken over.

    Returns:
        {key: name below folder}; images that cannot be had are left out and counted in the log.
    """
    wanted = set(keys)
    names: dict[str, str] = {}
    missing = len(wanted)
    with progress(None, f"thumbnails of {shards.folder.name}", total=len(wanted), unit="image") as bar:
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
                    image = index.read(position).image
                    digest = sha256(f"{stamp}/{key}/".encode() + image).hexdigest()[:20]
                    name = f"{digest[:2]}/{digest[2:]}.webp"
                    if not _there(folder / name, earlier / name if earlier else None):
                        small = shrink(image, size)
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        (folder / name).write_bytes(small)
                except BadPair as error:
                    log.debug("%s has no thumbnail: %s", key, error)
                else:
                    names[key] = name
    if lost := len(wanted) - len(names):
        log.warning("%d of %d images of %s cannot be shown", lost, len(wanted), shards.folder)
    return names


def _there(path: Path, earlier: Path | None) -> bool:
    if path.exists():
        return True
    if earlier is None or not earlier.is_file():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(earlier, path)
    return True


def shrink(data: bytes, size: int) -> bytes:
    """The image in ``data`` upright, in RGB and at most ``size`` pixels a side, as WebP without metadata.

    Raises:
        BadPair: it does not decode, or has too many pixels.
    """
    with opened(data) as image:
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
