"""Images with the boxes of their objects drawn, alone or on one sheet, to check an annotator by eye."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dejavu_lit.data.decode import open_image
from dejavu_lit.data.objects import SCHEMA, Annotation, read_part
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.utils.errors import UserError

TEXT = 11  # pixels, height of the labels
LINE = TEXT + 3  # pixels, height of a line of text
GAP = 6  # pixels between images
LONGEST = 80  # characters of a label or key
FOOT = 3  # lines below an image, for its key and for labels without a box

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    sets: Mapping[str, ShardSet], artifact: Path, threshold: float, images: int = 24, columns: int = 4
) -> Image.Image:
    """The first images of each set, ``images`` in all, with the objects that an artifact has for them.

    Raises:
        UserError: the artifact has none of these images, or ``images`` is below 1.
    """
    if images < 1:
        raise UserError(f"pictures={images} must be at least 1")
    per_set = -(-images // max(1, len(sets)))
    tiles = [tile for name, shards in sets.items() for tile in _tiles(shards, artifact / name, threshold, per_set)]
    if not tiles:
        raise UserError(f"{artifact} has no objects of {', '.join(sets)}; choose other sets= or annotate them")
    return sheet(tiles[:images], columns)


def _tiles(shards: ShardSet, folder: Path, threshold: float, count: int) -> Iterable[Image.Image]:
    tiles: list[Image.Image] = []
    for number, name in enumerate(shards.names):
        path = folder / f"{Path(name).stem}.parquet"
        if len(tiles) >= count or not path.exists():
            break
        index = shards.index(number)
        positions = {key: position for position, key in enumerate(index.keys)}
        _, table = read_part(path, SCHEMA.names)
        for row in table.slice(0, 2 * count).to_pylist():
            if len(tiles) < count and row["labels"] is not None and row["key"] in positions:
                try:
                    with open_image(index.read(positions[row["key"]]).image) as image:
                        tiles.append(draw(image, Annotation(**row), threshold))
                except BadPair:
                    continue
    return tiles


def draw(image: Image.Image, objects: Annotation, threshold: float, size: int = 320) -> Image.Image:
    """The image, its longer side ``size`` pixels, with each box of score ≥ ``threshold`` and its label.

    The key and the labels without a box are written below it.
    """
    scale = size / max(image.size)
    scaled = image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    font = ImageFont.load_default(TEXT)
    tile = Image.new("RGB", (size, scaled.height + FOOT * LINE), "white")
    tile.paste(scaled)
    pen = ImageDraw.Draw(tile)
    boxless = []
    boxes = [box if len(box) == 4 else [0.0] * 4 for box in objects.boxes]
    # Large boxes first, so that they do not cover the labels of small ones.
    rows = sorted(zip(objects.labels, objects.scores, boxes, strict=True), key=lambda row: -row[2][2] * row[2][3])
    for name, score, box in rows:
        if score < threshold:
            continue
        label = _short(name)
        if not box[2] * box[3]:
            boxless.append(label)
            continue
        x, y, width, height = box
        corners = (x * scale, y * scale, (x + width) * scale, (y + height) * scale)
        text = label if score == 1 else f"{label} {score:.2f}"
        _draw_box(pen, corners, scaled.size, text, label_color(label), font)
    for line, text in enumerate([_short(objects.key), *_wrapped(", ".join(boxless), size, font)][:FOOT]):
        pen.text((1, scaled.height + line * LINE), text, fill="black" if line else "grey", font=font)
    return tile


def _draw_box(
    pen: ImageDraw.ImageDraw,
    corners: tuple[float, float, float, float],
    size: tuple[int, int],
    text: str,
    color: tuple[int, int, int],
    font: Font,
) -> None:
    """Draw one box (left, top, right, bottom), clipped to the image of ``size``, with its text in the upper left corner."""
    width, height = size
    left, top = min(max(corners[0], 0), width - 1), min(max(corners[1], 0), height - 1)
    right, bottom = min(corners[2], width - 1), min(corners[3], height - 1)
    pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=2)
    length = pen.textlength(text, font)
    text_left = min(left, max(0, width - length - 2))
    pen.rectangle((text_left, top, text_left + length + 2, top + TEXT + 2), fill=color, outline=None)
    pen.text((text_left + 1, top), text, fill="black", font=font)


def label_color(label: str) -> tuple[int, int, int]:
    """A bright color, always the same for the same label."""
    red, green, blue = hsv_to_rgb(zlib.crc32(label.encode()) % 360 / 360, 0.75, 0.95)
    return int(255 * red), int(255 * green), int(255 * blue)


def _short(text: str) -> str:
    """One line of at most LONGEST characters."""
    return " ".join(text.split())[:LONGEST]


def _wrapped(text: str, width: int, font: Font) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def sheet(tiles: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """The tiles in rows of ``columns``, each row as high as its highest tile."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = max(sum(tile.width + GAP for tile in row) for row in rows) + GAP
    page = Image.new("RGB", (width, sum(max(t.height for t in row) + GAP for row in rows) + GAP), "white")
    top = GAP
    for row in rows:
        left = GAP
        for tile in row:
            page.paste(tile, (left, top))
            left += tile.width + GAP
        top += max(tile.height for tile in row) + GAP
    return page
