"""Objects from what other people wrote: the nouns of an image's captions, all but the one that is trained on.

For data without a detector whose images have several captions (Flickr8k and 30k, COCO). The rule is small on purpose, and
needs no language model: captions are lower-cased and cut into words of letters; a label of the vocabulary is there when
one of its names occurs as whole words, the last of them in the singular or in a plural by the rules of ``singulars``. So
the vocabulary is what decides which words are nouns. There is no disambiguation: "orange" is a fruit also where it is a
colour.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dejavu_lit.data.objects import Annotation, Annotator, Failed
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup, Shard
from dejavu_lit.objects.vocabulary import vocabulary
from dejavu_lit.utils.io import fingerprint

# How people name COCO's objects in captions, beside COCO's own names.
COCO_NAMES = {
    "person": "man woman boy girl child kid baby guy lady people player rider surfer skier snowboarder skateboarder",
    "bicycle": "bike",
    "motorcycle": "motorbike",
    "airplane": "plane aeroplane jet airliner",
    "boat": "ship sailboat canoe kayak",
    "fire hydrant": "hydrant",
    "cow": "bull calf",
    "sheep": "lamb",
    "cat": "kitten",
    "dog": "puppy",
    "tie": "necktie",
    "suitcase": "luggage",
    "skis": "ski",
    "sports ball": "ball soccer_ball tennis_ball",
    "baseball bat": "bat",
    "baseball glove": "mitt",
    "wine glass": "wineglass",
    "donut": "doughnut",
    "couch": "sofa",
    "potted plant": "plant houseplant",
    "dining table": "table",
    "tv": "television",
    "mouse": "computer_mouse",
    "remote": "remote_control",
    "cell phone": "cellphone phone smartphone",
    "refrigerator": "fridge",
    "hair drier": "hair_dryer",
    "teddy bear": "teddy",
}
IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "people", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "knives": "knife", "loaves": "loaf", "leaves": "leaf", "calves": "calf",
    "wolves": "wolf", "shelves": "shelf", "scarves": "scarf",
}  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtherCaptions(Lookup):
    """The labels that an image's other captions name, score 1, with empty boxes."""

    vocabulary: str = "coco"
    """coco (its 80 names, and what people call them), imagenet, imagenet-21k, or a file: a label a line, its other names
    behind commas."""
    field: str = "captions"
    """The list of all of an image's captions in the pair's JSON."""

    @property
    def annotator(self) -> Annotator:
        """The rule's version, and the fingerprint of labels and names."""
        return Annotator("captions", "2", config={"field": self.field}, vocabulary=fingerprint(self._names))

    @property
    def labels(self) -> Sequence[str]:
        """The vocabulary's labels."""
        return list(self._names)

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """{label: all of its names}."""
        found = {label: [label, *others] for label, others in vocabulary(self.vocabulary).items()}
        if self.vocabulary == "coco":
            for label, others in COCO_NAMES.items():
                found[label] += [name.replace("_", " ") for name in others.split()]
        return found

    @cached_property
    def _by_words(self) -> dict[tuple[str, ...], list[str]]:
        """{words of a name: the labels it stands for}."""
        found: dict[tuple[str, ...], list[str]] = {}
        for label, names in self._names.items():
            for name in names:
                found.setdefault(tuple(words(name)), []).append(label)
        found.pop((), None)
        return found

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._by_words))

    def annotation(self, pair: Pair) -> Annotation:
        """The labels named by the other captions, sorted; raises BadPair where there are none."""
        captions = pair.meta.get(self.field)
        if not isinstance(captions, list) or not captions:
            raise BadPair(f"its JSON has no list {self.field!r} of captions")
        trained, said = words(pair.caption), [words(caption) for caption in captions if isinstance(caption, str)]
        others = [one for one in said if one != trained]  # all copies of it, however they are spelt
        if not others:
            raise BadPair("it has no caption but the one that is trained on")
        if len(others) == len(said):
            self._unmatched.append(pair.key)
        labels = sorted({label for one in others for label in self._named(one)})
        return Annotation(pair.key, labels, [1.0] * len(labels), [[0.0] * 4] * len(labels))

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row an image; warns where the caption that is trained on could not be told from the others."""
        self._unmatched.clear()
        yield from super().rows(shard)
        if self._unmatched:
            log.warning(
                "%d of %d images of %s do not list the caption that is trained on in %r, the first is %s; where it is "
                "there in other words, their objects come from it too",
                *(len(self._unmatched), len(shard.index), shard.index.path, self.field, self._unmatched[0]),
            )

    @cached_property
    def _unmatched(self) -> list[str]:
        """Keys of the shard at hand whose captions do not hold the one that is trained on."""
        return []

    def _named(self, said: Sequence[str]) -> Iterator[str]:
        """The labels named by a caption's words; where names overlap the longest counts ("hot dog" is no dog)."""
        at = 0
        while at < len(said):
            for length in range(min(self._longest, len(said) - at), 0, -1):
                *first, last = said[at : at + length]
                found = next(
                    (f for form in (last, *singulars(last)) if (f := self._by_words.get((*first, form)))), None
                )
                if found:
                    yield from found
                    at += length
                    break
            else:
                at += 1


def words(text: str) -> list[str]:
    """The words of a text in lower case: runs of letters, with apostrophes and what follows them left out."""
    return re.findall(r"[^\W\d_]+", re.sub(r"['’]\w*", "", text.lower()))


def singulars(word: str) -> list[str]:
    """What a word may be the plural of: irregular ones, -ies → -y, -es and -s dropped."""
    if word in IRREGULAR:
        return [IRREGULAR[word]]
    found = [word[:-3] + "y"] if word.endswith("ies") else []
    found += [word[:-1]] if word.endswith("s") and not word.endswith("ss") else []
    return found + ([word[:-2]] if word.endswith(("ches", "shes", "xes", "ses", "zes", "oes")) else [])
