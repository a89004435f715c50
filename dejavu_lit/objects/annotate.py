"""Objects for prepared data: runs an annotator over the shards of its sets and writes one part per shard.

A part is complete or missing, and depends only on the annotator and its shard: an interrupted run continues where it stopped
and ends with the same bytes, and any number of processes, on one machine or many, share the shards without communicating.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dejavu_lit.data.objects import (
    Annotation,
    Annotator,
    Failed,
    failures,
    is_part_of,
    read_objects,
    read_part,
    write_objects,
)
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.objects.base import Shard, Source
from dejavu_lit.utils.errors import UserError, explained
from dejavu_lit.utils.io import read_json, visible_files, write_csv, write_json
from dejavu_lit.utils.progress import progress
from dejavu_lit.utils.run_directory import first_difference

ANNOTATOR_FILE = "annotator.json"  # the annotator, with its whole vocabulary
FAILURES_FILE = "failed.csv"
TOLERATED_FAILURES = 10  # failed images of a shard that are never too many: 5 % of a small shard is less than one image
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    images: int  # annotated by this call
    seconds: float  # of this call
    parts: int  # that exist, including those of other processes
    total_parts: int  # of the finished artifact
    failed: int  # images, of all shards if ``complete``, else of this process's shards
    complete: bool  # whether all parts are; ``failed.csv`` is then written


def annotate(
    source: Source,
    sets: Mapping[str, ShardSet],
    out: Path | str,
    share: tuple[int, int] = (0, 1),
    max_failed: float = 0.05,
) -> Summary:
    """Write ``out/SET/SHARD.parquet`` for every shard of ``sets`` that belongs to this process and has no complete part.

    Args:
        sets: {name: shards}; parts of one name are made again for other images, so a folder needs a name of its own.
        share: (i, n): this process annotates every n-th shard from the i-th on.
        max_failed: largest share of a shard's images that may fail. TOLERATED_FAILURES images may always fail; all images
            of a shard only if it is 1.

    Raises UserError if ``out`` has objects of another annotator or of other shards, or too many images fail.
    """
    out = Path(out)
    if not 0 <= max_failed <= 1:
        raise UserError(f"max_failed={max_failed} must lie between 0 and 1")
    _claim_folder(out, source)
    for name, shards in sets.items():
        _check_shards(out / name, shards)
    parts = {
        out / name / f"{Path(tar).stem}.parquet": Shard(name, shards, number)
        for name, shards in sets.items()
        for number, tar in enumerate(shards.names)
    }
    own = dict(list(parts.items())[share[0] :: share[1]])
    # Every shard with a part is indexed, which takes a minute per million pairs.
    checked = progress(own.items(), "checking parts", unit="part")
    missing = {path: shard for path, shard in checked if not _is_complete(path, shard, source.annotator)}
    start = time.monotonic()
    images = _write_parts(source, missing, max_failed)

    existing = [path for path in parts if path.exists()]
    complete = len(existing) == len(parts)
    # Parts are opened only once all exist: otherwise each of many tasks would open the others' too.
    failed = []
    for path, shard in (parts if complete else own).items():
        try:
            failed += [{"set": shard.set, "key": key, "reason": why} for key, why in failures(path).items()]
        except UserError as damaged:  # another task's, which writes it again
            logger.warning("%s", damaged)
            existing.remove(path)
            complete = False
    if complete:
        write_csv(out / FAILURES_FILE, failed, ("set", "key", "reason"), end="\n")
    return Summary(
        images=images,
        seconds=time.monotonic() - start,
        parts=len(existing),
        total_parts=len(parts),
        failed=len(failed),
        complete=complete,
    )


def coverage(out: Path | str, sets: Sequence[str], threshold: float) -> str:
    """How many images of ``sets`` have no object of score ≥ ``threshold`` in the finished artifact ``out``.

    It is a sentence, which also gives the label that most of the others have.
    """
    objects, _ = read_objects([Path(out) / name for name in sets], threshold)
    images = sum(len(by_set) for by_set in objects)
    empty = sum(int((by_set.counts() == 0).sum()) for by_set in objects)
    text = f"{empty} of {images} images ({100 * empty / max(1, images):.1f} %) have no object of score ≥ {threshold:g}"
    if empty < images:
        labels = objects[0].labels
        counts = np.sum([np.bincount(by_set.codes, minlength=len(labels)) for by_set in objects], axis=0)
        most = int(counts.argmax())
        text += f"; {labels[most]!r} is in {100 * counts[most] / (images - empty):.1f} % of the others"
    return f"{text} (the vocabulary decides what can be measured)"


def _write_parts(source: Source, parts: Mapping[Path, Shard], max_failed: float) -> int:
    """Annotate the shards one by one, each into its part; returns the number of their images."""
    total, images = sum(shard.shards.sizes[shard.number] for shard in parts.values()), 0
    with progress(None, f"annotating with {source.annotator.name}", total=total, unit="image") as bar:
        for path, shard in parts.items():
            rows: list[Annotation | Failed] = []
            for row in source.rows(shard):
                rows.append(row)
                bar.update()
            if [row.key for row in rows] != list(shard.index.keys):
                raise AssertionError(f"{source.annotator.name} returned rows that do not match {shard.index.path}")
            _check_failures(shard, rows, max_failed)
            write_objects(path, rows, source.annotator, shard.index.images)
            images += len(rows)
    return images


def _claim_folder(out: Path, source: Source) -> None:
    """Write ``annotator.json``; raises UserError if ``out`` has parts of another annotator. Without parts it is replaced."""
    if (out / ANNOTATOR_FILE).exists() and visible_files(out, "*/*.parquet"):
        with explained(f"{out / ANNOTATOR_FILE} is damaged", "remove it, or choose another name="):
            annotator = Annotator.from_json(read_json(out / ANNOTATOR_FILE)["annotator"])
        _check_annotator(out, source.annotator, annotator)
    else:
        labels = None if source.labels is None else list(source.labels)
        write_json(out / ANNOTATOR_FILE, {"annotator": asdict(source.annotator), "labels": labels})


def _check_annotator(path: Path, expected: Annotator, actual: Annotator) -> None:
    if change := first_difference(asdict(actual), asdict(expected)):
        raise UserError(
            f"{path} was written by another annotator ({change}); choose another name= for this one, or remove the old objects"
        )


def _check_shards(folder: Path, shards: ShardSet) -> None:
    """Raise UserError if ``folder`` has parts of other shards, which would be read along with those of ``shards``."""
    stems = {Path(name).stem for name in shards.names}
    if foreign := [part.name for part in visible_files(folder, "*.parquet") if part.stem not in stems]:
        raise UserError(
            f"{folder} has parts of shards that {shards.folder} does not have ({len(foreign)}), such as {foreign[0]}; remove "
            "them, or choose another name="
        )


def _is_complete(path: Path, shard: Shard, annotator: Annotator) -> bool:
    """Whether a part exists, can be read and has its shard's images; raises UserError if it is another annotator's."""
    if not path.exists():
        return False
    try:
        part_annotator, table = read_part(path, ["key"])
    except UserError:
        logger.warning("%s is damaged and will be redone", path)
        return False
    _check_annotator(path, annotator, part_annotator)
    index = shard.index
    if table["key"].to_pylist() != list(index.keys) or not is_part_of(path, index.images):
        logger.warning("%s has other images than its shard and will be redone", path)
        return False
    return True


def _check_failures(shard: Shard, rows: Sequence[Annotation | Failed], max_failed: float) -> None:
    """Log the first failures of a shard; raises UserError if there are too many."""
    failed = [row for row in rows if isinstance(row, Failed)]
    for row in failed[:TOLERATED_FAILURES]:
        logger.warning("%s of %s could not be annotated: %s", row.key, shard.index.path, row.reason)
    too_many = len(failed) > max(TOLERATED_FAILURES, max_failed * len(rows))
    if too_many or (failed and len(failed) == len(rows) and max_failed < 1):
        raise UserError(
            f"{len(failed)} of {len(rows)} images of {shard.index.path} could not be annotated, the first is "
            f"{failed[0].key} ({failed[0].reason}); fix the cause, leave the set out by sets=, or allow more by max_failed="
        )
