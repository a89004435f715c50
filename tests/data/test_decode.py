"""Images and captions from the bytes of files: what every consumer sees."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dejavu_lit
from dejavu_lit.data.decode import BadPair, meta_captions, open_image
from dejavu_lit.data.scan import decode_and_hash
from dejavu_lit.data.shards import Pair, index_shard, write_shard
from dejavu_lit.data.stream import load_pair, rgb_pixels
from dejavu_lit.evaluation.chunks import decode_image
from dejavu_lit.models.preprocess import Preprocess
from dejavu_lit.objects.base import _decode
from dejavu_lit.report.images import shrink
from tests.data.images import encoded, sample_image

GRAY = np.asarray(sample_image(5).convert("L"))
SIXTEEN = encoded(Image.fromarray(GRAY.astype(np.uint16) << 8))  # PNG of 16 bits per pixel


def loaded(data: bytes, folder: Path) -> np.ndarray:
    index_shard.cache_clear()
    with write_shard(folder / "0.tar") as write:
        write(Pair("k", data, "png", "a caption"))
    return load_pair(index_shard(folder / "0.tar").read(0), rgb_pixels)[0]


def test_too_little_memory_is_not_the_image_s_fault() -> None:
    with pytest.raises(MemoryError), open_image(encoded(Image.fromarray(GRAY))) as image:
        np.asarray(image)[None].repeat(1 << 50, axis=0)


def test_a_png_of_16_bits_is_the_image_of_its_upper_8_bits() -> None:
    with open_image(SIXTEEN) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.stack([GRAY] * 3, axis=-1))


def embedded(data: bytes, folder: Path) -> bytes:
    """The model's input, of fewer pixels than the image."""
    return Preprocess({"size": 16})(decode_image(data)).tobytes()


def detected(data: bytes, folder: Path) -> bytes:
    return np.asarray(_decode(("k", Pair("k", data, "png", "")))[1]).tobytes()


CONSUMERS = {
    "training": lambda data, folder: loaded(data, folder).tobytes(),
    "embedding": embedded,
    "hashing": lambda data, folder: decode_and_hash(data),
    "detectors": detected,
    "report": lambda data, folder: shrink(data, 24),
}
consumers = pytest.mark.parametrize("consumer", CONSUMERS.values(), ids=CONSUMERS)


@consumers
def test_every_consumer_sees_16_bits_as_8(tmp_path: Path, consumer: Callable[[bytes, Path], object]) -> None:
    as_rgb = encoded(Image.fromarray(GRAY).convert("RGB"))
    assert consumer(SIXTEEN, tmp_path) == consumer(as_rgb, tmp_path) is not None


def transparent(mode: str) -> tuple[Image.Image, Image.Image]:
    """An image with a transparent part whose hidden pixels are black, and the same on white in RGB."""
    colors = sample_image(6).convert("RGB").quantize(16).convert("RGB")
    drawn = np.zeros((colors.height, colors.width), bool)
    drawn[5:-7, 3:-9] = True
    hidden = np.where(drawn[..., None], np.asarray(colors), 0).astype(np.uint8)
    if mode in ("LA", "L"):
        hidden = np.stack([hidden[..., 1]] * 3, axis=-1)
    visible = Image.fromarray(np.where(drawn[..., None], hidden, 255).astype(np.uint8))
    layer = Image.fromarray(np.dstack([hidden, drawn.astype(np.uint8) * 255]), "RGBA")
    return (layer.quantize(32, method=Image.Quantize.FASTOCTREE) if mode == "P" else layer.convert(mode)), visible


@consumers
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_every_consumer_sees_transparent_pixels_on_white(
    tmp_path: Path, consumer: Callable[[bytes, Path], object], mode: str
) -> None:
    image, visible = transparent(mode)
    assert consumer(encoded(image), tmp_path) == consumer(encoded(visible), tmp_path) is not None


@consumers
def test_every_consumer_sees_a_palette_as_its_colors(tmp_path: Path, consumer: Callable[[bytes, Path], object]) -> None:
    image, _ = transparent("P")
    assert image.mode == "P"
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image.convert("RGBA"))
    assert consumer(encoded(image), tmp_path) == consumer(encoded(flat.convert("RGB")), tmp_path) is not None


def test_the_orientation_survives() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(GRAY.astype(np.uint16) << 8).save(file, "PNG", exif=exif)
    with open_image(file.getvalue()) as image:
        assert image.getexif()[0x0112] == 6


def test_images_of_pairs_are_opened_in_one_place() -> None:
    root = Path(dejavu_lit.__file__).parent
    users = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if "Image.open(" in path.read_text()}
    assert users == {
        "data/decode.py",
        "data/readers/scenes.py",  # emoji that a package brings
        "report/dashboard.py",  # figures that the report has drawn itself
    }


def test_captions_of_a_pairs_json() -> None:
    assert meta_captions({}) == []
    assert meta_captions({"caption": " a "}) == ["a"]
    assert meta_captions({"caption": ["a", None, "", "b", "a"]}) == ["a", "b"]
    assert meta_captions({"captions": ["a", 3, "b"]}) == ["a", "b"]
    assert meta_captions({"captions": "not a list"}) == []
    assert meta_captions({"caption": "a", "captions": ["b"]}) == ["a"]
    with pytest.raises(BadPair, match="not text"):
        meta_captions({"caption": [1]})
