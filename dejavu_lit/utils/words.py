"""The words of a caption, also in scripts that are written without spaces (``UNSPACED``).

White space separates words. Within such a word each character of a script without spaces, with the marks on it, is a word of
its own, and so is each run of other characters: ``红色dog 2`` is 红, 色, dog, 2.
"""

import re
import unicodedata
from collections.abc import Sequence

# Thai, Lao and Tibetan; Burmese, Khmer; Tai Le and New Tai Lue; Tai Tham; CJK punctuation to CJK ideographs and Yi; Javanese;
# Burmese letters of Tai languages and Tai Viet; CJK compatibility and full-width forms; further planes. Korean, which has spaces,
# is not among them.
UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3000-\u312f\u31a0-\u31bf\u31f0-\ua4cf\ua980-\ua9ff"
    "\uaa60-\uaadf\uf900-\ufaff\uff00-\uff9f\U00020000-\U0003ffff"
)
_WITH_MARKS = (*range(0x0E00, 0x3100), *range(0xA980, 0xAAE0))
MARKS = "".join(c for c in map(chr, _WITH_MARKS) if unicodedata.category(c).startswith("M"))
_PIECE = re.compile(f"[{UNSPACED}][{MARKS}]*|[^{UNSPACED}]+")
_LETTERS = re.compile(rf"(?:[^\W\d_]|[{MARKS}])+")
_SPACE = re.compile(f"(?<=[{UNSPACED}{MARKS}]) (?=[{UNSPACED}])(?![{MARKS}])")
_SUFFIX = re.compile(r"(?<=\w)['’](?:s|t|re|ve|ll|d|m)\b")
# Plurals in captions that the rules of ``singulars`` miss.
IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "people", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "knives": "knife", "loaves": "loaf", "leaves": "leaf", "calves": "calf",
    "wolves": "wolf", "shelves": "shelf", "scarves": "scarf",
}  # fmt: skip


def split_words(text: str) -> list[str]:
    return text.split() if text.isascii() else [piece for word in text.split() for piece in _PIECE.findall(word)]


def join_words(words: Sequence[str]) -> str:
    """The text of words: with one space between two of them, and none between two characters of a script without spaces."""
    text = " ".join(words)
    return text if text.isascii() else _SPACE.sub("", text)


def letter_words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters in composed form (NFC), without English suffixes such as ``'s``.

    Any other apostrophe separates words, as quotes and French articles do. In scripts written without spaces each character
    is a word, so that a label is found anywhere in the text.
    """
    words = split_words(_SUFFIX.sub("", unicodedata.normalize("NFC", text.lower())))
    return [letters for word in words for letters in _LETTERS.findall(word)]


def singulars(word: str) -> list[str]:
    """The words that ``word`` may be the plural of: irregular plurals, -ies → -y, -s and -es dropped."""
    if word in IRREGULAR:
        return [IRREGULAR[word]]
    forms = [word[:-3] + "y"] if word.endswith("ies") else []
    forms += [word[:-1]] if word.endswith("s") and not word.endswith("ss") else []
    return forms + ([word[:-2]] if word.endswith(("ches", "shes", "xes", "ses", "zes", "oes")) else [])
