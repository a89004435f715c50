"""Parquet as the Hub writes it: images in the table, columns guessed by their names, many files and row groups."""

import json
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dejavu_lit.data.readers import rows
from dejavu_lit.data.readers.folder import FolderReader
from dejavu_lit.data.readers.scenes import SceneReader
from dejavu_lit.data.readers.table import TableReader
from dejavu_lit.data.shards import BadPair
from dejavu_lit.utils.errors import UserError
from tests.conftest import call
from tests.data.images import encoded, sample_image
from tests.data.preparing import prepare

IMAGES = [encoded(sample_image(number)) for number in range(4)]
CAPTIONS = ["a cat", "a dog", "a cow", "a hen"]
HUB = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def auto(path: object, **options: object) -> TableReader:
    return TableReader(**({"path": path, "image": "auto", "caption": "auto", "key": "auto"} | options))  # type: ignore[arg-type]


def read(reader: TableReader) -> list:
    return [reader.read(key)[0] for key in reader.keys()]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for number, data in enumerate(IMAGES):
        (tmp_path / f"pics/{number}.png").write_bytes(data)
    return tmp_path


PATHS = [f"pics/{number}.png" for number in range(4)]
HUB_ROWS = [{"bytes": data, "path": path} for data, path in zip(IMAGES, PATHS, strict=True)]


@pytest.mark.parametrize(
    ("images", "has_path"),
    [
        (pa.array(IMAGES, pa.binary()), False),
        (pa.array(IMAGES, pa.large_binary()), False),
        (pa.array(HUB_ROWS, HUB), True),
        (pa.array([{"bytes": None, "path": path} for path in PATHS], HUB), True),
        (pa.array(PATHS), True),
        (pa.array(PATHS).dictionary_encode(), True),
        (pa.array(PATHS, pa.large_string()), True),
    ],
)
@pytest.mark.parametrize(
    "captions",
    [
        *(pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.string())),
        *(pa.binary(), pa.list_(pa.binary())),  # as writers without parquet's type for text have it
    ],
)
def test_every_kind_of_image_and_caption_column(pictures, images, has_path, captions):
    texts = [[text] for text in CAPTIONS] if pa.types.is_list(captions) else CAPTIONS
    table = pa.table({"image": images, "text": pa.array(texts, captions), "label": [3, 1, 0, 2]})
    pq.write_table(table, pictures / "t.parquet", row_group_size=2)
    reader = auto(pictures / "t.parquet")
    pairs = read(reader)
    assert [(pair.image, pair.caption, pair.meta["label"]) for pair in pairs] == list(
        zip(IMAGES, CAPTIONS, [3, 1, 0, 2], strict=True)
    )
    expected = (
        [path.removesuffix(".png").replace("/", "-") for path in PATHS] if has_path else [f"{n:09d}" for n in range(4)]
    )
    assert reader.keys() == expected
    assert [pair.meta.get("path") for pair in pairs] == (PATHS if has_path else [None] * 4)


def test_columns_are_guessed_by_the_usual_names_and_said(tmp_path, caplog):
    table = pa.table(
        {
            "title": ["t"] * 4,
            "img": IMAGES,
            "captions": [[c, "x"] for c in CAPTIONS],
            "id": [4, 3, 2, 1],
            "thumb": IMAGES,
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    with caplog.at_level("INFO"):
        pairs = read(auto(tmp_path / "t.parquet"))
    assert "the columns are guessed by their names: image=img, caption=captions, key=id" in caplog.text
    assert "the binary columns thumb are not kept" in caplog.text
    assert [pair.key for pair in pairs] == ["1", "2", "3", "4"]
    assert pairs[0].meta == {"title": "t", "id": 1, "captions": ["a hen", "x"]}


@pytest.mark.parametrize(
    "kind", [pa.map_(pa.string(), pa.binary()), pa.list_(pa.binary(), 1), pa.struct({"a": pa.list_(pa.large_binary())})]
)
def test_columns_with_bytes_inside_are_not_kept(tmp_path, kind):
    value = {"map": [("a", b"x")], "fixed_size_list": [b"x"]}.get(str(kind).partition("<")[0], {"a": [b"x"]})
    table = pa.table({"image": IMAGES, "text": CAPTIONS, "thumb": pa.array([value] * 4, kind)})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [pair.meta for pair in read(auto(tmp_path / "t.parquet"))] == [{}] * 4


def test_an_image_without_a_path_has_the_number_of_its_row_as_the_key(tmp_path):
    images = [{"bytes": IMAGES[0], "path": "a.png"}] * 2 + [{"bytes": IMAGES[1], "path": None}]
    pq.write_table(pa.table({"image": pa.array(images, HUB), "text": CAPTIONS[:3]}), tmp_path / "t.parquet")
    assert auto(tmp_path / "t.parquet").keys() == ["000000002", "a"]


def test_a_column_of_repeated_ids_is_not_guessed_as_the_keys(tmp_path):
    pq.write_table(pa.table({"image": IMAGES, "text": CAPTIONS, "id": [1, 1, 2, 3]}), tmp_path / "t.parquet")
    assert auto(tmp_path / "t.parquet").keys() == [f"{n:09d}" for n in range(4)]


def test_several_columns_of_captions(tmp_path):
    table = pa.table({"image": IMAGES, "short": CAPTIONS, "long": [["very", c] for c in CAPTIONS]})
    pq.write_table(table, tmp_path / "t.parquet")
    pair = read(auto(tmp_path / "t.parquet", caption=["long", "short"]))[0]
    assert (pair.caption, pair.meta["captions"]) == ("very", ["very", "a cat"])


def test_captions_in_entries_of_a_column(tmp_path):
    """``sentences`` of COCO on the Hub, and the answer of a conversation."""
    sentences = [[{"raw": caption, "tokens": [caption]}, {"raw": "more", "tokens": []}] for caption in CAPTIONS]
    talks = [{"turns": [{"value": "<image>"}, {"value": f"This is {caption}"}]} for caption in CAPTIONS]
    pq.write_table(
        pa.table({"image": IMAGES, "sentences": sentences, "talk": talks, "n": [0, 1, 2, 3]}), tmp_path / "t.parquet"
    )
    for caption in ("sentences.raw", "auto"):
        pair = read(auto(tmp_path / "t.parquet", caption=caption))[0]
        assert (pair.caption, pair.meta["captions"], pair.meta["talk"]) == ("a cat", ["a cat", "more"], talks[0])
        assert "sentences" not in pair.meta
    pair = read(auto(tmp_path / "t.parquet", caption="talk.turns.1.value"))[0]
    assert (pair.caption, pair.meta["talk"]) == ("This is a cat", talks[0])  # it may have other entries
    with pytest.raises(
        UserError, match=r"no single column 'sentences\.row'.*its columns are image, sentences, talk, n; choose"
    ):
        read(auto(tmp_path / "t.parquet", caption="sentences.row"))


@pytest.mark.parametrize(("drop", "option"), [("image", "image"), ("text", "caption")])
def test_without_an_image_or_caption_column_the_columns_are_listed(tmp_path, drop, option):
    table = pa.table({"image": IMAGES, "text": CAPTIONS, "score": [1.0] * 4}).drop_columns([drop])
    pq.write_table(table, tmp_path / "t.parquet")
    names = ", ".join(table.column_names)
    with pytest.raises(
        UserError,
        match=rf"no column with a usual name .*its columns are {names}; choose one with data\.reader\.{option}=",
    ):
        auto(tmp_path / "t.parquet").keys()


def test_rows_that_hold_no_image_are_counted_with_a_reason(tmp_path):
    table = pa.table({"image": [IMAGES[0], b"text", None, b""], "text": CAPTIONS})
    pq.write_table(table, tmp_path / "t.parquet")
    reader, reasons = auto(tmp_path / "t.parquet"), []
    for key in reader.keys()[1:]:
        with pytest.raises(BadPair) as reason:
            reader.read(key)
        reasons.append(str(reason.value))
    wrong = "the image is not a JPEG, PNG or WebP"
    assert reasons == [wrong, "it has no image", wrong]
    prepare(reader, tmp_path / "data", {"A": 1})
    assert json.loads((tmp_path / "data/manifest.json").read_text())["skipped"] == {
        wrong: {"count": 2, "examples": ["000000001", "000000003"]},
        "it has no image": {"count": 1, "examples": ["000000002"]},
    }


def test_keys_and_captions_of_a_binary_column_are_text(tmp_path):
    captions = ["eine Kätzin".encode(), b"\xff", b" a cow ", None]
    table = pa.table({"image": IMAGES, "text": captions, "id": [b"one", b"two", b"\xff\x00", b"four"]})
    pq.write_table(table, tmp_path / "t.parquet")
    reader = auto(tmp_path / "t.parquet", key="id")
    assert reader.keys() == ["ff00", "four", "one", "two"]  # a digest is written out
    assert [reader.read(key)[0].caption for key in ("one", "ff00", "four")] == ["eine Kätzin", "a cow", ""]
    with pytest.raises(BadPair, match="its caption is not UTF-8"):
        reader.read("two")


def test_whole_numbers_with_a_fraction_are_keys_and_parts_of_paths_without_it(pictures):
    """pandas makes a column of numbers fractions if one is missing."""
    pq.write_table(pa.table({"id": [0.0, 1.0, 2.0, None], "text": CAPTIONS}), pictures / "t.parquet")
    reader = auto(pictures / "t.parquet", image="pics/{id}.png")
    assert reader.read("pics-2")[0].image == IMAGES[2]
    pq.write_table(pa.table({"id": [0.0, 1.0, 2.5, 7.0], "image": IMAGES, "text": CAPTIONS}), pictures / "t.parquet")
    assert auto(pictures / "t.parquet").keys() == ["0", "1", "2_5", "7"]


@pytest.mark.parametrize("kind", [HUB, pa.binary(), pa.string()])
def test_a_column_of_lists_of_images_is_refused(tmp_path, kind):
    values = {HUB: HUB_ROWS, pa.binary(): IMAGES, pa.string(): PATHS}[kind]
    table = pa.table({"image": pa.array([[value] for value in values], pa.list_(kind)), "text": CAPTIONS})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(
        UserError, match=r"'image' of .* has lists of images; write one image per row, or choose another"
    ):
        auto(tmp_path / "t.parquet").keys()


def test_many_files_and_row_groups_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CACHED_BYTES", 3 * len(IMAGES[0]))
    for number in range(5):
        table = pa.table({"image": IMAGES, "text": [f"{number} {c}" for c in CAPTIONS]})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=1)
    reader = auto(tmp_path / "*.parquet")
    for key in reversed(reader.keys()):
        file, row = divmod(int(key), 4)
        pair = reader.read(key)[0]
        assert (pair.image, pair.caption) == (IMAGES[row], f"{file} {CAPTIONS[row]}")
        cache = reader._rows._cache
        assert len(cache) <= 3
        assert reader._rows._cached_bytes == sum(group.nbytes for group in cache.values())
    assert auto(tmp_path).keys() == reader.keys()
    before = reader.fingerprint()
    pq.write_table(table.slice(1), tmp_path / "4.parquet")
    assert auto(tmp_path / "*.parquet").fingerprint() != before
    pq.write_table(table.rename_columns(["image", "other"]), tmp_path / "4.parquet")
    with pytest.raises(
        UserError, match=r"4.parquet has the columns image, other, and the files before it have image, text"
    ):
        auto(tmp_path / "*.parquet").keys()
    with pytest.raises(UserError, match=r"none/\*.parquet does not exist; check data.reader.path="):
        auto(tmp_path / "none" / "*.parquet").keys()


@pytest.mark.parametrize("damage", ["empty", "page"])
def test_of_many_files_the_damaged_one_is_named(tmp_path, damage):
    table = pa.table({"image": IMAGES, "text": CAPTIONS})
    for number in range(3):
        pq.write_table(table, tmp_path / f"{number}.parquet", compression="none")
    path = tmp_path / "1.parquet"
    path.write_bytes(b"" if damage == "empty" else b"PAR1" + bytes(40) + path.read_bytes()[44:])
    with pytest.raises(UserError, match=r"1\.parquet cannot be read as a table"):
        read(auto(tmp_path))


@pytest.mark.parametrize("form", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("outside", [400, 1 << 30])
def test_an_arrow_file_whose_captions_lie_outside_of_it_is_damaged(tmp_path, outside, form):
    """pyarrow would take what else is in memory there for a caption, or crash."""
    path = tmp_path / "data.arrow"
    table = pa.table({"path": [f"{n}.jpg" for n in range(9)], "caption": ["caption"] * 9})
    with pa.OSFile(str(path), "wb") as file, form(file, table.schema) as writer:
        writer.write_table(table)
    assert TableReader(path).keys() == [f"{n}" for n in range(9)]
    content, starts = path.read_bytes(), [7 * n for n in range(10)]
    changed = struct.pack("<10i", 0, *(outside + start for start in starts[1:]))
    assert content.count(struct.pack("<10i", *starts)) == 1
    path.write_bytes(content.replace(struct.pack("<10i", *starts), changed))
    with pytest.raises(UserError, match=r"data\.arrow cannot be read as a table"):
        TableReader(path).keys()


@pytest.mark.parametrize("state", [{}, {"_data_files": [{"filename": f"data-{n:05d}-of-00002.arrow"} for n in (0, 1)]}])
def test_arrow_files_of_save_to_disk(tmp_path, state):
    table = pa.table({"image": pa.array(HUB_ROWS, HUB), "text": CAPTIONS})
    for number in range(2):
        path = tmp_path / f"data-{number:05d}-of-00002.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table.slice(2 * number, 2))
    (tmp_path / "state.json").write_text(json.dumps(state))
    if state:
        (tmp_path / "cache-0123456789abcdef.arrow").write_bytes(path.read_bytes())  # of a map or filter
    pairs = read(auto(tmp_path))
    assert [(pair.key, pair.image, pair.caption) for pair in pairs] == [
        (f"pics-{n}", IMAGES[n], CAPTIONS[n]) for n in range(4)
    ]
    (tmp_path / "state.json").unlink()  # as in the cache of datasets
    (tmp_path / "cache-0123456789abcdef.arrow").write_bytes(path.read_bytes())
    assert len(rows.table_files(tmp_path)) == 2
    (tmp_path / "state.json").write_text(json.dumps(state))
    if state:
        path.unlink()
        with pytest.raises(UserError, match=r"state\.json lists 'data-00001-of-00002\.arrow', which is not beside it"):
            auto(tmp_path).keys()


def test_a_parquet_of_the_scenes_gives_the_shards_of_the_folder(tmp_path):
    source = SceneReader(count=60)
    folder = tmp_path / "folder"
    folder.mkdir()
    pairs = [source.read(key)[0] for key in source.keys()]
    for pair in pairs:
        (folder / f"{pair.key}.{pair.extension}").write_bytes(pair.image)
        (folder / f"{pair.key}.txt").write_text(pair.caption)
    (tmp_path / "hub").mkdir()
    for number in range(3):
        part = pairs[number::3]
        images = [{"bytes": pair.image, "path": f"{pair.key}.{pair.extension}"} for pair in part]
        table = pa.table({"image": pa.array(images, HUB), "caption": [pair.caption for pair in part]})
        pq.write_table(table, tmp_path / f"hub/train-{number}.parquet", row_group_size=7)
    sizes = ["data.sizes={A: 16, B: 16, H: 8, V: 4, P: 16}", "data.near_duplicates=null"]
    for name, path in (("folder", folder), ("parquet", f"{tmp_path}/hub/*.parquet")):
        done = call("prepare", f"data={name}", f"data.reader.path={path}", f"data.dir={tmp_path / name}.out", *sizes)
        assert done.returncode == 0, done.stderr
    tars = sorted(p.relative_to(tmp_path / "folder.out") for p in (tmp_path / "folder.out").rglob("*.tar"))
    assert len(tars) == 5
    for tar in tars:
        assert (tmp_path / "parquet.out" / tar).read_bytes() == (tmp_path / "folder.out" / tar).read_bytes(), tar
    sets = [json.loads((tmp_path / f"{n}.out/manifest.json").read_text())["sets"] for n in ("folder", "parquet")]
    assert sets[0] == sets[1]
    assert FolderReader(folder).keys() == auto(tmp_path / "hub").keys()


@pytest.mark.parametrize("joined_by", ["path", "key"])
def test_five_rows_of_one_image_give_the_shards_of_the_merged_table(tmp_path, joined_by, caplog):
    texts = [[f"{caption} {number}" for number in range(5)] for caption in CAPTIONS]
    images = pa.array(HUB_ROWS, HUB) if joined_by == "path" else pa.array(IMAGES)
    merged = pa.table({"image": images, "caption": texts, "image_id": [f"i{number}" for number in range(4)]})
    rows_of = pa.array([image for _ in range(5) for image in range(4)])  # each image's rows are far apart
    exploded = merged.take(rows_of).set_column(
        1, "caption", pa.array([texts[i][n] for n in range(5) for i in range(4)])
    )
    key = None if joined_by == "path" else "image_id"
    shards = {}
    for name, table in (("merged", merged), ("exploded", exploded)):
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
        caplog.clear()
        with caplog.at_level("INFO"):
            prepare(auto(tmp_path / f"{name}.parquet", key=key), tmp_path / name, {"A": 2, "P": 2})
        shards[name] = [(tmp_path / name / part / "00000.tar").read_bytes() for part in "AP"]
    assert shards["exploded"] == shards["merged"]
    assert "has 20 rows of 4 images" in caplog.text


def test_different_images_under_one_path_stay_apart_and_under_one_key_are_an_error(tmp_path):
    same = [{"bytes": data, "path": "image.png"} for data in (*IMAGES, IMAGES[0])]
    table = pa.table({"image": pa.array(same, HUB), "text": [*CAPTIONS, "again"], "id": [1, 2, 3, 4, 1]})
    pq.write_table(table, tmp_path / "t.parquet")
    captions = [pair.meta.get("captions", pair.caption) for pair in read(auto(tmp_path / "t.parquet"))]
    assert sorted(map(str, captions)) == ["['a cat', 'again']", "a cow", "a dog", "a hen"]
    pq.write_table(table.set_column(2, "id", pa.array([1, 1, 3, 4, 1])), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="key '1' is in rows of several images"):
        auto(tmp_path / "t.parquet", key="id").keys()
