"""Utility against scikit-learn and brute force."""

import io
import logging
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import Pair, ShardSet
from dejavu_lit.evaluation import utility
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.class_names import check_labelled, prompts
from dejavu_lit.evaluation.embeddings import write_embeddings
from dejavu_lit.evaluation.utility import class_vectors, linear_probe, read_labels, retrieval, zero_shot
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.utils import progress
from dejavu_lit.utils.errors import UserError
from tests.evaluation.test_search import unit
from tests.models.tiny import sample_image, write_clip, write_shards


def test_zero_shot_equals_scikit_learn(monkeypatch):
    metrics = pytest.importorskip("sklearn.metrics")
    monkeypatch.setattr(utility, "SCORES_AT_ONCE", 500)
    rng = np.random.default_rng(0)
    images, classes = unit(rng, 300, 16), unit(rng, 20, 16)
    labels = rng.integers(0, 20, 300)
    scores = (
        images.astype(np.float64) @ classes.astype(np.float64).T / np.linalg.norm(classes.astype(np.float64), axis=1)
    )
    accuracy = zero_shot(images, labels, classes)
    for top in (1, 5):
        assert accuracy[f"zeroshot_top{top}"] == metrics.top_k_accuracy_score(labels, scores, k=top, labels=range(20))


def test_zero_shot_ties_go_to_the_smaller_class():
    classes = np.array([[1, 0], [1, 0], [0, 1]], np.float16)
    images = np.array([[1, 0], [1, 0], [0, 2]], np.float16)
    assert zero_shot(images, np.array([0, 1, 2]), classes) == {"zeroshot_top1": 2 / 3, "zeroshot_top5": 1.0}


def test_retrieval_equals_brute_force(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(utility, "SCORES_AT_ONCE", 1000)
    rng = np.random.default_rng(1)
    images = unit(rng, 150, 12)
    captions = (images + 0.5 * unit(rng, 150, 12)).astype(np.float16)
    captions[40:60] = captions[10]
    expected = {}
    for name, queries, public in (("i2t", images, captions), ("t2i", captions, images)):
        q, p = queries.astype(np.float64), public.astype(np.float64)
        ranks = []
        for i in range(150):
            scores = [float(q[i] @ p[j]) / (np.linalg.norm(q[i]) * np.linalg.norm(p[j])) for j in range(150)]
            ranks.append(sorted(range(150), key=lambda j: (-scores[j], j)).index(i))
        expected |= {f"{name}_r{k}": float(np.mean([rank < k for rank in ranks])) for k in (1, 5, 10)}
    recalls = retrieval(images, captions)
    assert list(recalls) == ["i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10"]
    assert recalls == pytest.approx(expected, abs=1 / 150 / 2)
    assert "ranking for 150 queries: 1 of 25" in caplog.text


def test_retrieval_by_hand():
    images = np.eye(3, dtype=np.float16)
    captions = images[[0, 2, 1]]  # pairs 1 and 2 have each other's captions
    assert retrieval(images, images)["i2t_r1"] == 1.0
    assert retrieval(images, captions) == pytest.approx(
        {"i2t_r1": 1 / 3, "i2t_r5": 1.0, "i2t_r10": 1.0, "t2i_r1": 1 / 3, "t2i_r5": 1.0, "t2i_r10": 1.0}
    )


def test_vectors_of_different_widths_and_no_vectors_have_no_ranks():
    with pytest.raises(UserError, match="its vectors have 3 and 4 values"):
        retrieval(np.eye(3, dtype=np.float16), np.eye(3, 4, dtype=np.float16))
    with pytest.raises(UserError, match="no pair has all the embeddings that this needs"):
        retrieval(np.zeros((0, 3), np.float16), np.zeros((0, 3), np.float16))


def test_retrieval_is_among_the_pairs_of_h_whatever_else_was_embedded(tmp_path):
    keys = ["a", "b", "c", "d"]
    write_shards(tmp_path / "data/H", [Pair(key, b"", "png", "c", {}) for key in keys])
    write_embeddings(tmp_path / "mine/H/image", [*keys, "y", "z"], np.eye(6))
    captions = np.eye(6)[[0, 1, 2, 3, 5, 4]]
    captions[3, [0, 3]] = 0.8, 0.6  # the caption of d is nearer to the image of a than to its own
    write_embeddings(tmp_path / "mine/H/text", [*keys, "y", "z"], captions)
    model = AuditedModel(f"embeddings:{tmp_path / 'mine'}", tmp_path)
    values = utility.utility(model, DataSpec("scenes", dir=str(tmp_path / "data")))
    assert (values["i2t_r1"], values["t2i_r1"]) == (1.0, 0.75)


def test_linear_probe_separates_linear_classes_and_fails_on_noise():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 400)
    images = (np.eye(8)[labels] * 3 + rng.normal(size=(400, 8))).astype(np.float16)
    names = [f"class {label}" for label in labels]
    accuracy = linear_probe(images, names)["linear_probe"]
    assert accuracy > 0.85
    assert linear_probe(images, names) == {"linear_probe": accuracy}
    by_chance = linear_probe(rng.normal(size=(400, 8)), names)["linear_probe"]
    assert by_chance < 0.45
    tested = sum(-(-count // 5) for count in np.bincount(labels).tolist())  # a fifth of each class, rounded up
    assert by_chance * tested == pytest.approx(round(by_chance * tested), abs=1e-9)
    assert linear_probe(images, names, limit=100)["linear_probe"] > 0.6


@pytest.mark.parametrize("labels", [["a"] * 10, [], list("abcdefghij")])
def test_linear_probe_without_two_classes_to_test_says_why(labels):
    with pytest.raises(UserError, match=rf"\(images: {len(labels)}, classes: {len(set(labels))}\)"):
        linear_probe(np.random.default_rng(3).normal(size=(len(labels), 4)), labels)


def test_class_vectors_average_the_normalized_prompts(tmp_path):
    encoder = load_encoder(f"local-dir:{write_clip(tmp_path)}")
    vectors = class_vectors(encoder, ["cat", "dog"], prompts(["a {}", "two {}s", "no {}"]))
    for row, name in enumerate(["cat", "dog"]):
        mean = encoder.encode_captions([f"a {name}", f"two {name}s", f"no {name}"]).numpy().mean(axis=0)
        assert vectors[row] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert len(prompts("imagenet")) == 80
    with pytest.raises(UserError, match=r"one \{\} each"):
        prompts(["a photo"])


def test_labels_come_from_the_json_or_from_cls(tmp_path, caplog):
    pairs = [
        Pair(key, b"", "png", "c", meta) for key, meta in (("x", {"label": "cat"}), ("y", {"label": 3}), ("z", {}))
    ]
    assert read_labels(write_shards(tmp_path / "a", pairs)) == {"x": "cat", "y": "3"}
    assert "1 of 3 pairs have no class or cannot be read" in caplog.text
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "00000.tar", "w") as tar:
        for name, data in (("x.jpg", b"j"), ("x.cls", b"7\n"), ("y.jpg", b"j"), ("y.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert read_labels(ShardSet.open(tmp_path / "b")) == {"x": "7", "y": "0"}
    with pytest.raises(UserError, match=r"no pair of .* has a class"):
        read_labels(write_shards(tmp_path / "c", pairs[2:]))


@pytest.mark.parametrize("name", ["labelled", "P"])
def test_a_labelled_set_elsewhere_is_measured_for_both_models_and_left_alone(tmp_path, name):
    image = io.BytesIO()
    sample_image(0).save(image, "PNG")
    pairs = [Pair(f"k{n}", image.getvalue(), "png", "", {"label": ["cat", "dog"][n % 2]}) for n in range(4)]
    folder = write_shards(tmp_path / "mine" / name, pairs).folder
    write_shards(tmp_path / "data/P", [replace(pair, key=f"p{pair.key}") for pair in pairs])
    before = sorted(tmp_path.glob("mine/**/*"))
    assert [path.name for path in before if path.is_file()] == ["00000.tar"]
    data = DataSpec("scenes", dir=str(tmp_path / "data"), labelled=str(folder))
    check_labelled(data)
    for seed in (0, 1):
        model = AuditedModel(f"local-dir:{write_clip(tmp_path / str(seed), seed)}", tmp_path / "store")
        model.embeddings(data.shard_set("P"), "P", "image")
        values = utility.utility(model, data)
        assert values["zeroshot_top1"] == 0.5, values["reasons"]
        assert "zeroshot_top1" not in values["reasons"]
    assert sorted(tmp_path.glob("mine/**/*")) == before
    expected = {f"{seed}/{part}-image" for seed in (0, 1) for part in ("P", data.set_name(str(folder)))}
    kept = {f"{path.parent.name[0]}/{path.name}" for path in tmp_path.glob("store/*/*")}
    assert kept == expected


def test_classes_may_come_as_embeddings_and_excluded_images_do_not_count(tmp_path):
    labels = ["cat", "dog", "dog", "dog"]
    write_shards(tmp_path / "data/L", [Pair(f"k{n}", b"", "png", "", {"label": name}) for n, name in enumerate(labels)])
    write_embeddings(tmp_path / "mine/L/image", [f"k{n}" for n in range(4)], np.eye(6)[[0, 1, 1, 0]])
    write_embeddings(tmp_path / "mine/classes/text", ["dog", "cat"], np.eye(6)[[1, 0]])
    model = AuditedModel(f"embeddings:{tmp_path / 'mine'}", tmp_path)
    data = DataSpec("scenes", dir=str(tmp_path / "data"), labelled="L")
    assert utility.utility(model, data)["zeroshot_top1"] == 0.75  # k3 has the vector of a cat
    (tmp_path / "gone.txt").write_text("k2\nk3")
    fewer = utility.utility(model, replace(data, exclude=str(tmp_path / "gone.txt")))
    assert fewer["zeroshot_top1"] == 1.0
    assert fewer["reasons"]["linear_probe"] == "it needs two classes, and two images of one (images: 2, classes: 2)"


def test_a_text_model_has_no_utility_and_is_not_loaded(tmp_path):
    values = utility.utility(AuditedModel("text:none", tmp_path), DataSpec("scenes", dir="nowhere", labelled="L"))
    reasons = values.pop("reasons")
    assert values == dict.fromkeys(reasons)
    assert len(reasons) == 9
    assert set(reasons.values()) == {"a text model embeds no images"}


def test_utility_that_cannot_be_measured_is_said(tmp_path, caplog):
    (tmp_path / "data/mine").mkdir(parents=True)
    model = AuditedModel(f"local-dir:{write_clip(tmp_path / 'model')}", tmp_path / "store")
    values = utility.utility(model, DataSpec("scenes", dir=str(tmp_path / "data"), labelled="mine"))
    assert values["zeroshot_top1"] is None
    assert "mine has no shards" in values["reasons"]["zeroshot_top1"]
    assert f"the utility of {model.name} is incomplete: {tmp_path}/data/mine has no shards" in caplog.text
