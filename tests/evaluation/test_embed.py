"""Embeddings: the same bytes for any workers, continued after a stop, refused if they are of another model or other data."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dejavu_lit.data import decode as images
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.evaluation import embed as module
from dejavu_lit.evaluation.chunks import decode_image, encode_captions
from dejavu_lit.evaluation.embeddings import Embeddings, write_embeddings
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.utils.errors import UserError
from tests.data.images import encoded
from tests.models.tiny import sample_image, write_clip, write_shards

PAIRS, SHARD = 150, 70  # shards of 70, 70 and 10: full chunks, partial ones and a small shard


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return load_encoder(f"local-dir:{write_clip(tmp_path_factory.mktemp('model'))}")


def write(folder, bad_images=(), empty=(), pairs=PAIRS):
    rows = []
    for i in range(pairs):
        data = b"no image" if i in bad_images else encoded(sample_image(i, 72, 64))
        rows.append(Pair(f"k{i * 37 % pairs:03d}", data, "png", "" if i in empty else f"caption number {i}", {}))
    return write_shards(folder, rows, SHARD)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "A")


def embed(encoder, shards, modality, folder, **options):
    module.embed(encoder, shards, modality, folder, **options)
    return Embeddings.open(folder)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_same_bytes_for_any_number_of_workers(encoder, shards, tmp_path, modality):
    embeddings = [embed(encoder, shards, modality, tmp_path / str(workers), workers=workers) for workers in (1, 2, 5)]
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "5")
    assert embeddings[0].keys == tuple(shards.keys())
    assert embeddings[0].names == ("00000", "00001", "00002")
    assert [len(part) for part in embeddings[0].parts()] == [70, 70, 10]
    assert embeddings[0].dim == 64


def test_values_equal_encoding_one_by_one(encoder, shards, tmp_path):
    images = embed(encoder, shards, "image", tmp_path / "image").load()
    texts = embed(encoder, shards, "text", tmp_path / "text").load()
    for row in (0, 63, 64, 69, 70, 149):
        image = encoder.encode_images(torch.from_numpy(encoder.preprocess(sample_image(row, 72, 64)))[None])
        assert np.abs(images[row].astype(np.float32) - image[0].numpy()).max() < 1e-3
        caption = encoder.encode_captions([f"caption number {row}"])
        assert np.abs(texts[row].astype(np.float32) - caption[0].numpy()).max() < 1e-3


def test_complete_parts_are_kept_and_truncated_ones_computed_again(encoder, shards, tmp_path, monkeypatch):
    embed(encoder, shards, "image", tmp_path / "complete")
    shutil.copytree(tmp_path / "complete", tmp_path / "truncated")
    (tmp_path / "truncated" / "00000.npy").unlink()
    data = (tmp_path / "truncated" / "00001.npy").read_bytes()
    (tmp_path / "truncated" / "00001.npy").write_bytes(data[: len(data) // 2])
    modified = (tmp_path / "truncated" / "00002.npy").stat().st_mtime_ns
    decoded = []
    original = module.decode_chunk
    monkeypatch.setattr(module, "decode_chunk", lambda *a: decoded.append(a[1]) or original(*a))
    embed(encoder, shards, "image", tmp_path / "truncated")
    assert content(tmp_path / "truncated") == content(tmp_path / "complete")
    assert (tmp_path / "truncated" / "00002.npy").stat().st_mtime_ns == modified
    assert len(decoded) == 4  # two chunks of each of the two shards
    embed(encoder, shards, "image", tmp_path / "truncated")
    assert len(decoded) == 4


def test_a_limit_embeds_whole_shards(encoder, shards, tmp_path):
    some = embed(encoder, shards, "text", tmp_path, limit=75)
    assert some.keys == tuple(shards.keys(140))
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["00000.npy", "00001.npy"]
    everything = embed(encoder, shards, "text", tmp_path)
    assert len(everything) == PAIRS
    assert np.array_equal(everything.load()[:140], some.load())
    assert len(embed(encoder, shards, "text", tmp_path, limit=70)) == PAIRS


def test_another_model_data_or_modality_is_refused(encoder, shards, tmp_path):
    embed(encoder, shards, "text", tmp_path / "e", limit=10)
    other_encoder = load_encoder(f"local-dir:{write_clip(tmp_path / 'model', seed=1)}")
    with pytest.raises(UserError, match=r"the model differs; remove that folder"):
        embed(other_encoder, shards, "text", tmp_path / "e")
    with pytest.raises(UserError, match="the modality differs"):
        embed(encoder, shards, "image", tmp_path / "e")
    with pytest.raises(UserError, match="the data differs"):
        embed(encoder, write(tmp_path / "B", pairs=20), "text", tmp_path / "e")
    (tmp_path / "e" / "fingerprint.json").unlink()
    with pytest.raises(UserError, match="their model and data are unknown"):
        embed(encoder, shards, "text", tmp_path / "e")


def test_bad_pairs_are_skipped_counted_and_named(encoder, tmp_path, caplog):
    shards = write(tmp_path / "A", bad_images=(3, 70), empty=(5,))
    keys = shards.keys()
    images = embed(encoder, shards, "image", tmp_path / "image")
    texts = embed(encoder, shards, "text", tmp_path / "text")
    assert set(keys) - set(images.keys) == {keys[3], keys[70]}
    assert set(keys) - set(texts.keys) == {keys[5]}
    skipped = json.loads((tmp_path / "image" / "fingerprint.json").read_text())["skipped"]
    reason = "the image does not decode"
    assert skipped == {keys[3]: reason, keys[70]: reason}
    assert sum("skipped" in line for line in caplog.messages) == 3
    saved = json.loads((tmp_path / "image" / "fingerprint.json").read_text())
    (tmp_path / "image" / "fingerprint.json").write_text(json.dumps(saved | {"skipped": "none"}))
    with pytest.raises(UserError, match=r"fingerprint\.json is damaged: skipped .*; remove the folder to compute"):
        embed(encoder, shards, "image", tmp_path / "image")


def test_too_many_bad_pairs_stop(encoder, tmp_path, monkeypatch):
    shards = write(tmp_path / "A", bad_images=range(20, 32))
    with pytest.raises(UserError, match=r"12 of 150 pairs of .* cannot be used, the first is k"):
        embed(encoder, shards, "image", tmp_path / "image")
    monkeypatch.setattr(module, "BAD_SHARE", 0.1)
    assert len(embed(encoder, shards, "image", tmp_path / "image")) == PAIRS - 12
    nothing = write(tmp_path / "B", bad_images=range(5), pairs=5)
    with pytest.raises(UserError, match="no pair of"):
        embed(encoder, nothing, "image", tmp_path / "nothing")


def test_an_image_decodes_as_pillow_does():
    for form, mode, options in (
        ("jpeg", "RGB", {}),
        ("jpeg", "RGB", {"progressive": True, "quality": 30}),
        ("png", "RGB", {}),
    ):
        buffer = io.BytesIO()
        sample_image(1, 97, 61, mode).save(buffer, form, **options)
        image = decode_image(buffer.getvalue())
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(buffer)))
    for mode in ("L", "CMYK"):
        assert decode_image(encoded(sample_image(1, 97, 61, mode), "jpeg")).mode == mode
    for mode in ("P", "RGBA"):  # as RGB before anything is resized
        assert decode_image(encoded(sample_image(1, 97, 61, mode), "png")).shape == (3, 61, 97)
    with pytest.raises(BadPair, match="does not decode"):
        decode_image(encoded(sample_image(1), "jpeg")[:-200])
    with pytest.raises(BadPair, match="does not decode"):
        decode_image(b"GIF")


def test_a_decompression_bomb_is_skipped(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 72 * 64 - 1)
    with pytest.raises(UserError, match="megapixels"):
        embed(encoder, write(tmp_path / "A", pairs=20), "image", tmp_path / "e")


def test_a_model_that_gives_nan_is_named(shards, tmp_path):
    broken = load_encoder(f"local-dir:{write_clip(tmp_path / 'model')}")
    torch.nn.init.constant_(broken.model.text_projection, float("nan"))
    with pytest.raises(UserError, match=r"the vector of key 'k000' has NaN"):
        embed(broken, shards, "text", tmp_path / "e")
    assert not list((tmp_path / "e").glob("*.npy"))


def test_captions_without_a_folder(encoder):
    captions = [f"caption {i}" for i in range(70)]
    vectors = encode_captions(encoder, captions)
    assert vectors.shape == (70, 64)
    assert np.array_equal(vectors[:64], encode_captions(encoder, captions[:64]))


def test_vectors_from_elsewhere(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(25, 8)) * 30
    keys = [f"k{i * 7 % 25:02d}" for i in range(25)]
    written = write_embeddings(tmp_path / "A" / "text", keys, vectors, rows_per_part=10)
    assert [len(part) for part in written.parts()] == [10, 10, 5]
    expected = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    assert np.array_equal(written.load(), expected)
    assert np.array_equal(written.load(keys[::-3]), expected[::-3])
    assert np.array_equal(np.concatenate(written.parts()), expected)
    assert [sorted(keys)[row] for row in written.selection(sorted(keys)).ids] == keys
    assert not (tmp_path / "A" / "text" / "fingerprint.json").exists()
    with pytest.raises(UserError, match=r"no vector for 1 of 2 keys, the first is 'x'"):
        written.load(["k01", "x"])
    with pytest.raises(UserError, match="not empty"):
        write_embeddings(tmp_path / "A" / "text", keys, vectors)
    with pytest.raises(UserError, match=r"'x\\ny' has a line break"):
        write_embeddings(tmp_path / "B" / "text", [*keys[:-1], "x\ny"], vectors, rows_per_part=10)
    assert not (tmp_path / "B").exists()


@pytest.mark.parametrize(("value", "problem"), [(0, "zero norm"), (np.nan, "NaN"), (np.inf, "infinity")])
def test_unusable_vectors_are_named(tmp_path, value, problem):
    vectors = np.ones((6, 4), np.float16)
    vectors[4] = value
    keys = list("abcdef")
    with pytest.raises(UserError, match=f"'e' .*{problem}"):
        write_embeddings(tmp_path / "new", keys, vectors)
    write_embeddings(tmp_path / "old", keys, np.ones((6, 4)))
    np.save(tmp_path / "old" / "00000.npy", vectors)
    with pytest.raises(UserError, match=f"00000.npy: the vector of key 'e' .*{problem}"):
        Embeddings.open(tmp_path / "old").load()


def test_folders_that_are_not_embeddings(tmp_path):
    with pytest.raises(UserError, match="has no embeddings"):
        Embeddings.open(tmp_path / "none")
    write_embeddings(tmp_path / "e", ["a", "b"], np.eye(2))
    (tmp_path / "e" / "00000.txt").write_text("a\n")
    with pytest.raises(UserError, match=r"2 rows, 00000.txt 1 keys"):
        Embeddings.open(tmp_path / "e")
    (tmp_path / "e" / "00000.txt").write_text("a\na\n")
    with pytest.raises(UserError, match="'a' twice"):
        Embeddings.open(tmp_path / "e")
    for array, form in ((np.eye(2, dtype=np.float32), r"float32 \[2, 2\]"), (np.ones(2, np.float16), r"float16 \[2\]")):
        np.save(tmp_path / "e" / "00000.npy", array)
        with pytest.raises(UserError, match=f"{form}, embeddings are float16"):
            Embeddings.open(tmp_path / "e")
    with pytest.raises(UserError, match="3 keys need vectors"):
        write_embeddings(tmp_path / "f", ["a", "b", "c"], np.eye(2))
