"""Images with the boxes of their objects drawn, alone or on one sheet, to check an annotator by eye."""

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

from dejavu_lit.data.decode import open_image
from dejavu_lit.data.objects import SCHEMA, Annotation, as_stored, check_images, read_part
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.utils.errors import UserError

TEXT = 11  # pixels, height of the labels
LINE = TEXT + 3  # pixels, height of a line of text
GAP = 6  # pixels between images
# Files of fonts with Chinese, Japanese and Korean characters, which Pillow finds in the system's folders.
CJK = (
    "NotoSansCJK-Regular.ttc",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "PingFang.ttc",
)
LONGEST = 80  # characters of a label or key
FOOT = 3  # lines below an image, for its key and for labels without a box
COLUMNS = 4  # of a sheet

log = logging.getLogger(__name__)


def contact_sheet(sets: Mapping[str, ShardSet], artifact: Path, threshold: float, images: int = 24) -> Image.Image:
    """The first images of each set, ``images`` in all, with the objects that an artifact has for them.

    Raises UserError if the artifact has none of these images, or ``images`` is below 1.
    """
    if images < 1:
        raise UserError(f"pictures={images} must be at least 1")
    per_set = -(-images // max(1, len(sets)))
    tiles = [
        tile for name, shards in sets.items() for tile in islice(_tiles(shards, artifact / name, threshold), per_set)
    ]
    if not tiles:
        raise UserError(f"{artifact} has no objects of {', '.join(sets)}; choose other sets= or annotate them")
    return sheet(tiles[:images])


def _tiles(shards: ShardSet, folder: Path, threshold: float) -> Iterator[Image.Image]:
    for number, name in enumerate(shards.names):
        path = folder / f"{Path(name).stem}.parquet"
        if not path.exists():
            continue
        index = shards.index(number)
        check_images(folder.parent, {folder.name: {path.stem: index.images}})
        positions = {key: position for position, key in enumerate(index.keys)}
        _, table = read_part(path, SCHEMA.names)
        for row in table.to_pylist():
            if row["labels"] is not None and row["key"] in positions:
                with suppress(BadPair), open_image(index.read(positions[row["key"]]).image) as image:
                    yield draw(image, Annotation(**row), threshold)


def draw(image: Image.Image, objects: Annotation, threshold: float, size: int = 320) -> Image.Image:
    """The image, its longer side ``size`` pixels, with each box of score ≥ ``threshold`` and its label; below it a foot.

    The foot has the key and the labels without a box. All tiles of one ``size`` have the same shape.
    """
    scale = size / max(image.size)
    scaled = image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    least = as_stored(threshold)
    rows = [row for row in zip(objects.labels, objects.scores, objects.boxes, strict=True) if row[1] >= least]
    boxed = [row for row in rows if len(row[2]) == 4 and min(row[2][2:]) > 0]
    # Large boxes first, so that they do not cover the labels of small ones.
    boxed.sort(key=lambda row: -row[2][2] * row[2][3])
    is_cjk = any(character >= "\u2e80" for label in objects.labels for character in label)  # where their blocks begin
    font, pen = _font(is_cjk), ImageDraw.Draw(scaled)
    for label, score, (x, y, width, height) in boxed:
        left, right = (min(max(side * scale, 0), scaled.width - 1) for side in (x, x + width))
        top, bottom = (min(max(side * scale, 0), scaled.height - 1) for side in (y, y + height))
        text = _short(label) if score == 1 else f"{_short(label)} {score:.2f}"
        pen.rectangle((left, top, right, bottom), outline=label_color(label), width=2)
        pen.text((left + 3, top + 2), text, fill=label_color(label), font=font)
    tile = Image.new("RGB", (size, size + FOOT * LINE), "white")
    tile.paste(scaled)
    pen = ImageDraw.Draw(tile)
    boxless = ", ".join(_short(row[0]) for row in rows if row not in boxed)
    for line, text in enumerate([_short(objects.key), *_wrapped(boxless, size, font)][:FOOT]):
        pen.text((1, scaled.height + line * LINE), text, fill="black" if line else "grey", font=font)
    return tile


@cache
def _font(is_cjk: bool) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, or one that has Chinese, Japanese and Korean."""
    for name in CJK if is_cjk else ():
        with suppress(OSError):
            return ImageFont.truetype(name, TEXT)
    if is_cjk:
        log.warning("labels in Chinese, Japanese or Korean are drawn as boxes: install a font, such as Noto Sans CJK")
    return ImageFont.load_default(TEXT)


def label_color(label: str) -> tuple[int, ...]:
    """A bright color, always the same for the same label."""
    return ImageColor.getrgb(f"hsv({zlib.crc32(label.encode()) % 360}, 75%, 95%)")


def _short(text: str) -> str:
    return " ".join(text.split())[:LONGEST]


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def sheet(tiles: Sequence[Image.Image]) -> Image.Image:
    """The tiles, of one shape, in rows of COLUMNS."""
    width, height = (side + GAP for side in tiles[0].size)
    columns = min(COLUMNS, len(tiles))
    page = Image.new("RGB", (columns * width + GAP, -(-len(tiles) // columns) * height + GAP), "white")
    for number, tile in enumerate(tiles):
        page.paste(tile, (number % columns * width + GAP, number // columns * height + GAP))
    return page
