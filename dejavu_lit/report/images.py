"""Images of the cards: the boxes of their objects, and thumbnails.

read_boxes(ShardSet.open("OUT/A"), "OUT/objects/NAME/A", keys, 0.5)["key"]
    -> Boxes(640, 480, [("dog", 12, 30, 200, 150), …])
write_thumbnails(ShardSet.open("OUT/A"), keys, 240, "report/thumbs")["key"]  -> "ab/cdef….webp"
"""

import io
import logging
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps

from dejavu_lit.data.decode import open_image
from dejavu_lit.data.objects import read_part
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.utils.io import visible_files
from dejavu_lit.utils.progress import progress

MAX_BOXES = 40  # of one image, those with the largest scores: more are indistinguishable
WEBP_QUALITY = 60  # artifacts stay invisible at the size of a card
ORIENTATION, UPRIGHT = 274, 1  # EXIF
Box = tuple[str, float, float, float, float]  # label, and x, y, width, height in pixels
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image and its size in pixels."""

    width: int
    height: int
    boxes: list[Box]


def read_boxes(shards: ShardSet, folder: Path, keys: Iterable[str], threshold: float) -> dict[str, Boxes]:
    """The boxes with a score of at least ``threshold`` in the images ``keys``, read from the object artifact in ``folder``.

    Images without boxes are skipped. So are images with an EXIF rotation: their boxes may refer to either orientation.
    """
    requested = pa.array(sorted(set(keys)), pa.string())
    boxes: dict[str, list[Box]] = {}
    for path in visible_files(folder, "*.parquet"):
        _, table = read_part(path, ("key", "labels", "scores", "boxes"))
        for row in table.filter(pc.is_in(table["key"], value_set=requested)).to_pylist():
            if best := _best_boxes(row["labels"] or [], row["scores"] or [], row["boxes"] or [], threshold):
                boxes[row["key"]] = best
    sized: dict[str, Boxes] = {}
    for number in range(len(shards.names) if boxes else 0):
        index = shards.index(number)
        for position, key in enumerate(index.keys):
            if key not in boxes:
                continue
            try:
                with open_image(index.read(position).image) as image:
                    if image.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT:
                        sized[key] = Boxes(image.width, image.height, boxes[key])
            except BadPair as error:
                log.debug("%s: no boxes are drawn: %s", key, error)
    return sized


def _best_boxes(labels: list[str], scores: list[float], boxes: list[list[float]], threshold: float) -> list[Box]:
    """The boxes above the threshold, largest scores first; objects without a valid box are skipped."""
    rows = [
        (score, label, box)
        for label, score, box in zip(labels, scores, boxes, strict=False)
        if score >= threshold and len(box) == 4 and box[2] > 0 and box[3] > 0
    ]
    rows.sort(key=lambda row: -row[0])
    return [(label, box[0], box[1], box[2], box[3]) for _, label, box in rows[:MAX_BOXES]]


def write_thumbnails(
    shards: ShardSet, keys: Iterable[str], size: int, folder: Path, earlier: Path | None = None
) -> dict[str, str]:
    """Write the thumbnails of ``keys`` into ``folder``, at most ``size`` pixels wide and high.

    Args:
        earlier: a folder of earlier thumbnails, which are reused if the image is the same.

    Returns:
        {key: name below folder}; unreadable images are skipped, and a warning counts them.
    """
    requested = set(keys)
    names: dict[str, str] = {}
    unseen = len(requested)
    with progress(None, f"thumbnails of {shards.folder.name}", total=len(requested), unit="image") as bar:
        for number, shard in enumerate(shards.names):
            if not unseen:
                break
            index = shards.index(number)
            salt = f"{shards.folder.name}/{shard}/{size}/{WEBP_QUALITY}"
            for position, key in enumerate(index.keys):
                if key not in requested:
                    continue
                unseen -= 1
                bar.update()
                try:
                    image = index.read(position).image
                    digest = sha256(f"{salt}/{key}/".encode() + image).hexdigest()[:20]
                    name = f"{digest[:2]}/{digest[2:]}.webp"
                    if not _reuse(folder / name, earlier / name if earlier else None):
                        small = shrink(image, size)
                        (folder / name).parent.mkdir(parents=True, exist_ok=True)
                        (folder / name).write_bytes(small)
                except BadPair as error:
                    log.debug("%s has no thumbnail: %s", key, error)
                else:
                    names[key] = name
    if missing := len(requested) - len(names):
        log.warning("%d of %d images of %s cannot be shown", missing, len(requested), shards.folder)
    return names


def _reuse(path: Path, earlier: Path | None) -> bool:
    """Whether the thumbnail exists in ``path``, copied from ``earlier`` if it is there."""
    if path.exists():
        return True
    if earlier is None or not earlier.is_file():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(earlier, path)
    return True


def shrink(data: bytes, size: int) -> bytes:
    """The image in ``data`` upright, in RGB, at most ``size`` pixels per side, as WebP without metadata.

    Raises:
        BadPair: the image cannot be decoded or has too many pixels.
    """
    with open_image(data) as image:
        image.draft("RGB", (size, size))
        upright = ImageOps.exif_transpose(image)
        upright.thumbnail((size, size))
        flat = Image.new("RGB", upright.size, "white")
        rgba = upright.convert("RGBA")
        flat.paste(rgba, mask=rgba.getchannel("A"))
    out = io.BytesIO()
    flat.save(out, "WEBP", quality=WEBP_QUALITY, method=4)
    return out.getvalue()
