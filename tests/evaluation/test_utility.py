"""Utility against scikit-learn and brute force."""

import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import Pair, ShardSet
from dejavu_lit.evaluation import utility
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.utility import (
    check_prompts,
    class_list,
    class_vectors,
    linear_probe,
    prompts,
    read_labels,
    retrieval,
    zero_shot,
)
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.utils.errors import UserError
from tests.models.tiny import sample_image, write_clip, write_shards


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


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


def test_retrieval_equals_brute_force(monkeypatch):
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


def test_retrieval_by_hand():
    images = np.eye(3, dtype=np.float16)
    captions = images[[0, 2, 1]]  # pairs 1 and 2 have each other's captions
    assert retrieval(images, images)["i2t_r1"] == 1.0
    assert retrieval(images, captions) == pytest.approx(
        {"i2t_r1": 1 / 3, "i2t_r5": 1.0, "i2t_r10": 1.0, "t2i_r1": 1 / 3, "t2i_r5": 1.0, "t2i_r10": 1.0}
    )


def test_linear_probe_separates_linear_classes_and_fails_on_noise():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, 400)
    images = (np.eye(8)[labels] * 3 + rng.normal(size=(400, 8))).astype(np.float16)
    names = [f"class {label}" for label in labels]
    accuracy = linear_probe(images, names)["linear_probe"]
    assert accuracy > 0.85
    assert linear_probe(images, names) == {"linear_probe": accuracy}
    assert linear_probe(rng.normal(size=(400, 8)), names)["linear_probe"] < 0.45
    assert linear_probe(images, names, limit=100)["linear_probe"] > 0.6


@pytest.mark.parametrize("labels", [["a"] * 10, [], list("abcdefghij")])
def test_linear_probe_without_two_classes_to_test_says_why(labels):
    values = linear_probe(np.random.default_rng(3).normal(size=(len(labels), 4)), labels)
    assert values["linear_probe"] is None
    assert f"{len(labels)} images" in values["linear_probe_reason"]


def test_class_vectors_average_the_normalized_prompts(tmp_path):
    encoder = load_encoder(f"local-dir:{write_clip(tmp_path)}")
    vectors = class_vectors(encoder, ["cat", "dog"], prompts(["a {}", "two {}s", "no {}"]))
    for row, name in enumerate(["cat", "dog"]):
        mean = encoder.encode_captions([f"a {name}", f"two {name}s", f"no {name}"]).numpy().mean(axis=0)
        assert vectors[row] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert len(prompts("imagenet")) == 80
    with pytest.raises(UserError, match=r"one \{\} each"):
        prompts(["a photo"])


def test_class_lists(tmp_path):
    assert class_list(None, ["b", "a", "b"]) == (["a", "b"], {"a": 0, "b": 1})
    names, numbers = class_list("imagenet", ["tench", "goldfish"])
    assert (len(names), numbers) == (1000, {"goldfish": 1, "tench": 0})
    assert class_list([0, 1, 2], ["2", "0"]) == (["0", "1", "2"], {"2": 2, "0": 0})  # as YAML reads them
    assert class_list("imagenet", ["999", "0"])[1] == {"999": 999, "0": 0}
    assert class_list("imagenet", [f"n{i:08d}" for i in range(1000)], "order")[1]["n00000007"] == 7
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert class_list(str(tmp_path / "names.txt"), ["dog"]) == (["cat", "dog"], {"dog": 1})
    assert class_list(["cat", "dog"], ["n02", "n01"], "order")[1] == {"n01": 0, "n02": 1}
    with pytest.raises(UserError, match="'cow'"):
        class_list(["cat", "dog"], ["cow"])
    with pytest.raises(UserError, match="neither imagenet nor a file"):
        class_list("imagent", ["cow"])


def test_labels_are_matched_by_name_or_number_and_by_order_only_if_asked_for():
    names = ["tench", "goldfish", "volleyball"]
    with pytest.raises(UserError, match=r"1 of 3 labels are not in classes= \(3 names\): 'Tinca'.*classes_by=order"):
        class_list(names, ["Tinca", "goldfish", "volleyball"])
    with pytest.raises(UserError, match=r"3 of 3 labels .*: 'n01', 'n02', 'n03'"):
        class_list(names, ["n03", "n01", "n02"])
    many = [f"class {n}" for n in range(12)]
    by_value = {str(n): n for n in range(12)}
    assert class_list(None, by_value)[0] == list(by_value)
    assert class_list(many, by_value)[1] == class_list(many, by_value, "order")[1] == by_value
    one_based = {str(n + 1): n for n in range(12)}
    assert class_list(many, one_based)[1] == class_list(many, one_based, "order")[1] == one_based
    assert class_list(many, ["3", "12"])[1] == {"3": 2, "12": 11}
    assert class_list(many, ["3", "11"])[1] == {"3": 3, "11": 11}
    for numbers in (["0", "12"], ["1", "13"], ["1" * 5000]):
        with pytest.raises(UserError, match="labels are not in classes="):
            class_list(many, numbers)
    with pytest.raises(UserError, match="there are 2 labels and 12 names"):
        class_list(many, ["a", "b"], "order")
    with pytest.raises(UserError, match="classes_by=position is unknown"):
        class_list(many, ["a"], "position")


def test_numbers_that_may_be_counted_from_1_are_named(caplog):
    names = ["tench", "goldfish", "volleyball", "daisy"]
    for counted_from_0_or_named in (["0", "2"], ["1", "4"], ["tench", "daisy"]):
        class_list(names, counted_from_0_or_named)
    assert not caplog.messages
    assert class_list(names, ["1", "2", "3"])[1] == {"1": 1, "2": 2, "3": 3}
    (said,) = caplog.messages
    assert "1 is 'goldfish'" in said
    assert class_list(names[:3], ["1", "2", "3"], "order")[1] == {"1": 0, "2": 1, "3": 2}  # as the message says


def test_a_list_of_classes_is_read_as_utf_8_before_anything_is_computed(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("jalapeño\n\ncat\n", encoding="utf-8-sig")
    assert class_list(str(path), ["cat", "jalapeño"]) == (["jalapeño", "cat"], {"cat": 1, "jalapeño": 0})
    path.write_text("jalapeño", encoding="latin-1")
    data = DataSpec("scenes", dir=str(tmp_path), labelled="L", classes=str(path))
    with pytest.raises(UserError, match=r"names\.txt cannot be read .*; give one in UTF-8"):
        check_prompts(data)
    check_prompts(replace(data, labelled=None))
    with pytest.raises(UserError, match=r"one \{\} each"):
        check_prompts(replace(data, classes=None, templates="a photo"))


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
    data.check_labelled()
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


def test_utility_that_cannot_be_measured_is_said(tmp_path, caplog):
    (tmp_path / "data/mine").mkdir(parents=True)
    model = AuditedModel(f"local-dir:{write_clip(tmp_path / 'model')}", tmp_path / "store")
    values = utility.utility(model, DataSpec("scenes", dir=str(tmp_path / "data"), labelled="mine"))
    assert values["zeroshot_top1"] is None
    assert "mine has no shards" in values["reasons"]["zeroshot_top1"]
    assert f"the utility of {model.name} is incomplete: {tmp_path}/data/mine has no shards" in caplog.text
