"""Data readers on hostile input: a valid value, a counted bad pair or a one-sentence error; never a crash or a hang."""

import io
import json
import tarfile
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.shards import write_shards
from dejavu_lit.data import remote
from dejavu_lit.data.decode import MAX_CAPTION_CHARS, open_image, read_caption, read_meta
from dejavu_lit.data.key_lists import read_keys
from dejavu_lit.data.objects import Annotation, Failed
from dejavu_lit.data.readers.base import Reader, read_image
from dejavu_lit.data.readers.coco import CocoReader
from dejavu_lit.data.readers.folder import FolderReader
from dejavu_lit.data.readers.shards import ShardReader
from dejavu_lit.data.readers.table import TableReader
from dejavu_lit.data.remote import mirror
from dejavu_lit.data.scan import decode_and_hash, hash_sets, scan
from dejavu_lit.data.shards import BadPair, Pair, ShardSet, index_shard, read_pairs, write_shard
from dejavu_lit.objects.annotators.coco import CocoLookup
from dejavu_lit.report.images import shrink
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded, sample_image
from tests.hostile import (
    ODD_JSON,
    WORDS,
    captions,
    damaged,
    fuzz_settings,
    images,
    try_read,
    wrong_json,
    wrong_table,
)

IMAGE = encoded(sample_image(1), "JPEG")
PAIRS = [Pair(f"k{i}", encoded(sample_image(i)), "png", f"caption {i}", {"n": i}) for i in range(4)]


def valid(pair: Pair) -> Pair:
    """Check that a shard could hold the pair, whatever it was read from, and return it."""
    assert pair.caption == pair.caption.strip()
    assert len(pair.caption) <= MAX_CAPTION_CHARS
    pair.caption.encode()
    json.dumps(pair.meta, ensure_ascii=False, allow_nan=False).encode()
    return pair


def read_all(reader: Reader) -> None:
    """Read a source in the way prepare does."""
    json.dumps(reader.fingerprint())
    keys = reader.keys()
    assert len(set(keys)) == len(keys)
    for key in keys[:5]:
        try:
            pair, annotation = reader.read(key)
        except BadPair:
            continue
        assert valid(pair).key == key
        if annotation is not None:
            assert np.isfinite(np.array(annotation.boxes, dtype=np.float64)).all()


def member(name: str, data: bytes, **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, b"Z"]
NAMES = st.one_of(
    st.sampled_from(
        ["a.jpg", "a.txt", "a.json", "a.cls", "b.png", "b.json", "./c.jpg", "x/d.webp", "d.TXT", "..", ".", ""]
    ),
    WORDS.map(lambda text: f"{text[:60]}.txt"),
)
HEADERS = st.dictionaries(
    st.sampled_from(["size", "path", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.major", "comment", "hdrcharset"]),
    st.sampled_from(["", "0", "-512", "-1024", "1e9", "99999999999999999999", "a.txt", "../a", "0,1,2", "BINARY"]),
    max_size=2,
)
CONTENT = st.one_of(
    st.just(IMAGE), st.sampled_from(ODD_JSON[:8]), st.binary(max_size=40), st.just(b'{"caption": ["a"]}')
)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """Tars with arbitrary member names, member types and extended headers."""
    out = io.BytesIO()
    format_ = draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
    with tarfile.open(fileobj=out, mode="w", format=format_, errors="surrogateescape") as tar:
        for _ in range(draw(st.integers(0, 6))):
            data = draw(CONTENT)
            kind = draw(st.sampled_from(TYPES)) if draw(st.integers(0, 3)) == 0 else tarfile.REGTYPE
            headers = draw(HEADERS) if draw(st.integers(0, 2)) == 0 else {}
            info, data = member(draw(NAMES), data, type=kind, pax_headers=headers)
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):
                continue  # Python itself cannot write such a header
    content = out.getvalue()
    return draw(damaged(content)) if draw(st.booleans()) else content


@fuzz_settings(60)
@given(content=archives())
def test_tars(tmp_path, content):
    (tmp_path / "sizes.json").unlink(missing_ok=True)
    (tmp_path / "0.tar").write_bytes(content)
    index_shard.cache_clear()
    pairs = try_read(lambda: list(read_pairs(ShardSet.open(tmp_path)))) or []
    for pair in pairs:
        if isinstance(pair, Pair):
            valid(pair)
            pair.key.encode()
    index_shard.cache_clear()
    try_read(lambda: read_all(ShardReader(tmp_path)))


@pytest.mark.parametrize("size", ["-512", "-1024"])
def test_a_header_that_points_back_does_not_loop_forever(tmp_path, size):
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member("x", b"", type=tarfile.DIRTYPE)[0])
        info, data = member("d/", b"", type=tarfile.DIRTYPE, pax_headers={"size": size})
        tar.addfile(info, io.BytesIO(data))
    try_read(lambda: index_shard(tmp_path / "0.tar"))


def test_members_without_a_name_and_names_in_other_encodings(tmp_path):
    for name in (".", "", "./"):
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            info, data = member(name, b"x")
            tar.addfile(info, io.BytesIO(data))
        index_shard.cache_clear()
        with pytest.raises(UserError, match="not a plain file inside the archive"):
            index_shard(tmp_path / "0.tar")
    with tarfile.open(tmp_path / "1.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin1") as tar:
        for name, data in {"é.png": IMAGE, "é.txt": b"a"}.items():
            info, _ = member(name, data)
            tar.addfile(info, io.BytesIO(data))
    (key,) = index_shard(tmp_path / "1.tar").keys
    key.encode()


@fuzz_settings(60)
@given(
    meta=wrong_json({"caption": "a dog", "captions": ["a", "b"], "label": 3, "width": 1.5}), text=st.binary(max_size=60)
)
def test_a_pairs_caption_and_json(meta, text):
    for read, data in ((read_meta, meta), (read_caption, text), (read_meta, text), (read_caption, meta)):
        try:
            value = read(data)
        except BadPair:
            continue
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@fuzz_settings(40)
@given(caption=st.one_of(st.binary(max_size=60), damaged(b"a dog")), meta=wrong_json({"a": [1]}), image=damaged(IMAGE))
def test_folders(tmp_path, caption, meta, image):
    for name, data in (("a.txt", caption), ("a.json", meta), ("a.jpg", IMAGE), ("b.jpg", image), ("b.txt", b"b")):
        (tmp_path / name).write_bytes(data)
    try_read(lambda: read_all(FolderReader(tmp_path)))


COCO = {
    "images": [{"id": 7, "file_name": "a.jpg", "width": 48, "height": 36}, {"id": 8, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 7, "caption": "a dog"}, {"image_id": 8, "caption": "a cat"}],
}
INSTANCES = {
    "images": [{"id": 7}, {"id": 8}],
    "categories": [{"id": 1, "name": "dog"}],
    "annotations": [{"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4.5], "segmentation": [[1]]}],
}


@fuzz_settings(120)
@given(data=st.data())
def test_coco(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    wrong_captions = data.draw(st.booleans())
    texts = data.draw(wrong_json(COCO)) if wrong_captions else json.dumps(COCO).encode()
    (tmp_path / "captions.json").write_bytes(texts)
    (tmp_path / "instances.json").write_bytes(
        json.dumps(INSTANCES).encode() if wrong_captions else data.draw(wrong_json(INSTANCES))
    )
    try_read(lambda: read_all(CocoReader(images=tmp_path, captions=tmp_path / "captions.json")))
    both = {"captions": tmp_path / "captions.json", "instances": tmp_path / "instances.json"}
    try_read(lambda: read_all(CocoReader(images=tmp_path, **both)))
    lookup = CocoLookup(tmp_path / "instances.json")
    for key in ("000000000007", "x", "9" * 40):
        try:
            annotation = try_read(lambda key=key: lookup.annotation(Pair(key, b"", "jpg", "")))
        except BadPair:
            continue
        assert annotation is None or isinstance(annotation, Annotation | Failed)


TABLE = pa.table(
    {"path": ["a.jpg", "b.jpg", "c"], "caption": ["a dog", "a cat", ""], "id": ["1", "2", "3"], "n": [1, 2, 3]}
)


@fuzz_settings(60)
@given(table=wrong_table(TABLE), key=st.sampled_from([None, "id", "n"]))
def test_parquet_tables(tmp_path, table, key):
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    try:
        pq.write_table(table, tmp_path / "t.parquet")
    except (pa.ArrowException, UnicodeError):
        return  # Arrow itself cannot write it
    try_read(lambda: read_all(TableReader(tmp_path / "t.parquet", key=key)))


@fuzz_settings(50)
@given(content=damaged(b'path,caption,id\na.jpg,a dog,1\nb.jpg,"a\ncat",2\n'), key=st.sampled_from([None, "id"]))
def test_csv_tables(tmp_path, content, key):
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    for name in ("t.csv", "t.tsv"):
        (tmp_path / name).write_bytes(content)
        try_read(lambda name=name: read_all(TableReader(tmp_path / name, key=key)))


@fuzz_settings(40)
@given(data=st.data())
def test_damaged_parquet_tables(tmp_path, data):
    pq.write_table(TABLE, tmp_path / "whole.parquet")
    (tmp_path / "t.parquet").write_bytes(data.draw(damaged((tmp_path / "whole.parquet").read_bytes())))
    try_read(lambda: read_all(TableReader(tmp_path / "t.parquet")))


@fuzz_settings(60)
@given(data=st.data(), kind=st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_damaged_images(data, kind):
    content = data.draw(damaged(encoded(sample_image(3, 40, 30), kind)))
    for read in (
        lambda: decode_and_hash(content),
        lambda: shrink(content, 16),
    ):
        with suppress(BadPair):
            read()


@fuzz_settings(60)
@given(content=st.one_of(st.binary(max_size=80), WORDS.map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_lists_of_keys(tmp_path, content):
    (tmp_path / "keys.txt").write_bytes(content)
    keys = try_read(lambda: read_keys(tmp_path / "keys.txt", "data.exclude"))
    assert keys is None or all(key.strip() for key in keys)


@fuzz_settings(60)
@given(sizes=wrong_json({"00000.tar": 2, "00001.tar": 2}))
def test_sizes(tmp_path, sizes):
    if not (tmp_path / "A").exists():
        write_shards(tmp_path / "A", PAIRS, 2)
    (tmp_path / "A" / "sizes.json").write_bytes(sizes)
    try_read(lambda: ShardSet.open(tmp_path / "A").keys())


@fuzz_settings(30)
@given(sizes=wrong_json({"00000.tar": 4}), manifest=wrong_json({"sets": {"A": {"objects": "x"}}}))
def test_remote_data(tmp_path, sizes, manifest):
    if not (tmp_path / "source" / "A").exists():
        write_shards(tmp_path / "source" / "A", PAIRS)
    (tmp_path / "source" / "A" / "sizes.json").write_bytes(sizes)
    (tmp_path / "source" / "manifest.json").write_bytes(manifest)
    mirror.cache_clear()
    index_shard.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEJAVU_CACHE", str(tmp_path / "cache"))
        patch.setattr(remote, "PAUSE", 0)
        try_read(lambda: ShardSet.open(mirror(f"file://{tmp_path / 'source'}") / "A").keys())
    mirror.cache_clear()


@fuzz_settings(25)
@given(data=st.data())
def test_damaged_parts_of_a_scan_and_of_hashes_are_rebuilt(tmp_path, data):
    if not (tmp_path / "shards").exists():
        write_shards(tmp_path / "shards", PAIRS)
    reader, shards = ShardReader(tmp_path / "shards"), ShardSet.open(tmp_path / "shards")
    for part in tmp_path.rglob("*.npz"):  # the previous damage may have been harmless
        part.unlink()
    first = scan(reader, reader.keys(), tmp_path / "scan", 1, 0.0)
    hashed = hash_sets({"A": shards}, tmp_path / "hash", 1)
    for path in (tmp_path / "scan" / "000000.npz", tmp_path / "hash" / "A" / "00000.npz"):
        path.write_bytes(data.draw(damaged(path.read_bytes())))
    again = scan(reader, reader.keys(), tmp_path / "scan", 1, 0.0)
    assert again.keys == first.keys
    assert np.array_equal(again.images.digests, first.images.digests)
    assert np.array_equal(hash_sets({"A": shards}, tmp_path / "hash", 1).digests, hashed.digests)


@pytest.mark.parametrize("name", images())
def test_each_kind_of_image_is_used_or_rejected_with_its_reason(tmp_path, name):
    content, reason = images()[name]
    path = tmp_path / "a.jpg"  # the extension does not matter
    path.write_bytes(content)

    def use() -> None:
        data, _ = read_image(path)
        decode_and_hash(data)
        with open_image(data) as image:
            assert image.convert("RGB").width
        assert shrink(data, 32)[0][:4] == b"RIFF"

    if reason is None:
        use()
    else:
        with pytest.raises(BadPair, match=f"^{reason}$"):
            use()


@pytest.mark.parametrize("name", captions())
def test_each_kind_of_caption_is_used_or_rejected_with_its_reason(tmp_path, name):
    content, reason = captions()[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(IMAGE)
    (folder / "a.txt").write_bytes(content)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for extension, data in (("jpg", IMAGE), ("txt", content)):
            info, _ = member(f"a.{extension}", data)
            tar.addfile(info, io.BytesIO(data))
    for reader in (FolderReader(folder), ShardReader(tmp_path)):
        if reason is not None and "empty" not in reason:
            with pytest.raises(BadPair, match=f"^{reason}$"):
                reader.read("a")
            continue
        pair, _ = reader.read("a")
        assert bool(valid(pair).caption) == (reason is None)
        if pair.caption:
            with write_shard(tmp_path / "out" / "1.tar") as write:
                write(pair)
            index_shard.cache_clear()
            assert index_shard(tmp_path / "out" / "1.tar").read(0).caption == pair.caption


@pytest.mark.parametrize("wrong", ['["a dog", 3]', "3", "true", '{"a": 1}', "1.5"])
def test_a_caption_that_is_not_text_is_a_bad_pair(tmp_path, wrong):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for extension, data in (("jpg", IMAGE), ("json", b'{"caption": %s}' % wrong.encode())):
            info, _ = member(f"a.{extension}", data)
            tar.addfile(info, io.BytesIO(data))
    for read in (lambda: index_shard(tmp_path / "0.tar").read(0), lambda: ShardReader(tmp_path).read("a")):
        with pytest.raises(BadPair, match="its caption is not text"):
            read()
