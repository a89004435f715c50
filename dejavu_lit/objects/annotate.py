"""Objects for prepared data: an annotator goes over the shards of its sets and writes one part a shard.

A part is whole or absent, and depends on nothing but the annotator and its shard: an interrupted run goes on where it was
and ends with the same bytes, and any number of processes, on one machine or many, share the shards without speaking to each
other. ``dejavu annotate`` is the command.
"""

import csv
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dejavu_lit.data.objects import Annotation, Annotator, Failed, failures, read_part, write_objects
from dejavu_lit.data.shards import ShardSet
from dejavu_lit.objects.base import Shard, Source
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, read_json, write_json, write_text
from dejavu_lit.utils.progress import progress

ABOUT = "annotator.json"  # who annotated, with the whole vocabulary
FAILURES = "failed.csv"
SOURCE = "source.json"  # in a set's folder: where its shards lay
FEW = 10  # so many failed images of a shard are never too many
EVERY = 60  # seconds between lines of the log
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Share:
    """Which shards are this process's: those whose place in the list of all leaves ``number`` when divided by ``of``."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise UserError(
                f"part={self.number}/{self.of} must be a number from 0 to {self.of - 1}, and how many there are"
            )

    @classmethod
    def parse(cls, text: str | None, environment: Mapping[str, str] = os.environ) -> "Share":
        """``"3/10"``; with None what a SLURM array and the ranks of torchrun or srun say, both together, else all shards.

        Raises:
            UserError: not of this form, or an array whose numbers have gaps (then nobody can tell how many it had).
        """
        if text is not None:
            try:
                number, of = map(int, str(text).split("/"))
            except ValueError:
                raise UserError(f"part={text} must be NUMBER/OF, e.g. part=3/10, counted from 0") from None
            return cls(number, of)
        task, tasks = _array(environment)
        for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
            if rank in environment and world in environment:
                return cls(task * int(environment[world]) + int(environment[rank]), tasks * int(environment[world]))
        return cls(task, tasks)

    def take(self, items: Sequence[Any]) -> list[Any]:
        """The items that are this process's."""
        return list(items[self.number :: self.of])


def _array(environment: Mapping[str, str]) -> tuple[int, int]:
    """(place, number) of tasks of a SLURM array; (0, 1) outside one."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return 0, 1
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    task, count, first, last, step = (int(environment.get(f"SLURM_ARRAY_TASK_{n}", n == "STEP")) for n in names)
    if not count or (last - first) // step + 1 != count:
        raise UserError(
            f"the SLURM array runs from {first} to {last} with {count} tasks, so it has gaps; "
            "say which share is this task's by part=NUMBER/OF, e.g. part=$SLURM_ARRAY_TASK_ID/10"
        )
    return (task - first) // step, count


def annotate(
    source: Source,
    sets: Mapping[str, ShardSet],
    out: Path | str,
    share: Share | None = None,
    max_failed: float = 0.05,
) -> dict[str, Any]:
    """Write ``out/SET/SHARD.parquet`` for every shard of ``sets`` that is this process's and has no whole part yet.

    Args:
        source: the annotator; sets: {name: shards}.
        max_failed: largest share of a shard's images that may fail; FEW may always, all only where it is 1.

    Returns:
        {images, seconds: of this call; parts, of: how many of the parts there are to be are there, those of other
        processes included; failed: images that failed, in this process's shards until all parts are there and whole, then
        in all; listed: whether they are, and ``failed.csv`` is written}.

    Raises:
        UserError: ``out`` holds objects of another annotator, or too many images fail.
    """
    out = Path(out)
    if not 0 <= max_failed <= 1:
        raise UserError(f"max_failed={max_failed} must lie between 0 and 1")
    _claim(out, source)
    moved = {name for name, shards in sets.items() if _moved(out / name, shards)}
    jobs = [Shard(name, shards.index(number)) for name, shards in sets.items() for number in range(len(shards.names))]
    mine = (share or Share()).take(jobs)
    missing = [shard for shard in mine if not _whole(_part(out, shard), shard, source.annotator, shard.set in moved)]
    for name, shards in sets.items():
        if not (out / name / SOURCE).exists() or name in moved:
            write_json(out / name / SOURCE, _source(shards))
    total, images, began = sum(len(shard.index) for shard in missing), 0, time.monotonic()
    said = began
    with progress(None, f"annotating with {source.annotator.name}", total=total, unit="image") as bar:
        for shard in missing:
            rows: list[Annotation | Failed] = []
            for row in source.rows(shard):
                rows.append(row)
                bar.update()
            if [row.key for row in rows] != list(shard.index.keys):
                raise AssertionError(f"{source.annotator.name} gave other rows than the images of {shard.index.path}")
            _check_failed(shard, rows, max_failed)
            write_objects(_part(out, shard), rows, source.annotator)
            images += len(rows)
            if bar.disable and time.monotonic() - said > EVERY:
                said = time.monotonic()
                logger.info("%d of %d images, %.1f images/s", images, total, images / (said - began))
    there = [shard for shard in jobs if _part(out, shard).exists()]
    # Parts are opened only once all are there: each of many tasks would open the others' too.
    listed = len(there) == len(jobs)
    failed = _failures(out, jobs if listed else mine)
    if listed and len(failed) < len(jobs):
        listed, there = False, [shard for shard, _ in failed]
    if listed:
        _list_failures(out, failed)
    return {
        "pictures": images,
        "seconds": time.monotonic() - began,
        "failed": sum(len(reasons) for _, reasons in failed),
        "parts": len(there),
        "of": len(jobs),
        "listed": listed,
    }


def _part(out: Path, shard: Shard) -> Path:
    return out / shard.set / f"{shard.index.path.stem}.parquet"


def _claim(out: Path, source: Source) -> None:
    """Write ``annotator.json``, or raise UserError where parts are another annotator's; one that made none is forgotten."""
    about = {"annotator": source.annotator.as_json(), "labels": None if source.labels is None else list(source.labels)}
    if (out / ABOUT).exists() and any(out.glob("*/*.parquet")):
        try:
            before = Annotator.from_json(read_json(out / ABOUT)["annotator"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{out / ABOUT} is damaged ({type(error).__name__}: {error}); remove it, or give another name="
            ) from None
        _refuse_other(out, source.annotator, before)
    else:
        write_json(out / ABOUT, about)


def _source(shards: ShardSet) -> dict[str, str]:
    """Where a set lies, and what tells it from another one in the same place."""
    return {"folder": str(shards.folder.resolve()), "sizes": fingerprint([shards.names, shards.sizes])}


def _moved(folder: Path, shards: ShardSet) -> bool:
    """Whether ``folder`` holds the objects of these shards when they lay elsewhere.

    Raises:
        UserError: they are not these shards, but others whose folder has the same name.
    """
    if not (folder / SOURCE).exists():
        return False
    before, now = read_json(folder / SOURCE), _source(shards)
    if not isinstance(before, dict) or set(before) != set(now):
        raise UserError(f"{folder / SOURCE} is damaged; remove it")
    if before["folder"] != now["folder"] and before["sizes"] != now["sizes"]:
        raise _foreign(folder, before["folder"], now["folder"])
    return bool(before["folder"] != now["folder"])


def _foreign(folder: Path, before: str, now: str) -> UserError:
    return UserError(
        f"{folder} holds the objects of {before}, which are not those of {now}; rename one of these two folders, or give "
        "this artifact another name="
    )


def _whole(path: Path, shard: Shard, annotator: Annotator, moved: bool) -> bool:
    """Whether the part of a shard is there, can be read and holds its images.

    Raises:
        UserError: it is another annotator's, or of other images in another place.
    """
    if not path.exists():
        return False
    try:
        found, table = read_part(path, ["key"])
    except UserError:
        logger.warning("%s is damaged and made again", path)
        return False
    _refuse_other(path, annotator, found)
    if table["key"].to_pylist() != list(shard.index.keys):
        if moved:
            raise _foreign(path.parent, read_json(path.parent / SOURCE)["folder"], str(shard.index.path.parent))
        logger.warning("%s holds other images than its shard and is made again", path)
        return False
    return True


def _refuse_other(path: Path, annotator: Annotator, found: Annotator) -> None:
    if found == annotator:
        return
    old, new = found.as_json(), annotator.as_json()
    differing = next(name for name in (*old, *new) if old.get(name) != new.get(name))
    raise UserError(
        f"{path} was made by another annotator ({differing}: {old.get(differing)} there, {new.get(differing)} here); "
        "give this one a folder of its own by name=, or remove the other"
    )


def _check_failed(shard: Shard, rows: Sequence[Annotation | Failed], max_failed: float) -> None:
    failed = [row for row in rows if isinstance(row, Failed)]
    for row in failed[:FEW]:
        logger.warning("%s of %s could not be annotated: %s", row.key, shard.index.path, row.reason)
    if len(failed) > max(FEW, max_failed * len(rows)) or (failed and len(failed) == len(rows) and max_failed < 1):
        raise UserError(
            f"{len(failed)} of {len(rows)} images of {shard.index.path} could not be annotated, the first is "
            f"{failed[0].key} ({failed[0].reason}); mend the cause, or allow a larger share by max_failed="
        )


def _failures(out: Path, shards: Sequence[Shard]) -> list[tuple[Shard, dict[str, str]]]:
    """(shard, {key: reason}) of the shards whose parts can be read."""
    found = []
    for shard in shards:
        try:
            found.append((shard, failures(_part(out, shard))))
        except UserError as damaged:
            logger.warning("%s", damaged)
    return found


def _list_failures(out: Path, failed: Sequence[tuple[Shard, Mapping[str, str]]]) -> None:
    """Write ``failed.csv`` of all parts, by the process that ends last."""
    rows = [(shard.set, key, reason) for shard, of in failed for key, reason in of.items()]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("set", "key", "reason"), *rows])
    write_text(out / FAILURES, text.getvalue())
