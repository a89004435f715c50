import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from dejavu_lit.data.key_lists import match_lists
from dejavu_lit.data.readers.table import ParquetReader, TableReader
from dejavu_lit.data.shards import BadPair
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image

COLUMNS: dict[str, list[Any]] = {
    "path": ["pics/0001.png", "pics/0002.png", "pics/0001.png"],
    "caption": ["a cat, sitting", 'a "dog"\nrunning', "the same cat"],
    "id": ["007", "08", "9"],
    "score": [1.5, None, 3.0],
    "when": [date(2020, 1, 2), None, date(2021, 3, 4)],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pics").mkdir()
    for number in (1, 2):
        (tmp_path / f"pics/{number:04d}.png").write_bytes(encoded(sample_image(number)))
    table = pa.table(COLUMNS)
    pyarrow.csv.write_csv(table, tmp_path / "pairs.csv")
    pyarrow.csv.write_csv(table, tmp_path / "pairs.tsv", pyarrow.csv.WriteOptions(delimiter="\t"))
    pq.write_table(table.append_column("bytes", pa.array([b"\xff"] * 3)), tmp_path / "pairs.parquet")
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row, default=str) for row in table.to_pylist()))
    return tmp_path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_all_formats_give_the_same_pairs(folder: Path, kind: str) -> None:
    reader = TableReader(folder / f"pairs.{kind}", key="id")
    keys = reader.keys()
    assert keys == ["007", "08"]
    pairs = [reader.read(key)[0] for key in keys]
    assert [pair.caption for pair in pairs] == COLUMNS["caption"][:2]
    assert pairs[1].image == (folder / "pics/0002.png").read_bytes()
    assert pairs[0].meta == {
        "path": "pics/0001.png",
        "id": "007",
        "score": 1.5,
        "when": "2020-01-02",
        "captions": ["a cat, sitting", "the same cat"],
    }
    assert pairs[1].meta["score"] is None
    assert reader.annotator is None


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_guessed_columns_of_a_csv_stay_text_and_find_the_delimiter(
    folder: Path, delimiter: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [["file_name", "text", "id", "n", "n"], ["pics/0001.png", "1", "000123", "5", "5"]]
    (folder / "guess.csv").write_text("\n".join(map(delimiter.join, lines)))
    pair, _ = ParquetReader(folder / "guess.csv").read("000123")
    assert (pair.caption, pair.meta) == ("1", {"id": "000123", "path": "pics/0001.png"})
    assert "the columns n are not kept: their names occur twice" in caplog.text


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_rows_of_one_image_are_one_pair_with_several_captions(
    folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    paths = ["pics/0001.png", "pics/0002.png", "./pics/0001.png", str(folder / "pics/0001.png"), "pics/0001.png"]
    table = pa.table({"path": paths, "caption": ["", "a dog", "first", "second", "first"], "n": range(5)})
    path = folder / f"rows.{kind}"
    pyarrow.csv.write_csv(table, path) if kind == "csv" else pq.write_table(table, path)
    reader = TableReader(path)
    with caplog.at_level("INFO"):
        assert reader.keys() == ["pics-0001", "pics-0002"]
    several, single = (reader.read(key)[0] for key in reader.keys())
    assert (several.caption, several.meta["captions"], several.meta["n"]) == ("first", ["first", "second"], 0)
    assert (single.caption, single.meta) == ("a dog", {"path": "pics/0002.png", "n": 1})
    assert "has 5 rows of 2 images" in caplog.text


def test_json_lines_as_image_folders_of_the_hub_have_them(folder: Path) -> None:
    """metadata.jsonl: paths in file_name; captions may be lists, further values of any kind, and fields be missing."""
    rows = [
        {"file_name": "pics/0001.png", "text": ["a cat", "a pet"], "mixed": 1},
        {"text": ["a dog"], "file_name": "pics/0002.png", "mixed": {"n": [2]}, "source": "web"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    reader = ParquetReader(folder / "metadata.jsonl")
    first, second = (reader.read(key)[0] for key in reader.keys())
    assert (first.caption, first.meta["captions"], second.caption) == ("a cat", ["a cat", "a pet"], "a dog")
    assert [p.meta["mixed"] for p in (first, second)] == ["1", "{'n': [2]}"]
    assert [p.meta["source"] for p in (first, second)] == [None, "web"]
    ids = [{"path": "pics/0001.png", "caption": "a", "id": 7}, {"path": "pics/0002.png", "caption": "b", "id": "x7"}]
    (folder / "ids.jsonl").write_text("\n".join(map(json.dumps, ids)))
    assert TableReader(folder / "ids.jsonl", key="id").keys() == ["7", "x7"]
    (folder / "mixed.jsonl").write_text('{"path": "pics/0001.png", "caption": "a"}\n{"path": "b", "caption": ["b"]}\n')
    with pytest.raises(UserError, match=r"mixed.jsonl cannot be read as a table"):
        TableReader(folder / "mixed.jsonl").keys()
    (folder / "list.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"not all JSON objects"):
        TableReader(folder / "list.jsonl").keys()
    (folder / "metadata.json").write_text(json.dumps(rows))  # a list of objects
    assert [ParquetReader(folder / "metadata.json").read(key)[0] for key in reader.keys()] == [first, second]
    (folder / "coco.json").write_text('{"images": [1]}')
    with pytest.raises(UserError, match=r"no single column 'path'; its columns are images;"):
        TableReader(folder / "coco.json").keys()


def test_json_files_with_one_row_or_none(folder: Path) -> None:
    """An object without a list of objects is a row; nested entries of a file may all be empty."""
    filled = {"info": {}, "rows": [{"path": "pics/0001.png", "s": [{"raw": "a"}, {"raw": "b"}]}]}
    for name, content in (
        ("a", {"info": {}, "rows": []}),
        ("b", [{"path": "pics/0002.png", "s": [{"raw": "one"}]}]),
        ("c", filled),
        ("d", {"rows": [{"path": "pics/0003.png", "s": []}]}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content))
    reader = TableReader(folder / "?.json", caption="s.raw")
    assert reader.keys() == ["pics-0001", "pics-0002", "pics-0003"]
    assert [reader.read(key)[0].caption for key in reader.keys()[:2]] == ["a", "one"]
    with pytest.raises(UserError, match=r"a\.json has no single column 'path'"):
        TableReader(folder / "a.json").keys()
    (folder / "pandas.json").write_text('{"path": {"0": "pics/0001.png"}, "caption": {"0": "a"}}')
    with pytest.raises(
        UserError, match=r"its entries are objects; write a list of rows, as pandas does with orient='rec"
    ):
        TableReader(folder / "pandas.json").keys()
    (folder / "one.json").write_text('{"path": "pics/0001.png", "caption": "alone"}')
    assert TableReader(folder / "one.json").read("pics-0001")[0].caption == "alone"


def test_an_object_keeps_its_other_entries(folder: Path) -> None:
    """Such as the owner, by whom ``group=`` groups."""
    row = {"path": "pics/0001.png", "meta": {"caption": "x", "owner": "o"}}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    pair, _ = TableReader(folder / "rows.jsonl", caption="meta.caption").read("pics-0001")
    assert (pair.caption, pair.meta["meta"]) == ("x", row["meta"])
    reader = TableReader(folder / "rows.jsonl", image="path", caption=["meta.caption", "meta.owner"])
    assert reader.read("pics-0001")[0].meta["captions"] == ["x", "o"]


def test_nested_json_with_paths_made_of_columns(folder: Path) -> None:
    """Karpathy's JSON: the only list in an object, captions in a nested list, and paths in two columns."""
    images = [
        {
            "filepath": "pics",
            "filename": f"000{n}.png",
            "cocoid": n,
            "sentences": [{"raw": f"a {n}"}, {"raw": "b", "x": 0}],
        }
        for n in (1, 2)
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "coco", "splits": ["train"]}))
    reader = TableReader(folder / "dataset.json", image="{filepath}/{filename}", caption="sentences.raw")
    assert reader.keys() == ["pics-0001", "pics-0002"]
    pair, _ = reader.read("pics-0002")
    assert (pair.caption, pair.image) == ("a 2", (folder / "pics/0002.png").read_bytes())
    own = {name: value for name, value in images[1].items() if name != "sentences"}
    assert pair.meta == {**own, "path": "pics/0002.png", "captions": ["a 2", "b"]}
    padded = TableReader(
        folder / "dataset.json", image="{cocoid:04d}.png", caption="sentences.0.raw", images=folder / "pics"
    )
    assert [padded.read(key)[0].caption for key in ("0001", "0002")] == ["a 1", "a 2"]
    guessed = TableReader(folder / "dataset.json", image="{filepath}/{filename}", caption="auto").read("pics-0002")[0]
    assert (guessed.caption, guessed.meta) == (pair.caption, pair.meta)
    (folder / "languages.csv").write_text("image,caption,caption.en\npics/0001.png,ein Bild,a picture\n")
    pair, _ = TableReader(folder / "languages.csv", image="image", caption="caption.en").read("pics-0001")
    assert (pair.caption, pair.meta["caption"]) == ("a picture", "ein Bild")
    for options, problem in (
        ({"image": "{filepath}/{filenam}"}, "no single column 'filenam' .did you mean 'filename'"),
        ({"caption": "sentences.row"}, "no single column 'sentences.row' .did you mean 'sentences'"),
    ):
        wanted = {"image": "filename", "caption": "sentences.raw", **options}
        with pytest.raises(UserError, match=problem):
            TableReader(folder / "dataset.json", **wanted).keys()
    (folder / "two.json").write_text(json.dumps({"images": images, "annotations": images}))
    with pytest.raises(UserError, match="several lists of objects: images, annotations; write one"):
        TableReader(folder / "two.json").keys()


def test_parts_of_columns_in_a_pattern(folder: Path) -> None:
    (folder / "parts.csv").write_text("id,caption\n0001s,a cat\n")
    reader = TableReader(folder / "parts.csv", image="pic{id[4:]}/{id[:4]}.png")
    assert reader.read("pics-0001")[0].caption == "a cat"
    for place in ("{id:2}", "{id[-1:]}", "{id[0]}", "{id", "{}"):
        with pytest.raises(UserError, match=r"has braces that do not name a column; write \{id\}"):
            TableReader(folder / "parts.csv", image=f"pics/{{id}}{place}.png").keys()


def test_an_empty_column_of_a_pattern_is_no_path(folder: Path) -> None:
    rows = ['{"id": "1", "part": "0", "caption": "a"}', '{"id": "2", "part": null, "caption": "b"}', "{"]
    (folder / "lines.json").write_text("\n".join(rows[:2]))  # JSON lines under the name of JSON
    reader = TableReader(folder / "lines.json", image="pics/{part}{id:03}.png", key="id")
    assert reader.read("1")[0].meta["path"] == "pics/0001.png"
    with pytest.raises(BadPair, match="it has no image path"):
        reader.read("2")
    (folder / "lines.json").write_text("\n".join(rows))
    with pytest.raises(UserError, match=r"cannot be read as a table \(line 3: Expecting property name"):
        TableReader(folder / "lines.json").keys()


def test_a_wrong_folder_of_images_is_shown_with_a_path(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    TableReader(folder / "pairs.csv").keys()
    assert "none of the first images exists" not in caplog.text
    reader = TableReader(folder / "pairs.csv", images=folder / "pics")
    assert reader.keys() == reader.keys()
    assert caplog.text.count("none of the first images exists") == 1
    assert f"none of the first images exists: {folder}/pics/pics/0001.png; check data.reader.image=" in caplog.text


def test_addresses_of_images_are_refused(folder: Path) -> None:
    (folder / "laion.csv").write_text("URL,TEXT\nhttps://a.b/1.jpg,a\n,b\nhttps://a.b/2.jpg,c\n")
    with pytest.raises(
        UserError, match=r"are addresses \(https://a.b/1.jpg\); download them first, e.g. by img2dataset"
    ):
        TableReader(folder / "laion.csv", image="URL", caption="TEXT").keys()


def test_a_table_without_a_header_line_as_flickr30k_has_it(folder: Path) -> None:
    """``.token``: a tab, five rows per image, their numbers behind the file's name."""
    lines = [
        "0001.png#0\tA dog , a cat",
        '0001.png#1\tTwo "pets" .',
        '0002.png#0\t"Hi" says a man',
        "0002.png#12\tA man",
    ]
    (folder / "results.token").write_text("\n".join(lines))
    options = {"image": "image", "images": folder / "pics"}
    reader = TableReader(folder / "results.token", header=["image", "caption"], **options)
    assert reader.keys() == ["0001", "0002"]
    captions = [reader.read(key)[0].meta["captions"] for key in reader.keys()]
    assert captions == [["A dog , a cat", 'Two "pets" .'], ['"Hi" says a man', "A man"]]
    assert reader.fingerprint()["header"] == ["image", "caption"]
    with pytest.raises(UserError, match=r"a file without a header line with data\.reader\.header="):
        TableReader(folder / "results.token", **options).keys()
    with pytest.raises(UserError, match=r"several columns 'image'; its columns are image, image; choose"):
        TableReader(folder / "results.token", header=["image", "image"], **options).keys()
    (folder / "parts.txt").write_text("a.png,x\n")
    with pytest.raises(UserError, match=r"Expected 3 columns.*give data\.reader\.delimiter="):
        TableReader(folder / "parts.txt", header=["image", "caption", "x"]).keys()
    for kind in ("jsonl", "parquet"):
        with pytest.raises(UserError, match=r"has its own column names; remove data\.reader\.header="):
            TableReader(folder / f"pairs.{kind}", header=["path", "caption"]).keys()


def test_paths_may_be_relative_to_another_folder(folder: Path) -> None:
    (folder / "texts").mkdir()
    table = folder / "texts" / "captions.txt"
    table.write_text("path,caption\n0001.png,a\n0002.png,b\n0001.png,c\n")
    reader = TableReader(table, images=folder / "pics")
    assert reader.keys() == ["0001", "0002"]
    pair = reader.read("0001")[0]
    assert pair.image == (folder / "pics/0001.png").read_bytes()
    assert pair.meta == {"path": "0001.png", "captions": ["a", "c"]}
    assert reader.fingerprint()["images"] == str(folder / "pics")
    assert "images" not in TableReader(table).fingerprint()
    with pytest.raises(UserError, match=r"the folder of images .*none does not exist; check data.reader.images="):
        TableReader(table, images=folder / "none")


def test_tables_of_several_files_are_one(folder: Path) -> None:
    for number in (1, 2):
        (folder / f"part{number}.csv").write_text(f"path,caption\npics/{number:04d}.png,caption {number}\n")
    reader = TableReader(folder / "part*.csv")
    assert [reader.read(key)[0].caption for key in reader.keys()] == ["caption 1", "caption 2"]


def test_a_key_may_repeat_for_one_image_only(folder: Path) -> None:
    (folder / "ids.csv").write_text("path,caption,id\npics/0001.png,a,7\npics/0001.png,b,7\npics/0002.png,c,8\n")
    assert TableReader(folder / "ids.csv", key="id").keys() == ["7", "8"]


def test_lists_of_captions_in_parquet(folder: Path) -> None:
    table = pa.table({"path": ["pics/0001.png"], "caption": [["a", "b"]]})
    pq.write_table(table, folder / "lists.parquet")
    pair = TableReader(folder / "lists.parquet").read("pics-0001")[0]
    assert (pair.caption, pair.meta["captions"]) == ("a", ["a", "b"])


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        (json.dumps(["it's", 'a "b" \U0001f600']), ["it's", 'a "b" \U0001f600']),  # as Flickr30k's on the Hub
        (json.dumps(["a", "b"], indent=1), ["a", "b"]),
        (str(["it's", "b"]), ["it's", "b"]),  # as pandas writes it
        (str(np.array(["it's " + "a" * 60, 'a "b"', "c\n'd'"], dtype=object)), ["it's " + "a" * 60, 'a "b"', "c\n'd'"]),
        ("['a' ...", ["['a' ..."]),
        ("['" + "\\'" * 4000 + "']", ["'" * 4000]),
        ('["a" and "b"', ['["a" and "b"']),
        ('["a", 1]', ['["a", 1]']),
        ("['a'," + "-" * 6000 + "1]", ["['a'," + "-" * 6000 + "1]"]),  # too deep for Python's parser
    ],
)
def test_lists_of_captions_in_a_csv(folder: Path, cell: str, captions: list[str]) -> None:
    pyarrow.csv.write_csv(pa.table({"path": ["pics/0001.png"], "caption": [cell]}), folder / "lists.csv")
    pair = TableReader(folder / "lists.csv").read("pics-0001")[0]
    assert (pair.caption, pair.meta.get("captions", captions)) == (captions[0], captions)


def test_keys_of_absolute_paths_do_not_change_with_the_folder(tmp_path: Path) -> None:
    keys = []
    for place in ("first", "elsewhere/deeper"):
        files = [tmp_path / place / file for file in ("a/1.png", "b/1.png", "b/2 3.png")]
        (tmp_path / "pairs.csv").write_text("path,caption\n" + "".join(f"{file},c\n" for file in files))
        reader = TableReader(tmp_path / "pairs.csv")
        keys.append(reader.keys())
        assert match_lists({"A": [str(files[2])]}, keys[-1], reader.listed_name) == ({"A": ["b-2_3"]}, {"A": 0})
    assert keys == [["a-1", "b-1", "b-2_3"]] * 2


def test_the_delimiter_is_an_option(folder: Path) -> None:
    (folder / "semicolon.csv").write_text("path;caption\npics/0001.png;a, b\n")
    for reader in (TableReader(folder / "semicolon.csv"), TableReader(folder / "semicolon.csv", delimiter=";")):
        assert reader.read("pics-0001")[0].caption == "a, b"
    with pytest.raises(UserError, match="no single column 'path'"):
        TableReader(folder / "semicolon.csv", delimiter="|").keys()


def test_other_columns_and_absolute_paths(folder: Path) -> None:
    table = pa.table({"filepath": [str(folder / "pics/0001.png")], "title": ["t"], "caption": ["kept"]})
    pq.write_table(table, folder / "other.parquet")
    (key,) = (reader := TableReader(folder / "other.parquet", image="filepath", caption="title")).keys()
    pair = reader.read(key)[0]
    assert (pair.caption, pair.meta["caption"]) == ("t", "kept")


def test_bad_rows_say_why(folder: Path) -> None:
    (folder / "bad.csv").write_text("path,caption\n,no path\npics/none.png,x\npics/0001.png,\n")
    reader = TableReader(folder / "bad.csv")
    reasons = {}
    keys = reader.keys()
    for key in keys:
        try:
            reasons[key] = reader.read(key)[0].caption
        except BadPair as reason:
            reasons[key] = str(reason)
    assert sorted(reasons.values()) == ["", "it has no image path", "the image does not exist"]


def test_errors_name_the_mistake(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"no single column 'captoin' \(did you mean 'caption'\?\).*with data\.reader\.caption="
    ):
        TableReader(folder / "pairs.csv", caption="captoin").keys()
    (folder / "by_id.json").write_text(json.dumps({f"id{row:02d}": "a" for row in range(50)}))
    with pytest.raises(UserError, match=r"its columns are id00, .*, id39, …; choose one with data\.reader\.image="):
        TableReader(folder / "by_id.json").keys()
    (folder / "same.csv").write_text("path,caption,id\na.png,b,same\nc.png,d,same\n")
    with pytest.raises(UserError, match=r"key 'same' is in rows of several images"):
        TableReader(folder / "same.csv", key="id").keys()
    with pytest.raises(UserError, match=r"none.csv does not exist; check data.reader.path="):
        TableReader(folder / "none.csv").fingerprint()
    (folder / "pairs.xlsx").write_text("")
    with pytest.raises(UserError, match=r"\.csv, \.tsv, \.jsonl or \.json"):
        TableReader(folder / "pairs.xlsx").keys()
    (folder / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"broken.parquet cannot be read as a table"):
        TableReader(folder / "broken.parquet").keys()
    (folder / "empty.csv").write_text("path,caption\n")
    assert TableReader(folder / "empty.csv").keys() == []  # which prepare refuses, of any reader
    (folder / "keyless.csv").write_text("path,caption,id\na.png,b,\n")
    with pytest.raises(UserError, match=r"row 1 of .* has no key"):
        TableReader(folder / "keyless.csv", key="id").keys()


def test_a_column_path_stays_the_users_and_absolute_paths_are_below_the_common_folder(folder: Path) -> None:
    (folder / "own.csv").write_text("image,caption,path\npics/0001.png,a,shelf 4\n")
    assert TableReader(folder / "own.csv", image="image").read("pics-0001")[0].meta == {"path": "shelf 4"}
    pictures = [folder / f"pics/{number:04d}.png" for number in (1, 2)]
    (folder / "absolute.csv").write_text("path,caption\n" + "".join(f"{picture},a\n" for picture in pictures))
    reader = TableReader(folder / "absolute.csv")
    assert [reader.read(key)[0].meta for key in reader.keys()] == [{"path": "0001.png"}, {"path": "0002.png"}]
