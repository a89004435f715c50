"""Images with the boxes of their objects drawn, alone or on one sheet: to look at what an annotator found."""

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dejavu_lit.data.decode import opened
from dejavu_lit.data.objects import SCHEMA, Annotation, read_part
from dejavu_lit.data.shards import BadPair, ShardSet
from dejavu_lit.utils.errors import UserError

TEXT = 11  # pixels, of the labels
GAP = 6  # pixels between images
LONGEST = 80  # characters of a label or key
FOOT = 3  # lines below an image, for its key and for labels without a box


def colour(label: str) -> tuple[int, int, int]:
    """The same bright colour for the same label."""
    red, green, blue = hsv_to_rgb(zlib.crc32(label.encode()) % 360 / 360, 0.75, 0.95)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw(image: Image.Image, objects: Annotation, threshold: float, size: int = 320) -> Image.Image:
    """The image, its longer side ``size`` pixels, with each box of score ≥ ``threshold`` and its label.

    Below it stand its key and the labels that have no box.
    """
    scale = size / max(image.size)
    shown = image.convert("RGB").resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    font = ImageFont.load_default(TEXT)
    tile = Image.new("RGB", (size, shown.height + FOOT * (TEXT + 3)), "white")
    tile.paste(shown)
    pen = ImageDraw.Draw(tile)
    plain = []
    # Large boxes first, so that they do not cover the labels of small ones.
    places = [box if len(box) == 4 else [0.0] * 4 for box in objects.boxes]
    found = sorted(zip(objects.labels, objects.scores, places, strict=True), key=lambda o: -o[2][2] * o[2][3])
    for name, score, (x, y, width, height) in found:
        label = _short(name)
        if score < threshold:
            continue
        if not width * height:
            plain.append(label)
            continue
        left, top = min(max(x * scale, 0), shown.width - 1), min(max(y * scale, 0), shown.height - 1)
        right, bottom = min((x + width) * scale, shown.width - 1), min((y + height) * scale, shown.height - 1)
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour(label), width=2)
        text = label if score == 1 else f"{label} {score:.2f}"
        across = min(left, max(0, shown.width - pen.textlength(text, font) - 2))
        pen.rectangle(
            (across, top, across + pen.textlength(text, font) + 2, top + TEXT + 2), fill=colour(label), outline=None
        )
        pen.text((across + 1, top), text, fill="black", font=font)
    for line, text in enumerate([_short(objects.key), *_wrapped(", ".join(plain), size, font)][:FOOT]):
        pen.text((1, shown.height + line * (TEXT + 3)), text, fill="black" if line else "grey", font=font)
    return tile


def _short(text: str) -> str:
    """One line of at most LONGEST characters."""
    return " ".join(text.split())[:LONGEST]


def _wrapped(text: str, width: int, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") > width:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def sheet(tiles: Sequence[Image.Image], columns: int = 4) -> Image.Image:
    """The tiles in rows of ``columns``, each row as high as its highest."""
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


def contact_sheet(
    sets: Mapping[str, ShardSet], artifact: Path, threshold: float, images: int = 24, columns: int = 4
) -> Image.Image:
    """The first images of each set, ``images`` in all, with what an artifact holds on them.

    Raises:
        UserError: the artifact has none of these images, or none are asked for.
    """
    if images < 1:
        raise UserError(f"images={images} must be at least 1")
    each = -(-images // max(1, len(sets)))
    tiles = [tile for name, shards in sets.items() for tile in _tiles(shards, artifact / name, threshold, each)][
        :images
    ]
    if not tiles:
        raise UserError(f"{artifact} holds no objects of {', '.join(sets)}; choose other sets= or annotate them")
    return sheet(tiles, columns)


def _tiles(shards: ShardSet, folder: Path, threshold: float, count: int) -> Iterable[Image.Image]:
    tiles: list[Image.Image] = []
    for number, name in enumerate(shards.names):
        path = folder / f"{Path(name).stem}.parquet"
        if len(tiles) >= count or not path.exists():
            break
        index = shards.index(number)
        place = {key: position for position, key in enumerate(index.keys)}
        _, table = read_part(path, SCHEMA.names)
        for row in table.slice(0, 2 * count).to_pylist():
            if len(tiles) < count and row["labels"] is not None and row["key"] in place:
                try:
                    with opened(index.read(place[row["key"]]).image) as image:
                        tiles.append(draw(image, Annotation(**row), threshold))
                except BadPair:
                    continue
    return tiles
