"""Images of the sets that are compared, their duplicates of one kind, and examples of these to look at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dejavu_lit.data.decode import open_image
from dejavu_lit.data.key_lists import positions_of
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.objects.contact_sheet import sheet
from dejavu_lit.utils.io import atomic

EXAMPLES_PER_KIND = 12  # pairs of each kind on the sheet
THUMBNAIL = 112  # pixels


@dataclass(frozen=True)
class Images:
    """The compared images of all sets, one row per image: keys [n], and the number of its set, int8 [n]."""

    sets: tuple[str, ...]
    keys: list[str]
    set_numbers: np.ndarray


@dataclass(frozen=True)
class DuplicateKind:
    """The duplicates of one kind."""

    name: str
    groups: np.ndarray  # int64 [n]: the first row of each row's group
    links: np.ndarray  # int64 [m, 2]: the pairs of rows that connect the groups
    distances: np.ndarray  # float64 [m]: of each pair
    details: dict[str, Any] = field(default_factory=dict)  # its settings and recall, for report.json


def write_examples(path: Path, sets: Mapping[str, ShardSet], images: Images, kinds: Sequence[DuplicateKind]) -> None:
    """Draw the least similar pairs of each kind, those across sets before those within one; no file if there are none."""
    path.unlink(missing_ok=True)  # of a killed call with other settings
    examples: list[tuple[DuplicateKind, int]] = []
    for kind in kinds:
        is_within = images.set_numbers[kind.links[:, 0]] == images.set_numbers[kind.links[:, 1]]
        order = np.lexsort((-kind.distances, is_within))[:EXAMPLES_PER_KIND]
        examples += ((kind, link) for link in order.tolist())
    keys = {images.keys[row] for kind, link in examples for row in kind.links[link].tolist()}
    thumbnails = {key: image for shards in sets.values() for key, image in _thumbnails(shards, keys)}
    font = ImageFont.load_default(11)
    tiles = []
    for kind, link in examples:
        tile = Image.new("RGB", (2 * THUMBNAIL + 4, THUMBNAIL + 15), "white")
        rows, distance = kind.links[link].tolist(), float(kind.distances[link])
        for column, row in enumerate(rows):
            tile.paste(thumbnails[images.keys[row]], (column * (THUMBNAIL + 4), 0))
        value = {"exact": "", "hash": f" {distance:.0f} bits", "semantic": f" {1 - distance:.4f}"}[kind.name]
        names = " and ".join(images.sets[images.set_numbers[row]] for row in rows)
        ImageDraw.Draw(tile).text((1, THUMBNAIL + 1), f"{kind.name}{value}, {names}", fill="black", font=font)
        tiles.append(tile)
    if tiles:
        with atomic(path) as part:
            sheet(tiles).save(part, "PNG")


def _thumbnails(shards: ShardSet, keys: set[str]) -> Iterator[tuple[str, Image.Image]]:
    """(key, thumbnail) of those of ``keys`` that are in a set; their images decode."""
    for shard, positions in positions_of(shards, keys).items():
        index = shards.index(shard)
        for position in positions:
            with open_image(index.read(position).image) as image:
                square = ImageOps.pad(image.convert("RGB"), (THUMBNAIL, THUMBNAIL), color="white", centering=(0, 0))
            yield index.keys[position], square
