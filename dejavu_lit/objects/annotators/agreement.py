"""Several artifacts combined into one: the labels that all, any or most of them give an image.

Annotator noise biases the gap: a detector errs the same way on target and neighbors. The labels that several annotators
agree on, and the change of the gap from one annotator to another, show how much of the gap is due to the annotator.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dejavu_lit.data.objects import Annotation, Annotator, Failed, check_images, read_part
from dejavu_lit.objects.base import Shard, Source
from dejavu_lit.utils.errors import UserError, check_choice
from dejavu_lit.utils.io import fingerprint, visible_files

BestBoxes = dict[str, tuple[float, list[float]]]  # {label: its highest score in an image, the box of that score}


@dataclass(frozen=True)
class Agreement(Source):
    """An annotator made of n artifacts: m of them must give a label, where m is n, 1 or ⌊n/2⌋ + 1.

    A label's score is the m-th largest of its best scores in the n artifacts, so the labels at any threshold are those that
    m artifacts give at that threshold. Its box is the one with the best score in the first artifact that gives it; each image
    has one box per label. An image that failed in one artifact fails here.
    """

    artifacts: list[str | Path]
    """Artifacts of the same shards: names below OUT/objects, or folders."""
    how: str = "majority"
    """How many artifacts must give a label: most of them (majority), all (intersection) or any (union)."""

    def __post_init__(self) -> None:
        check_choice("annotator.how", self.how, ("intersection", "union", "majority"))
        if len({Path(folder).resolve() for folder in self.artifacts}) < max(2, len(self.artifacts)):
            names = [Path(folder).name for folder in self.artifacts]
            raise UserError(f"annotator.artifacts={names} must name at least two different artifacts")

    @property
    def needed(self) -> int:
        return {"intersection": len(self.artifacts), "union": 1, "majority": len(self.artifacts) // 2 + 1}[self.how]

    @cached_property
    def annotator(self) -> Annotator:
        """Combines the artifacts' own annotators; the threshold is the highest of theirs."""
        annotators = [_annotator(Path(folder)) for folder in self.artifacts]
        return Annotator(
            f"agree_{self.how}",
            weights=fingerprint([asdict(annotator) for annotator in annotators]),
            threshold=max(annotator.threshold for annotator in annotators),
            config={"how": self.how, "of": [annotator.name for annotator in annotators]},
        )

    def rows(self, shard: Shard) -> Iterator[Annotation | Failed]:
        """One row per image; raises UserError if an artifact has no part of the shard, or one of another annotator."""
        parts = [self._read_part(Path(folder), shard) for folder in self.artifacts]
        for key in shard.index.keys:
            rows = [part[key] for part in parts]
            failed = [Path(folder).name for folder, row in zip(self.artifacts, rows, strict=True) if row is None]
            if failed:
                yield Failed(key, f"it failed in {', '.join(failed)}")
            else:
                yield self._combine(key, [row for row in rows if row is not None])

    def _read_part(self, folder: Path, shard: Shard) -> dict[str, BestBoxes | None]:
        path = folder / shard.set / f"{shard.index.path.stem}.parquet"
        if not path.exists():
            raise UserError(f"{path} does not exist; annotate all shards with each annotator before combining them")
        check_images(folder, {shard.set: {shard.index.path.stem: shard.index.images}})
        annotator, table = read_part(path, ("key", "labels", "scores", "boxes"))
        if annotator != _annotator(folder):
            raise UserError(f"{folder} mixes annotators ({path}: {annotator}); annotate its shards again with one")
        rows = {row["key"]: _best_boxes(row) for row in table.to_pylist()}
        if missing := [key for key in shard.index.keys if key not in rows]:
            raise UserError(f"{folder} has no row for {missing[0]} of {shard.index.path}; annotate this shard again")
        return rows

    def _combine(self, key: str, rows: Sequence[BestBoxes]) -> Annotation:
        labels, scores, boxes = [], [], []
        for label in sorted({label for row in rows for label in row}):
            candidates = [row[label] for row in rows if label in row]
            if len(candidates) >= self.needed:
                labels.append(label)
                scores.append(sorted((score for score, _ in candidates), reverse=True)[self.needed - 1])
                boxes.append(candidates[0][1])
        return Annotation(key, labels, scores, boxes)


def _best_boxes(row: dict[str, Any]) -> BestBoxes | None:
    """None for an image that failed."""
    if row["labels"] is None:
        return None
    best: BestBoxes = {}
    for label, score, box in zip(row["labels"], row["scores"], row["boxes"], strict=True):
        if label not in best or score > best[label][0]:
            best[label] = (score, box)
    return best


def _annotator(folder: Path) -> Annotator:
    parts = visible_files(folder, "*/*.parquet")
    if not parts:
        raise UserError(f"{folder} has no object parts (SET/*.parquet); check the name of the artifact")
    return read_part(parts[0], ["key"])[0]
