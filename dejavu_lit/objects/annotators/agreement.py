"""Several artifacts as one: the labels that all, any or most of them give an image; and how two of them differ.

Annotator noise biases the gap: what one detector sees is seen in target and neighbors alike. What several agree on, and
how the gap moves from one to another, says how much of it is theirs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dejavu_lit.data.objects import Annotation, Annotator, Failed, read_part
from dejavu_lit.objects.base import Shard
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint

HOW = ("intersection", "union", "majority")


@dataclass(frozen=True)
class Agreement:
    """An annotator made of artifacts: m of n must give a label, m = n (intersection), 1 (union) or ⌊n/2⌋ + 1 (majority).

    A label's score is the m-th largest of its best scores in the n artifacts, so the labels at any threshold are those that
    m artifacts give at that threshold. Its box is that of the best score in the first artifact that gives it; there is one a
    label and image. An image that failed in one artifact fails here.
    """

    artifacts: Sequence[str | Path]
    """Folders of artifacts of the same shards, or names below the data's objects/."""
    how: Literal["intersection", "union", "majority"] = "majority"

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise UserError(f"annotator.how={self.how} must be one of {', '.join(HOW)}")
        if len(self.artifacts) < 2:
            raise UserError("annotator.artifacts must name two artifacts or more")
        if len({Path(folder).resolve() for folder in self.artifacts}) < len(self.artifacts):
            raise UserError(
                f"annotator.artifacts={[Path(f).name for f in self.artifacts]} names an artifact twice; drop one of the two"
            )

    @property
    def needed(self) -> int:
        """m, how many artifacts must give a label."""
        return {"intersection": len(self.artifacts), "union": 1, "majority": len(self.artifacts) // 2 + 1}[self.how]

    @cached_property
    def annotator(self) -> Annotator:
        """The artifacts' own annotators; the threshold is the highest of theirs."""
        found = [_annotator(Path(folder)) for folder in self.artifacts]
        return Annotator(
            f"agree_{self.how}",
            weights=fingerprint([one.as_json() for one in found]),
            threshold=max(one.threshold for one in found),
            config={"how": self.how, "of": [one.name for one in found]},
        )

    @property
    def labels(self) -> None:
        """None: the labels are what the artifacts hold."""

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row an image; raises UserError where an artifact has no part of the shard, or one of another annotator."""
        parts = [self._part(Path(folder), shard) for folder in self.artifacts]
        for key in shard.index.keys:
            given = []
            for folder, part in zip(self.artifacts, parts, strict=True):
                if key not in part:
                    raise UserError(f"{folder} has no row for {key} of {shard.index.path}; annotate this shard again")
                given.append(part[key])
            failed = [str(Path(folder).name) for folder, row in zip(self.artifacts, given, strict=True) if row is None]
            if failed:
                yield Failed(key, f"it failed in {', '.join(failed)}")
            else:
                yield self._agreed(key, [row for row in given if row is not None])

    def _part(self, folder: Path, shard: Shard) -> dict[str, "Best | None"]:
        path = folder / shard.set / f"{shard.index.path.stem}.parquet"
        if not path.exists():
            raise UserError(f"{path} does not exist; annotate all of its shards before they can be compared")
        found, table = read_part(path, ("key", "labels", "scores", "boxes"))
        if found != _annotator(folder):
            raise UserError(f"{folder} mixes annotators ({path}: {found}); annotate its shards again with one")
        return {row["key"]: _best(row) for row in table.to_pylist()}

    def _agreed(self, key: str, given: Sequence["Best"]) -> Annotation:
        labels, scores, boxes = [], [], []
        for label in sorted({label for row in given for label in row}):
            having = [row[label] for row in given if label in row]
            if len(having) >= self.needed:
                labels.append(label)
                scores.append(sorted((score for score, _ in having), reverse=True)[self.needed - 1])
                boxes.append(having[0][1])
        return Annotation(key, labels, scores, boxes)


Best = dict[str, tuple[float, list[float]]]  # {label: the best score in an image, its box}


def _best(row: dict[str, Any]) -> Best | None:
    """None for an image that failed."""
    if row["labels"] is None:
        return None
    found: Best = {}
    for label, score, box in zip(row["labels"], row["scores"], row["boxes"], strict=True):
        if label not in found or score > found[label][0]:
            found[label] = (score, box)
    return found


def _annotator(folder: Path) -> Annotator:
    """Who made an artifact, by its first part."""
    parts = sorted(folder.glob("*/*.parquet"))
    if not parts:
        raise UserError(f"{folder} holds no object parts (SET/*.parquet); check the name of the artifact")
    return read_part(parts[0], ["key"])[0]
