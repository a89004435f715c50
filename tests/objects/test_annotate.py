"""``annotate``: parts, resuming, sharing, failures; with the real annotators on real shards."""

import csv
import json
import logging
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.shards import write_shards
from dejavu_lit.cli.annotate import open_sets
from dejavu_lit.cli.processes import parse_share
from dejavu_lit.data.objects import Annotation, check_images, read_objects, write_objects
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import Pair, ShardSet, index_shard
from dejavu_lit.objects.annotate import annotate, coverage
from dejavu_lit.objects.annotators.classes import ClassLabels
from dejavu_lit.objects.annotators.torchvision import TorchvisionDetector
from dejavu_lit.utils import progress
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from tests.conftest import ROOT, call, run
from tests.data.images import contents, encoded, sample_image
from tests.objects.tiny import detector
from tests.starter import starter

MODEL = "tests.objects.tiny.detector"


def pairs(name: str, count: int) -> list[Pair]:
    """Pairs with one label each; every fifth has none."""
    return [
        Pair(
            f"{name}{n:03d}", encoded(sample_image(n)), "png", "a caption", {"label": f"thing {n % 3}"} if n % 5 else {}
        )
        for n in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two sets, of four and of two shards."""
    for name, count in (("A", 40), ("P", 15)):
        write_shards(tmp_path / "data" / name, pairs(name, count), 10)
    write_json(tmp_path / "data" / "manifest.json", {})
    return tmp_path / "data"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A random detector of five classes that detects objects in any image."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "random.pt"
    torch.save({"model": detector(6, 8, 16).state_dict(), "classes": list("abcde")}, path)
    return path


def sets(data: Path) -> dict[str, ShardSet]:
    return {name: ShardSet.open(data / name) for name in "AP"}


def test_the_summary_says_how_far_the_vocabulary_reaches(tmp_path: Path) -> None:
    source = ClassLabels()
    for name, labels in (("A", [["dog", "cat"], ["dog"], [], ["dog"]]), ("P", [["cat"], ["dog"], []])):
        rows = [Annotation(f"{name}{n}", row, [0.5] * len(row), [[0.0] * 4] * len(row)) for n, row in enumerate(labels)]
        write_objects(tmp_path / name / "0.parquet", rows, source.annotator)
    assert "2 of 7 images (28.6 %) have no object of score ≥ 0.5; 'dog' is in 80.0 % of the others" in coverage(
        tmp_path, "AP", 0.5
    )
    assert coverage(tmp_path, ["A"], 0.6).startswith("4 of 4 images (100.0 %) have no object of score ≥ 0.6 (")


def test_the_command_ends_with_the_summary(data: Path) -> None:
    done = call("annotate", "annotator=classes", "max_failed=0.5", f"data.dir={data}")
    assert done.returncode == 0, done.stderr
    assert "11 of 55 images (20.0 %) have no object of score ≥ 0.5; 'thing " in done.stdout


def test_one_row_per_image_and_failures_differ_from_empty_rows(data: Path) -> None:
    done = annotate(ClassLabels(), sets(data), data / "objects/c")
    assert (done.images, done.failed, done.parts, done.total_parts) == (55, 11, 6, 6)
    table = pq.read_table(data / "objects/c/A/00001.parquet").to_pylist()
    assert [row["key"] for row in table] == [f"A{n:03d}" for n in range(10, 20)]
    assert table[0]["labels"] is None
    assert table[1]["labels"] == ["thing 2"]
    rows = list(csv.DictReader((data / "objects/c/failed.csv").open()))
    assert rows[2] == {"set": "A", "key": "A010", "reason": "its JSON has no 'label'"}
    (objects,), annotator = read_objects([data / "objects/c/A"], 0.5)
    assert annotator == ClassLabels().annotator
    assert objects.names(objects.rows["A010"]) == []
    assert objects.names(objects.rows["A011"]) == ["thing 2"]


def test_complete_parts_are_kept_and_damaged_ones_redone(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    annotate(ClassLabels(), sets(data), data / "objects/c")
    before, times = contents(data / "objects/c"), {p: p.stat().st_mtime_ns for p in data.glob("objects/c/*/*.parquet")}
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    assert annotate(ClassLabels(), sets(data), data / "objects/c").images == 0
    assert "checking parts: 6 of 6" in " ".join(record.message for record in caplog.records)
    for path, damage in (("A/00000", 300), ("A/00002", 0), ("P/00001", -1)):
        file = data / f"objects/c/{path}.parquet"
        file.write_bytes(file.read_bytes()[:damage])
    assert annotate(ClassLabels(), sets(data), data / "objects/c").images == 25
    assert contents(data / "objects/c") == before
    unchanged = {p for p, t in times.items() if p.stat().st_mtime_ns == t}
    assert {str(p.relative_to(data / "objects/c")) for p in unchanged} == {
        "A/00001.parquet",
        "A/00003.parquet",
        "P/00000.parquet",
    }


def test_a_part_of_other_images_is_redone(data: Path) -> None:
    annotate(ClassLabels(), sets(data), data / "objects/c")
    (data / "objects/c/A/00000.parquet").write_bytes((data / "objects/c/A/00001.parquet").read_bytes())
    assert annotate(ClassLabels(), sets(data), data / "objects/c").images == 10
    assert pq.read_table(data / "objects/c/A/00000.parquet")["key"][0].as_py() == "A000"


def test_a_failed_first_run_does_not_block_the_next(data: Path) -> None:
    with pytest.raises(UserError, match="could not be annotated"):
        annotate(ClassLabels(field="nowhere"), sets(data), data / "objects/c")
    annotate(ClassLabels(), sets(data), data / "objects/c")
    assert read_objects([data / "objects/c/A"])[1] == ClassLabels().annotator
    about = json.loads((data / "objects/c/annotator.json").read_text())
    assert about["annotator"] == asdict(ClassLabels().annotator)


def test_objects_of_other_images_with_the_same_keys_are_redone_or_refused(data: Path) -> None:
    before = sets(data)["P"].images()
    annotate(ClassLabels(), sets(data), data / "objects/c")
    check_images(data / "objects/c", {"P": before})
    others = [
        Pair(pair.key, encoded(sample_image(99, 50)), "png", pair.caption, {"label": "x"}) for pair in pairs("P", 15)
    ]
    write_shards(data / "P", others, 10)
    index_shard.cache_clear()
    with pytest.raises(UserError, match=r"c/P/00000\.parquet has the objects of other images, whose keys are the same"):
        check_images(data / "objects/c", {"P": sets(data)["P"].images()})
    assert annotate(ClassLabels(), sets(data), data / "objects/c").images == 15
    now = sets(data)["P"].images()
    check_images(data / "objects/c", {"P": now})
    write_objects(data / "objects/c/P/00000.parquet", [], ClassLabels().annotator)  # does not say of which images
    check_images(data / "objects/c", {"P": now})
    (data / "objects/c/P/00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"00001\.parquet is damaged"):
        check_images(data / "objects/c", {"P": now})


def test_objects_of_two_annotators_are_never_mixed(data: Path) -> None:
    annotate(ClassLabels(), {"A": sets(data)["A"]}, data / "objects/c")
    other_annotator = ClassLabels(field="other")
    with pytest.raises(
        UserError, match=r"objects/c was written by another annotator \(config.field: label → other\).*name="
    ):
        annotate(other_annotator, sets(data), data / "objects/c")
    (data / "objects/c/annotator.json").unlink()  # as prepare leaves it
    with pytest.raises(UserError, match=r"00000.parquet was written by another annotator"):
        annotate(other_annotator, sets(data), data / "objects/c")
    write_objects(
        data / "objects/c/P/00000.parquet",
        [Annotation("P000", ["x"], [1.0], [[0, 0, 1, 1]])],
        other_annotator.annotator,
    )
    with pytest.raises(UserError, match="use one annotator for all sets"):
        read_objects([data / "objects/c/A", data / "objects/c/P"], 0.5)


def test_too_many_failures_stop_the_run_before_the_part_is_written(tmp_path: Path) -> None:
    good, bad = encoded(sample_image(1)), b"\x89PNG\r\n\x1a\nno image"
    rows = [Pair(f"k{n:03d}", bad if n % 4 == 0 else good, "png", "text", {"label": "x"}) for n in range(100)]
    shards = {"A": write_shards(tmp_path / "A", rows, 100)}
    detector = BrightDetector()
    with pytest.raises(UserError, match=r"25 of 100 images .* the first is k000 \(the image does not decode\)"):
        annotate(detector, shards, tmp_path / "o", max_failed=0.2)
    assert not list(tmp_path.glob("o/*/*.parquet"))
    assert annotate(detector, shards, tmp_path / "o", max_failed=0.25).failed == 25
    all_bad = {"B": write_shards(tmp_path / "B", [Pair("k", bad, "png", "text", {})], 10)}
    with pytest.raises(UserError, match="1 of 1 images"):
        annotate(detector, all_bad, tmp_path / "o")
    assert annotate(detector, all_bad, tmp_path / "o", max_failed=1).failed == 1


def test_failures_are_listed_once_all_parts_can_be_read(data: Path) -> None:
    done = annotate(ClassLabels(), sets(data), data / "objects/c", (0, 2))
    assert (done.parts, done.failed, done.complete) == (3, 6, False)
    assert not (data / "objects/c/failed.csv").exists()
    path = data / "objects/c/A/00000.parquet"  # of the first process
    content = path.read_bytes()
    path.write_bytes(content[:300])
    done = annotate(ClassLabels(), sets(data), data / "objects/c", (1, 2))
    assert (done.parts, done.total_parts, done.complete) == (5, 6, False)
    assert not (data / "objects/c/failed.csv").exists()
    done = annotate(ClassLabels(), sets(data), data / "objects/c", (0, 2))
    assert (done.images, done.parts, done.failed, done.complete) == (10, 6, 11, True)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "sets= is empty; .* has A, P"),
        (["B"], "sets names B"),
    ],
)
def test_unknown_sets_are_refused_and_those_elsewhere_told_apart(data: Path, names: list[str], message: str) -> None:
    for name in ("else/A", "else/other", "more/else/A"):
        write_shards(data.parent / name, pairs("x", 2))
    with pytest.raises(UserError, match=message):
        open_sets(DataSpec("shards", str(data)), names)
    elsewhere = [data.parent / name for name in ("else/A", "else/other", "more/else/A")]
    given = [str(data / "A"), f"{data.parent}/else/A/../A", *map(str, elsewhere[1:])]
    opened = open_sets(DataSpec("shards", str(data)), ["P", *given])
    assert [shards.folder for shards in opened.values()] == [data / "P", data / "A", *elsewhere]
    assert [name.rstrip("0123456789abcdef") for name in opened] == ["P", "A", "else-A-", "else-other-", "else-A-"]


class BrightDetector(TorchvisionDetector):
    """The batch logic of all detectors, with a detector that fails on dark images."""

    def __init__(self, batch: int = 8) -> None:
        super().__init__(model="bright", weights="none", batch=batch)

    @property
    def annotator(self):
        return ClassLabels().annotator

    labels = ("bright",)

    def detect(self, images):
        from dejavu_lit.objects.base import Detections

        assert len(images) <= self.batch
        if any(max(image.getextrema()[0]) == 0 for image in images):
            raise RuntimeError("too dark\nfor me")
        return [Detections(["bright"], [image.width / 100], [[0, 0, image.width, image.height]]) for image in images]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_one_bad_image_does_not_fail_its_batch(tmp_path: Path, batch: int) -> None:
    from PIL import Image

    rows = [Pair(f"k{n}", encoded(sample_image(n, 20 + n, 30)), "png", "text", {}) for n in range(10)]
    rows[4] = Pair("k4", encoded(Image.new("RGB", (8, 8))), "png", "text", {})
    done = annotate(BrightDetector(batch), {"A": write_shards(tmp_path / "A", rows, 7)}, tmp_path / "o")
    assert done.failed == 1
    rows = [row for part in sorted(tmp_path.glob("o/A/*.parquet")) for row in pq.read_table(part).to_pylist()]
    assert [row["key"] for row in rows] == [f"k{n}" for n in range(10)]
    assert [row["scores"] and round(row["scores"][0], 2) for row in rows] == [
        None if n == 4 else round((20 + n) / 100, 2) for n in range(10)
    ]
    assert "too dark for me" in (tmp_path / "o/failed.csv").read_text()


def test_an_image_for_which_memory_runs_out_has_not_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may pass the next time, so there is no part that would count as complete."""

    def detect(detector: BrightDetector, images: list) -> list:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BrightDetector, "detect", detect)
    shards = write_shards(tmp_path / "A", [Pair("k", encoded(sample_image(0, 20, 30)), "png", "text", {})], 7)
    with pytest.raises(torch.OutOfMemoryError):
        annotate(BrightDetector(), {"A": shards}, tmp_path / "o", max_failed=1)
    assert not list(tmp_path.glob("o/A/*.parquet"))


def test_images_have_not_failed_if_the_gpu_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses all that follows, so the rest of the shard would count as damaged."""

    def detect(detector: BrightDetector, images: list) -> list:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be")

    monkeypatch.setattr(BrightDetector, "detect", detect)
    shards = write_shards(tmp_path / "A", pairs("A", 3), 7)
    with pytest.raises(UserError, match=r"device=cpu failed \(CUDA error: an illegal .* encountered\); run the same"):
        annotate(BrightDetector(), {"A": shards}, tmp_path / "o", max_failed=1)
    assert not list(tmp_path.glob("o/A/*.parquet"))


@pytest.mark.parametrize("of", [1, 2, 4, 7])
def test_any_number_of_processes_share_the_shards(data: Path, of: int) -> None:
    annotate(ClassLabels(), sets(data), data / "objects/alone")
    images = [annotate(ClassLabels(), sets(data), data / "objects/shared", (n, of)).images for n in range(of)]
    assert sum(images) == 55
    assert contents(data / "objects/shared") == contents(data / "objects/alone")


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("text", "environment", "share"),
    [
        (None, {}, (0, 1)),
        ("3/10", {"RANK": "1", "WORLD_SIZE": "2"}, (3, 10)),
        (None, {**TORCHRUN, "RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),
        (None, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (0, 1)),  # left over in the shell
        (None, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),  # a batch script is not a step of srun
        (None, {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}, (5, 8)),
        (None, {f"SLURM_ARRAY_TASK_{n}": v for n, v in zip(("ID", "COUNT", "MIN", "MAX"), "7415", strict=True)}, None),
        (None, {f"SLURM_ARRAY_TASK_{n}": v for n, v in zip(("ID", "COUNT", "MIN", "MAX"), "3525", strict=True)}, None),
        (
            None,
            {f"SLURM_ARRAY_TASK_{n}": v for n, v in zip(("ID", "COUNT", "MIN", "MAX"), "3425", strict=True)},
            (1, 4),
        ),
        (  # the array of Hydra's launcher, each task of which is a job of a multirun
            None,
            {f"SLURM_ARRAY_TASK_{n}": v for n, v in zip(("ID", "COUNT", "MIN", "MAX"), "3425", strict=True)}
            | {"SUBMITIT_EXECUTOR": "slurm"},
            (0, 1),
        ),
        (
            None,
            {f"SLURM_ARRAY_TASK_{n}": v for n, v in zip(("ID", "COUNT", "MIN", "MAX", "STEP"), "42062", strict=True)}
            | {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0", **TORCHRUN, "RANK": "1", "WORLD_SIZE": "3"},
            (7, 12),
        ),
    ],
)
def test_the_share_is_read_from_arrays_and_ranks(text, environment, share) -> None:
    if share is None:
        with pytest.raises(UserError, match="has gaps"):
            parse_share(text, environment)
    else:
        assert parse_share(text, environment) == share


@pytest.mark.parametrize("text", ["x", "3", "4/4", "-1/2", "1/0"])
def test_a_wrong_share_gives_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="part="):
        parse_share(text, {})


def test_a_killed_run_continues_and_ends_with_the_same_bytes(data: Path, weights: Path, tmp_path: Path) -> None:
    options = [
        "annotator=torchvision", f"annotator.model={MODEL}", f"annotator.weights={weights}", f"data.dir={data}",
        "annotator.options={width: 8, hidden: 16}", "annotator.batch=2",
    ]  # fmt: skip
    for kill_at in (1, 3):
        process = starter().start("annotate", [*options, "name=killed"], tmp_path / "log")
        while len(list(data.glob("objects/killed/*/*.parquet"))) < kill_at and process.running(0.001):
            pass
        process.kill()
    finished = {p: p.stat().st_mtime_ns for p in data.glob("objects/killed/*/*.parquet")}
    assert 3 <= len(finished) <= 6
    done = run("annotate", *options, "name=killed")
    assert f"6 of 6 parts complete, {55 - sum(map(images_of, finished))} images annotated" in done.stdout
    assert "images/s" in done.stdout or sum(map(images_of, finished)) == 55
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    run("annotate", *options, "name=alone")
    assert contents(data / "objects/killed") == contents(data / "objects/alone")
    assert sum(len(row) for p in finished for row in pq.read_table(p)["labels"].to_pylist()) > 0


def images_of(part: Path) -> int:
    return pq.read_metadata(part).num_rows


def test_the_command_chooses_sets_and_names(data: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_shards(elsewhere, pairs("E", 5), 10)
    options = ("annotator=classes", f"data.dir={data}")
    done = call("annotate", *options, f"sets=[P,{elsewhere}]", "name=mine")
    assert done.returncode == 0, done.stderr
    own_name = DataSpec("shards", str(data)).set_name(str(elsewhere))
    assert {p.name for p in (data / "objects/mine").iterdir()} == {"P", "annotator.json", own_name, "failed.csv"}
    assert call("annotate", *options).returncode == 0
    assert {p.name for p in (data / "objects/classes").iterdir() if p.is_dir()} == {"A", "P"}
    for overrides, message in [
        (["sets=[Q]"], "sets names Q; "),
        (["part=9"], "part=9 must be NUMBER/OF"),
        (["show=classes"], "give one of annotator=NAME, compare=[NAME,NAME] and show=NAME"),
        (["max_failed=2"], "max_failed=2.0 must lie between 0 and 1"),
    ]:
        failed = call("annotate", *options, *overrides)
        assert failed.returncode == 1
        assert message in failed.stderr
        assert len(failed.stderr.strip().splitlines()) == 1


def test_help_and_wrong_overridesload_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv[1:] = ['annotator=torchvision', 'data.dir=missing/folder', 'annotator.weights=x']\n"
        "from dejavu_lit.cli.annotate import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'torchvision', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data.dir=missing/folder does not exist" in done.stderr


def test_a_copy_of_remote_data_is_not_annotated(tmp_path):
    done = call("annotate", "annotator=classes", "data.dir=http://127.0.0.1:9/data", f"out={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: data.dir=http://127.0.0.1:9/data is remote; annotate the data where it is stored"
    )


def test_parts_of_shards_that_no_longer_exist_are_refused_and_kept(data: Path) -> None:
    annotate(ClassLabels(), sets(data), data / "objects/c")
    for old in (data / "P").glob("*"):
        old.unlink()
    write_shards(data / "P", pairs("P", 15), 20)
    index_shard.cache_clear()
    with pytest.raises(
        UserError, match=r"c/P has parts of shards that .*/P does not have \(1\), such as 00001\.parquet; remove"
    ):
        annotate(ClassLabels(), sets(data), data / "objects/c")
    (data / "objects/c/P/00001.parquet").unlink()
    assert annotate(ClassLabels(), sets(data), data / "objects/c").images == 15
    coverage(data / "objects/c", "AP", 0.5)


def test_a_key_that_is_a_formula_is_text_in_the_list_of_failures(tmp_path: Path) -> None:
    write_shards(tmp_path / "P", [*pairs("P", 4), Pair("=1+1", b"", "png", "a caption", {})])
    annotate(ClassLabels(), {"P": ShardSet.open(tmp_path / "P")}, tmp_path / "c", max_failed=1)
    with open(tmp_path / "c/failed.csv", newline="") as file:
        assert {row[1] for row in csv.reader(file)} == {"key", "P000", "'=1+1"}
