"""Which pairs data.exclude and mitigation.dedup leave out, on real shards."""

import json
from pathlib import Path

import pytest

from dejavu_lit.data.exclude import keys_fingerprint, later_duplicates, positions_of, prefix, read_keys
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import Pair, ShardSet, write_shards
from dejavu_lit.utils.errors import UserError


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Ten pairs k9 … k0 in shards of four."""
    pairs = [Pair(f"k{9 - number}", b"", "png", "text") for number in range(10)]
    return write_shards(tmp_path / "A", pairs, pairs_per_shard=4)


def manifest(folder: Path, groups: dict | None) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"duplicates": {} if groups is None else {"groups": groups}}))
    return path


def test_positions_of_keys(shards: ShardSet) -> None:
    assert positions_of(shards, {"k9", "k6", "k0", "nobody"}) == {0: (0, 3), 2: (1,)}
    assert positions_of(shards, set()) == {}


def test_prefix_counts_the_others(shards: ShardSet) -> None:
    assert prefix(shards, None, frozenset()) == ([f"k{n}" for n in range(9, -1, -1)], 10)
    assert prefix(shards, 3, frozenset()) == (["k9", "k8", "k7"], 3)
    assert prefix(shards, 3, {"k8", "k6", "k5"}) == (["k9", "k7", "k4"], 6)
    with pytest.raises(UserError, match="train_size=9 but the set holds 8"):
        prefix(shards, 9, {"k0", "k1"})


def test_of_each_group_the_smallest_key_that_is_trained_on_stays(shards: ShardSet, tmp_path: Path) -> None:
    groups = {"A": [["k0", "k5", "k9"], ["k2", "k8"], ["k3", "k4"]], "B": [["k1", "k7"]]}
    path = manifest(tmp_path, groups)
    removed = later_duplicates(path, "A", shards, None, {})
    keys = {shards.index(shard).keys[position] for shard, positions in removed.items() for position in positions}
    assert keys == {"k5", "k9", "k8", "k4"}
    small = later_duplicates(path, "A", shards, 5, {})  # of k9 … k5: k0, k2 and both of the third group are not there
    assert small == {0: (0,)}
    excluded = later_duplicates(path, "A", shards, None, {2: (1,)})  # k0 is excluded: k5 stays in its place
    assert excluded == {0: (0, 1), 1: (1,)}
    assert later_duplicates(path, "H", shards, None, {}) == {}


def test_an_older_manifest_is_said(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mitigation\.dedup=true needs the groups .* prepare the data again"):
        later_duplicates(manifest(tmp_path, None), "A", shards, None, {})


def test_keys_files(tmp_path: Path, caplog) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("b\n\na\nb\n")
    assert read_keys(path, "data.exclude") == ["b", "a"]
    odd = ["x\u2028y", "x\x85y", "x\x0cy", "x\ry", " x", "x\u3000"]  # keys of shards made elsewhere
    path.write_bytes("\ufeffx\r\n \r\n{}".format("\n".join(odd)).encode())  # the first as Windows writes lines
    assert read_keys(path, "data.exclude") == ["x", *odd]
    assert f"2 keys in {path} have white space around them" in caplog.text
    assert keys_fingerprint(["b", "a"]) == keys_fingerprint({"a", "b"}) != keys_fingerprint(["a"])
    with pytest.raises(UserError, match=r"data\.exclude=.*none\.txt cannot be read"):
        read_keys(tmp_path / "none.txt", "data.exclude")


def test_keys_that_are_in_no_set_are_told(shards: ShardSet, tmp_path: Path, caplog) -> None:
    """Those of another set than the one at hand are known."""
    write_shards(tmp_path / "P", [Pair("p0", b"", "png", "text")])
    path = tmp_path / "keys.txt"
    path.write_text("k3\np0\n")
    data = DataSpec("x", str(tmp_path), exclude=str(path))
    data.tell_unknown()
    assert not caplog.records
    path.write_text("k3\nk33\np0\nnobody\n")
    DataSpec("x", str(tmp_path), exclude=str(path)).tell_unknown()
    assert f"2 of 4 keys in data.exclude={path} are in no set of the data, the first is 'k33'" in caplog.text


def test_damaged_groups_are_refused(shards: ShardSet, tmp_path: Path) -> None:
    for groups in ({"A": 3}, {"A": [3]}, {"A": [["k1", 3]]}, [], 3):
        with pytest.raises(UserError, match=r"groups of duplicates in .*manifest\.json are damaged"):
            later_duplicates(manifest(tmp_path, groups), "A", shards, None, {})
    (tmp_path / "manifest.json").write_text('{"duplicates": 3}')
    with pytest.raises(UserError, match="does not list"):
        later_duplicates(tmp_path / "manifest.json", "A", shards, None, {})


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("a\nb\n")
    now = keys_fingerprint(["a", "b"])
    assert DataSpec("x", exclude=str(path), exclude_fingerprint=now).excluded == {"a", "b"}
    path.write_text("b\na\n")  # the same keys
    assert DataSpec("x", exclude=str(path), exclude_fingerprint=now).excluded == {"a", "b"}
    path.write_text("b\n")
    with pytest.raises(UserError, match="other keys than when the run began"):
        _ = DataSpec("x", exclude=str(path), exclude_fingerprint=now).excluded
    assert DataSpec("x").excluded == frozenset()
