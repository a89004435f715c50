"""An image's class as its only object: class folders and class labels of shards, as ImageNet has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup
from dejavu_lit.objects.vocabulary import lines, vocabulary
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint

DIGITS = 18  # of a number of a class, at most


@dataclass(frozen=True)
class ClassLabels(Lookup):
    """The label in the pair's JSON (or in WebDataset's ``.cls`` member), score 1, with an empty box."""

    field: str = "label"
    """The entry of the pair's JSON; ``label`` is also where readers put a folder's name and a ``.cls`` member."""
    names: str | None = None
    """imagenet, or a file with one name a line: the names of labels that are numbers from 0; null: labels are names."""

    @property
    def annotator(self) -> Annotator:
        """The field, and the list of names."""
        found = self.labels
        return Annotator("classes", config={"field": self.field}, vocabulary=fingerprint(found) if found else None)

    @cached_property
    def labels(self) -> Sequence[str] | None:
        """The names; None where labels are names themselves."""
        if self.names is None:
            return None
        return list(vocabulary(self.names)) if self.names == "imagenet" else lines(self.names)

    def annotation(self, pair: Pair) -> Annotation:
        """One object; raises BadPair without a label, UserError for a number beyond the names."""
        label = pair.meta.get(self.field)
        if label is None or label == "":
            raise BadPair(f"its JSON has no {self.field!r}")
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise BadPair(f"its {self.field!r} is neither a name nor a number")
        if self.labels is not None:
            number = str(label)
            if not number.isdecimal() or len(number) > DIGITS or int(number) >= len(self.labels):
                raise UserError(
                    f"{pair.key} has the label {number[:DIGITS]!r}, which is no number below {len(self.labels)}; "
                    "check annotator.names="
                )
            label = self.labels[int(number)]
        return Annotation(pair.key, [str(label)], [1.0], [[0.0] * 4])
