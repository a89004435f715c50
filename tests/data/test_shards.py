"""Shards: pairs survive a round trip, also through webdataset; damaged or unsafe files are rejected by name."""

import errno
import io
import json
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.shards import write_shards
from dejavu_lit.data import shard_index
from dejavu_lit.data.shards import BadPair, Pair, ShardSet, index_shard, read_pairs, write_shard
from dejavu_lit.utils import progress
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image

PAIRS = [Pair(f"k{i}", encoded(sample_image(i)), "png", f"caption {i} été 😀", {"n": i}) for i in range(5)]


@pytest.fixture(autouse=True)
def fresh():
    index_shard.cache_clear()


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_round_trip_and_the_same_pairs_give_the_same_bytes(tmp_path):
    shards = write_shards(tmp_path / "one", PAIRS, 2)
    assert shards.sizes == (2, 2, 1)
    assert list(read_pairs(shards)) == PAIRS
    assert [pair.image for pair in read_pairs(shards, image=False)] == [b""] * 5
    write_shards(tmp_path / "two", PAIRS, 2)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_webdataset_reads_our_shards(tmp_path):
    import webdataset

    write_shards(tmp_path, PAIRS)
    samples = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False).decode())
    assert [(s["__key__"], s["txt"], s["json"]) for s in samples] == [(p.key, p.caption, p.meta) for p in PAIRS]


def test_shards_of_img2dataset_and_webdataset_are_read(tmp_path, caplog):
    png = encoded(sample_image(0))
    tar(
        tmp_path / "0.tar",
        {"a.jpg": png, "a.txt": b" cap ", "a.json": b"{}", "b.jpeg": png, "b.json": b'{"caption": "c"}'},
    )
    tar(tmp_path / "1.tar", {"x/c.PNG": png, "x/c.cls": b"7", "readme.md": b"no pair"})
    pairs = list(read_pairs(ShardSet.open(tmp_path)))
    assert f"{tmp_path}: passed over 1 member of no pair: 1 KEY.md" in caplog.text
    assert [(p.key, p.caption) for p in pairs] == [("a", "cap"), ("b", "c"), ("x/c", "7")]
    assert pairs[2].meta == {"label": "7"}


def test_sizes_are_counted_once_in_prepared_data_and_must_agree(tmp_path):
    folder = write_shards(tmp_path / "A", PAIRS, 2).folder
    (folder / "sizes.json").unlink()
    assert ShardSet.open(folder).sizes == (2, 2, 1)
    assert not (folder / "sizes.json").exists()  # shards of others
    (tmp_path / "manifest.json").write_text("{}")
    assert ShardSet.open(folder).sizes == (2, 2, 1)
    assert json.loads((folder / "sizes.json").read_text()) == {"00000.tar": 2, "00001.tar": 2, "00002.tar": 1}
    for wrong in ("[]", '{"00000.tar": "2"}', '{"00000.tar": -1}', '{"../0.tar": 1}', "3", "{"):
        (folder / "sizes.json").write_text(wrong)
        with pytest.raises(UserError, match=r"sizes.json .*remove it"):
            ShardSet.open(folder)
    (folder / "sizes.json").write_text('{"00000.tar": 3}')
    with pytest.raises(UserError, match=r"has 2 pairs, but sizes.json says 3"):
        ShardSet.open(folder).index(0)
    (folder / "sizes.json").write_text('{"gone.tar": 3}')
    with pytest.raises(UserError, match=r"lists gone\.tar, which does not exist"):
        ShardSet.open(folder)


@pytest.mark.parametrize("name", ["/etc/passwd.txt", "../up.txt", "a/../../up.txt"])
def test_members_that_point_outside_are_rejected(tmp_path, name):
    with pytest.raises(UserError, match="not a plain file inside the archive"):
        index_shard(tar(tmp_path / "0.tar", {name: b"x"}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_rejected(tmp_path, kind):
    with tarfile.open(tmp_path / "0.tar", "w") as file:
        info = tarfile.TarInfo("a.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info)
    with pytest.raises(UserError, match="not a plain file inside the archive"):
        index_shard(tmp_path / "0.tar")


def test_a_duplicate_key_or_a_compressed_tar_is_rejected(tmp_path):
    with pytest.raises(UserError, match="two members"):
        index_shard(tar(tmp_path / "0.tar", {"a.txt": b"1", "a.TXT": b"2"}))
    with pytest.raises(UserError, match="not a complete, uncompressed tar"):
        index_shard(tar(tmp_path / "1.tar", {"a.txt": b"1"}, "w:gz"))
    with pytest.raises(UserError, match="has no shards"):
        ShardSet.open(tmp_path / "nowhere")


def test_joined_tars_are_refused_and_padding_is_not(tmp_path):
    parts = [tar(tmp_path / f"{name}.tar", {f"{name}.txt": b"x"}).read_bytes() for name in "ab"]
    (tmp_path / "joined.tar").write_bytes(b"".join(parts))
    with pytest.raises(UserError, match="has data after its end mark, as tars joined by cat do"):
        index_shard(tmp_path / "joined.tar")
    (tmp_path / "padded.tar").write_bytes(parts[0] + bytes(3 << 20))
    assert index_shard(tmp_path / "padded.tar").keys == ("a",)


def test_a_shard_that_disappears_or_is_cut_while_being_read(tmp_path):
    shards = write_shards(tmp_path, PAIRS)
    index = shards.index(0)
    content = index.path.read_bytes()
    index.path.write_bytes(content[:700])
    with pytest.raises(UserError, match="was cut short while being read"):
        index.read(4)
    index.path.unlink()
    with pytest.raises(UserError, match=r"the shard .* does not exist; restore it"):
        index.read(0)


def test_bad_text_is_one_bad_pair_and_bad_keys_are_not_written(tmp_path):
    png = encoded(sample_image(0))
    members = {
        "a.png": png,
        "a.txt": b"\xff\xfe",
        "b.png": png,
        "b.json": b"{",
        "c.txt": b"no image",
        "d.png": png,
        "d.txt": b"ok",
    }
    tar(tmp_path / "0.tar", members)
    pairs = list(read_pairs(ShardSet.open(tmp_path)))
    assert [isinstance(pair, BadPair) for pair in pairs] == [True, True, True, False]
    for key in ("", "a.b", "a/b", " a", "a\u3000", "a\nb", "a\rb", "a\u2028b", "a\x85b"):
        with (
            pytest.raises(ValueError, match="must be one line without dot, slash"),
            write_shard(tmp_path / "1.tar") as write,
        ):
            write(Pair(key, png, "png", "c"))
        assert not (tmp_path / "1.tar").exists()


def test_the_fingerprint_follows_keys_captions_and_sizes(tmp_path):
    first = write_shards(tmp_path / "a", PAIRS).fingerprint
    assert write_shards(tmp_path / "b", PAIRS).fingerprint == first
    changed = [*PAIRS[:4], Pair("k4", PAIRS[4].image, "png", PAIRS[4].caption.replace("4", "5"), {"n": 4})]
    assert write_shards(tmp_path / "c", changed).fingerprint != first
    assert np.array_equal(ShardSet.open(tmp_path / "a").starts, [0, 5])
    in_json = []
    for caption in ("a cat", "a dog"):
        (tmp_path / caption).mkdir()
        tar(tmp_path / caption / "0.tar", {"k.jpg": b"image", "k.json": json.dumps({"caption": caption}).encode()})
        in_json.append(ShardSet.open(tmp_path / caption).fingerprint)
    assert in_json[0] != in_json[1]
    lists = []
    for caption in (["a", "b"], ["a", "c"]):  # the text is the caption only if the JSON has another list
        (folder := tmp_path / "".join(caption)).mkdir()
        members = {"k.jpg": b"image", "k.txt": b"['a', 'b']", "k.json": json.dumps({"caption": caption}).encode()}
        tar(folder / "0.tar", members)
        lists.append(ShardSet.open(folder).fingerprint)
    assert lists[0] != lists[1]


def test_passes_over_the_headers_of_all_shards_are_logged(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    shards = write_shards(tmp_path / "A", PAIRS)
    assert shards.keys(2) == [pair.key for pair in PAIRS[:2]]
    assert len(shards.images()) == len(shards.fingerprint) == len(shards.names)
    logged = " ".join(record.message for record in caplog.records)
    assert "reading the keys of A: 0 of 1" in logged
    assert "indexing A: 1 of 1" in logged
    assert "reading the captions of A: 1 of 1" in logged


def test_the_fingerprint_of_an_open_set_is_computed_once(tmp_path, monkeypatch):
    shards = write_shards(tmp_path, PAIRS)
    first = shards.fingerprint
    monkeypatch.setattr(ShardSet, "indexes", lambda _: pytest.fail("the shards are read again"))
    assert shards.fingerprint == first


def test_a_shard_that_cannot_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = write_shards(tmp_path, PAIRS)
    index = shards.index(0)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(shard_index, "open_shard", refuse)
    index_shard.cache_clear()
    with pytest.raises(PermissionError, match=r"Permission denied: .*00000\.tar"):
        shards.index(0)
    monkeypatch.undo()

    def lose(sources, **_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
        yield

    monkeypatch.setattr("webdataset.tariterators.tar_file_expander", lose)
    with pytest.raises(OSError, match=r"Input/output error: .*00000\.tar"):
        list(index.pairs())
