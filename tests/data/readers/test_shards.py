import io
import json
import tarfile
from pathlib import Path

import pytest

from dejavu_lit.data.readers.shards import ShardReader
from dejavu_lit.data.readers.table import TableReader
from dejavu_lit.data.shards import BadPair, Pair, write_shard
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def test_shards_of_img2dataset_are_read_unchanged(tmp_path: Path) -> None:
    image = encoded(sample_image(0), "JPEG")
    meta = {
        "caption": "from json",
        "url": "http://x/1.jpg",
        "key": "000000001",
        "status": "success",
        "width": 48,
        "exif": "{}",
    }
    write_tar(
        tmp_path / "00000.tar",
        {
            "000000000.jpg": image,
            "000000000.json": json.dumps({**meta, "key": "000000000"}).encode(),
            "000000000.txt": "von Hand ü".encode(),
            "000000001.jpg": image,
            "000000001.json": json.dumps(meta).encode(),
        },
    )
    (tmp_path / "00000.parquet").write_bytes(b"the downloader's own table")
    (tmp_path / "00000_stats.json").write_text("{}")
    reader = ShardReader(tmp_path)
    keys = reader.keys()
    assert keys == ["000000000", "000000001"]
    first, second = (reader.read(key)[0] for key in keys)
    assert (first.caption, first.image, first.extension) == ("von Hand ü", image, "jpg")
    assert second.caption == "from json"
    assert second.meta == meta


def test_keys_from_the_json(tmp_path: Path) -> None:
    """DataComp's pairs are known by ``uid``; a pair whose JSON is damaged is skipped under the name of its members."""
    image = encoded(sample_image(0), "JPEG")
    texts = {f"{n}.json": json.dumps({"uid": f"{n}f", "caption": f"{n}", "status": "ok"}).encode() for n in (0, 1)}
    images = {f"{n}.jpg": image for n in range(3)}
    write_tar(tmp_path / "0.tar", {**texts, "2.json": b"{", **images})
    reader = ShardReader(tmp_path, key="uid")
    assert reader.keys() == ["0f", "1f", "2"]
    assert [reader.read(key)[0].caption for key in ("0f", "1f")] == ["0", "1"]
    with pytest.raises(BadPair, match="JSON does not decode"):
        reader.read("2")
    assert reader.fingerprint() == {**ShardReader(tmp_path).fingerprint(), "key": "uid"}
    with pytest.raises(UserError, match=r"the JSON of 0 in .*0\.tar has no 'id'"):
        ShardReader(tmp_path, key="id").keys()
    with pytest.raises(UserError, match="status 'ok' occurs in several pairs"):
        ShardReader(tmp_path, key="status").keys()


def test_each_line_of_a_text_may_be_a_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"s0.txt": b"a cat\n a pet \r\n\na cat\n", "s1.txt": b"a dog\nit runs"}
    write_tar(tmp_path / "0.tar", {**members, **{f"s{n}.jpg": encoded(sample_image(n), "JPEG") for n in range(2)}})
    reader = ShardReader(tmp_path, caption="lines")
    first, second = (reader.read(key)[0] for key in reader.keys())
    assert (first.caption, first.meta) == ("a cat", {"captions": ["a cat", "a pet"]})
    assert (second.caption, second.meta) == ("a dog", {"captions": ["a dog", "it runs"]})
    assert not caplog.messages
    plain = ShardReader(tmp_path)
    assert plain.read(plain.keys()[1])[0].caption == "a dog\nit runs"
    assert "if each line is one, give data.reader.caption=lines" in caplog.messages[0]
    assert plain.fingerprint().keys() == reader.fingerprint().keys() - {"caption"}


def test_captions_from_an_entry_of_the_json(tmp_path: Path) -> None:
    """Such as those of recaptioned sets; the usual caption and its list of captions do not mix with them."""
    image, old = encoded(sample_image(0), "JPEG"), {"caption": "old", "captions": ["old", "older"]}
    entries = [{**old, "re_caption": " new "}, {**old, "re_caption": ["a", "b"]}, old]
    texts = {f"{n}.json": json.dumps(entry).encode() for n, entry in enumerate(entries)}
    write_tar(tmp_path / "0.tar", {**texts, "0.txt": b"old", **{f"{n}.jpg": image for n in range(3)}})
    reader = ShardReader(tmp_path, caption="re_caption")
    first, second = (reader.read(key)[0] for key in ("0", "1"))
    assert (first.caption, first.meta) == ("new", {"caption": "old"})
    assert (second.caption, second.meta) == ("a", {"caption": "old", "captions": ["a", "b"]})
    with pytest.raises(BadPair, match="its JSON has no 're_caption'"):
        reader.read("2")
    assert reader.fingerprint()["caption"] == "re_caption"
    assert reader.keys() == ["0", "1", "2"]
    for name, meant in (("lnes", "lines"), ("recaption", "re_caption")):
        with pytest.raises(
            UserError, match=f"none of the first pairs has '{name}' in its JSON .did you mean '{meant}'"
        ):
            ShardReader(tmp_path, caption=name).keys()


def test_a_list_of_captions_by_img2dataset(tmp_path: Path) -> None:
    """Its text is the list in Python's notation; a text that only looks like one stays as it is."""
    image, captions = encoded(sample_image(0), "JPEG"), ["it's a cat", 'a "pet"']
    texts = {"0": str(captions), "1": "['a']", "2": "a text of its own"}
    members = {f"{key}.txt": text.encode() for key, text in texts.items()} | {f"{key}.jpg": image for key in texts}
    lists = {f"{key}.json": json.dumps({"caption": captions}).encode() for key in "02"}
    write_tar(tmp_path / "0.tar", members | lists)
    pairs = {key: ShardReader(tmp_path).read(key)[0] for key in texts}
    assert {key: (pair.caption, pair.meta.get("captions")) for key, pair in pairs.items()} == {
        "0": ("it's a cat", captions),
        "1": ("['a']", None),
        "2": ("a text of its own", None),
    }


def test_entries_of_the_json_are_named_if_there_is_no_caption(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = encoded(sample_image(0), "JPEG")
    write_tar(tmp_path / "0.tar", {"0.jpg": image, "0.json": b'{"prompt": "a cat", "id": 1}'})
    with caplog.at_level("INFO"):
        ShardReader(tmp_path).keys()
    assert "the first pairs have no caption" in caplog.text
    assert "data.reader.caption=, one of prompt, id" in caplog.text
    caplog.clear()
    assert ShardReader(tmp_path, caption="prompt").keys() == ["0"]
    assert "no caption" not in caplog.text


def test_own_shards_round_trip(tmp_path: Path) -> None:
    pairs = [Pair(f"k{n}", encoded(sample_image(n), "WEBP"), "webp", f"caption {n}", {"n": n}) for n in range(5)]
    for number, pair in enumerate(pairs):
        with write_shard(tmp_path / "A" / f"{number:05d}.tar") as write:
            write(pair)
    reader = ShardReader(str(tmp_path / "A"))
    assert [reader.read(pair.key) for pair in pairs] == [(pair, None) for pair in pairs]


def test_keys_from_several_folders_are_clean_and_unique(tmp_path: Path) -> None:
    image = encoded(sample_image(0))
    for folder in "xy":
        write_tar(
            tmp_path / folder / "0.tar",
            {"a/b.PNG": image, "a/b.txt": folder.encode(), "c d.png": image, "c d.txt": b"t"},
        )
    reader = ShardReader([tmp_path / "x", tmp_path / "y"])
    keys = reader.keys()
    assert len(set(keys)) == 4
    assert all("/" not in key and " " not in key for key in keys)
    assert sorted(reader.read(key)[0].caption for key in keys) == ["t", "t", "x", "y"]
    assert ShardReader([tmp_path / "x"]).keys() == ["a-b", "c_d"]


def test_bad_pairs_say_why(tmp_path: Path) -> None:
    image = encoded(sample_image(0))
    write_tar(
        tmp_path / "0.tar",
        {
            "blind.txt": b"no image",
            "bare": image,
            "bare.txt": b"its image has no extension",
            "latin.png": image,
            "latin.txt": b"caf\xe9",
            "json.png": image,
            "json.json": b"{",
            "gif.jpg": encoded(sample_image(0), "GIF"),
            "gif.txt": b"x",
        },
    )
    reader = ShardReader(tmp_path)
    for key, reason in {
        "blind": "no image",
        "bare": "it has no image member",
        "latin": "not UTF-8",
        "json": "JSON does not decode",
        "gif": "not a JPEG",
    }.items():
        with pytest.raises(BadPair, match=reason):
            reader.read(key)


def test_errors_name_the_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no shards"):
        ShardReader(tmp_path).keys()
    write_tar(tmp_path / "0.tar", {"a.png": encoded(sample_image(0)), "a.txt": b"x"})
    reader = ShardReader(tmp_path)
    before = reader.fingerprint()
    reader.keys()
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[:700])
    assert ShardReader(tmp_path).fingerprint() != before
    with pytest.raises(UserError, match="cut short"):
        reader.read("a")
    (tmp_path / "0.tar").unlink()
    with pytest.raises(UserError, match=r"the shard .* does not exist; restore it"):
        reader.read("a")


def test_dots_in_names_lose_no_pair(tmp_path: Path) -> None:
    image = encoded(sample_image(0))
    write_tar(
        tmp_path / "0.tar",
        {
            "00000.png": image,
            "00000.txt": b"plain",
            "00000.seg.png": image,  # of the pair 00000, as in WebDataset
            "IMG_7.png": image,
            "IMG_7.txt": b"original",
            "IMG_7.edited.png": image,
            "IMG_7.edited.txt": b"edited",
            "2021.05.jpg.png": image,
            "2021.05.jpg.json": b'{"caption": ["first", "second"]}',
            "s1.input.png": image,
            "s1.outputs.txt": b"never beside its image",
        },
    )
    reader = ShardReader(tmp_path)
    captions = {}
    for key in reader.keys():
        try:
            captions[key] = reader.read(key)[0].caption
        except BadPair as reason:
            captions[key] = str(reason)
    assert captions == {
        "00000": "plain",
        "IMG_7": "original",
        "IMG_7_edited": "edited",
        "2021_05_jpg": "first",
        "s1": "it has no image member KEY.jpg, KEY.jpeg, KEY.png, KEY.webp, KEY.jfif, KEY.jpe (a key ends at "
        "the first dot of the name)",
    }
    assert reader.read("2021_05_jpg")[0].meta["captions"] == ["first", "second"]


def test_images_without_texts_are_pairs_whatever_their_names(tmp_path: Path) -> None:
    image = encoded(sample_image(0))
    write_tar(tmp_path / "0.tar", {"a.1.png": image, "a.2.png": image, "b.png": image, "c.JFIF": image, "d.jpe": image})
    assert ShardReader(tmp_path).keys() == ["a_1", "a_2", "b", "c", "d"]


def test_classes_are_labels_and_the_captions_of_pairs_without_text(tmp_path: Path) -> None:
    image = encoded(sample_image(0))
    write_tar(
        tmp_path / "0.tar", {"a.png": image, "a.cls": b"3", "b.png": image, "b.cls": b" goldfish\n", "b.txt": b"a fish"}
    )
    reader = ShardReader(tmp_path)
    pairs = [reader.read(key)[0] for key in reader.keys()]
    assert [(pair.caption, pair.meta) for pair in pairs] == [("3", {"label": "3"}), ("a fish", {"label": "goldfish"})]


@pytest.mark.parametrize(("label", "caption"), [(b"0", "0"), (b"false", "False"), (b'""', ""), (b"null", "")])
def test_class_0_in_the_json_is_a_caption(tmp_path: Path, label: bytes, caption: str) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": encoded(sample_image(0)), "a.json": b'{"label": ' + label + b"}"})
    assert ShardReader(tmp_path).read("a")[0].caption == caption


def test_hidden_and_unused_members_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = encoded(sample_image(0))
    members = {"a.png": image, "a.txt": b"x", "a.seg.png": image, "a.npy": b"", "._a.png": b"Mac", ".x/b.png": image}
    write_tar(tmp_path / "0.tar", members)
    (tmp_path / "._0.tar").write_bytes(b"Mac OS X")
    reader = ShardReader(tmp_path)
    assert reader.keys() == ["a"]
    assert "1 hidden file ignored" in caplog.text
    assert "shards: passed over 4 members of no pair: 2 hidden, 1 KEY.npy, 1 KEY.seg.png" in caplog.text
    assert reader.unread == {"KEY.seg.png": 1, "KEY.npy": 1, "hidden": 2}


@pytest.mark.parametrize(
    ("pattern", "numbers"),
    [
        ("02.tar", [2]),
        ("*.tar", [0, 1, 2, 10]),
        ("0?.tar", [0, 1, 2]),
        ("{00..02}.tar", [0, 1, 2]),
        ("{01,10}.tar", [1, 10]),
        ("{0{1,2},1*}.tar", [1, 2, 10]),
        ("0{0..1}.tar", [0, 1]),
        ("0{2..0}.tar", [0, 1, 2]),
    ],
)
def test_a_tar_and_patterns_of_tars(tmp_path: Path, pattern: str, numbers: list[int]) -> None:
    for number in (0, 1, 2, 10):
        write_tar(tmp_path / f"{number:02d}.tar", {f"k{number}.png": encoded(sample_image(0))})
    (tmp_path / "._00.tar").write_bytes(b"Mac OS X")
    assert ShardReader(str(tmp_path / pattern)).keys() == sorted(f"k{number}" for number in numbers)


def test_a_list_in_braces_may_be_longer_than_the_name_of_a_file(tmp_path: Path) -> None:
    for number in range(40):
        write_tar(tmp_path / f"shard-{number:06d}.tar", {f"k{number}.png": encoded(sample_image(0))})
    names = ",".join(f"shard-{number:06d}" for number in range(40))
    assert len(ShardReader(f"{tmp_path}/{{{names}}}.tar").keys()) == 40
    with pytest.raises(UserError, match="does not exist or has no shards"):
        ShardReader(f"{tmp_path}/{{{names},gone}}.tar").keys()
    with pytest.raises(UserError, match=r"does not exist; check data.reader.path="):
        TableReader(f"{tmp_path}/{{{names}}}.parquet").keys()


def test_a_range_of_tars_must_be_complete(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"a.png": encoded(sample_image(0))})
    with pytest.raises(UserError, match=r"1\.tar of the pattern .* does not exist or has no shards"):
        ShardReader(tmp_path / "{0..1}.tar").keys()
    with pytest.raises(UserError, match=r"has no shards; give a folder of \*\.tar, a tar, or a pattern"):
        ShardReader(tmp_path / "x*.tar").keys()
    with pytest.raises(
        UserError, match=r"the braces in .*\{0\.\.1\.tar do not match \(.*\); write \{0\.\.9\} or \{a,b\}"
    ):
        ShardReader(tmp_path / "{0..1.tar").keys()


@pytest.mark.parametrize("pattern", ["{a,b}/*.tar", "{a,b}"])
def test_every_part_of_a_pattern_in_braces_must_have_shards(tmp_path: Path, pattern: str) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    write_tar(tmp_path / "a/0.tar", {"a.png": encoded(sample_image(0))})
    with pytest.raises(UserError, match=r"b(/\*\.tar)? of the pattern .* does not exist or has no shards"):
        ShardReader(tmp_path / pattern).keys()
