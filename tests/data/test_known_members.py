"""Lists of keys for sets: what is read, what is refused and with which sentence, what is told."""

from pathlib import Path

import numpy as np
import pytest

from dejavu_lit.data.known_members import count_left_out, find_listed, listed_sets, read_lists
from dejavu_lit.data.readers.base import clean_keys
from dejavu_lit.data.splits import ANY, SETS, claims
from dejavu_lit.utils.errors import UserError

A, H = SETS.index("A"), SETS.index("H")


def written(path: Path, *keys: str) -> Path:
    path.write_text("\n".join(keys))
    return path


def test_lists_are_read_in_the_order_of_the_sets(tmp_path: Path) -> None:
    one, two = written(tmp_path / "1.txt", "b", "a", "b"), written(tmp_path / "2.txt", "c")
    lists = read_lists({"H": two, "A": str(one), "P": None})
    assert list(lists.items()) == [("A", ["b", "a"]), ("H", ["c"])]
    assert listed_sets(lists, ["a", "b", "c", "d"]).tolist() == [A, A, H, ANY]
    assert read_lists({}) == {}


def test_lines_are_keys_or_what_readers_make_them_from(caplog: pytest.LogCaptureFixture) -> None:
    keys = clean_keys(["photos/IMG 1", "photos/IMG 2", "b", "b.1", "with space", "a?", "a!"])
    lists = {"A": ["photos/IMG 1.jpg", "photos-IMG_1", "photos/IMG 2", "with space"], "H": ["b.PNG", "b.1"]}
    found, absent = find_listed(lists, keys)
    assert found == {"A": ["photos-IMG_1", "photos-IMG_2", "with_space"], "H": ["b", "b_1"]}
    assert absent == {"A": 0, "H": 0}
    # Of names that would have one key none is taken for the other.
    assert find_listed({"A": ["b", "a?", "b.txt"]}, keys) == ({"A": ["b"]}, {"A": 2})
    assert caplog.messages == ["2 of 3 keys of keys.A are not in the data, the first is 'a?'"]


def test_what_is_no_list_is_named(tmp_path: Path) -> None:
    one = written(tmp_path / "1.txt", "a", "b")
    for files, words in (
        ({"AA": one}, r"keys names a set 'AA'"),
        ({"A": tmp_path / "none.txt"}, r"keys\.A=.*none\.txt cannot be read"),
        ({"A": written(tmp_path / "empty.txt", "", " ")}, r"keys\.A=.*empty\.txt lists no keys"),
        ({"A": 3}, r"keys\.A=3 is no file"),
    ):
        with pytest.raises(UserError, match=words):
            read_lists(files)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"keys\.A and keys\.H both list 'b'; a pair goes into one set"):
        find_listed({"A": ["a", "b"], "H": ["b.jpg"]}, ["a", "b", "c"])


def test_keys_that_are_not_in_the_data_are_counted_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    found = find_listed({"A": ["a", "b"], "H": ["c", "x", "y"]}, ["a", "b", "c"])
    assert found == ({"A": ["a", "b"], "H": ["c"]}, {"A": 0, "H": 2})
    assert caplog.messages == ["2 of 3 keys of keys.H are not in the data, the first is 'x'"]
    with pytest.raises(
        UserError, match=r"none of the 1 keys of keys\.A .*it lists 'photos/c\.jpg'.*such as 'photos-a'"
    ):
        find_listed({"A": ["photos/c.jpg"]}, ["photos-b", "photos-a"])


def test_pairs_left_out_as_duplicates_are_told_set_by_set(caplog: pytest.LogCaptureFixture) -> None:
    groups = np.array([0, 0, 0, 3, 3, 5])
    listed = np.array([H, ANY, A, H, ANY, A], dtype=np.int8)
    assert count_left_out(groups, listed, claims(groups, listed)) == {"H": 1, "": 2}
    assert caplog.messages == [
        "1 pairs of H left out: duplicates of pairs of A",
        "1 pairs that are listed nowhere left out: duplicates of pairs of A",
        "1 pairs that are listed nowhere left out: duplicates of pairs of H",
    ]
    caplog.clear()
    alone = np.arange(6)
    assert count_left_out(alone, listed, claims(alone, listed)) == {}
    assert not caplog.messages
