"""Odd captions and images through every command: what cannot be used is counted with its reason, and totals add up."""

import csv
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from dejavu_lit.data.readers.base import Reader
from dejavu_lit.data.readers.coco import CocoReader
from dejavu_lit.data.readers.folder import FolderReader
from dejavu_lit.data.readers.shards import ShardReader
from dejavu_lit.data.readers.table import TableReader
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.duplicates.dedup import dedup
from dejavu_lit.duplicates.settings import DuplicateCriteria
from dejavu_lit.objects.annotate import annotate
from dejavu_lit.objects.annotators.classes import ClassLabels
from dejavu_lit.report.report import write_report
from tests.conftest import ROOT, SMALL, call
from tests.data.images import encoded, sample_image
from tests.data.preparing import prepare
from tests.hostile import captions, images

MODEL = [option for option in SMALL if option.startswith("model.")]
Files = Mapping[str, tuple[bytes, bytes, str | None]]  # {key: (image, caption, why the pair cannot be used)}


@pytest.fixture(scope="module")
def zoo() -> Files:
    """All odd images with a good caption, and all odd captions with a good image."""
    found = {f"p-{name}": (data, b"a dog", reason) for name, (data, reason) in images().items()}
    texts = enumerate(captions().items())
    return found | {f"c-{name}": (encoded(sample_image(100 + n)), data, why) for n, (name, (data, why)) in texts}


def as_folder(zoo: Files, out: Path) -> Reader:
    out.mkdir()
    for key, (image, caption, _) in zoo.items():
        (out / f"{key}.jpg").write_bytes(image)
        (out / f"{key}.txt").write_bytes(caption)
    return FolderReader(out)


def as_shards(zoo: Files, out: Path) -> Reader:
    write_tar(out / "0.tar", zoo)
    return ShardReader(out)


def write_tar(path: Path, zoo: Files, label: str = "dog") -> None:
    """A shard as other people make it: nothing is checked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, (image, caption, _) in zoo.items():
            meta = json.dumps({"label": label, "score": float("nan"), "captions": ["a", 3, None, "b"]}).encode()
            for ending, data in (("jpg", image), ("txt", caption), ("json", meta)):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def text_of(caption: bytes) -> str:
    """The caption as a table or JSON can hold it."""
    return caption.decode("utf-8", "replace")


def as_table(zoo: Files, out: Path) -> Reader:
    as_folder(zoo, out)
    with open(out / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption"])
        writer.writerows([f"{key}.jpg", text_of(caption)] for key, (_, caption, _) in zoo.items())
    return TableReader(out / "t.csv")


def as_coco(zoo: Files, out: Path) -> Reader:
    as_folder(zoo, out)
    images = [{"id": n, "file_name": f"{key}.jpg"} for n, key in enumerate(zoo)]
    texts = [{"image_id": n, "caption": text_of(caption)} for n, (_, caption, _) in enumerate(zoo.values())]
    (out / "captions.json").write_text(json.dumps({"images": images, "annotations": texts}))
    return CocoReader(images=out, captions=out / "captions.json")


@pytest.mark.parametrize("source", [as_folder, as_shards, as_table, as_coco])
def test_prepare_counts_what_it_skips_by_its_reason(zoo, tmp_path, source):
    reader = source(zoo, tmp_path / "source")
    manifest = prepare(reader, tmp_path / "out", {"A": 10, "P": 5}, max_skipped=1.0)
    expected = Counter(reason for _, _, reason in zoo.values() if reason is not None)
    if source in (as_table, as_coco):
        del expected["its caption is not UTF-8"]  # such a table and such a JSON cannot be
    found = {reason: part["count"] for reason, part in manifest["skipped"].items()}
    assert found == expected
    pairs = manifest["pairs"]
    used = sum(part["pairs"] for part in manifest["sets"].values())
    assert used == 15
    assert pairs["read"] == len(zoo) == used + pairs["unused"] + pairs["skipped"]
    assert pairs["skipped"] == sum(found.values())


def test_odd_images_take_little_memory(tmp_path):
    """The bombs would take a gigabyte and more."""
    for key, (data, _) in images().items():
        (tmp_path / key).write_bytes(data)
    code = f"""
import resource
from pathlib import Path
from dejavu_lit.data.scan import decode_and_hash
from dejavu_lit.data.shards import BadPair
from dejavu_lit.report.images import shrink
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path({str(tmp_path)!r}).iterdir()):
    data = path.read_bytes()
    for function in (decode_and_hash, lambda image: shrink(image, 100)):
        try:
            function(data)
        except BadPair:
            pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000  # kB


@pytest.fixture(scope="module")
def foreign(zoo, tmp_path_factory) -> Path:
    """Shards that nothing of ours has looked at, as a data folder: A holds everything odd, H and P some odd images."""
    folder = tmp_path_factory.mktemp("foreign")
    good = {f"g-{n}": (encoded(sample_image(200 + n)), f"an image {n}".encode(), None) for n in range(96)}
    keys = list(good)
    odd = [key for key in zoo if key.startswith("p-")]
    fill = dict(list(good.items())[: -len(zoo) % 16])
    write_tar(folder / "A" / "a.tar", {**zoo, **fill})
    for name, start, some in (("B", 16, []), ("H", 32, odd[:9]), ("P", 64, odd[9:20])):
        shown = {f"{name}-{key}": zoo[key] for key in some}
        write_tar(folder / name / "b.tar", shown | {f"{name}-{k}": good[k] for k in keys[start : start + 32]}, name)
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "sets": {}, "pairs": {}}))
    sets = {name: ShardSet.open(folder / name) for name in "ABHP"}
    annotate(ClassLabels(), sets, folder / "objects" / "made")
    return folder


def decoded(reason: str | None) -> str | None:
    """The reason as told by what decodes images, whose files it does not choose by their first bytes."""
    return "the image does not decode" if reason == "the image is not a JPEG, PNG or WebP" else reason


@pytest.fixture(scope="module")
def run(foreign, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "target"
    options = [
        f"out={out}",
        "recipe.epochs=2",
        "recipe.batch=16",
        "trainer.loader.bad_share=1",
        "trainer.checkpoint_epochs=1",
        *MODEL,
    ]
    done = call("train", "side=target", "data=prepared", f"data.dir={foreign}", *options)
    assert done.returncode == 0, done.stderr
    return out


def test_training_counts_what_it_skips_by_its_reason(zoo, run, foreign):
    record = json.loads((run / "run.json").read_text())
    expected = Counter(decoded(reason) for _, _, reason in zoo.values() if reason is not None)
    assert record["unreadable"] == expected
    pairs = len(ShardSet.open(foreign / "A"))
    assert (
        pairs
        == record["train_size"]
        == sum(expected.values()) + sum(why is None for _, _, why in zoo.values()) + (pairs - len(zoo))
    )
    with open(run / "metrics.csv", newline="") as file:
        replaced = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "replaced"]
    assert replaced == [float(sum(expected.values()))] * 2


def test_evaluation_and_report_count_what_they_skip(zoo, run, foreign, tmp_path):
    options = ["k=2", "ks=[2]", "objects=made", "allow_overlap=true", "swapped=false", "data.labelled=null"]
    sides = [f"target={run}", f"reference={run}@1"]
    done = call("evaluate", *sides, "data=prepared", f"data.dir={foreign}", f"out={tmp_path / 'out'}", *options)
    assert done.returncode == 0, done.stderr
    texts = Counter(why for key, (_, _, why) in zoo.items() if why is not None and key.startswith("c-"))
    images = Counter(decoded(why) for key, (_, _, why) in list(zoo.items())[9:20] if why is not None)
    for name, wanted in (("A-text", texts), ("P-image", images)):
        (folder,) = (run / "embeddings").glob(f"target-*/{name}")
        skipped = json.loads((folder / "fingerprint.json").read_text())["skipped"]
        assert Counter(skipped.values()) == wanted
        kept = (folder / ("a.txt" if name[0] == "A" else "b.txt")).read_text("utf-8").splitlines()
        assert len(kept) + len(skipped) == len(ShardSet.open(foreign / name[0]))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    counts = metrics["counts"]
    assert counts["records"] + counts["without_objects"] == len(ShardSet.open(foreign / "A")) - sum(texts.values())
    index = write_report(tmp_path / "out", limit=60)
    text = index.read_text("utf-8")
    assert "<script>alert" not in text
    data = (index.parent / "data" / "cards.js").read_text("ascii")  # a script file of its own: nothing in it is markup
    shown = {
        card["key"]: card["caption"] for card in json.loads(data.removeprefix("dejavu(").removesuffix(")\n"))["cards"]
    }
    assert shown["c-html"] == captions()["html"][0].decode()


def test_duplicates_count_what_they_skip(foreign, tmp_path):
    sets = {name: ShardSet.open(foreign / name) for name in "AHP"}
    report = dedup(tmp_path, sets, DuplicateCriteria(6, None, 0.9), within=True)
    for name, shards in sets.items():
        found = report["sets"][name]
        assert found["unusable"] > 0
        assert found["pictures"] + found["unusable"] == len(shards)
