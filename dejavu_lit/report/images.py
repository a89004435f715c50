"""Images of the cards: thumbnails, and the boxes of their objects.

write_thumbnails(ShardSet.open("OUT/A"), keys, 240, Path("report/thumbs"))["key"]  -> Thumbnail("ab/cdef….webp", 640, 480)
read_boxes(thumbnails, [Path("OUT/objects/NAME/A")], 0.5)["key"]  -> Boxes(640, 480, [("dog", 12, 30, 200, 150), …])
"""

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import ImageOps

from dejavu_lit.data.decode import open_image
from dejavu_lit.data.objects import as_stored, read_part
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.utils.io import link_or_copy, read_json, visible_files, write_json
from dejavu_lit.utils.progress import progress

MAX_BOXES = 40  # of one image, those with the largest scores: more are indistinguishable
WEBP_QUALITY = 60  # artifacts stay invisible at the size of a card
ORIENTATION, UPRIGHT = 274, 1  # EXIF
Box = tuple[str, float, float, float, float]  # label, and x, y, width, height in pixels
log = logging.getLogger(__name__)


class Thumbnail(NamedTuple):
    """A thumbnail's name below its folder, and the size of the image in pixels; 0 × 0 if EXIF rotates it."""

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image and its size in pixels."""

    width: int
    height: int
    boxes: list[Box]


def read_boxes(thumbnails: Mapping[str, Thumbnail], folders: Sequence[Path], threshold: float) -> dict[str, Boxes]:
    """The boxes with a score of at least ``threshold`` in the images of ``thumbnails``, from the sets' folders of an artifact.

    Images without boxes are skipped. So are images with an EXIF rotation: their boxes may refer to either orientation.
    """
    requested = pa.array([key for key, image in thumbnails.items() if image.width], pa.string())
    boxes: dict[str, Boxes] = {}
    for path in (path for folder in folders for path in visible_files(folder, "*.parquet")):
        _, table = read_part(path, ("key", "labels", "scores", "boxes"))
        for row in table.filter(pc.is_in(table["key"], value_set=requested)).to_pylist():
            if best := _best_boxes(row["labels"] or [], row["scores"] or [], row["boxes"] or [], as_stored(threshold)):
                boxes[row["key"]] = Boxes(*thumbnails[row["key"]][1:], best)
    return boxes


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
) -> dict[str, Thumbnail]:
    """Write the thumbnails of ``keys`` into ``folder``, at most ``size`` pixels wide and high, and a list of them.

    Args:
        earlier: a folder of earlier thumbnails. They are used again, without reading an image, if the shards' files are the
            same as then.

    Returns:
        {key: thumbnail}; unreadable images are skipped, and a warning counts them.
    """
    requested = set(keys)
    sets = dict.fromkeys(path.parent.name for path in shards.paths)  # A; of random halves A and B
    index = f"{''.join(sets)}-{size}.json"
    state = _state(shards)
    known = _earlier_thumbnails(earlier / index, state) if earlier else {}
    thumbnails = {key: known[key] for key in requested if key in known}
    for thumbnail in thumbnails.values():
        assert earlier is not None
        link_or_copy(earlier / thumbnail.name, folder / thumbnail.name)
    unseen = len(requested) - len(thumbnails)
    with progress(None, f"thumbnails of {shards.folder.name}", total=unseen, unit="image") as bar:
        for number, shard in enumerate(shards.names):
            if not unseen:
                break
            for position, key in enumerate(shards.index(number).keys):
                if key not in requested or key in thumbnails:
                    continue
                unseen -= 1
                bar.update()
                try:
                    image = shards.index(number).read(position).image
                    digest = sha256(
                        f"{shards.folder.name}/{shard}/{size}/{WEBP_QUALITY}/{key}/".encode() + image
                    ).hexdigest()
                    small, width, height = shrink(image, size)
                except BadPair as error:
                    log.debug("%s has no thumbnail: %s", key, error)
                    continue
                thumbnails[key] = Thumbnail(f"{digest[:2]}/{digest[2:20]}.webp", width, height)
                path = folder / thumbnails[key].name
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    path.write_bytes(small)
    if missing := len(requested) - len(thumbnails):
        log.warning("%d of %d images of %s cannot be shown", missing, len(requested), shards.folder)
    listed = _earlier_thumbnails(folder / index, state) | thumbnails  # several settings of a study share the folder
    write_json(folder / index, {"shards": state, "thumbnails": {key: list(listed[key]) for key in sorted(listed)}})
    return thumbnails


def _state(shards: ShardSet) -> dict[str, Any]:
    """{shard: [size, time of its last change, place]} of the shards' files."""
    stats = {path: path.stat() if path.exists() else None for path in shards.paths}
    return {
        f"{path.parent.name}/{path.name}": [stat.st_size, stat.st_mtime_ns, stat.st_ino] if stat else None
        for path, stat in stats.items()
    }


def _earlier_thumbnails(index: Path, state: Mapping[str, Any]) -> dict[str, Thumbnail]:
    """{key: thumbnail} of a list of thumbnails that are still there, if it was made from the same shards."""
    if not index.is_file():
        return {}
    saved = read_json(index)
    if saved["shards"] != state:
        return {}
    listed = {key: Thumbnail(*entry) for key, entry in saved["thumbnails"].items()}
    return {key: thumbnail for key, thumbnail in listed.items() if (index.parent / thumbnail.name).is_file()}


def shrink(data: bytes, size: int) -> tuple[bytes, int, int]:
    """The image upright, in RGB, at most ``size`` pixels per side, as WebP without metadata; and the size of the original.

    The size is 0 × 0 if EXIF rotates the image.

    Raises:
        BadPair: the image cannot be decoded or has too many pixels.
    """
    with open_image(data) as image:
        width, height = image.size if image.getexif().get(ORIENTATION, UPRIGHT) == UPRIGHT else (0, 0)
        image.draft("RGB", (size, size))
        upright = ImageOps.exif_transpose(image)
        upright.thumbnail((size, size))
        flat = upright.convert("RGB")
    out = io.BytesIO()
    flat.save(out, "WEBP", quality=WEBP_QUALITY, method=4)
    return out.getvalue(), width, height
