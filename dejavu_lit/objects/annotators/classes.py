"""An image's class as its only object: from class folders, or from class labels in shards, as in ImageNet."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dejavu_lit.data.objects import Annotation, Annotator
from dejavu_lit.data.shards import BadPair, Pair
from dejavu_lit.objects.base import Lookup
from dejavu_lit.objects.vocabulary import MAX_DIGITS, is_class_number, read_class_names
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint


@dataclass(frozen=True)
class ClassLabels(Lookup):
    """The label in the pair's JSON (or in WebDataset's ``.cls`` member), with score 1 and an empty box."""

    field: str = "label"
    """The entry of the pair's JSON; readers put a class folder's name and a ``.cls`` member into ``label``."""
    names: str | None = None
    """imagenet, or a file with one name per line, if labels are numbers from 0; null: labels are names."""

    @property
    def annotator(self) -> Annotator:
        names = self.labels
        return Annotator("classes", config={"field": self.field}, vocabulary=fingerprint(names) if names else None)

    @cached_property
    def labels(self) -> Sequence[str] | None:
        """The class names; None if the labels are names themselves."""
        return None if self.names is None else read_class_names(self.names)

    def annotation(self, pair: Pair) -> Annotation:
        """One object; raises BadPair if there is no label, UserError for a number without a name."""
        label = pair.meta.get(self.field)
        if isinstance(label, float) and label.is_integer():  # pandas makes numbers with gaps floats
            label = int(label)
        if label is None or label == "":
            raise BadPair(f"its JSON has no {self.field!r}")
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise BadPair(f"its {self.field!r} is neither a name nor a number")
        if self.labels is not None:
            number = str(label)
            if not is_class_number(number) or int(number) >= len(self.labels):
                raise UserError(
                    f"{pair.key} has the label {number[:MAX_DIGITS]!r}, which is not a number below {len(self.labels)}; "
                    "check annotator.names=, which counts from 0"
                )
            label = self.labels[int(number)]
        return Annotation(pair.key, [str(label)], [1.0], [[0.0] * 4])
