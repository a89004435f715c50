"""Lists of keys for sets: what is read, what is refused and with which sentence, what is told."""

from pathlib import Path

import numpy as np
import pytest

from dejavu_lit.data.listed import count_absent, count_left_out, listed_sets, read_lists
from dejavu_lit.data.splits import ANY, SETS, claims
from dejavu_lit.errors import UserError

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


def test_what_is_no_list_is_named(tmp_path: Path) -> None:
    one, two = written(tmp_path / "1.txt", "a", "b"), written(tmp_path / "2.txt", "c", "b")
    for files, words in (
        ({"A": one, "H": two}, r"keys\.A and keys\.H both list 'b'; a pair goes into one set"),
        ({"AA": one}, r"keys names a set 'AA'"),
        ({"A": tmp_path / "none.txt"}, r"keys\.A=.*none\.txt cannot be read"),
        ({"A": written(tmp_path / "empty.txt", "", " ")}, r"keys\.A=.*empty\.txt lists no keys"),
        ({"A": 3}, r"keys\.A=3 is no file"),
    ):
        with pytest.raises(UserError, match=words):
            read_lists(files)  # type: ignore[arg-type]


def test_keys_that_are_not_in_the_data_are_counted_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    assert count_absent({"A": ["a", "b"], "H": ["c", "x", "y"]}, ["a", "b", "c"]) == {"A": 0, "H": 2}
    assert caplog.messages == ["2 of 3 keys of keys.H are not in the data, the first is 'x'"]
    with pytest.raises(
        UserError, match=r"none of the 1 keys of keys\.A .*it lists 'photos/b\.jpg'.*such as 'photos-a'"
    ):
        count_absent({"A": ["photos/b.jpg"]}, ["photos-b", "photos-a"])


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
