"""Which class a label names, and the prompts of the classes."""

from dataclasses import replace

import pytest

from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.evaluation.class_names import check_labelled, class_list
from dejavu_lit.utils.errors import UserError


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


def test_labels_are_matched_by_name_or_number_and_by_order_only_if_asked_for(tmp_path):
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
    with pytest.raises(UserError, match=r"data\.classes_by=position is unknown"):
        check_labelled(DataSpec("scenes", labelled=str(tmp_path), classes=many, classes_by="position"))


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
    path.write_text("jalapeño\ncat\n \n\n", encoding="utf-8-sig")
    assert class_list(str(path), ["cat", "jalapeño"]) == (["jalapeño", "cat"], {"cat": 1, "jalapeño": 0})
    path.write_text("jalapeño\n \ncat\n", encoding="utf-8")  # is class 1 or 2 the cat?
    with pytest.raises(UserError, match=r"line 2 of .*names\.txt is blank, and a name's number is that of its line"):
        class_list(str(path), ["0", "2"])
    path.write_text("jalapeño", encoding="latin-1")
    (tmp_path / "L").mkdir()
    data = DataSpec("scenes", dir=str(tmp_path), labelled="L", classes=str(path))
    with pytest.raises(UserError, match=r"names\.txt cannot be read .*; give one in UTF-8"):
        check_labelled(data)
    check_labelled(replace(data, labelled=None))
    with pytest.raises(UserError, match=r"one \{\} each"):
        check_labelled(replace(data, classes=None, templates="a photo"))
