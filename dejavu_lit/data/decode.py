"""Captions, JSON and images from untrusted bytes: decoded within fixed limits, or rejected with a reason."""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from dejavu_lit.utils.errors import UserError

MAX_CAPTION_CHARS = 10_000  # tokenizers take minutes for a megabyte without a space
MAX_JSON_BYTES = 16 << 20
MAX_JSON_DEPTH = 50  # nested lists and objects
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP")  # JPEG includes MPO
PLAIN_MODES = ("RGB", "L", "CMYK")  # converting before or after resizing gives the same image
MAX_PIXELS = 100_000_000  # larger images are treated as decompression bombs
MAX_ASPECT_RATIO = 100  # models resize the shorter side first, which turns a long strip into a bomb
TEXTS = ("txt", "json", "cls")  # a pair's members beside the image; cls is WebDataset's for the class
EMPTY_CAPTION = "its caption is empty"  # a BadPair reason, shared by all that require a caption


class BadPair(Exception):
    """A pair that cannot be used. The message is the reason without the key: readers skip such pairs and count reasons."""


@dataclass(frozen=True)
class Pair:
    """One (image, caption) pair: the encoded image, its caption and the content of its ``json`` member."""

    key: str
    image: bytes
    extension: str
    caption: str
    meta: dict[str, Any] = field(default_factory=dict)


def read_caption(data: bytes) -> str:
    """A caption, which may be empty, from the bytes of its file; raises BadPair if they are too long or not UTF-8."""
    try:
        return clean_caption(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadPair("its caption is not UTF-8") from None


def clean_caption(caption: str) -> str:
    """The caption without surrounding white space, lone surrogates as question marks; raises BadPair if it is too long."""
    caption = caption.strip()
    if len(caption) > MAX_CAPTION_CHARS:
        raise BadPair(f"its caption has more than {MAX_CAPTION_CHARS:,} characters")
    return str(json_safe(caption))


def caption_lines(text: str) -> list[str]:
    """The distinct lines of a text with one caption per line, without blank ones."""
    return list(dict.fromkeys(filter(None, map(str.strip, text.split("\n")))))


def read_meta(data: bytes) -> dict[str, Any]:
    """A pair's JSON by ``json_safe`` from the bytes of its file, {} if it is not an object.

    Raises BadPair if it does not decode, is too large or nested too deeply.
    """
    if len(data) > MAX_JSON_BYTES:
        raise BadPair(f"its JSON has more than {MAX_JSON_BYTES >> 20} MiB")
    try:
        value = json_safe(json.loads(data.decode("utf-8-sig")))
    except (ValueError, RecursionError):  # ValueError: numbers with thousands of digits, too
        raise BadPair("its JSON does not decode") from None
    return value if isinstance(value, dict) else {}


def meta_captions(meta: Mapping[str, Any]) -> list[str]:
    """The distinct captions in a pair's JSON: ``caption``, a text or a list (else BadPair); if missing, the list ``captions``."""
    caption = meta.get("caption")
    if caption is None and isinstance(meta.get("captions"), list):
        caption = [text for text in meta["captions"] if isinstance(text, str)]
    texts = [text for text in (caption if isinstance(caption, list) else [caption]) if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise BadPair("its caption is not text")
    return list(dict.fromkeys(filter(None, map(clean_caption, texts))))


def is_list_as_text(text: str, meta: Mapping[str, Any]) -> bool:
    """Whether a text is the JSON's list ``caption`` in Python's notation; of a list of captions, img2dataset writes both."""
    return isinstance(meta.get("caption"), list) and text == str(meta["caption"])


def with_captions(meta: dict[str, Any], captions: Sequence[str]) -> dict[str, Any]:
    """The JSON of a pair with several captions: they are its list ``captions``. With one caption it is unchanged."""
    return {**meta, "captions": list(captions)} if len(captions) > 1 else meta


def decode_texts(content: Mapping[str, bytes]) -> tuple[str, dict[str, Any]]:
    """The caption and the JSON of a pair from those of its members TEXTS that exist; a class becomes ``label``.

    Without a text, the caption is the first of the JSON's or, of a labelled set, the label, as class folders give it.
    Raises BadPair as the functions above.
    """
    meta = read_meta(content["json"]) if "json" in content else {}
    if "cls" in content:
        meta.setdefault("label", read_caption(content["cls"]))
    if "txt" in content and not is_list_as_text(text := read_caption(content["txt"]), meta):
        return text, meta
    captions = meta_captions(meta)
    label = meta.get("label")
    return next(iter(captions), "" if label is None else clean_caption(str(label))), with_captions(meta, captions)


def caption_candidates(pair: Pair) -> tuple[str, ...]:
    """The list ``captions`` of the pair's JSON, from which ``mitigation.caption_choice`` draws; often empty."""
    captions = pair.meta.get("captions")
    if not isinstance(captions, list):
        return ()
    texts = (text.strip() for text in captions if isinstance(text, str))
    return tuple(text for text in texts if 0 < len(text) <= MAX_CAPTION_CHARS)


def json_safe(value: Any, depth: int = 0) -> Any:
    """``value`` as strict JSON in UTF-8 can hold it; raises ValueError if it is nested more than MAX_JSON_DEPTH deep.

    Dates and other types become text, NaN and infinity null, lone surrogates question marks.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > MAX_JSON_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, Mapping):
        return {json_safe(str(name)): json_safe(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(inner, depth + 1) for inner in value]
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """The image in the bytes of a file, opaque and of 8 bits per channel: what every consumer of images sees.

    Its pixels are not decoded yet, except in modes that Pillow converts and resizes in different ways (see ``_flat``).

    Raises:
        BadPair: not one of IMAGE_FORMATS, more than MAX_PIXELS, an aspect ratio above MAX_ASPECT_RATIO, or damaged, even
            if the damage only shows inside the ``with`` block.
    """
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
                raise BadPair(f"the image is more than {MAX_ASPECT_RATIO} times as long as wide")
            yield image if image.mode in PLAIN_MODES and not image.has_transparency_data else _flat(image)
    except (BadPair, UserError, MemoryError):  # which images can be used must not depend on the free memory
        raise
    except Image.DecompressionBombError:
        raise BadPair(f"the image has more than {MAX_PIXELS // 1_000_000} megapixels") from None
    except Exception:  # Pillow's decoders raise nearly any exception for damaged data
        raise BadPair("the image does not decode") from None


def _flat(image: Image.Image) -> Image.Image:
    """The image in RGB, with its orientation: transparent pixels on white, of 16 bits per channel the upper 8."""
    exif = image.info.get("exif")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGB", layer.size, "white")
        image.paste(layer, mask=layer)
    image = image if image.mode == "RGB" else image.convert("RGB")
    if exif:
        image.info["exif"] = exif
    return image
