import io
import json
import tarfile
from pathlib import Path

import pytest

from dejavu_lit.data.readers.shards import ShardReader
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


def test_what_img2dataset_writes_is_read_as_it_is(tmp_path: Path) -> None:
    image = encoded(sample_image(0), "JPEG")
    about = {
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
            "000000000.json": json.dumps({**about, "key": "000000000"}).encode(),
            "000000000.txt": "von Hand ü".encode(),
            "000000001.jpg": image,
            "000000001.json": json.dumps(about).encode(),
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
    assert second.meta == about


def test_our_own_shards_come_back_the_same(tmp_path: Path) -> None:
    pairs = [Pair(f"k{n}", encoded(sample_image(n), "WEBP"), "webp", f"caption {n}", {"n": n}) for n in range(5)]
    for number, pair in enumerate(pairs):
        with write_shard(tmp_path / "A" / f"{number:05d}.tar") as write:
            write(pair)
    reader = ShardReader(str(tmp_path / "A"))
    assert [reader.read(pair.key) for pair in pairs] == [(pair, None) for pair in pairs]


def test_keys_of_several_folders_become_clean_and_unique(tmp_path: Path) -> None:
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
            "latin.png": image,
            "latin.txt": b"caf\xe9",
            "json.png": image,
            "json.json": b"{",
            "gif.jpg": encoded(sample_image(0), "GIF"),
            "gif.txt": b"x",
        },
    )
    reader = ShardReader(tmp_path)
    for key, words in {
        "blind": "no image",
        "latin": "not UTF-8",
        "json": "JSON does not decode",
        "gif": "no JPEG",
    }.items():
        with pytest.raises(BadPair, match=words):
            reader.read(key)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no shards"):
        ShardReader(tmp_path).keys()
    write_tar(tmp_path / "0.tar", {"a.png": encoded(sample_image(0)), "a.txt": b"x"})
    reader = ShardReader(tmp_path)
    before = reader.fingerprint()
    reader.keys()
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:700])
    assert ShardReader(tmp_path).fingerprint() != before
    with pytest.raises(UserError, match="cut short"):
        reader.read("a")
    (tmp_path / "0.tar").unlink()
    with pytest.raises(UserError, match="has vanished"):
        reader.read("a")
