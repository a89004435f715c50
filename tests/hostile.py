"""Hostile input for every reader: random bytes, damaged files, wrong JSON, odd captions and images.

A reader returns a valid value or raises a UserError of one sentence; a single pair that cannot be used is a BadPair.
Anything else is a bug. ``DEJAVU_FUZZ=20`` tries twenty times as many examples, different ones in each run.
"""

import json
import os
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image

from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image

FUZZ_FACTOR = int(os.environ.get("DEJAVU_FUZZ", "1"))


def fuzz_settings(examples: int) -> settings:
    """The settings of a fuzz test: the same examples in every run, unless DEJAVU_FUZZ asks for more."""
    return settings(
        max_examples=examples * FUZZ_FACTOR,
        derandomize=FUZZ_FACTOR == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def try_read(read: Callable[[], Any]) -> Any:
    """The result of ``read``, None if it raises a UserError; any other exception fails the test."""
    try:
        return read()
    except UserError as error:
        text = str(error)
        assert text
        assert "Traceback" not in text
        return None


@st.composite
def damaged(draw: st.DrawFn, original: bytes) -> bytes:
    """The file with bytes changed, cut off, repeated or inserted; occasionally random bytes instead."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.binary(max_size=300))
    content = bytearray(original)
    if kind <= 3 and content:
        del content[draw(st.integers(0, len(content) - 1)) :]
    if kind == 4:
        position = draw(st.integers(0, len(content)))
        content[position:position] = draw(st.binary(min_size=1, max_size=40))
    if kind == 5 and content:
        start = draw(st.integers(0, len(content) - 1))
        end = draw(st.integers(start, len(content)))
        content += content[start:end]
    if kind >= 5:
        for position, value in draw(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=12)):
            if content:
                content[position % len(content)] = value
    return bytes(content)


NUMBERS = st.one_of(
    st.integers(-3, 5),
    st.sampled_from([2**31, -(2**63), 2**64, 10**30, 10**400]),
    st.floats(),
)
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "\0", "\ud800", "a\nb", "../x", "/dev/zero", "🙂", "\u202eabc", "x" * 5000, "null", "1e999"]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=6,
)
ODD_JSON = [
    b"",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\0}\0",
    b"{",
    b"nan",
    b'{"a": NaN}',
    b'{"a": -Infinity, "b": 1e999}',
    b'{"a": 1, "a": 2}',
    b"{1: 2}",
    b"[" * 100_000,
    b"[" * 400 + b"]" * 400,
    b'{"a":' * 900 + b"1" + b"}" * 900,
    b"1" * 5000,
    b'"\\ud800"',
    b'{"\\ud83d": "\\udc00"}',
    b"null",
    b"[]",
    b'"text"',
    b"\0",
]


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every entry of a JSON value, the value itself included."""
    paths = [path]
    if isinstance(value, dict):
        paths += [p for name, inner in value.items() for p in _paths(inner, (*path, name))]
    elif isinstance(value, list):
        paths += [p for number, inner in enumerate(value[:3]) for p in _paths(inner, (*path, number))]
    return paths


@st.composite
def wrong_json(draw: st.DrawFn, value: Any) -> bytes:
    """The bytes of a JSON value with entries removed, replaced or of another type; or not JSON at all."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(st.sampled_from(ODD_JSON))
    if kind == 1:
        return draw(damaged(json.dumps(value).encode()))
    copy = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_paths(copy)))
        if not path:
            copy = draw(JSON) if draw(st.integers(0, 5)) == 0 else copy
            continue
        node = copy
        for step in path[:-1]:
            node = node[step]
        if draw(st.integers(0, 3)) == 0:
            del node[path[-1]]
        else:
            node[path[-1]] = draw(JSON)
    return json.dumps(copy).encode()


COLUMNS: list[Callable[[int], pa.Array]] = [
    lambda n: pa.array([None] * n, pa.string()),
    lambda n: pa.array([None] * n),
    lambda n: pa.array(list(range(n)), pa.int64()),
    lambda n: pa.array([float("nan"), *[float("inf")] * (n - 1)][:n]),
    lambda n: pa.array(["same"] * n),
    lambda n: pa.array([None, *["x"] * (n - 1)][:n]),
    lambda n: pa.array([b"\xff\xfe"] * n, pa.binary()),
    lambda n: pa.array([b"\xff\xfe"] * n, pa.binary()).view(pa.string()),
    lambda n: pa.array([["a", None]] * n),
    lambda n: pa.array([[], ["b"]] * n)[:n],
    lambda n: pa.array([[1.0, float("nan")]] * n),
    lambda n: pa.array([[[1.0, 2.0, 3.0]]] * n),
    lambda n: pa.array([[[1e30, -1e30, float("inf"), 0.0]]] * n),
    lambda n: pa.array([{"a": 1}] * n),
    lambda n: pa.array([2**62] * n, pa.timestamp("s")),
    lambda n: pa.array(["x" * 100_000] * n),
    lambda n: pa.array(["a\0b\nc"] * n).dictionary_encode(),
    lambda n: pa.array([""] * n),
]


@st.composite
def wrong_table(draw: st.DrawFn, table: pa.Table) -> pa.Table:
    """The table with columns removed, duplicated, renamed, of another type or with nulls."""
    for _ in range(draw(st.integers(1, 2))):
        index = draw(st.integers(0, max(0, table.num_columns - 1)))
        if not table.num_columns:
            break
        name = table.column_names[index]
        kind = draw(st.integers(0, 7))
        if kind == 0:
            table = table.remove_column(index)
        elif kind == 1:
            table = table.append_column(name, table.column(index))
        elif kind == 2:
            table = table.rename_columns(
                [draw(WORDS.filter(_is_utf8)) if i == index else n for i, n in enumerate(table.column_names)]
            )
        elif kind == 3:
            table = table.slice(0, draw(st.integers(0, table.num_rows)))
        else:
            column = draw(st.sampled_from(COLUMNS))(table.num_rows)
            table = table.set_column(index, name, column)
    return table


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def bomb(kind: str, side: int = 20_000) -> bytes:
    """A small file whose header declares ``side`` × ``side`` pixels."""
    if kind == "PNG":
        raw = zlib.compressobj(9)
        row = bytes(side // 8 + 1)
        rows = b"".join(raw.compress(row) for _ in range(side)) + raw.flush()
        chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
        parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    small = bytearray(encoded(sample_image(1), "JPEG"))
    header = small.index(b"\xff\xc0")  # of the frame: precision, height, width
    small[header + 5 : header + 9] = struct.pack(">HH", side, side)
    return bytes(small)


def images() -> dict[str, tuple[bytes, str | None]]:
    """{name: (the file's bytes, why it cannot be used, None: it can)}, one of each kind found in practice."""
    plain = sample_image(1, 60, 44)
    frames = [sample_image(n, 60, 44) for n in (2, 3, 4)]
    deep = Image.fromarray((np.arange(60 * 44, dtype=np.uint16) * 20).reshape(44, 60))
    palette = sample_image(5, 60, 44).quantize(16)
    exif = Image.Exif()
    exif[274] = 6
    broken, format_, long = (
        "the image does not decode",
        "the image is not a JPEG, PNG or WebP",
        "the image is more than 100 times as long as wide",
    )
    large = "the image has more than 100 megapixels"
    jpeg = encoded(sample_image(6, 200, 200), "JPEG")
    return {
        "plain": (encoded(plain, "JPEG"), None),
        "progressive": (encoded(sample_image(7, 60, 44), "JPEG", progressive=True), None),
        "truncated": (jpeg[: len(jpeg) // 2], broken),
        "cmyk": (encoded(sample_image(8, 60, 44).convert("CMYK"), "JPEG"), None),
        "grey": (encoded(sample_image(9, 60, 44).convert("L"), "JPEG"), None),
        "16bit": (encoded(deep), None),
        "palette": (encoded(palette, "PNG", transparency=3), None),
        "la": (encoded(sample_image(10, 60, 44).convert("LA")), None),
        "rgba": (encoded(sample_image(11, 60, 44).convert("RGBA")), None),
        "bilevel": (encoded(sample_image(12, 60, 44).convert("1")), None),
        "turned": (encoded(sample_image(13, 60, 44), "JPEG", exif=exif), None),
        "webp": (encoded(sample_image(14, 60, 44), "WEBP"), None),
        "webp-moving": (encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]), None),
        "apng": (encoded(sample_image(15, 60, 44), "PNG", save_all=True, append_images=frames), None),
        "gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), format_),
        "tiff": (encoded(sample_image(16, 60, 44), "TIFF"), format_),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', format_),
        "text": (b"this is not an image", format_),
        "nothing": (b"", format_),
        "1x1": (encoded(sample_image(17, 1, 1)), None),
        "1x5000": (encoded(Image.new("RGB", (1, 5000))), long),
        "50x4000": (encoded(sample_image(18, 50, 4000), "JPEG"), None),
        "bomb-png": (bomb("PNG"), large),
        "bomb-jpeg": (bomb("JPEG"), large),
        "bomb-wide": (encoded(Image.new("1", (2_000_000, 1))), long),
        "noise": (b"\xff\xd8\xff" + bytes(range(256)), broken),
        "header": (b"\x89PNG\r\n\x1a\n", broken),
        "riff": (b"RIFF\x04\0\0\0WEBP", broken),
    }


def captions() -> dict[str, tuple[bytes, str | None]]:
    """{name: (the caption file's bytes, why it cannot be used, None: it can)}."""
    long = "its caption has more than 10,000 characters"
    return {
        "plain": (b"a dog and a cat", None),
        "empty": (b"", "its caption is empty"),
        "spaces": (b" \t\r\n \xc2\xa0 \xe3\x80\x80", "its caption is empty"),
        "megabyte": (b"a" * (1 << 20), long),
        "sentences": (b"a dog runs. " * 5000, long),
        "longest": (b"x" * 10_000, None),
        "controls": (bytes(range(1, 32)) + b" word " + b"\x7f\xc2\x80\x1b[31m", None),
        "nul": (b"a\0b \0", None),
        "latin1": (b"caf\xe9", "its caption is not UTF-8"),
        "utf16": ("a dog".encode("utf-16"), "its caption is not UTF-8"),
        "surrogate": (b"\xed\xa0\x80", "its caption is not UTF-8"),
        "mark": (b"\xef\xbb\xbfa dog", None),
        "override": ("a \u202egod\u202c \u2066x".encode(), None),
        "emoji": ("👩‍👩‍👧‍👦 🏳️‍🌈 été".encode(), None),
        "zalgo": (("d" + "\u0301" * 500).encode(), None),
        "points": (b"!!! ... ???", None),
        "html": (b"</script><img src=x onerror=alert(1)> $\\frac{$ =1+1", None),
        "zero-width": ("\u200b\u200d\ufeff".encode(), None),
    }
