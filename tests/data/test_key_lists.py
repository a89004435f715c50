"""Lists of keys: excluded pairs and later duplicates on real shards, and the known members of the sets."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.shards import write_shards
from dejavu_lit.data.key_lists import (
    count_excluded_duplicates,
    keys_fingerprint,
    later_duplicates,
    listed_sets,
    match_lists,
    positions_of,
    prefix,
    read_keys,
    read_lists,
)
from dejavu_lit.data.prepared import DataSpec, pinned
from dejavu_lit.data.readers.base import clean_keys
from dejavu_lit.data.shards import Pair, ShardSet
from dejavu_lit.data.splits import ANY, SETS, allowed_sets
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint

A, H = SETS.index("A"), SETS.index("H")


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Ten pairs k9 … k0 in shards of four."""
    pairs = [Pair(f"k{9 - number}", b"", "png", "text") for number in range(10)]
    return write_shards(tmp_path / "A", pairs, pairs_per_shard=4)


def write_manifest(folder: Path, groups: object) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"duplicates": {} if groups is None else {"groups": groups}}))
    return path


def write_keys(path: Path, *keys: str) -> Path:
    path.write_text("\n".join(keys))
    return path


def test_positions_of_keys(shards: ShardSet) -> None:
    assert positions_of(shards, {"k9", "k6", "k0", "nobody"}) == {0: (0, 3), 2: (1,)}
    assert positions_of(shards, set()) == {}


def test_prefix_counts_only_pairs_that_are_not_excluded(shards: ShardSet) -> None:
    assert prefix(shards, None, frozenset()) == ([f"k{n}" for n in range(9, -1, -1)], 10)
    assert prefix(shards, 3, frozenset()) == (["k9", "k8", "k7"], 3)
    assert prefix(shards, 3, {"k8", "k6", "k5"}) == (["k9", "k7", "k4"], 6)
    with pytest.raises(UserError, match="train_size=9 but the set has 8"):
        prefix(shards, 9, {"k0", "k1"})


def test_the_smallest_trained_key_of_each_group_stays(shards: ShardSet, tmp_path: Path) -> None:
    groups = {"A": [["k0", "k5", "k9"], ["k2", "k8"], ["k3", "k4"]], "B": [["b1", "b2"]]}
    manifest = write_manifest(tmp_path, groups)
    removed = later_duplicates(manifest, shards, None, {})
    keys = {shards.index(shard).keys[position] for shard, positions in removed.items() for position in positions}
    assert keys == {"k5", "k9", "k8", "k4"}
    small = later_duplicates(manifest, shards, 5, {})  # k9 … k5 lack k0, k2 and all of the third group
    assert small == {0: (0,)}
    excluded = later_duplicates(manifest, shards, None, {2: (1,)})  # k0 is excluded: k5 stays in its place
    assert excluded == {0: (0, 1), 1: (1,)}


def test_a_manifest_without_groups_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mitigation\.dedup=true needs the groups .* prepare the data again"):
        later_duplicates(write_manifest(tmp_path, None), shards, None, {})


def test_files_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("b\n\na\nb\n")
    assert read_keys(path, "data.exclude") == ["b", "a"]
    odd_keys = ["x\u2028y", "x\x85y", "x\x0cy", "x\ry", " x", "x\u3000"]  # keys of foreign shards
    path.write_bytes("\ufeffx\r\n \r\n{}".format("\n".join(odd_keys)).encode())  # the first lines as written by Windows
    assert read_keys(path, "data.exclude") == ["x", *odd_keys]
    many = [f"k{number}" for number in range(10, 40)]
    assert keys_fingerprint(["k10", *many[::-1]]) == fingerprint(many) != keys_fingerprint(many[1:])
    with pytest.raises(UserError, match=r"data\.exclude=.*none\.txt cannot be read"):
        read_keys(tmp_path / "none.txt", "data.exclude")


def test_keys_in_no_set_are_warned_of(shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Keys of any set are known, not only those of the training set."""
    write_shards(tmp_path / "P", [Pair("p0", b"", "png", "text")])
    path = write_keys(tmp_path / "keys.txt", "k3", "p0")
    DataSpec("x", str(tmp_path), exclude=str(path)).warn_of_unknown_keys()
    assert not caplog.records
    write_keys(path, "k3", "k33", "p0", "nobody")
    DataSpec("x", str(tmp_path), exclude=str(path)).warn_of_unknown_keys()
    assert f"2 of 4 keys in data.exclude={path} are in no set of the data; the first is 'k33'" in caplog.text
    caplog.clear()
    elsewhere = {
        name: str(write_shards(tmp_path / "elsewhere" / name, [Pair(key, b"", "png", "text")]).folder)
        for name, key in (("public", "k33"), ("labelled", "nobody"))
    }
    DataSpec(
        "x",
        str(tmp_path),
        exclude=str(path),
        public_sets={"P": "P", "other": elsewhere["public"]},
        labelled=elsewhere["labelled"],
    ).warn_of_unknown_keys()
    assert not caplog.records


def test_a_name_or_a_path_excludes_the_key_made_from_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A person's request names images; a warning alone would train on them."""
    pairs = [Pair(key, b"", "png", "text") for key in ("trip-1", "a_b", "trip-2")]
    write_shards(tmp_path / "A", pairs)
    path = write_keys(tmp_path / "keys.txt", "trip/1.jpg", "trip-1", "a b", "other/2.jpg")
    data = DataSpec("x", str(tmp_path), exclude=str(path))
    assert positions_of(data.shard_set("A"), data.excluded) == {0: (0, 1)}
    data.warn_of_unknown_keys()
    warning = f"1 of 4 keys in data.exclude={path} are in no set of the data; the first is 'other/2.jpg'"
    assert warning in caplog.text


def test_what_a_path_excludes_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """A run whose list meant only its lines as they are excluded other pairs."""
    path = write_keys(tmp_path / "keys.txt", "trip/1.jpg")
    assert pinned(DataSpec("x", exclude=str(path))).exclude_fingerprint != keys_fingerprint(["trip/1.jpg"])
    write_keys(path, "trip-1", "trip-2")
    assert pinned(DataSpec("x", exclude=str(path))).exclude_fingerprint == keys_fingerprint(["trip-1", "trip-2"])


def test_lists_are_read_in_the_order_of_the_sets(tmp_path: Path) -> None:
    members, holdout = write_keys(tmp_path / "1.txt", "b", "a", "b"), write_keys(tmp_path / "2.txt", "c")
    lists = read_lists({"H": holdout, "A": str(members), "P": None})
    assert list(lists.items()) == [("A", ["b", "a"]), ("H", ["c"])]
    assert listed_sets(lists, ["a", "b", "c", "d"]).tolist() == [A, A, H, ANY]
    assert read_lists({}) == {}


def test_lines_are_keys_or_what_readers_make_keys_from(caplog: pytest.LogCaptureFixture) -> None:
    keys = clean_keys(["photos/IMG 1", "photos/IMG 2", "b", "b.1", "with space", "a?", "a!"])
    lists = {"A": ["photos/IMG 1.jpg", "photos-IMG_1", "photos/IMG 2", "with space"], "H": ["b.PNG", "b.1"]}
    members, absent = match_lists(lists, keys)
    assert members == {"A": ["photos-IMG_1", "photos-IMG_2", "with_space"], "H": ["b", "b_1"]}
    assert absent == {"A": 0, "H": 0}
    # Two names that would get the same key are not mistaken for each other.
    assert match_lists({"A": ["b", "a?", "b.txt"]}, keys) == ({"A": ["b"]}, {"A": 2})
    assert caplog.messages == ["2 of 3 keys in keys.A are not in the data; the first is 'a?'"]


def test_wrong_lists_are_named(tmp_path: Path) -> None:
    members = write_keys(tmp_path / "1.txt", "a", "b")
    for files, message in (
        ({"AA": members}, r"keys names an unknown set 'AA'"),
        ({"A": tmp_path / "none.txt"}, r"keys\.A=.*none\.txt cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            read_lists(files)
    with pytest.raises(UserError, match=r"keys\.A and keys\.H both list 'b'; a pair goes into one set"):
        match_lists({"A": ["a", "b"], "H": ["b.jpg"]}, ["a", "b", "c"])


def test_listed_keys_that_are_not_in_the_data_are_counted_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    matches = match_lists({"A": ["a", "b"], "H": ["c", "x", "y"]}, ["a", "b", "c"])
    assert matches == ({"A": ["a", "b"], "H": ["c"]}, {"A": 0, "H": 2})
    assert caplog.messages == ["2 of 3 keys in keys.H are not in the data; the first is 'x'"]
    with pytest.raises(
        UserError, match=r"none of the 1 keys in keys\.A .*it lists 'photos/c\.jpg'.*such as 'photos-a'"
    ):
        match_lists({"A": ["photos/c.jpg"]}, ["photos-b", "photos-a"])


def test_excluded_duplicates_are_reported_for_each_set(caplog: pytest.LogCaptureFixture) -> None:
    groups = np.array([0, 0, 0, 3, 3, 5])
    listed = np.array([H, ANY, A, H, ANY, A], dtype=np.int8)
    assert count_excluded_duplicates(listed, *allowed_sets(groups, listed)) == {"H": 1, "": 2}
    assert caplog.messages == [
        "left out 1 pair in no list: duplicates of pairs of A",
        "left out 1 pair in no list: duplicates of pairs of H",
        "left out 1 pair of H: duplicates of pairs of A",
    ]
    caplog.clear()
    alone = np.arange(6)
    assert count_excluded_duplicates(listed, *allowed_sets(alone, listed)) == {}
    assert not caplog.messages
