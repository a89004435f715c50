"""From a source of pairs to the sets A, B, H, V and P: shards, objects, and a manifest of what went where and why.

Three steps, each spread over processes: every pair is read once, judged and hashed (``data/scan.py``); groups of
duplicates are formed and split (``data/duplicates.py``, ``data/splits.py``); shards are written. A run that was
interrupted goes on and ends with the same bytes, because parts and shards are whole or absent and depend on nothing but
the settings. ``dejavu prepare`` is the command.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit import __version__
from dejavu_lit.data.exclude import GROUPS, keys_fingerprint, read_keys
from dejavu_lit.data.known_members import count_left_out, find_listed, listed_sets, read_lists
from dejavu_lit.data.near_duplicates import (
    HASH,
    check_distance,
    count_duplicates,
    exact_groups,
    named_groups,
    near_groups,
)
from dejavu_lit.data.readers.base import Reader
from dejavu_lit.data.scan import Scan, scan
from dejavu_lit.data.splits import SETS, UNUSED, claims, set_sizes, shard_order, split
from dejavu_lit.data.write_sets import PairSet, write_sets
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, fingerprint, read_object, write_json

MANIFEST = "manifest.json"
SCHEMA = 1
UNFINISHED = ".prepare"  # folder of the scan's parts and, once shards are written, their settings; removed in the end
SETTINGS = "settings.json"
EXAMPLES = 5
logger = logging.getLogger(__name__)


def prepare(
    reader: Reader,
    out: Path | str,
    sizes: Mapping[str, float | int | None],
    seed: int = 0,
    near_duplicates: int | None = 6,
    pairs_per_shard: int = 1000,
    workers: int = 2,
    extra: Mapping[str, Reader] | None = None,
    exclude: Path | str | None = None,
    max_skipped: float = 0.05,
    keys: Mapping[str, Path | str | None] | None = None,
) -> dict[str, Any]:
    """Write ``out/{A,B,H,V,P}/``, ``out/objects/NAME/SET/`` where the reader brings objects, and ``out/manifest.json``.

    Args:
        sizes: {set: number of pairs (int), share of all usable pairs (float below 1), or None for all that ``keys`` lists}.
        seed: of the splits.
        near_duplicates: images whose perceptual hashes differ in at most so many of 64 bits count as one image and
            stay in one set; None: only images of the same bytes do.
        extra: further public sets, {name: reader}, written whole, without images that are in a set of ``sizes`` too.
        exclude: text file of keys, one a line, to be left out.
        max_skipped: largest share of a source's pairs that may be unusable.
        keys: {set: text file of keys, one a line}: only these pairs may go into that set, and they go into no other. Pairs
            that are listed nowhere fill the sets without a file. Of near-duplicates listed for two sets (or for one and
            nowhere) those of the first set stay, the others are left out.

    Returns:
        The manifest. It holds no times, so the same settings give the same bytes.

    Raises:
        UserError: nothing to read, fewer pairs than ``sizes`` ask for, too many unusable pairs, ``keys`` that are not
            in the data or contradict one another, or an ``out`` that was made with other settings.
    """
    out, extra = Path(out), dict(extra or {})
    check_distance(near_duplicates)
    if exclude is not None and not Path(exclude).is_file():
        raise UserError(f"the file {exclude} does not exist; check data.exclude=")
    if pairs_per_shard < 1:
        raise UserError(f"pairs_per_shard={pairs_per_shard} must be at least 1")
    if clash := [name for name in extra if name in (*SETS, "objects") or not name.isidentifier()]:
        raise UserError(f"extra names a set {clash[0]!r}; give it another name, of letters, digits and underscores")
    lists = read_lists(keys or {})
    settings = {
        "reader": reader.fingerprint(),
        "extra": {name: source.fingerprint() for name, source in extra.items()},
        "sizes": dict(sizes),
        "seed": seed,
        "near_duplicates": near_duplicates,
        "pairs_per_shard": pairs_per_shard,
        "exclude": file_sha256(exclude) if exclude is not None else None,
    }
    if lists:
        settings["keys"] = {name: keys_fingerprint(listed) for name, listed in lists.items()}
    if (finished := _begin(out, settings)) is not None:
        logger.info("%s is finished already; nothing to do", out)
        return finished

    every = {name: _keys(source) for name, source in {"": reader, **extra}.items()}
    _check_unique(every)
    members, absent = find_listed(lists, every[""])
    excluded = _exclude(every, exclude)
    # Too few pairs are an error before the long scan, not after.
    set_sizes(sizes, len(every[""]), _counted(lists, listed_sets(members, every[""])))
    found = {}
    for name, source in {"": reader, **extra}.items():
        # Named by all that its parts depend on besides their keys, so that other sizes or another seed find them again.
        parts = out / UNFINISHED / fingerprint([source.fingerprint(), near_duplicates is not None, HASH])
        found[name] = scan(source, every[name], parts, near_duplicates is not None, workers, max_skipped)
    main = found[""]
    exact = exact_groups(main.digests)
    groups = exact if near_duplicates is None else near_groups(exact, main.hashes, main.hashed, near_duplicates)
    listed = listed_sets(members, main.keys)
    claimed = claims(groups, listed)
    left_out = count_left_out(groups, listed, claimed)
    wanted = set_sizes(sizes, len(main.keys), _counted(lists, claimed), sum(left_out.values()))
    member = split(main.keys, groups, wanted, seed, claimed)

    order = shard_order(main.keys, seed)
    sets = [PairSet(name, reader, main, order[member[order] == SETS.index(name)]) for name in wanted]
    for name, source in extra.items():
        new = _not_in_sets(main, member, found[name], near_duplicates)
        rows = shard_order(found[name].keys, seed)
        sets.append(PairSet(name, source, found[name], rows[new[rows]]))
    write_json(out / UNFINISHED / SETTINGS, settings)
    write_sets(out, sets, pairs_per_shard, workers)

    skipped = {
        f"{name}: {why}" if name else why: bad for name, scan in found.items() for why, bad in scan.skipped.items()
    }
    account: dict[str, dict[str, Any]] = {}
    for each in sets:
        objects = each.reader.annotator.name if each.reader.annotator else None
        account[each.name] = {
            "pairs": len(each.rows),
            "shards": -(-len(each.rows) // pairs_per_shard),
            "objects": objects,
        }
        if each.name in extra:
            account[each.name]["left_out_as_duplicates"] = len(each.found.keys) - len(each.rows)
        else:
            account[each.name]["asked"] = size = wanted[each.name]
            if len(each.rows) < size:
                logger.warning("%s got %d of %d pairs: the groups left are larger", each.name, len(each.rows), size)
        if each.name in lists:
            told = {"listed": len(lists[each.name]), "absent": absent[each.name]}
            account[each.name] |= told | {"left_out_as_duplicates": left_out.get(each.name, 0)}
            logger.info(
                "%s took %d of the %d pairs that keys.%s lists", *(each.name, len(each.rows), told["listed"], each.name)
            )
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "version": __version__,
        "settings": settings,
        "pairs": {
            "read": sum(map(len, every.values())),
            "excluded": excluded,
            "skipped": sum(map(len, skipped.values())),
            "unused": int((member == UNUSED).sum()),
            **({"left_out_as_duplicates": sum(left_out.values())} if lists else {}),
        },
        "sets": account,
        "duplicates": _duplicates(exact, groups, member, wanted, near_duplicates)
        | {GROUPS: {name: named_groups(main.keys, groups, member == SETS.index(name)) for name in wanted}},
        "skipped": {why: {"count": len(bad), "examples": bad[:EXAMPLES]} for why, bad in skipped.items()},
    }
    write_json(out / MANIFEST, manifest)
    source = manifest["duplicates"]["source"]
    logger.info(
        "%s: %s; groups of duplicates kept together: %d exact, %d near; %d pairs skipped, %d unused",
        out,
        ", ".join(f"{name} {part['pairs']}" for name, part in account.items()),
        source["exact"]["groups"],
        source["near"]["groups"],
        manifest["pairs"]["skipped"],
        manifest["pairs"]["unused"],
    )
    shutil.rmtree(out / UNFINISHED)
    return manifest


def _begin(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished folder; None for one to begin or to go on with, cleared of half-written files."""
    unfinished = out / UNFINISHED
    if (out / MANIFEST).exists():
        manifest: dict[str, Any] = read_object(out / MANIFEST, SCHEMA)
        _same(out, settings, manifest.get("settings", {}))
        shutil.rmtree(unfinished, ignore_errors=True)  # killed between the manifest and the clearing up
        return manifest
    if (unfinished / SETTINGS).exists():
        _same(out, settings, read_object(unfinished / SETTINGS))
    elif taken := [name for name in (*SETS, "objects", *settings["extra"]) if (out / name).exists()]:
        raise UserError(
            f"{out} holds {taken[0]!r} that this command did not make; choose another data.dir= or remove it"
        )
    if unfinished.exists():
        for part in out.rglob(".*.part"):
            part.unlink()
    return None


def _same(out: Path, settings: dict[str, Any], others: dict[str, Any]) -> None:
    """Raise UserError naming what differs between these settings and those ``out`` was made with."""
    now, then = dict(_flat(settings)), dict(_flat(others))
    if differing := [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]:
        told = "; ".join(f"{name} is {now.get(name)}, was {then.get(name)}" for name in differing[:3])
        raise UserError(
            f"{out} was made with other settings ({told}); choose another data.dir=, or remove {out} to make it anew"
        )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    inner = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else None
    )
    if inner is None:
        yield name, str(value) if isinstance(value, Path) else value
    else:
        for key, item in inner:
            yield from _flat(item, f"{name}.{key}" if name else str(key))


def _keys(reader: Reader) -> list[str]:
    keys = sorted(reader.keys())
    if bad := [key for key in keys if not key or "." in key or "/" in key]:
        raise UserError(f"the {reader.name} source has a key {bad[0]!r}; keys must be non-empty, without dot and slash")
    return keys


def _check_unique(keys: Mapping[str, list[str]]) -> None:
    everywhere = sorted(key for part in keys.values() for key in part)
    if twice := [one for one, other in pairwise(everywhere) if one == other]:
        raise UserError(f"the key {twice[0]!r} occurs twice in the data; keys must be unique over all sources")


def _exclude(keys: dict[str, list[str]], path: Path | str | None) -> int:
    """Take the keys listed in the file out of ``keys``; returns how many that were."""
    if path is None:
        return 0
    unwanted = set(read_keys(path, "data.exclude"))
    before = sum(map(len, keys.values()))
    for name, part in keys.items():
        keys[name] = [key for key in part if key not in unwanted]
    gone = before - sum(map(len, keys.values()))
    if unwanted and not gone:
        raise UserError(f"none of the {len(unwanted)} keys in {path} is in the data; check data.exclude=")
    if gone < len(unwanted):
        logger.warning("%d of %d keys in %s are not in the data", len(unwanted) - gone, len(unwanted), path)
    return gone


def _counted(lists: Mapping[str, Any], codes: np.ndarray) -> dict[str, int]:
    """{set: how many of ``codes`` (indices into SETS) are its} for the sets in ``lists``."""
    return {name: int((codes == SETS.index(name)).sum()) for name in lists}


def _not_in_sets(main: Scan, member: np.ndarray, other: Scan, near_duplicates: int | None) -> np.ndarray:
    """Which pairs of an extra source have an image that no set holds, bool [n]."""
    used = np.flatnonzero(member != UNUSED)
    groups = exact_groups(np.concatenate([main.digests[used], other.digests]))
    if near_duplicates is not None:
        hashes = np.concatenate([main.hashes[used], other.hashes])
        hashed = np.concatenate([main.hashed[used], other.hashed])
        groups = near_groups(groups, hashes, hashed, near_duplicates)
    return groups[len(used) :] >= len(used)


def _duplicates(
    exact: np.ndarray, groups: np.ndarray, member: np.ndarray, wanted: Mapping[str, int], distance: int | None
) -> dict[str, Any]:
    """The manifest's account: groups in the whole source, within each set, and (to be 0) spread over several sets."""
    used = member != UNUSED
    across = {
        kind: len(np.unique(np.stack([roots[used], member[used]]), axis=1)[0]) - len(np.unique(roots[used]))
        for kind, roots in (("exact", exact), ("near", groups))
    }
    if any(across.values()):
        raise AssertionError(f"groups of duplicates are spread over sets: {across}")
    within = {
        name: count_duplicates(*(roots[member == SETS.index(name)] for roots in (exact, groups))) for name in wanted
    }
    hashing = {"hash": HASH, "distance": distance} if distance is not None else {"hash": None, "distance": None}
    return {**hashing, "source": count_duplicates(exact, groups), "within": within, "across": across}
