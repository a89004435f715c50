import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.shards import write_shards
from dejavu_lit.data.objects import Annotation, Annotator, Failed, read_objects, write_objects
from dejavu_lit.data.shards import Pair, ShardSet
from dejavu_lit.objects.annotate import annotate
from dejavu_lit.objects.annotators.agreement import Agreement
from dejavu_lit.objects.compare import difference
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from tests.conftest import call

LABELS = list("abcdef")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two shards of 20 images, and three artifacts of random objects with scores; the third has failures."""
    pairs = [Pair(f"k{n:02d}", b"picture", "png", "text") for n in range(40)]
    write_shards(tmp_path / "A", pairs, 20)
    write_json(tmp_path / "manifest.json", {})
    rng = np.random.default_rng(0)
    for number, name in enumerate(("one", "two", "three")):
        for shard in range(2):
            rows = []
            for pair in pairs[20 * shard : 20 * shard + 20]:
                if name == "three" and pair.key in ("k03", "k21"):
                    rows.append(Failed(pair.key, "dark"))
                    continue
                labels = rng.choice(LABELS, rng.integers(0, 7)).tolist()
                scores = np.float32(0.1 * number + 0.7 * rng.random(len(labels))).tolist()
                rows.append(Annotation(pair.key, labels, scores, [[float(i), 0, 1, 1] for i in range(len(labels))]))
            annotator = Annotator(name, threshold=0.1 * number)
            write_objects(tmp_path / f"objects/{name}/A/{shard:05d}.parquet", rows, annotator)
    return tmp_path


def labels_by_key(data: Path, name: str, threshold: float) -> dict[str, set[str] | None]:
    rows = [r for p in sorted((data / f"objects/{name}/A").glob("*.parquet")) for r in pq.read_table(p).to_pylist()]
    return {
        r["key"]: None
        if r["labels"] is None
        else {label for label, s in zip(r["labels"], r["scores"], strict=True) if s >= np.float32(threshold)}
        for r in rows
    }


@pytest.mark.parametrize("names", [("one", "two"), ("one", "two", "three")])
@pytest.mark.parametrize("how", ["intersection", "union", "majority"])
def test_at_any_threshold_it_has_the_labels_that_the_artifacts_agree_on(
    data: Path, how: str, names: tuple[str, ...]
) -> None:
    """Compared with Python sets, for each image and threshold."""
    source = Agreement([data / "objects" / name for name in names], how)
    done = annotate(source, {"A": ShardSet.open(data / "A")}, data / "objects/agreed")
    assert done.failed == (2 if "three" in names else 0)
    assert source.annotator.threshold == pytest.approx(0.1 * (len(names) - 1))
    for threshold in (0.2, 0.35, 0.5, 0.75):
        (objects,), _ = read_objects([data / "objects/agreed/A"], threshold)
        sets = [labels_by_key(data, name, threshold) for name in names]
        for key in sets[0]:
            rows = [labels[key] for labels in sets]
            if None in rows:
                assert objects.names(objects.rows[key]) == []
                continue
            counts = {label: sum(label in row for row in rows) for label in LABELS}
            needed = {"intersection": len(names), "union": 1, "majority": len(names) // 2 + 1}[how]
            assert objects.names(objects.rows[key]) == [label for label in LABELS if counts[label] >= needed]


def test_the_box_is_the_best_in_the_first_artifact_that_has_the_label(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "A", [Pair("k", b"x", "png", "text")])
    for name, rows in (
        ("one", [("a", 0.3, 1), ("a", 0.6, 2)]),
        ("two", [("a", 0.9, 3), ("b", 0.5, 4)]),
    ):
        row = Annotation("k", [r[0] for r in rows], [r[1] for r in rows], [[r[2]] * 4 for r in rows])
        write_objects(tmp_path / name / "A/00000.parquet", [row], Annotator(name))
    annotate(Agreement([tmp_path / "one", tmp_path / "two"], "union"), {"A": shards}, tmp_path / "out")
    (row,) = pq.read_table(tmp_path / "out/A/00000.parquet").to_pylist()
    assert row["labels"] == ["a", "b"]
    assert row["scores"] == pytest.approx([0.9, 0.5])
    assert row["boxes"] == [[2] * 4, [4] * 4]


def test_missing_parts_and_wrong_options_give_one_sentence(data: Path) -> None:
    shards = {"A": ShardSet.open(data / "A")}
    with pytest.raises(UserError, match="must name at least two different artifacts"):
        Agreement([data / "objects/one"])
    with pytest.raises(UserError, match=r"\['one', 'one'\] must name at least two different"):
        Agreement([data / "objects/one", str(data / "objects/../objects/one")])
    with pytest.raises(UserError, match="how=most is unknown"):
        Agreement(["a", "b"], "most")
    with pytest.raises(UserError, match="has no object parts"):
        annotate(Agreement([data / "objects/one", data / "objects/none"]), shards, data / "objects/x")
    (data / "objects/two/A/00001.parquet").unlink()
    with pytest.raises(UserError, match=r"two/A/00001.parquet does not exist; annotate all"):
        annotate(Agreement([data / "objects/one", data / "objects/two"]), shards, data / "objects/x")


def test_differences_equal_those_of_python_sets(data: Path) -> None:
    threshold = 0.3
    objects = [read_objects([data / f"objects/{name}/A"], threshold)[0][0] for name in ("one", "two")]
    result = difference(*objects)
    first, second = (labels_by_key(data, name, threshold) for name in ("one", "two"))
    jaccard = [len(first[k] & second[k]) / len(first[k] | second[k]) for k in first if first[k] | second[k]]
    assert result["pictures"] == 40
    assert result["empty"] == 40 - len(jaccard)
    assert result["jaccard"] == pytest.approx(sum(jaccard) / len(jaccard))
    assert result["objects"]["first"] == pytest.approx(sum(map(len, first.values())) / 40)
    for row in result["labels"]:
        label = row["label"]
        has = [[label in labels[k] for k in first] for labels in (first, second)]
        both = sum(a and b for a, b in zip(*has, strict=True))
        either = sum(a or b for a, b in zip(*has, strict=True))
        assert (row["first"], row["second"], row["both"]) == (sum(has[0]), sum(has[1]), both)
        assert row["jaccard"] == pytest.approx(both / either)
    assert {row["label"] for row in result["labels"]} == set().union(*first.values(), *second.values())
    same = difference(objects[0], objects[0])
    assert same["jaccard"] == 1
    assert same["objects"]["first"] == same["objects"]["second"]


def test_artifacts_of_other_images_cannot_be_compared(data: Path) -> None:
    (objects,), _ = read_objects([data / "objects/one/A"], 0.3)
    with pytest.raises(UserError, match="no image in common"):
        difference(objects, objects.take([]))


def test_objects_of_other_images_with_the_same_keys_are_refused(data: Path, tmp_path: Path) -> None:
    source = Agreement([data / "objects/one", data / "objects/two"], "union")
    annotate(source, {"A": ShardSet.open(data / "A")}, data / "objects/agreed")
    other = tmp_path / "other"
    write_shards(other / "A", [Pair(f"k{n:02d}", b"another picture", "png", "text") for n in range(40)], 20)
    write_json(other / "manifest.json", {})
    agreed, same = data / "objects/agreed", data / "objects/same"
    shutil.copytree(agreed, same)
    for options in (
        ["annotator=agree", f"annotator.artifacts=[{agreed},{same}]", "name=laundered"],
        [f"compare=[{agreed},{same}]"],
        [f"show={agreed}"],
    ):
        done = call("annotate", *options, f"data.dir={other}", f"out={tmp_path / 'out'}")
        assert done.returncode == 1
        assert "has the objects of other images" in done.stderr


def test_the_commands(data: Path, tmp_path: Path) -> None:
    done = call("annotate", "annotator=agree", "annotator.artifacts=[one,two]", f"data.dir={data}")
    assert done.returncode == 0, done.stderr
    assert (data / "objects/agree_majority/A/00001.parquet").is_file()
    content = json.loads((data / "objects/agree_majority/annotator.json").read_text())
    assert content["annotator"]["config"] == {"how": "majority", "of": ["one", "two"]}
    done = call("annotate", "compare=[one,agree_majority]", f"data.dir={data}", f"out={tmp_path / 'c'}")
    assert done.returncode == 0, done.stderr
    assert "A" in done.stdout
    assert (tmp_path / "c/difference.csv").read_text().startswith("set,label,first,second,both,jaccard\n")
    wrong = call("annotate", "compare=[one]", f"data.dir={data}", f"out={tmp_path / 'c'}")
    assert "must name two artifacts" in wrong.stderr
    wrong = call("annotate", "annotator=agree", "annotator.artifacts=one", f"data.dir={data}")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        "error: annotator.artifacts must be a list, as 'annotator.artifacts=[…]'\n",
    )
