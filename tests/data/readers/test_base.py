import math
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu_lit.data.decode import json_safe
from dejavu_lit.data.readers.base import MAX_KEY_CHARS, KeyIndex, clean_keys, image_extension
from dejavu_lit.data.shards import BadPair
from tests.data.images import encoded, sample_image


@given(st.lists(st.text(max_size=100), max_size=30))
def test_clean_keys_are_unique_and_can_be_written(names: list[str]) -> None:
    keys = clean_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert key
        assert not set(key) & set("./\\ \n\0")
        assert len(key) <= MAX_KEY_CHARS
    assert clean_keys(names) == keys


def test_clean_names_do_not_change() -> None:
    assert clean_keys(["000012", "cat-7_b"]) == ["000012", "cat-7_b"]
    assert clean_keys(["cats/my cat.v2", "chats/été"]) == ["cats-my_cat_v2", "chats-été"]


def test_keys_of_clashing_names_do_not_depend_on_other_names() -> None:
    few, many = clean_keys(["a b", "a_b"]), clean_keys(["zebra", "a_b", "a b"])
    assert few[0].startswith("a_b-")
    assert few == [many[2], many[1]]
    assert len(set(few)) == 2


def test_equal_names_are_numbered() -> None:
    first, second, third = clean_keys(["x/a", "x/a", "x/a"])
    assert second == f"{first}-2"
    assert third == f"{first}-3"


def test_key_index_returns_the_row_of_each_key() -> None:
    index = KeyIndex(["c", "a", "b"])
    assert index.keys == ["a", "b", "c"]
    assert [index.row(key) for key in "abc"] == [1, 2, 0]
    assert index.find("bb") == []
    with pytest.raises(ValueError, match="expected 1"):
        index.row("bb")


@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_extension_comes_from_the_bytes(kind: str, extension: str) -> None:
    assert image_extension(encoded(sample_image(0), kind)) == extension
    with pytest.raises(BadPair, match="not a JPEG, PNG or WebP"):
        image_extension(encoded(sample_image(0), "GIF"))


def test_json_safe_values() -> None:
    value = {"when": date(2024, 2, 1), "score": math.nan, 3: [1, (True, None)], "text": "é"}
    assert json_safe(value) == {"when": "2024-02-01", "score": None, "3": [1, [True, None]], "text": "é"}
