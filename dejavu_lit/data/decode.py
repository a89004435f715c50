"""A pair's caption and JSON from bytes of unknown origin: decoded within stated limits, or refused with the reason."""

import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from PIL import Image

from dejavu_lit.utils.errors import UserError

LONGEST_CAPTION = 10_000  # characters: tokenizers take minutes for a megabyte without a blank
LARGEST_JSON = 16 << 20  # bytes
EMPTY = "its caption is empty"
DEEPEST = 50  # lists and objects within each other


class BadPair(Exception):
    """A pair that cannot be used; the text says why, without its key. Readers skip and count it by that reason."""


def read_text(data: bytes) -> str:
    """A caption from the bytes of its file, white space around it removed; perhaps empty.

    Raises:
        BadPair: not UTF-8, or too long.
    """
    if len(data) > 4 * LONGEST_CAPTION + 3:  # no character of UTF-8 has more bytes; 3 of a mark at the start
        raise BadPair(f"its caption has more than {LONGEST_CAPTION:,} characters")
    try:
        return limited(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise BadPair("its caption is not UTF-8") from None


def limited(caption: str) -> str:
    """The caption without white space around it, half surrogates as question marks; raises BadPair where it is too long."""
    caption = caption.strip()
    if len(caption) > LONGEST_CAPTION:
        raise BadPair(f"its caption has more than {LONGEST_CAPTION:,} characters")
    return str(plain(caption))


def read_meta(data: bytes) -> dict[str, Any]:
    """A pair's JSON from the bytes of its file; {} where it is JSON, but no object.

    NaN and infinity become null, half surrogates question marks.

    Raises:
        BadPair: not UTF-8, no JSON, too large or nested too deeply.
    """
    if len(data) > LARGEST_JSON:
        raise BadPair(f"its JSON has more than {LARGEST_JSON >> 20} MiB")
    try:
        found = plain(json.loads(data.decode("utf-8-sig")))
    except (ValueError, RecursionError):  # ValueError: also of numbers with thousands of digits
        raise BadPair("its JSON does not decode") from None
    return found if isinstance(found, dict) else {}


def meta_caption(meta: Mapping[str, Any]) -> str:
    """The entry ``caption`` of a pair's JSON, "" where there is none; raises BadPair where it is no text or too long."""
    found = meta.get("caption")
    if found is not None and not isinstance(found, str):
        raise BadPair("its caption is no text")
    return limited(found or "")


def plain(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON and UTF-8 can hold it: dates and the like as text, NaN and infinity as null.

    Raises:
        ValueError: lists and objects within each other more than DEEPEST deep.
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth > DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(value, Mapping):
        return {plain(str(name)): plain(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, depth + 1) for inner in value]
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


FORMATS = ("JPEG", "PNG", "WEBP")  # JPEG includes MPO


PIXEL_LIMIT = 100_000_000  # a larger image is taken for a decompression bomb


SIDE_LIMIT = 100  # times as long as wide: models resize the shorter side first, which makes a strip a bomb


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The image in the bytes of a file, its header read and its size checked, its pixels not decoded yet.

    Raises:
        BadPair: none of the formats, more than PIXEL_LIMIT pixels, a side more than SIDE_LIMIT times the other, or damaged,
            also where that shows only in the block.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise Image.DecompressionBombError
            if max(image.size) > SIDE_LIMIT * min(image.size):
                raise BadPair(f"the image is more than {SIDE_LIMIT} times as long as wide")
            yield image
    except (BadPair, UserError):
        raise
    except Image.DecompressionBombError:
        raise BadPair(f"the image has more than {PIXEL_LIMIT // 1_000_000} megapixels") from None
    except Exception:  # Pillow's decoders raise nearly anything for damaged data
        raise BadPair("the image does not decode") from None
