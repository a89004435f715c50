"""Thumbnails: size, names that do not reveal keys, reuse, and unreadable images. Objects and boxes: those of the artifact."""

import io
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.shards import write_shards
from dejavu_lit.data import decode as images
from dejavu_lit.data.halves import open_pool
from dejavu_lit.data.objects import Annotation, Annotator, Failed, write_objects
from dejavu_lit.data.shards import BadPair, Pair, ShardSet, index_shard
from dejavu_lit.report.cards import encode_boxes
from dejavu_lit.report.images import MAX_BOXES, ImageObjects, read_image_objects, shrink, write_thumbnails
from tests.data.images import encoded


def sample_image(size: tuple[int, int], mode: str = "RGB", kind: str = "PNG", **options: object) -> bytes:
    return encoded(Image.new(mode, size), kind, **options)


KINDS = [("RGB", "JPEG"), ("CMYK", "JPEG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "WEBP"), ("I;16", "PNG")]


@pytest.mark.parametrize(("mode", "kind"), KINDS)
def test_every_kind_of_image_becomes_a_small_webp(mode: str, kind: str) -> None:
    with Image.open(io.BytesIO(shrink(sample_image((300, 100), mode, kind), 60)[0])) as small:
        assert small.format == "WEBP"
        assert small.size == (60, 20)


def test_small_images_are_not_enlarged_and_large_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(io.BytesIO(shrink(sample_image((10, 20)), 60)[0])) as small:
        assert small.size == (10, 20)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    with pytest.raises(BadPair, match="megapixels"):
        shrink(sample_image((100, 100)), 60)


def test_exif_orientation_is_applied_and_metadata_dropped() -> None:
    exif = Image.Exif()
    exif[274], exif[270] = 6, "a secret"
    with Image.open(io.BytesIO(shrink(sample_image((40, 20), kind="JPEG", exif=exif), 60)[0])) as small:
        assert small.size == (20, 40)
        assert not small.getexif()


def test_only_requested_keys_get_a_thumbnail_and_broken_images_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [Pair(f"secret{i}", sample_image((30, 30)) if i != 3 else b"broken", "png", "text") for i in range(6)]
    shards = write_shards(tmp_path / "A", pairs, pairs_per_shard=2)
    names = write_thumbnails(shards, ["secret1", "secret3", "secret4"], 16, tmp_path / "thumbs")
    assert set(names) == {"secret1", "secret4"}
    made = {str(p.relative_to(tmp_path / "thumbs")) for p in (tmp_path / "thumbs").rglob("*.webp")}
    assert made == {thumbnail.name for thumbnail in names.values()}
    assert names["secret1"][1:] == (30, 30)
    assert not any("secret" in name for name in made)
    # Thumbnails of an earlier report are used again, without reading an image.
    (tmp_path / "thumbs" / names["secret1"].name).write_bytes(b"earlier")
    again = write_thumbnails(shards, ["secret1"], 16, tmp_path / "new", tmp_path / "thumbs")
    assert again == {"secret1": names["secret1"]}
    assert (tmp_path / "new" / names["secret1"].name).read_bytes() == b"earlier"
    # So are those that another setting of a study has written to the same folder.
    monkeypatch.setattr("dejavu_lit.report.images.shrink", None)
    assert write_thumbnails(shards, ["secret1"], 16, tmp_path / "new") == again


def test_halves_share_their_thumbnails_and_notice_replaced_shards(tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_shards(tmp_path / name, [Pair(f"{name}1", sample_image((30, 30)), "png", "text")])
    pool, first = open_pool(tmp_path), ShardSet.open(tmp_path / "A")
    half = write_thumbnails(pool, ["A1", "B1"], 16, tmp_path / "thumbs")
    whole = write_thumbnails(first, ["A1"], 16, tmp_path / "thumbs")
    for thumbnail in (half["A1"], whole["A1"]):
        (tmp_path / "thumbs" / thumbnail.name).write_bytes(b"earlier")
    for shards, thumbnails in ((pool, half), (first, whole)):  # neither list has replaced the other
        again = write_thumbnails(shards, ["A1"], 16, tmp_path / "new", tmp_path / "thumbs")
        assert again["A1"] == thumbnails["A1"]
        assert (tmp_path / "new" / again["A1"].name).read_bytes() == b"earlier"
    (tmp_path / "thumbs" / half["B1"].name).unlink()  # a listed one that is gone is made again
    assert write_thumbnails(pool, ["B1"], 16, tmp_path / "third", tmp_path / "thumbs") == {"B1": half["B1"]}
    write_shards(tmp_path / "A", [Pair("A1", sample_image((60, 30)), "png", "text")])
    index_shard.cache_clear()
    again = write_thumbnails(open_pool(tmp_path), ["A1"], 16, tmp_path / "fourth", tmp_path / "thumbs")
    assert again["A1"] != half["A1"]


def test_another_image_with_the_same_key_and_size_does_not_reuse_the_thumbnail(tmp_path: Path) -> None:
    made = []
    for number, colour in enumerate(((255, 0, 0), (0, 0, 255))):
        out = io.BytesIO()
        Image.new("RGB", (30, 30), colour).save(out, "PNG")
        shards = write_shards(tmp_path / str(number) / "A", [Pair("one", out.getvalue(), "png", "text")])
        earlier = tmp_path / "0" / "thumbs" if number else None
        names = write_thumbnails(shards, ["one"], 16, tmp_path / str(number) / "thumbs", earlier)
        with Image.open(tmp_path / str(number) / "thumbs" / names["one"].name) as small:
            assert small.convert("RGB").getpixel((8, 8))[2 * number] > 200
        made.append((names["one"], [path.stat().st_size for path in sorted(shards.folder.glob("*.tar"))]))
    assert made[0][1] == made[1][1]
    assert made[0][0] != made[1][0]


def test_objects_and_their_boxes(tmp_path: Path) -> None:
    rotated = Image.Exif()
    rotated[274] = 6
    images = dict.fromkeys("adef", sample_image((40, 30)))
    images |= {"b": b"broken", "c": sample_image((40, 30), kind="JPEG", exif=rotated)}
    pairs = [Pair(key, images[key], "jpg" if key == "c" else "png", "text") for key in sorted(images)]
    write_shards(tmp_path / "A", pairs, pairs_per_shard=2)
    box = [[1.0, 2.0, 3.0, 4.0]]
    rows = [
        Annotation("a", ["dog", "cat", "fox"], [0.5, 0.49, 0.9], [[1, 2, 3, 4], [0, 0, 9, 9], [5, 5, 10.5, 10]]),
        Annotation("b", ["dog"], [0.9], box),
        Annotation("c", ["dog"], [0.9], box),
        Annotation("d", ["dog"] * 60, [i / 60 for i in range(60)], box * 60),
        Failed("e", "the annotator ran out of memory"),
        Annotation("f", ["dog", "cat"], [0.9, 0.9], [[], [0, 0, 0, 5]]),  # objects without a valid box
    ]
    for number, start in enumerate((0, 2, 4)):
        write_objects(tmp_path / "objects" / f"{number:05d}.parquet", rows[start : start + 2], Annotator("made"))

    thumbnails = write_thumbnails(ShardSet.open(tmp_path / "A"), "abcdef", 16, tmp_path / "thumbs")
    objects = read_image_objects([tmp_path / "objects"], "abcdef", 0.5)
    labels = {key: found.labels for key, found in objects.items()}
    assert labels == {key: ["dog"] for key in "bcd"} | {"a": ["dog", "fox"], "e": [], "f": ["cat", "dog"]}
    codes = {"cat": 0, "dog": 1, "fox": 2}
    boxes = {key: encode_boxes(thumbnails.get(key), found, codes) for key, found in objects.items()}
    assert boxes.pop("a") == [40, 30, [2, 5, 5, 10, 10], [1, 1, 2, 3, 4]]
    assert len(boxes.pop("d") or []) == 2 + 30 < MAX_BOXES
    assert boxes == dict.fromkeys("bcef")  # of the broken, rotated, failed, and box-less images
    assert len(read_image_objects([tmp_path / "objects"], "d", 0.0)["d"].boxes) == MAX_BOXES
    # The stored 0.9 is a float32, which is less than 0.9.
    assert read_image_objects([tmp_path / "objects"], "a", 0.9) == {
        "a": ImageObjects(["fox"], [("fox", [5, 5, 10.5, 10])])
    }
    assert read_image_objects([tmp_path / "objects"], [], 0.0) == {}
