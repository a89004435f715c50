import errno
import os
from pathlib import Path

import pytest

from dejavu_lit.data.readers.base import read_file, read_image
from dejavu_lit.data.readers.folder import FolderReader
from dejavu_lit.data.shards import BadPair
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image


def add(root: Path, file: str, caption: str | None = "a caption", kind: str = "PNG") -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(sample_image(len(file)), kind))
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")


def test_images_are_found_recursively_with_their_captions(tmp_path: Path) -> None:
    add(tmp_path, "one.png", " one \n")
    add(tmp_path, "deep/er/my two.v2.JPG", "\ufefftwo", "JPEG")
    add(tmp_path, "deep/three.webp", "drei", "WEBP")
    add(tmp_path, "four.JFIF", "vier", "JPEG")
    add(tmp_path, ".hidden.png")
    (tmp_path / "deep/three.json").write_text('{"url": "u", "score": NaN}')
    (tmp_path / "notes.md").write_text("not an image")
    reader = FolderReader(tmp_path)
    keys = reader.keys()
    assert keys == ["deep-er-my_two_v2", "deep-three", "four", "one"]
    pairs = [reader.read(key)[0] for key in keys]
    assert [pair.caption for pair in pairs] == ["two", "drei", "vier", "one"]
    assert [pair.extension for pair in pairs] == ["jpg", "webp", "jpg", "png"]
    assert pairs[0].image == (tmp_path / "deep/er/my two.v2.JPG").read_bytes()
    assert pairs[1].meta == {"url": "u", "score": None, "path": "deep/three.webp"}
    assert reader.annotator is None


def test_files_that_differ_in_extension_or_punctuation_have_different_keys(tmp_path: Path) -> None:
    for file in ("a b.png", "a_b.png", "a-b.png", "a/b.png", "a-b.jpg"):
        add(tmp_path, file)
    keys = FolderReader(tmp_path).keys()
    assert len(set(keys)) == 5
    assert {FolderReader(tmp_path).read(key)[0].meta["path"] for key in keys} == {
        "a b.png",
        "a_b.png",
        "a-b.png",
        "a/b.png",
        "a-b.jpg",
    }


def test_links_to_folders_are_followed_except_cycles(tmp_path: Path) -> None:
    add(tmp_path, "elsewhere/x.png")
    add(tmp_path, "data/y.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data/linked")
    os.symlink(tmp_path / "data", tmp_path / "data/circle")
    assert FolderReader(tmp_path / "data").keys() == ["linked-x", "y"]


def test_class_folders_give_caption_and_label(tmp_path: Path) -> None:
    add(tmp_path, "goldfish/1.png", None)
    pair, _ = FolderReader(tmp_path, caption="folder").read("goldfish-1")
    assert (pair.caption, pair.meta["label"]) == ("goldfish", "goldfish")


def test_bad_pairs_say_why(tmp_path: Path) -> None:
    add(tmp_path, "mute.png", None)
    add(tmp_path, "latin.png")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    add(tmp_path, "gif.png", kind="GIF")
    add(tmp_path, "broken.png")
    (tmp_path / "broken.json").write_text("{")
    reader = FolderReader(tmp_path)
    for key, reason in {
        "mute": "no caption",
        "latin": "UTF-8",
        "gif": "not a JPEG",
        "broken": "JSON does not decode",
    }.items():
        with pytest.raises(BadPair, match=reason):
            reader.read(key)


def test_the_fingerprint_changes_with_captions_and_images(tmp_path: Path) -> None:
    add(tmp_path, "a.png")
    before = FolderReader(tmp_path).fingerprint()
    assert FolderReader(tmp_path).fingerprint() == before
    (tmp_path / "a.txt").write_text("another caption")
    after = FolderReader(tmp_path).fingerprint()
    assert after != before
    add(tmp_path, "b.png")
    assert FolderReader(tmp_path).fingerprint() != after


def test_errors_name_wrong_paths_and_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist; check data\.reader\.path="):
        FolderReader(tmp_path / "nowhere").keys()
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(
        UserError, match=r"images\.zip is not a folder; unpack an archive first; check data\.reader\.path="
    ):
        FolderReader(tmp_path / "images.zip").keys()
    with pytest.raises(UserError, match="has no images"):
        FolderReader(tmp_path).keys()
    with pytest.raises(UserError, match="caption=json"):
        FolderReader(tmp_path, caption="json")  # type: ignore[arg-type]


def test_hidden_images_and_folders_are_ignored_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path, "dog/1.png", None)
    add(tmp_path, "dog/._1.png", None)
    add(tmp_path, ".ipynb_checkpoints/1.png", None)
    assert FolderReader(tmp_path, caption="folder").keys() == ["dog-1"]
    assert "folder: passed over 2 files of no pair: 2 hidden" in caplog.text


def test_files_that_belong_to_no_image_are_counted_by_their_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in ("a.png", "b.gif", "deep/c.GIF", "deep/d.tif"):
        add(tmp_path, file, kind="PNG")
    for file in (".DS_Store", "a.json", "lost.json", "README"):
        (tmp_path / file).write_text("{}")
    reader = FolderReader(tmp_path)
    assert reader.keys() == ["a"]
    assert reader.unread == {".gif": 2, ".txt": 3, ".tif": 1, ".json": 1, "without extension": 1}
    listed = "3 .txt, 2 .gif, 1 .json, 1 .tif, 1 without extension"
    assert f"folder: passed over 8 files of no pair: {listed}" in caplog.text


def test_lines_of_the_text_and_lists_of_the_json_are_several_captions(tmp_path: Path) -> None:
    add(tmp_path, "lines.png", " one \r\n\n two\none\n")
    add(tmp_path, "list.png", None)
    (tmp_path / "list.json").write_text('{"captions": ["a", "b"]}')
    add(tmp_path, "single.png", None)
    (tmp_path / "single.json").write_text('{"caption": "only"}')
    add(tmp_path, "img2dataset.png", str(["it's", "b"]))
    (tmp_path / "img2dataset.json").write_text('{"caption": ["it\'s", "b"]}')
    reader = FolderReader(tmp_path)
    pairs = {key: reader.read(key)[0] for key in reader.keys()}
    assert {key: (pair.caption, pair.meta.get("captions")) for key, pair in pairs.items()} == {
        "img2dataset": ("it's", ["it's", "b"]),
        "lines": ("one", ["one", "two"]),
        "list": ("a", ["a", "b"]),
        "single": ("only", None),
    }


def test_the_path_in_the_json_stays_the_users(tmp_path: Path) -> None:
    add(tmp_path, "dog/1.png", None)
    (tmp_path / "dog/1.json").write_text('{"path": "shelf 4", "license": 3}')
    pair = FolderReader(tmp_path, caption="folder").read("dog-1")[0]
    assert pair.meta == {"path": "shelf 4", "license": 3, "label": "dog"}


def test_an_error_of_the_file_system_is_not_a_missing_image_or_caption(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.png").write_bytes(encoded(sample_image(0)))
    (tmp_path / "a.txt").write_text("a caption")
    reader, intact, broken = FolderReader(tmp_path), open, [".png"]

    def stale(path, *options):
        if str(path).endswith(tuple(broken)):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return intact(path, *options)

    monkeypatch.setattr("builtins.open", stale)
    for broken[0] in (".png", ".txt"):
        with pytest.raises(OSError, match="Stale file handle"):
            reader.read("a")
    monkeypatch.undo()

    def refused(path, *options):
        if path.suffix == broken[0]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_file(path, *options)

    monkeypatch.setattr("dejavu_lit.data.readers.folder.read_file", refused)
    (tmp_path / "a.json").write_text("{}")
    for broken[0] in (".json", ".txt"):
        with pytest.raises(BadPair, match=f"the {broken[0]} beside the image is not readable"):
            reader.read("a")
    monkeypatch.undo()
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for somebody to write
    for path in (tmp_path / "none", tmp_path / "a.png/b", tmp_path / ("x" * 300), tmp_path, tmp_path / "pipe"):
        with pytest.raises(BadPair, match="the image does not exist"):
            read_image(path)
