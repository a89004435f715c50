"""Prepared data: a source of pairs split into the sets A, B, H, V and P, as shards, objects and a manifest.

Three steps, the first and the last spread over processes: every pair is read once, checked and hashed (``data/scan.py``);
groups of duplicates are formed and assigned to sets (``data/assignment.py``); shards are written (``data/write_sets.py``).
An interrupted run continues and ends with the same bytes: parts and shards are complete or absent, and depend on nothing else.
"""

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from dejavu_lit import __version__
from dejavu_lit.data.assignment import Assignment, assign
from dejavu_lit.data.key_lists import (
    check_known,
    keys_fingerprint,
    listed_sets,
    match_lists,
    meant_keys,
    read_keys,
    read_lists,
)
from dejavu_lit.data.manifest import MANIFEST, SCHEMA, check_settings, refuse_foreign
from dejavu_lit.data.near_duplicates import HASH
from dejavu_lit.data.readers.base import Reader
from dejavu_lit.data.scan import Scan, scan
from dejavu_lit.data.settings import DISTANCES
from dejavu_lit.data.splits import SETS, UNUSED, count_by_set, hash_order, set_sizes
from dejavu_lit.data.write_sets import PairSet, write_sets
from dejavu_lit.utils.errors import UserError, check_at_least, check_range
from dejavu_lit.utils.io import file_sha256, fingerprint, read_json_object, write_json

MAIN = ""  # the name of the main source beside those of extra, which are identifiers
UNFINISHED = ".prepare"  # folder of the scan's parts and, once shards are written, their settings; removed at the end
SETTINGS = "settings.json"
EXAMPLES = 5  # keys shown for each reason to skip pairs
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preparation:
    """Prepared data as they are to be: what is read, where it is written, and the options that decide the result.

    Raises UserError for an option out of its range, and for an ``exclude`` that is not a file.
    """

    reader: Reader
    out: Path
    # {set: number of pairs (int), share of all usable pairs (float, 1.0: all), or None for all that ``keys`` lists}
    sizes: Mapping[str, float | int | None]
    seed: int = 0
    near_duplicates: int | None = 6
    pairs_per_shard: int = 1000
    # Further public sets, {name: reader}, written in full, without images that are also in a set of ``sizes``.
    extra: Mapping[str, Reader] = field(default_factory=dict)
    exclude: Path | str | None = None
    # {set: text file with one key per line}: only these pairs may go into that set, and they go into no other. Pairs that are
    # listed nowhere fill the sets without a file. Of near-duplicates listed for two sets (or for one and nowhere) those of
    # the first set stay, the others are left out.
    keys: Mapping[str, Path | str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_range(self, "", DISTANCES, "near_duplicates")
        if self.exclude is not None and not Path(self.exclude).is_file():
            raise UserError(f"data.exclude={self.exclude} is not a file; give a text file with one key per line")
        check_at_least(self, "", pairs_per_shard=1)
        for name in self.extra:
            if name in (*SETS, "objects") or not name.isidentifier():
                raise UserError(f"extra names a set {name!r}; give it another name, of letters, digits and underscores")

    @property
    def sources(self) -> dict[str, Reader]:
        return {MAIN: self.reader, **self.extra}

    @cached_property
    def lists(self) -> dict[str, list[str]]:
        """{set: the keys listed for it}."""
        return read_lists(self.keys)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the manifest records: all that decides the result."""
        settings = {
            "reader": self.reader.fingerprint(),
            "extra": {name: source.fingerprint() for name, source in self.extra.items()},
            "sizes": dict(self.sizes),
            "seed": self.seed,
            "near_duplicates": self.near_duplicates,
            "pairs_per_shard": self.pairs_per_shard,
            "exclude": file_sha256(self.exclude) if self.exclude is not None else None,
        }
        if self.lists:
            settings["keys"] = {name: keys_fingerprint(listed) for name, listed in self.lists.items()}
        return settings

    def run(self, workers: int = 2, max_skipped: float = 0.05) -> dict[str, Any]:
        """Write ``out/{A,B,H,V,P}/``, ``out/objects/NAME/SET/`` if the reader has objects, and ``out/manifest.json``.

        Returns:
            The manifest. It has no times, so the same settings give the same bytes.

        Raises:
            UserError: nothing to read, too few or too many unusable pairs, wrong ``keys``, or an ``out`` with other settings.
        """
        if not 0 <= max_skipped <= 1:
            raise UserError(f"max_skipped={max_skipped} must lie between 0 and 1")
        if (manifest := _finished_manifest(self.out, self.settings)) is None:
            manifest = _run(self, workers, max_skipped)
            write_json(self.out / MANIFEST, manifest)
            _log_summary(self.out, manifest)
        else:
            logger.info("%s is already finished; nothing to do", self.out)
        shutil.rmtree(self.out / UNFINISHED, ignore_errors=True)
        return manifest


def _run(job: Preparation, workers: int, max_skipped: float) -> dict[str, Any]:
    keys = _read_keys(job.sources)
    members, absent = match_lists(job.lists, keys[MAIN], _listed_name(job.sources[MAIN]))
    excluded = _exclude(keys, job)
    # Too few pairs are an error before the long scan, not after.
    set_sizes(job.sizes, len(keys[MAIN]), count_by_set(job.lists, listed_sets(members, keys[MAIN])))

    for source in job.sources.values():
        _ = source.annotator  # what it reads is shared by the workers, which would each read it again
    scans, states = {}, {MAIN: job.settings["reader"], **job.settings["extra"]}
    for name, source in job.sources.items():
        # The folder is named by all that its parts depend on besides their keys, so other sizes or another seed reuse them.
        need_captions = name == MAIN and any(job.sizes.get(s, 0) != 0 or s in job.lists for s in SETS if s != "P")
        parts = job.out / UNFINISHED / fingerprint([states[name], HASH, need_captions])
        scans[name] = scan(source, keys[name], parts, workers, max_skipped, need_captions)
    assignment = assign(scans[MAIN], members, job.sizes, job.seed, job.near_duplicates)
    sets = _pair_sets(job, scans, assignment)
    write_json(job.out / UNFINISHED / SETTINGS, job.settings)
    entries = {pairs.name: _describe_set(pairs, job, assignment, absent) for pairs in sets}
    too_small = [name for name, size in job.sizes.items() if size and name not in entries]  # shares below one pair
    if empty := [*(pairs.name for pairs in sets if not len(pairs.rows)), *too_small]:
        logger.warning("sets without a pair, not written: %s", ", ".join(empty))
    fingerprints = write_sets(job.out, sets, job.pairs_per_shard, workers)

    skipped = _by_source({name: source_scan.skipped for name, source_scan in scans.items()})
    unread = _by_source({name: getattr(source, "unread", {}) for name, source in job.sources.items()})
    return {
        "schema": SCHEMA,
        "version": __version__,
        "settings": job.settings,
        "pairs": {
            "read": sum(map(len, keys.values())),
            "excluded": excluded,
            "skipped": sum(map(len, skipped.values())),
            "unused": int((assignment.member == UNUSED).sum()),
            **({"left_out_as_duplicates": sum(assignment.excluded.values())} if job.lists else {}),
        },
        "sets": {name: entries[name] | {"fingerprint": content} for name, content in fingerprints.items()},
        "several_captions": sum(source_scan.several_captions for source_scan in scans.values()),
        "duplicates": assignment.duplicates(),
        "skipped": {reason: {"count": len(bad), "examples": bad[:EXAMPLES]} for reason, bad in skipped.items()},
        "unread": dict(sorted(unread.items())),
    }


def _by_source(values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{source: {name: value}} as {name: value}; names of an extra source begin with its name."""
    return {f"{source}: {name}" if source else name: v for source, held in values.items() for name, v in held.items()}


def _finished_manifest(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished folder; None for a new or an unfinished one, cleared of half-written files."""
    unfinished = out / UNFINISHED
    if (out / MANIFEST).exists():
        manifest: dict[str, Any] = read_json_object(out / MANIFEST, SCHEMA)
        check_settings(out, settings, manifest.get("settings", {}))
        return manifest
    if (unfinished / SETTINGS).exists():
        check_settings(out, settings, read_json_object(unfinished / SETTINGS))
    else:
        refuse_foreign(out, (*SETS, "objects", *settings["extra"]))
    if unfinished.exists():  # other commands may write beside them
        for name in (UNFINISHED, *SETS, "objects", *settings["extra"]):
            for part in (out / name).rglob(".*.part"):
                part.unlink()
    return None


def _read_keys(sources: Mapping[str, Reader]) -> dict[str, list[str]]:
    keys = {name: sorted(source.keys()) for name, source in sources.items()}
    for name, source_keys in keys.items():
        if not source_keys:
            option = f"data.extra.{name}" if name else "data.reader"
            raise UserError(f"the {sources[name].name} source has no pairs; check {option}")
        if bad := [key for key in source_keys if not key or "." in key or "/" in key]:
            raise UserError(
                f"the {sources[name].name} source has a key {bad[0]!r}; keys must be non-empty, without dots and slashes"
            )
    for key, following in pairwise(sorted(chain.from_iterable(keys.values()))):
        if key == following:
            raise UserError(
                f"the key {key!r} occurs twice in the data; keys must be unique over all sources; give other keys to "
                "one of them: key=url for shards of img2dataset, or the folder above it as path= for a folder"
            )
    return keys


def _exclude(keys: dict[str, list[str]], job: Preparation) -> int:
    """Remove the keys listed in ``job.exclude`` from ``keys``; returns how many were removed."""
    if (path := job.exclude) is None:
        return 0
    listed = read_keys(path, "data.exclude")
    known, example = set[str](), keys[MAIN][0]
    every = set(chain.from_iterable(keys.values()))  # a line that is a key means only that
    before = sum(map(len, keys.values()))
    for name, source_keys in keys.items():
        own = set(source_keys)
        meant = meant_keys((n for n in listed if n in own or n not in every), own, _listed_name(job.sources[name]))
        known |= meant.keys()
        excluded = set(meant.values())
        keys[name] = [key for key in source_keys if key not in excluded]
        if source_keys and not keys[name]:
            what = f"data.extra.{name}" if name else "the data"
            raise UserError(f"data.exclude={path} lists every pair of {what}; shorten the list, or drop this source")
    check_known(f"data.exclude={path}", listed, [line for line in listed if line not in known], example)
    return before - sum(map(len, keys.values()))


def _listed_name(reader: Reader) -> Callable[[str], str]:
    """A reader's own function from a line in a list of keys to the name that a key is made from, if it has one."""
    return getattr(reader, "listed_name", str)


def _pair_sets(job: Preparation, scans: Mapping[str, Scan], assignment: Assignment) -> list[PairSet]:
    """The sets to write: those of the main source, then the extra ones without images that are in the former."""
    main, order = scans[MAIN], hash_order(scans[MAIN].keys, job.seed, "order")
    codes = assignment.member[order]
    sets = [PairSet(n, job.sources[MAIN], main, order[codes == SETS.index(n)]) for n in assignment.sizes]
    for name, source in job.extra.items():
        order = hash_order(scans[name].keys, job.seed, "order")
        sets.append(PairSet(name, source, scans[name], order[assignment.is_new(scans[name])[order]]))
    return sets


def _describe_set(
    pairs: PairSet, job: Preparation, assignment: Assignment, absent: Mapping[str, int]
) -> dict[str, Any]:
    """The manifest's entry of a set, with a warning if it is smaller than requested."""
    count, annotator = len(pairs.rows), pairs.reader.annotator
    entry: dict[str, Any] = {
        "pairs": count,
        "shards": -(-count // job.pairs_per_shard),
        "objects": annotator.name if annotator else None,
    }
    if pairs.name in job.extra:
        if copies := len(pairs.scan.keys) - count:
            logger.warning("%d of %d images of %s left out: other sets have them", copies, copies + count, pairs.name)
        return entry | {"left_out_as_duplicates": copies}
    entry["asked"] = size = assignment.sizes[pairs.name]
    if count < size:
        logger.warning("%s got %d of %d pairs: the remaining groups are larger", pairs.name, count, size)
    if pairs.name in job.lists:
        listed, left_out = len(job.lists[pairs.name]), assignment.excluded.get(pairs.name, 0)
        entry |= {"listed": listed, "absent": absent[pairs.name], "left_out_as_duplicates": left_out}
        logger.info("%s took %d of the %d pairs that keys.%s lists", pairs.name, count, listed, pairs.name)
    return entry


def _log_summary(out: Path, manifest: dict[str, Any]) -> None:
    source = manifest["duplicates"]["source"]
    copies = manifest["duplicates"]["within"].get("P", {}).get("exact", {"groups": 0, "pairs": 0})
    if copies["groups"]:
        logger.warning(
            "P has %d pairs that are exact copies of %d images: copies replace distinct neighbors, so gaps are "
            "underestimated; remove the copies from the source",
            *(copies["pairs"], copies["groups"]),
        )
    logger.info(
        "%s: %s; groups of duplicates kept together: %d exact, %d near; pairs skipped: %d, unused: %d",
        out,
        ", ".join(f"{name} {entry['pairs']}" for name, entry in manifest["sets"].items()),
        source["exact"]["groups"],
        source["near"]["groups"],
        manifest["pairs"]["skipped"],
        manifest["pairs"]["unused"],
    )
