import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dejavu_lit.data import prepare as preparing
from dejavu_lit.data import scan as scanning
from dejavu_lit.data.near_duplicates import exact_copies, near_groups
from dejavu_lit.data.objects import Annotation, read_objects
from dejavu_lit.data.readers.coco import CocoReader
from dejavu_lit.data.readers.folder import FolderReader
from dejavu_lit.data.readers.scenes import SingleReader
from dejavu_lit.data.readers.shards import ShardReader
from dejavu_lit.data.readers.table import TableReader
from dejavu_lit.data.scan import decode_and_hash, scan
from dejavu_lit.data.shards import BadPair, Pair, ShardSet, read_pairs, write_shard
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, fingerprint
from tests.conftest import call
from tests.data.images import COCO_MINI, contents, encoded, needs_coco, sample_image
from tests.data.preparing import prepare
from tests.data.readers.test_coco import write_split

SIZES = {"A": 12, "B": 12, "H": 6, "V": 3, "P": 6}


def add(root: Path, name: str, data: bytes, caption: str = "a caption") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{name}.png").write_bytes(data)
    (root / f"{name}.txt").write_text(caption)


def fingerprint_of(folder: Path) -> str:
    return fingerprint([file_sha256(path) for path in sorted(folder.glob("*.tar"))])


def pairs_of(out: Path, name: str) -> list[Pair]:
    pairs = list(read_pairs(ShardSet.open(out / name)))
    assert all(isinstance(pair, Pair) for pair in pairs)
    return [pair for pair in pairs if isinstance(pair, Pair)]


@dataclass(frozen=True)
class Interrupted(FolderReader):
    """A folder that records which pairs are read, and is interrupted at the key ``at`` once ``after`` exists."""

    at: str = ""
    after: Path = Path()
    reads: list[str] = field(default_factory=list, compare=False)

    def read(self, key: str) -> tuple[Pair, Annotation | None]:
        self.reads.append(key)
        if key == self.at and self.after.exists():
            raise KeyboardInterrupt
        return super().read(key)


def first_of_b(folder: Path, base: Path) -> str:
    """The first key written into B."""
    prepare(FolderReader(folder), base / "complete", {"A": 10, "B": 10})
    return ShardSet.open(base / "complete/B").keys()[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 distinct images, a00 … a39."""
    for number in range(40):
        add(tmp_path / "images", f"a{number:02d}", encoded(sample_image(number)), f"caption {number}")
    return tmp_path / "images"


def test_every_pair_is_in_one_set_unchanged(folder: Path, tmp_path: Path) -> None:
    manifest = prepare(FolderReader(folder), tmp_path / "out", SIZES, pairs_per_shard=5)
    seen: dict[str, Pair] = {}
    for name, size in SIZES.items():
        shards = ShardSet.open(tmp_path / "out" / name)
        assert (len(shards), shards.names[0]) == (size, "00000.tar")
        assert max(shards.sizes) <= 5
        assert json.loads((tmp_path / "out" / name / "sizes.json").read_text()) == dict(
            zip(shards.names, shards.sizes, strict=True)
        )
        pairs = pairs_of(tmp_path / "out", name)
        assert not {pair.key for pair in pairs} & set(seen)
        seen |= {pair.key: pair for pair in pairs}
        entry = {"pairs": size, "shards": -(-size // 5), "objects": None, "asked": size}
        assert manifest["sets"][name] == entry | {"fingerprint": fingerprint_of(tmp_path / "out" / name)}
    assert len(seen) == 39
    for key, pair in seen.items():
        assert pair.image == (folder / f"{key}.png").read_bytes()
        assert pair.caption == f"caption {int(key[1:])}"
        assert pair.meta == {"path": f"{key}.png"}
    assert manifest["pairs"] == {"read": 40, "excluded": 0, "skipped": 0, "unused": 1}
    assert manifest == json.loads((tmp_path / "out/manifest.json").read_text())
    assert not (tmp_path / "out/.prepare").exists()


def test_the_same_bytes_for_any_number_of_workers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "PART", 7)
    for workers in (1, 3):
        prepare(FolderReader(folder), tmp_path / f"out{workers}", SIZES, pairs_per_shard=5, workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out3")


def test_sets_of_another_size_keep_the_order_of_their_pairs(folder: Path, tmp_path: Path) -> None:
    # A smaller training size takes a prefix of a set's shards, so the order must not depend on how shards are cut.
    prepare(FolderReader(folder), tmp_path / "out1", SIZES, pairs_per_shard=5)
    prepare(FolderReader(folder), tmp_path / "out2", SIZES, pairs_per_shard=3)
    assert ShardSet.open(tmp_path / "out1/A").keys() == ShardSet.open(tmp_path / "out2/A").keys()
    prepare(FolderReader(folder), tmp_path / "out3", SIZES, seed=1)
    assert set(ShardSet.open(tmp_path / "out1/A").keys()) != set(ShardSet.open(tmp_path / "out3/A").keys())


def test_duplicates_stay_together_and_are_counted(folder: Path, tmp_path: Path) -> None:
    for number in range(10):  # for each of ten images, an exact copy and a smaller recompressed copy
        image = sample_image(number)
        add(folder, f"b{number:02d}", encoded(image), "the same")
        add(folder, f"c{number:02d}", encoded(image.resize((40, 30)), "JPEG", quality=90), "nearly the same")
    manifest = prepare(FolderReader(folder), tmp_path / "out", {"A": 20, "B": 20, "P": 20})
    where = {pair.key: name for name in "ABP" for pair in pairs_of(tmp_path / "out", name)}
    assert len(where) == 60
    for number in range(10):
        assert where[f"a{number:02d}"] == where[f"b{number:02d}"] == where[f"c{number:02d}"]
    duplicates = manifest["duplicates"]
    assert duplicates["source"] == {
        "exact": {"groups": 10, "pairs": 20},
        "near": {"groups": 10, "pairs": 30, "largest": 3},
    }
    assert duplicates["across"] == {"exact": 0, "near": 0}
    assert sum(duplicates["within"][name]["near"]["pairs"] for name in "ABP") == 30

    exact = prepare(FolderReader(folder), tmp_path / "exact", {"A": 20, "B": 20, "P": 20}, near_duplicates=None)
    assert exact["duplicates"]["source"] == {
        "exact": {"groups": 10, "pairs": 20},
        "near": {"groups": 0, "pairs": 0, "largest": 0},
    }
    where = {pair.key: name for name in "ABP" for pair in pairs_of(tmp_path / "exact", name)}
    assert all(where[f"a{number:02d}"] == where[f"b{number:02d}"] for number in range(10))
    assert any(where[f"a{number:02d}"] != where[f"c{number:02d}"] for number in range(10))


def test_unusable_pairs_are_skipped_counted_and_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    complete = encoded(sample_image(50, 200, 200), "JPEG")
    for name, data in {"cut": complete[: len(complete) // 2], "noise": b"\xff\xd8\xff" + bytes(range(256))}.items():
        add(folder, name, data)
    add(folder, "empty", encoded(sample_image(51)), " \n")
    add(folder, "mute", encoded(sample_image(52)))
    (folder / "mute.txt").unlink()
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    add(folder, "bomb", bomb)
    for file in ("drawing.gif", "note.doc", "scan.bmp"):
        (folder / file).write_bytes(encoded(sample_image(53), "GIF"))
    manifest = prepare(FolderReader(folder), tmp_path / "out", SIZES)
    assert [*manifest["unread"].items()] == [
        (".bmp", 1),
        (".doc", 1),
        (".gif", 1),
    ]  # in this order on every file system
    assert manifest["pairs"]["skipped"] == 5
    assert manifest["skipped"] == {
        "it has no caption (.txt) beside the image": {"count": 1, "examples": ["mute"]},
        "its caption is empty": {"count": 1, "examples": ["empty"]},
        "the image does not decode": {"count": 2, "examples": ["cut", "noise"]},
        "the image has more than 100 megapixels": {"count": 1, "examples": ["bomb"]},
    }
    assert "the image does not decode: cut, noise" in caplog.text


def test_a_truncated_image_is_detected(tmp_path: Path) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(sample_image(1, 300, 300), kind)
        decode_and_hash(data)
        for share in (0.3, 0.9):
            with pytest.raises(BadPair, match="does not decode"):
                decode_and_hash(data[: int(share * len(data))])


def test_too_many_unusable_pairs_stop_it_and_a_larger_share_continues(folder: Path, tmp_path: Path) -> None:
    for number in range(11):
        (folder / f"a{number:02d}.txt").unlink()
    with pytest.raises(UserError, match=r"11 of 40 pairs of the folder source .* no caption .*a00.*max_skipped="):
        prepare(FolderReader(folder), tmp_path / "out", {"A": 5})
    manifest = prepare(FolderReader(folder), tmp_path / "out", {"A": 5}, max_skipped=0.5)
    assert manifest["pairs"]["skipped"] == 11
    for file in folder.glob("*.txt"):
        file.unlink()
    with pytest.raises(UserError, match=r"max_skipped=nan must lie between 0 and 1"):
        prepare(FolderReader(folder), tmp_path / "out", {"A": 5}, max_skipped=float("nan"))
    with pytest.raises(UserError, match=r"40 of 40 pairs of the folder source .*; check the source$"):
        prepare(FolderReader(folder), tmp_path / "none", {"A": 5}, max_skipped=1.0)


def test_excluded_keys_are_in_no_set(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "keys.txt").write_text("a03\na17.png\n\na17\nnobody\n")
    manifest = prepare(FolderReader(folder), tmp_path / "out", {"A": 38}, exclude=tmp_path / "keys.txt")
    assert manifest["pairs"]["excluded"] == 2
    assert not {"a03", "a17"} & set(ShardSet.open(tmp_path / "out/A").keys())
    assert "1 of 4 keys" in caplog.text
    (tmp_path / "keys.txt").write_text("nobody\n")
    with pytest.raises(UserError, match=r"none of .*keys\.txt is in the data: it lists 'nobody', .* such as 'a00'"):
        prepare(FolderReader(folder), tmp_path / "again", {"A": 38}, exclude=tmp_path / "keys.txt")
    with pytest.raises(UserError, match=r"none\.txt is not a file; give a text file"):
        prepare(FolderReader(folder), tmp_path / "again", {"A": 38}, exclude=tmp_path / "none.txt")


def test_a_set_that_gets_no_pair_is_not_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(16):
        add(tmp_path / "in", f"k{number:02d}", encoded(sample_image(number // 4)))
    manifest = prepare(FolderReader(tmp_path / "in"), tmp_path / "out", {"A": 4, "B": 4, "V": 1, "P": 4})
    assert {name: entry["pairs"] for name, entry in manifest["sets"].items()} == {"A": 4, "B": 4, "P": 4}
    assert not (tmp_path / "out/V").exists()
    assert "V got 0 of 1 pairs: the remaining groups are larger" in caplog.messages
    assert "sets without a pair, not written: V" in caplog.messages
    caplog.clear()
    manifest = prepare(FolderReader(tmp_path / "in"), tmp_path / "share", {"A": 0.5, "V": 0.05, "H": 0})  # V: 0.8 pairs
    assert list(manifest["sets"]) == ["A"]
    assert "sets without a pair, not written: V" in caplog.messages


@pytest.fixture
def lists(folder: Path, tmp_path: Path) -> dict[str, Path]:
    """a00 … a14 are listed for A; a20 … a29 and a missing key for H."""
    files = {"A": tmp_path / "members.txt", "H": tmp_path / "holdout.txt"}
    files["A"].write_text("\n".join(f"a{number:02d}" for number in range(15)))
    files["H"].write_text("\n".join([*(f"a{number:02d}" for number in range(20, 30)), "nobody"]))
    return files


def test_listed_pairs_go_into_their_set_and_no_other(
    folder: Path, lists: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    reader = FolderReader(folder)
    manifest = prepare(reader, tmp_path / "out", {"A": None, "B": 5, "H": 4, "P": 9}, keys=lists)
    where = {name: set(ShardSet.open(tmp_path / "out" / name).keys()) for name in "ABHP"}
    assert where["A"] == {f"a{number:02d}" for number in range(15)}
    assert where["H"] < {f"a{number:02d}" for number in range(20, 30)}
    assert {name: len(keys) for name, keys in where.items()} == {"A": 15, "B": 5, "H": 4, "P": 9}
    assert where["B"] | where["P"] < {f"a{n:02d}" for n in (*range(15, 20), *range(30, 40))}
    entries = {name: {k: manifest["sets"][name].get(k) for k in ("asked", "listed", "absent")} for name in "AHP"}
    assert entries["A"] == {"asked": 15, "listed": 15, "absent": 0}
    assert entries["H"] == {"asked": 4, "listed": 11, "absent": 1}
    assert entries["P"] == {"asked": 9, "listed": None, "absent": None}
    assert "1 of 11 keys in keys.H are not in the data; the first is 'nobody'" in caplog.text
    assert "H took 4 of the 11 pairs that keys.H lists" in caplog.text
    # A smaller H is a prefix of a larger one, as without lists.
    prepare(reader, tmp_path / "more", {"A": None, "B": 5, "H": None, "P": 9}, keys=lists)
    assert where["H"] < set(larger := ShardSet.open(tmp_path / "more/H").keys())
    assert [key for key in larger if key in where["H"]] == ShardSet.open(tmp_path / "out/H").keys()


def test_duplicates_of_listed_pairs_go_into_no_other_set(
    folder: Path, lists: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(folder, "b20", encoded(sample_image(0)), "listed for H, the same image as a00 of A")
    add(folder, "b21", encoded(sample_image(1).resize((40, 30)), "JPEG", quality=90), "listed for H, nearly a01 of A")
    add(folder, "b02", encoded(sample_image(2)), "listed nowhere, the same image as a02 of A")
    lists["H"].write_text("\n".join([*(f"a{number:02d}" for number in range(20, 30)), "b20", "b21"]))
    manifest = prepare(FolderReader(folder), tmp_path / "out", {"A": 5, "H": None, "P": 15}, keys=lists)
    where = {name: set(ShardSet.open(tmp_path / "out" / name).keys()) for name in "AHP"}
    assert where["H"] == {f"a{number:02d}" for number in range(20, 30)}
    assert not {key for keys in where.values() for key in keys} & {"b20", "b21", "b02"}
    assert len(where["A"]) == 5
    assert manifest["sets"]["H"]["left_out_as_duplicates"] == 2
    assert manifest["pairs"]["left_out_as_duplicates"] == 3
    assert "left out 2 pairs of H: duplicates of pairs of A" in caplog.text
    assert "left out 1 pair in no list: duplicates of pairs of A" in caplog.text
    with pytest.raises(UserError, match=r"sizes\.H asks for 12 pairs, but keys\.H lists 10 that can be used"):
        prepare(FolderReader(folder), tmp_path / "again", {"A": 5, "H": 12, "P": 15}, keys=lists)


def test_other_lists_are_other_settings(folder: Path, lists: dict[str, Path], tmp_path: Path) -> None:
    reader, sizes = FolderReader(folder), {"A": 5, "H": 5, "P": 5}
    first = prepare(reader, tmp_path / "out", sizes, keys=lists)
    lists["A"].write_text("\n".join(reversed(lists["A"].read_text().split())))  # the same keys in another order
    assert prepare(reader, tmp_path / "out", sizes, keys=lists) == first
    lists["A"].write_text("\n".join(f"a{number:02d}" for number in range(14)))
    with pytest.raises(UserError, match=r"other settings \(keys\.A: .* → "):
        prepare(reader, tmp_path / "out", sizes, keys=lists)
    with pytest.raises(UserError, match=r"other settings \(keys: .* → null\)"):
        prepare(reader, tmp_path / "out", sizes)


def test_wrong_lists_are_named_before_anything_is_read(folder: Path, lists: dict[str, Path], tmp_path: Path) -> None:
    reader = Interrupted(folder)
    lists["A"].write_text("img/a00.png\nimg/a01.png\n")
    with pytest.raises(UserError, match=r"none of the 2 keys in keys\.A .* lists 'img/a00\.png', .* such as 'a00'"):
        prepare(reader, tmp_path / "out", {"A": 2, "P": 5}, keys=lists)
    lists["A"].write_text("a00\na20\n")
    with pytest.raises(UserError, match=r"keys\.A and keys\.H both list 'a20'"):
        prepare(reader, tmp_path / "out", {"A": 2, "P": 5}, keys=lists)
    lists["A"].write_text("a00\na01\n")
    with pytest.raises(UserError, match=r"ask for 29 pairs \(P=29\), but there are only 28 for these sets"):
        prepare(reader, tmp_path / "out", {"A": 2, "P": 29}, keys=lists)
    assert not reader.reads


def test_the_command_accepts_lists(folder: Path, lists: dict[str, Path], tmp_path: Path) -> None:
    options = ["data=folder", f"data.reader.path={folder}", f"keys.A={lists['A']}", f"keys.H={lists['H']}"]
    options += ["data.sizes={A: null, B: 0, H: null, V: 0, P: 15}", "workers=1"]
    done = call("prepare", *options, f"data.dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert set(ShardSet.open(tmp_path / "out/A").keys()) == set(lists["A"].read_text().split())
    named = ["data=folder", f"data.reader.path={folder}", f"data.dir={tmp_path / 'x'}"]
    for options, message in (
        ([*named, f"keys.C={lists['A']}"], "keys names an unknown set 'C'"),
        ([*named, f"keys={lists['A']}"], "keys="),
        (["data=scenes", f"keys.A={lists['A']}"], "keys changes what is prepared, so name the folder: data.dir=OUT"),
    ):
        done = call("prepare", *options)
        assert done.returncode == 1
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_finished_folder_is_left_alone_and_other_settings_are_named(folder: Path, tmp_path: Path) -> None:
    first = prepare(FolderReader(folder), tmp_path / "out", SIZES)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert prepare(FolderReader(folder), tmp_path / "out", SIZES, workers=1) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    with pytest.raises(UserError, match=r"other settings \(sizes.A: 12 → 11\)"):
        prepare(FolderReader(folder), tmp_path / "out", {**SIZES, "A": 11}, seed=1)
    (folder / "a00.txt").write_text("changed since")
    with pytest.raises(UserError, match=r"reader\.files: "):
        prepare(FolderReader(folder), tmp_path / "out", SIZES)


def test_a_corrected_command_reuses_what_was_read(folder: Path, tmp_path: Path) -> None:
    (folder / "a05.txt").write_text("")
    with pytest.raises(UserError, match=r"ask for 40 pairs .* only 39"):
        prepare(FolderReader(folder), tmp_path / "out", {"A": 40})
    again = Interrupted(folder)
    manifest = prepare(again, tmp_path / "out", {"A": 4}, seed=3, workers=1)
    assert manifest["sets"]["A"]["pairs"] == 4
    assert again.reads[0] == "a05"  # the unusable one might be usable now
    assert len(again.reads) == 1 + 4


def test_pairs_that_changed_are_read_again(folder: Path, tmp_path: Path) -> None:
    add(folder, "a05", b"broken")
    with pytest.raises(UserError, match="ask for 40 pairs"):
        prepare(FolderReader(folder), tmp_path / "out", {"A": 40})
    add(folder, "a05", encoded(sample_image(70)))
    assert prepare(FolderReader(folder), tmp_path / "out", {"A": 40})["pairs"]["skipped"] == 0


def test_an_unfinished_folder_keeps_its_settings(folder: Path, tmp_path: Path) -> None:
    at = first_of_b(folder, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(folder, at=at, after=tmp_path / "out/A"), tmp_path / "out", {"A": 10, "B": 10}, workers=1)
    with pytest.raises(UserError, match=r"other settings \(seed: 0 → 1\)"):
        prepare(FolderReader(folder), tmp_path / "out", {"A": 10, "B": 10}, seed=1)


@pytest.mark.parametrize("fewer", [False, True])
def test_images_restored_after_an_interruption_put_no_pair_into_two_sets(tmp_path: Path, fewer: bool) -> None:
    write_split(tmp_path / "coco", "train", list(range(1, 41)))
    lost = sorted((tmp_path / "coco").rglob("*.jpg"))[3:8]
    for path in lost:
        path.rename(tmp_path / path.name)

    class Killed(CocoReader):
        def read(self, key: str) -> tuple[Pair, Annotation | None]:
            if (tmp_path / "out/B/00001.tar").exists():
                raise KeyboardInterrupt
            return super().read(key)

    sizes, options = {"A": 0.5, "B": 0.3}, {"pairs_per_shard": 4, "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        prepare(Killed(root=tmp_path / "coco", splits="train"), tmp_path / "out", sizes, **options)
    for path in lost:
        (tmp_path / path.name).rename(path)
    if fewer:  # as if the other split had filled more shards
        for name in ("B/00009.tar", "objects/coco/B/00009.parquet"):
            shutil.copy(tmp_path / "out" / name.replace("9", "0"), tmp_path / "out" / name)
    reader = CocoReader(root=tmp_path / "coco", splits="train")
    expected = prepare(reader, tmp_path / "complete", sizes, **options)
    assert prepare(reader, tmp_path / "out", sizes, **options) == expected
    assert contents(tmp_path / "out") == contents(tmp_path / "complete")


def test_unfinished_files_of_other_commands_stay(folder: Path, tmp_path: Path) -> None:
    (folder / "a05.txt").write_text("")
    with pytest.raises(UserError, match="ask for 40 pairs"):
        prepare(FolderReader(folder), tmp_path / "out", {"A": 40})
    own, other = tmp_path / "out/.prepare/.0.npz.1.part", tmp_path / "out/runs/.last.ckpt.1.part"
    other.parent.mkdir()
    own.touch()
    other.touch()
    prepare(FolderReader(folder), tmp_path / "out", {"A": 4})
    assert other.exists()
    assert not own.exists()


@pytest.mark.parametrize("key", ["", "a.b", "a/b"])
def test_keys_that_no_shard_can_have_are_refused(folder: Path, tmp_path: Path, key: str) -> None:
    class Careless(FolderReader):
        def keys(self) -> list[str]:
            return [key, *super().keys()]

    with pytest.raises(UserError, match=f"has a key '{key}'; keys must be non-empty, without dots and slashes"):
        prepare(Careless(folder), tmp_path / "out", SIZES)


@pytest.mark.parametrize("distance", [-1, 13])
def test_distance_out_of_range(folder: Path, tmp_path: Path, distance: int) -> None:
    with pytest.raises(UserError, match=f"near_duplicates={distance} must be at least 0 and at most 12"):
        prepare(FolderReader(folder), tmp_path / "out", SIZES, near_duplicates=distance)


def test_foreign_files_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out/B").mkdir(parents=True)
    with pytest.raises(UserError, match="contains 'B', which this command did not write"):
        prepare(FolderReader(folder), tmp_path / "out", SIZES)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["B"]


def test_mistakes_are_named_before_anything_is_read(folder: Path, tmp_path: Path) -> None:
    reader = FolderReader(folder)
    with pytest.raises(UserError, match=r"ask for 41 pairs .* only 40"):
        prepare(reader, tmp_path / "out", {"A": 41})
    with pytest.raises(UserError, match="near_duplicates=40"):
        prepare(reader, tmp_path / "out", {"A": 1}, near_duplicates=40)
    with pytest.raises(UserError, match="pairs_per_shard=0"):
        prepare(reader, tmp_path / "out", {"A": 1}, pairs_per_shard=0)
    with pytest.raises(UserError, match="extra names a set 'A'"):
        prepare(reader, tmp_path / "out", {"A": 1}, extra={"A": reader})
    with pytest.raises(UserError, match="the key 'a00' occurs twice"):
        prepare(reader, tmp_path / "out", {"A": 1}, extra={"single": reader})
    with pytest.raises(UserError, match=r"data\.exclude=.*images is not a file; give a text file"):
        prepare(reader, tmp_path / "out", {"A": 1}, exclude=folder)
    with pytest.raises(UserError, match=r"the single source has no pairs; check data\.extra\.L"):
        prepare(reader, tmp_path / "out", {"A": 1}, extra={"L": SingleReader(count=0)})


def test_an_extra_set_is_written_without_images_of_the_other_sets(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(100, 110):
        add(tmp_path / "public", f"x{number}", encoded(sample_image(number)))
    add(tmp_path / "public", "x_same", encoded(sample_image(0)))
    add(tmp_path / "public", "x_near", encoded(sample_image(1).resize((40, 30)), "JPEG", quality=90))
    reader = FolderReader(folder)
    plain = prepare(reader, tmp_path / "plain", {"A": 20, "P": 20})
    manifest = prepare(
        reader, tmp_path / "out", {"A": 20, "P": 20}, extra={"single": FolderReader(tmp_path / "public")}
    )
    assert set(ShardSet.open(tmp_path / "out/single").keys()) == {f"x{number}" for number in range(100, 110)}
    entry = {"pairs": 10, "shards": 1, "objects": None, "left_out_as_duplicates": 2}
    assert manifest["sets"]["single"] == entry | {"fingerprint": fingerprint_of(tmp_path / "out/single")}
    assert "2 of 12 images of single left out: other sets have them" in caplog.messages
    # The sets of the main source are the same as without the extra set.
    assert manifest["duplicates"] == plain["duplicates"]
    assert contents(tmp_path / "out/A") == contents(tmp_path / "plain/A")


def test_images_without_captions_can_only_be_a_public_set(folder: Path, tmp_path: Path) -> None:
    for file in folder.glob("*.txt"):
        file.unlink()
    names = sorted(path.name for path in folder.glob("*.png"))
    (tmp_path / "pairs.csv").write_text("path\n" + "".join(f"{folder / name}\n" for name in names))
    without = {
        "folder": FolderReader(folder, caption="none"),
        "table": TableReader(tmp_path / "pairs.csv", caption=None),
    }
    for name, reader in without.items():
        prepare(reader, tmp_path / name, {"A": 0, "B": 0, "P": 20})
        pairs = pairs_of(tmp_path / name, "P")
        assert len(pairs) == 20
        assert {pair.caption for pair in pairs} == {""}
        with pytest.raises(UserError, match="its caption is empty"):
            prepare(reader, tmp_path / f"{name} A", {"A": 10, "P": 10})
    for number in range(100, 140):
        add(tmp_path / "captioned", f"c{number}", encoded(sample_image(number)))
    extra = {"more": without["folder"]}
    manifest = prepare(FolderReader(tmp_path / "captioned"), tmp_path / "extra", {"A": 20, "P": 20}, extra=extra)
    assert manifest["sets"]["more"]["pairs"] == len(names) > 0


def test_complete_parts_are_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PART", 10)
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(folder, at="a25"), tmp_path / "out", {"A": 5}, workers=1)
    again = Interrupted(folder)
    prepare(again, tmp_path / "out", {"A": 5}, workers=1)
    assert again.reads[:20] == [f"a{number}" for number in range(20, 40)]
    assert len(again.reads) == 25  # and the five of A again, for writing


KILLED = """
import os, signal, sys
from dejavu_lit.data.readers.folder import FolderReader
from tests.data.preparing import prepare

folder, out, key, writing = sys.argv[1:]

class Killer(FolderReader):
    def read(self, asked):
        if asked == key and os.path.isdir(os.path.join(out, "A")) == (writing == "1"):
            os.kill(os.getppid(), signal.SIGKILL)
            signal.pause()
        return super().read(asked)

prepare(Killer(folder), out, {"A": 500, "B": 300, "P": 200}, pairs_per_shard=100, workers=2)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """1,100 images, some of them duplicated, and the sets prepared from them."""
    base = tmp_path_factory.mktemp("killed")
    for number in range(1100):
        add(base / "images", f"k{number:04d}", encoded(sample_image(number // 2 if number < 50 else number, 24, 24)))
    prepare(FolderReader(base / "images"), base / "out", {"A": 500, "B": 300, "P": 200}, pairs_per_shard=100, workers=2)
    yield base / "images", base / "out"
    shutil.rmtree(base)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a forked worker kills its parent")
@pytest.mark.parametrize("writing", [False, True])
def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    undisturbed: tuple[Path, Path], tmp_path: Path, writing: bool
) -> None:
    images, expected = undisturbed
    key = ShardSet.open(expected / "B").keys()[150] if writing else "k1050"
    command = [sys.executable, "-c", KILLED, str(images), str(tmp_path / "out"), key, str(int(writing))]
    killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out/manifest.json").exists()
    files = contents(tmp_path / "out")
    assert any(name.endswith(".npz") for name in files)
    assert any(name.endswith(".tar") for name in files) == writing
    (tmp_path / "out/.prepare/.half.npz.123.part").write_bytes(b"half")  # left behind by a killed write
    prepare(FolderReader(images), tmp_path / "out", {"A": 500, "B": 300, "P": 200}, pairs_per_shard=100, workers=1)
    assert contents(tmp_path / "out") == contents(expected)


def test_images_that_change_during_preparation_are_detected(folder: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Changing(FolderReader):
        def read(self, key: str) -> tuple[Pair, Annotation | None]:
            pair, annotation = super().read(key)
            image = encoded(sample_image(99)) if (tmp_path / "out/A").is_dir() else pair.image
            return Pair(key, image, "png", pair.caption), annotation

    with pytest.raises(UserError, match="changed while its set was prepared"):
        prepare(Changing(folder), tmp_path / "out", {"A": 5}, workers=1)


def test_existing_shards_can_be_split(tmp_path: Path) -> None:
    with write_shard(tmp_path / "shards" / "00000.tar") as write:
        for number in range(20):
            write(Pair(f"s{number:02d}", encoded(sample_image(number)), "png", f"caption {number}", {"n": number}))
    prepare(ShardReader(tmp_path / "shards"), tmp_path / "out", {"A": 0.5, "B": 0.5})
    pairs = pairs_of(tmp_path / "out", "A") + pairs_of(tmp_path / "out", "B")
    assert sorted((pair.key, pair.caption, pair.meta["n"]) for pair in pairs) == [
        (f"s{number:02d}", f"caption {number}", number) for number in range(20)
    ]


def test_object_parts_match_the_shards(tmp_path: Path) -> None:
    write_split(tmp_path / "coco", "train", list(range(100, 114)))
    write_split(tmp_path / "coco", "val", list(range(6)))
    reader = CocoReader(root=tmp_path / "coco")
    manifest = prepare(reader, tmp_path / "out", {"A": 11, "P": 9}, pairs_per_shard=4)
    empty = 0
    for name in "AP":
        assert manifest["sets"][name]["objects"] == "coco"
        shards = ShardSet.open(tmp_path / "out" / name)
        for number, tar in enumerate(shards.names):
            table = pq.read_table(tmp_path / "out/objects/coco" / name / f"{Path(tar).stem}.parquet")
            assert table.schema.metadata[b"dejavu_lit_images"].decode() == shards.index(number).images
            part = table.to_pylist()
            assert [row["key"] for row in part] == list(shards.index(number).keys)
            for row in part:
                annotation = reader.read(row["key"])[1]
                assert annotation is not None
                assert (row["labels"], row["scores"], row["boxes"]) == (
                    annotation.labels,
                    annotation.scores,
                    annotation.boxes,
                )
                empty += not row["labels"]
    assert empty == 2  # the last image of train and of val


@needs_coco
def test_the_real_sample_of_coco(tmp_path: Path) -> None:
    reader = CocoReader(root=COCO_MINI)
    manifest: dict[str, Any] = prepare(
        reader, tmp_path / "out", {"A": 50, "B": 50, "H": 20, "V": 9, "P": 30}, pairs_per_shard=20
    )
    assert manifest["pairs"] == {"read": 159, "excluded": 0, "skipped": 0, "unused": 0}
    assert manifest["duplicates"]["source"]["near"]["groups"] == 0
    names = ["A", "B", "H", "V", "P"]
    objects, annotator = read_objects([tmp_path / "out/objects/coco" / name for name in names])
    assert annotator == reader.annotator
    for name, set_objects in zip(names, objects, strict=True):
        shards = ShardSet.open(tmp_path / "out" / name)
        assert list(set_objects.keys) == shards.keys()
        parts = sorted(path.stem for path in (tmp_path / "out/objects/coco" / name).iterdir())
        assert parts == [tar.removesuffix(".tar") for tar in shards.names]
        for row, key in enumerate(set_objects.keys):
            annotation = reader.read(key)[1]
            assert annotation is not None
            assert set_objects.names(row) == sorted(set(annotation.labels))


def test_images_without_a_hash_are_in_no_near_group() -> None:
    groups = near_groups(np.array([0, 1, 0]), np.zeros(3, np.uint64), np.array([True, False, False]), 6)[0]
    assert groups.tolist() == [0, 1, 0]


def test_pairs_with_several_captions_and_copies_within_p_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of one image are one pair; files of the same bytes stay pairs, in one set, and P's are warned of."""
    lines = ["image,caption"]
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(encoded(sample_image(number // 2)))
        lines += [f"{number}.png,caption {number} {n}" for n in range(5)]
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    with caplog.at_level("INFO"):
        reader = TableReader(tmp_path / "captions.txt", image="image")
        manifest = prepare(reader, tmp_path / "out", {"A": 10, "P": 10})
    assert manifest["several_captions"] == manifest["pairs"]["read"] == 20
    assert [len(pair.meta["captions"]) for pair in pairs_of(tmp_path / "out", "A")] == [5] * 10
    assert "table: 20 of 20 pairs have several captions, 100 in all" in caplog.text
    assert manifest["duplicates"]["within"]["P"]["exact"] == {"groups": 5, "pairs": 10}
    assert "P has 10 pairs that are exact copies of 5 images" in caplog.text
    public = ShardSet.open(tmp_path / "out/P")
    assert exact_copies(public) == 5
    (tmp_path / "out/manifest.json").unlink()  # as for shards of others, whose images are then read
    assert exact_copies(public) == 5
    assert exact_copies(public, public.keys()[:8]) <= 1
    assert exact_copies(public, public.keys()) == 0


def test_hidden_files_beside_shards_and_objects_are_ignored(tmp_path: Path) -> None:
    write_split(tmp_path / "coco", "train", list(range(1, 21)))
    prepare(CocoReader(root=tmp_path / "coco", splits="train"), tmp_path / "out", {"A": 10, "P": 10})
    objects = tmp_path / "out/objects/coco/A"
    before = read_objects([objects], 0.0)[0]
    for path in (tmp_path / "out/A/._00000.tar", objects / "._00000.parquet"):
        path.write_bytes(b"Mac OS X")
    (tmp_path / "out/A/sizes.json").unlink()
    assert ShardSet.open(tmp_path / "out/A").names == ("00000.tar",)
    assert read_objects([objects], 0.0)[0][0].keys == before[0].keys


def test_pairs_that_were_unusable_are_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PART", 10)
    table = tmp_path / "images/table.csv"
    table.write_text("path,caption\n" + "".join(f"a{number:02d}.png,caption {number}\n" for number in range(40)))
    for number in range(3, 15):
        (folder / f"a{number:02d}.png").rename(tmp_path / f"a{number:02d}.png")
    with pytest.raises(UserError, match="12 of 40 pairs of the table source cannot be used"):
        prepare(TableReader(table), tmp_path / "out", {"A": 5}, workers=1)
    for number in range(3, 15):
        (tmp_path / f"a{number:02d}.png").rename(folder / f"a{number:02d}.png")
    before = prepare(TableReader(table), tmp_path / "complete", {"A": 5}, workers=1)
    assert prepare(TableReader(table), tmp_path / "out", {"A": 5}, workers=1) == before


def test_a_list_that_excludes_a_whole_source_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    add(tmp_path / "more", "b", encoded(sample_image(99)))
    (tmp_path / "keys.txt").write_text("b\n")
    with pytest.raises(UserError, match=r"keys\.txt lists every pair of data\.extra\.L; shorten the list"):
        prepare(
            FolderReader(folder),
            tmp_path / "out",
            {"A": 5},
            extra={"L": FolderReader(tmp_path / "more")},
            exclude=tmp_path / "keys.txt",
        )


def test_a_line_that_is_a_key_of_one_source_means_no_other(folder: Path, tmp_path: Path) -> None:
    add(tmp_path / "more", "a03-png", encoded(sample_image(99)))
    add(tmp_path / "more", "b", encoded(sample_image(98)))
    (tmp_path / "keys.txt").write_text("a03\n")

    class ByPrefix(FolderReader):
        def listed_name(self, line: str) -> str:
            return f"{line}-png"

    manifest = prepare(
        FolderReader(folder),
        tmp_path / "out",
        {"A": 5},
        workers=1,
        extra={"L": ByPrefix(tmp_path / "more")},
        exclude=tmp_path / "keys.txt",
    )
    assert manifest["pairs"]["excluded"] == 1
    assert sorted(ShardSet.open(tmp_path / "out/L").keys()) == ["a03-png", "b"]


def test_the_workers_share_what_the_annotator_has_read(folder: Path, tmp_path: Path, monkeypatch) -> None:
    touched: list[str] = []

    class Annotated(FolderReader):
        annotator = property(lambda self: touched.append("annotator"))  # type: ignore[assignment]

    monkeypatch.setattr(preparing, "scan", lambda *_: touched.append("scan") or scan(*_))
    prepare(Annotated(folder), tmp_path / "out", {"A": 5}, workers=1)
    assert touched[:2] == ["annotator", "scan"]


def test_a_set_of_public_images_is_not_to_be_trained_on(tmp_path: Path) -> None:
    for number in range(3):
        add(tmp_path / "images", str(number), encoded(sample_image(number)))
    options = ["data=folder", f"data.reader.path={tmp_path / 'images'}", "workers=1"]
    for name, sizes in (("public", "{A: 0, B: 0, H: 0, V: 0, P: 1.0}"), ("all", "{A: 1, B: 0, H: 0, V: 0, P: 1}")):
        done = call("prepare", *options, f"data.dir={tmp_path / name}", f"data.sizes={sizes}")
        assert done.returncode == 0, done.stderr
        assert ("side=target" in done.stdout) == (name == "all")
