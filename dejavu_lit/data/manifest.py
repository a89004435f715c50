"""manifest.json of a prepared data folder: its name and schema, the settings check, and the groups of near-duplicates."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json_object

MANIFEST = "manifest.json"
SCHEMA = 1
GROUPS = "groups"  # in "duplicates": {set: [[key, …], …]}, each group sorted


def check_settings(out: Path, settings: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Raise UserError naming the differences between these settings and those that ``out`` was made with."""
    now, then = dict(_flat(settings)), dict(_flat(earlier))
    if differing := [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]:
        differences = "; ".join(f"{name} is {now.get(name)}, was {then.get(name)}" for name in differing[:3])
        raise UserError(
            f"{out} was made with other settings ({differences}); choose another data.dir=, or remove {out} to start over"
        )


def duplicate_groups(manifest: Path, name: str, option: str = "mitigation.dedup=true") -> list[list[str]]:
    """The groups of near-duplicates in the set ``name``, each a list of keys; ``option`` needs them.

    Raises:
        UserError: the manifest lists no groups, or they are damaged.
    """
    duplicates = read_json_object(manifest).get("duplicates")
    groups_by_set = duplicates.get(GROUPS) if isinstance(duplicates, dict) else None
    if groups_by_set is None:
        raise UserError(
            f"{option} needs the groups of near-duplicates, which {manifest} does not list; prepare the data "
            "again into another data.dir=, or set data.exclude= to the list that dejavu dedup within=true writes"
        )
    groups = groups_by_set.get(name, []) if isinstance(groups_by_set, dict) else None
    if not isinstance(groups, list) or not all(map(_is_group, groups)):
        raise UserError(f"the groups of duplicates in {manifest} are damaged; prepare the data again")
    return groups


def exact_copies(folder: Path) -> int | None:
    """How many pairs of a prepared set have the same image, to the byte, as another of them that counts; None: unknown."""
    manifest = folder.parent / MANIFEST
    if not manifest.is_file():
        return None
    try:
        exact = read_json_object(manifest)["duplicates"]["within"][folder.name]["exact"]
        return int(exact["pairs"]) - int(exact["groups"])
    except (KeyError, TypeError, ValueError):  # a set without duplicates listed, or a manifest of another kind
        return None


def _is_group(group: object) -> bool:
    return isinstance(group, list) and all(isinstance(key, str) for key in group)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything within; lists by position, so that the message names the file that differs."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        yield name, str(value) if isinstance(value, Path) else value
        return
    for key, item in items:
        yield from _flat(item, f"{name}.{key}" if name else str(key))
