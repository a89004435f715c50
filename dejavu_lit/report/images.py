"""Images of the cards: thumbnails, and their objects with boxes."""

import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence, Set
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import ImageOps

from dejavu_lit.data.decode import open_image
from dejavu_lit.data.objects import as_stored, read_part
from dejavu_lit.data.shards import BadPair, ShardIndex, ShardSet
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, is_plain_file, link_or_copy, read_json_object, visible_files, write_json
from dejavu_lit.utils.parallel import map_ahead, thread_count
from dejavu_lit.utils.progress import progress

MAX_BOXES = 40  # of one image, those with the largest scores: more are indistinguishable
THREADS = 8  # that each decode an image, which may have 300 MB
THUMBNAIL_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{18}\.webp")
WEBP_QUALITY = 60  # artifacts stay invisible at the size of a card
ORIENTATION, UPRIGHT = 274, 1  # EXIF
Box = tuple[str, list[float]]  # label, and x, y, width, height in pixels
log = logging.getLogger(__name__)


class Thumbnail(NamedTuple):
    """A thumbnail's name below its folder, as ``ab/cdef….webp``, and the image's size in pixels; 0 × 0 if EXIF rotates it."""

    name: str
    width: int
    height: int


class ImageObjects(NamedTuple):
    """The labels of one image, sorted, and the valid boxes of its objects, largest scores first."""

    labels: list[str]
    boxes: list[Box]


def read_image_objects(folders: Sequence[Path], keys: Iterable[str], threshold: float) -> dict[str, ImageObjects]:
    """The objects with a score of at least ``threshold`` in the images ``keys``, from the sets' folders of an artifact."""
    requested, least = pa.array([*keys], pa.string()), as_stored(threshold)
    objects: dict[str, ImageObjects] = {}
    for path in (path for folder in folders for path in visible_files(folder, "*.parquet")):
        _, table = read_part(path, ("key", "labels", "scores", "boxes"))
        for row in table.filter(pc.is_in(table["key"], value_set=requested)).to_pylist():
            found = zip(row["scores"] or [], row["labels"] or [], row["boxes"] or [], strict=True)
            best = sorted((entry for entry in found if entry[0] >= least), key=lambda entry: -entry[0])
            boxes = [(label, box) for _, label, box in best if len(box) == 4 and box[2] > 0 and box[3] > 0]
            objects[row["key"]] = ImageObjects(sorted({label for _, label, _ in best}), boxes[:MAX_BOXES])
    return objects


def write_thumbnails(
    shards: ShardSet, keys: Iterable[str], size: int, folder: Path, earlier: Path | None = None
) -> dict[str, Thumbnail]:
    """{key: thumbnail} of the readable images of ``keys``, in ``folder`` with a list of them; ``size``: of the longer side.

    Those in ``folder`` and in ``earlier``, a folder of earlier thumbnails, are used again without reading an image, if the
    shards' files are the same as then.
    """
    requested = set(keys)
    sets = dict.fromkeys(path.parent.name for path in shards.paths)  # A; of random halves A and B
    index, state = f"{''.join(sets)}-{size}.json", _state(shards)
    listed = _listed_thumbnails(folder / index, state)  # of other settings of a study
    if earlier:
        for key, thumbnail in _listed_thumbnails(earlier / index, state).items():
            if key in requested and key not in listed:
                link_or_copy(earlier / thumbnail.name, folder / thumbnail.name)
                listed[key] = thumbnail
    missing = requested - listed.keys()

    def make(place: tuple[ShardIndex, int]) -> tuple[str, Thumbnail] | None:
        index, position = place
        key = index.keys[position]
        try:
            image = index.read(position).image
            small, width, height = shrink(image, size)
        except BadPair as error:
            log.debug("%s has no thumbnail: %s", key, error)
            return None
        digest = sha256(f"{size}/{WEBP_QUALITY}/".encode() + image).hexdigest()
        thumbnail = Thumbnail(f"{digest[:2]}/{digest[2:20]}.webp", width, height)
        path = folder / thumbnail.name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_bytes(small)
        return key, thumbnail

    made = map_ahead(make, _places(shards, missing), min(thread_count(), THREADS))
    shown = progress(made, f"thumbnails of {shards.folder.name}", len(missing), "image")
    listed |= dict(entry for entry in shown if entry is not None)
    thumbnails = {key: listed[key] for key in requested & listed.keys()}
    if unshown := len(requested) - len(thumbnails):
        log.warning("%d of %d images of %s cannot be shown", unshown, len(requested), shards.folder)
    write_json(folder / index, {"shards": state, "thumbnails": {key: list(listed[key]) for key in sorted(listed)}})
    return thumbnails


def _places(shards: ShardSet, keys: Set[str]) -> Iterator[tuple[ShardIndex, int]]:
    """(index of the shard, position in it) of the first pair of each of ``keys``."""
    unseen = set(keys)
    for index in takewhile(lambda _: unseen, shards.indexes()):
        for position, key in enumerate(index.keys):
            if key in unseen:
                unseen.remove(key)
                yield index, position


def _state(shards: ShardSet) -> str:
    """By which the shards are known to be the same: the size, time of the last change, and place of their files."""
    stats = [(path.parent.name, path.name, path.stat()) for path in shards.paths if path.exists()]
    return fingerprint([(*names, stat.st_size, stat.st_mtime_ns, stat.st_ino) for *names, stat in stats])


def _listed_thumbnails(index: Path, state: str) -> dict[str, Thumbnail]:
    """{key: thumbnail} of a list of thumbnails that are still there, if it was made from the same shards.

    The list may be of a report from elsewhere: it names only files that ``write_thumbnails`` could have written.
    """
    try:
        saved = read_json_object(index)
        entries = saved["thumbnails"].items() if saved["shards"] == state else ()
        known = {key: Thumbnail(*entry) for key, entry in entries if THUMBNAIL_NAME.fullmatch(entry[0])}
    except (UserError, LookupError, TypeError, AttributeError):  # missing or damaged
        return {}
    return {key: thumbnail for key, thumbnail in known.items() if is_plain_file(index.parent / thumbnail.name)}


def shrink(data: bytes, size: int) -> tuple[bytes, int, int]:
    """The image upright, in RGB, at most ``size`` pixels per side, as WebP without metadata; and the size of the original.

    The size is 0 × 0 if EXIF rotates the image. Raises BadPair if it cannot be decoded or has too many pixels.
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
