"""Objects from an image's captions: the nouns of all captions except the one that is trained on.

For data without a detector whose images have several captions (Flickr8k and 30k, COCO). The rule is deliberately simple and
needs no language model: captions are lower-cased and split into words of letters; a label of the vocabulary is present if one
of its names occurs as whole words, the last one in the singular or in a plural by the rules of ``singulars``. The vocabulary
thus decides which words are nouns. There is no disambiguation: "orange" is a fruit even where it is a color.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from dejavu_lit.data.objects import Annotation, Annotator, Failed
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup, Shard
from dejavu_lit.objects.vocabulary import vocabulary
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint
from dejavu_lit.utils.words import letter_words, singulars

# Common names of COCO's objects in captions, besides COCO's own.
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

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OtherCaptions(Lookup):
    """The labels named by an image's other captions, with score 1 and empty boxes."""

    vocabulary: str = "coco"
    """coco (its 80 names and their common synonyms), imagenet, imagenet-21k, or a file: one label per line, followed by its
    synonyms after commas."""
    field: str = "captions"
    """The list of all captions in the pair's JSON."""

    @property
    def annotator(self) -> Annotator:
        return Annotator("captions", "3", config={"field": self.field}, vocabulary=fingerprint(self._names))

    @property
    def labels(self) -> Sequence[str]:
        return list(self._names)

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row per image; warns if the caption that is trained on is not among an image's captions."""
        self._unmatched.clear()
        yield from super().rows(shard)
        if self._unmatched:
            logger.warning(
                "%d of %d images of %s do not list the caption that is trained on in %r, the first is %s; if it is "
                "listed in other words, their objects come from it too",
                *(len(self._unmatched), len(shard.index), shard.index.path, self.field, self._unmatched[0]),
            )

    def annotation(self, pair: Pair) -> Annotation:
        """The labels named by the other captions, sorted; raises BadPair if there are no other captions."""
        captions = pair.meta.get(self.field)
        if not isinstance(captions, list) or not captions:
            raise BadPair(f"its JSON has no list {self.field!r} of captions")
        listed = [letter_words(caption) for caption in captions if isinstance(caption, str)]
        trained = letter_words(pair.caption)
        others = [caption for caption in listed if caption != trained]  # excludes all copies, in any spelling
        if not others:
            raise BadPair("it has no caption but the one that is trained on")
        if len(others) == len(listed):
            self._unmatched.append(pair.key)
        labels = sorted({label for caption in others for label in self._named_labels(caption)})
        return Annotation(pair.key, labels, [1.0] * len(labels), [[0.0] * 4] * len(labels))

    def _named_labels(self, caption: Sequence[str]) -> Iterator[str]:
        """The labels named by a caption's words; where names overlap the longest counts ("hot dog" is not a dog)."""
        start = 0
        while start < len(caption):
            for length in range(min(self._longest_name, len(caption) - start), 0, -1):
                *first, last = caption[start : start + length]
                matches = (self._labels_by_name.get((*first, form)) for form in (last, *singulars(last)))
                if labels := next(filter(None, matches), None):
                    yield from labels
                    start += length
                    break
            else:
                start += 1

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        names = {label: [label, *synonyms] for label, synonyms in vocabulary(self.vocabulary).items()}
        if self.vocabulary == "coco":
            for label, synonyms in COCO_NAMES.items():
                names[label] += [name.replace("_", " ") for name in synonyms.split()]
        return names

    @cached_property
    def _labels_by_name(self) -> dict[tuple[str, ...], list[str]]:
        """{words of a name: the labels it stands for}; raises UserError if no name has words."""
        labels: dict[tuple[str, ...], list[str]] = {}
        for label, names in self._names.items():
            for name in names:
                labels.setdefault(tuple(letter_words(name)), []).append(label)
        labels.pop((), None)
        if not labels:
            raise UserError(
                f"vocabulary={self.vocabulary} has no label with letters, so no caption names one; give another"
            )
        return labels

    @cached_property
    def _longest_name(self) -> int:
        return max(map(len, self._labels_by_name))

    @cached_property
    def _unmatched(self) -> list[str]:
        """Keys of the current shard whose captions do not include the one that is trained on."""
        return []
