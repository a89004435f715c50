"""Words of captions with and without spaces between them."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dejavu_lit.utils.words import join_words, letter_words, singulars, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" a  red dog\n", ["a", "red", "dog"]),
        ("naïve café — déjà vu…", ["naïve", "café", "—", "déjà", "vu…"]),
        ("한국어 문장", ["한국어", "문장"]),
        ("红色的狗。", ["红", "色", "的", "狗", "。"]),
        ("红色dog 2", ["红", "色", "dog", "2"]),
        ("犬とカップ", ["犬", "と", "カ", "ッ", "プ"]),
        ("ที่นี่", ["ที่", "นี่"]),  # vowels and tones stay on their consonant
        ("བོད་སྐད", ["བོ", "ད", "་", "སྐ", "ད"]),  # Tibetan
        ("ꦧꦱꦗꦮ", ["ꦧ", "ꦱ", "ꦗ", "ꦮ"]),  # Javanese
        ("ꦱꦶꦗꦶ", ["ꦱꦶ", "ꦗꦶ"]),
        ("ꆈꌠꉙ", ["ꆈ", "ꌠ", "ꉙ"]),  # Yi
        ("ᥖᥭᥰ", ["ᥖ", "ᥭ", "ᥰ"]),  # Tai Le
        ("ᦅᧄ", ["ᦅ", "ᧄ"]),  # New Tai Lue
        ("ᨲ᩠ᩅᩫ", ["ᨲ᩠", "ᩅᩫ"]),  # Tai Tham
        ("ꪼꪕ", ["ꪼ", "ꪕ"]),  # Tai Viet
    ],
)
def test_split(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize("text", ["红色的狗。", "ที่นี่ดี", "བོད་སྐད", "ꦱꦶꦗꦶ", "ꆈꌠꉙ", "ᨲ᩠ᩅᩫ", "a red dog", "naïve café"])
def test_joining_the_words_gives_the_text(text):
    assert join_words(split_words(text)) == text


def test_other_words_are_joined_with_a_space():
    assert join_words(["a", "狗", "猫", "é", "b"]) == "a 狗猫 é b"


@given(st.text(st.characters(max_codepoint=0x0DFF)))
def test_scripts_with_spaces_are_split_and_joined_as_by_python(text):
    assert split_words(text) == text.split()
    assert join_words(text.split()) == " ".join(text.split())


@given(st.text(st.sampled_from("a 红狗ที่。2é\u0f71")))
def test_no_character_is_lost(text):
    assert "".join(split_words(text)) == "".join(text.split())
    assert split_words(join_words(split_words(text))) == split_words(text)


def test_words_and_singulars() -> None:
    assert letter_words("A child’s 2 red_balls, café-au-lait!") == ["a", "child", "red", "balls", "café", "au", "lait"]
    assert letter_words("a sign that says 'stop' beside a 'dog'") == [
        "a",
        "sign",
        "that",
        "says",
        "stop",
        "beside",
        "a",
        "dog",
    ]
    assert letter_words("L'éléphant et l’homme, d'eau") == ["l", "éléphant", "et", "l", "homme", "d", "eau"]
    assert letter_words("the dogs' bowl isn't, they're, he'd") == ["the", "dogs", "bowl", "isn", "they", "he"]
    assert letter_words(unicodedata.normalize("NFD", "un éléphant")) == ["un", "éléphant"]
    for plural, expected in {
        "puppies": ["puppy", "puppie"],
        "couches": ["couche", "couch"],
        "dishes": ["dishe", "dish"],
        "boxes": ["boxe", "box"],
        "buses": ["buse", "bus"],
        "waltzes": ["waltze", "waltz"],
        "tomatoes": ["tomatoe", "tomato"],
        "dogs": ["dog"],
        "glass": [],
        "dog": [],
        "mice": ["mouse"],
    }.items():
        assert singulars(plural) == expected
