"""manifest.json of a prepared data folder: its name and schema, the settings check, and the groups of near-duplicates."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dejavu_lit.utils.config import to_plain
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_json_object
from dejavu_lit.utils.run_directory import first_difference

MANIFEST = "manifest.json"
SIZES = "sizes.json"  # of a set: {shard: number of pairs}
SCHEMA = 1
GROUPS = "groups"  # in "duplicates": {set: [[key, …], …]}, each group sorted


def read_manifest(path: Path) -> dict[str, Any]:
    """The contents of a manifest.json; raises UserError if it is missing, damaged or of another version."""
    manifest = read_json_object(path, SCHEMA)
    if wrong := [
        name
        for name in ("settings", "sets", "duplicates", "raw_shards")
        if not isinstance(manifest.get(name, {}), dict)
    ]:
        raise UserError(f"{path} is damaged: its entry {wrong[0]} is not an object; prepare the data again")
    return manifest


def check_settings(out: Path, settings: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Raise UserError naming a difference between these settings and those that ``out`` was made with."""
    if change := first_difference(earlier, to_plain(settings)):
        raise UserError(
            f"{out} was made with other settings ({change}); choose another data.dir=, or remove {out} to start over"
        )


def refuse_foreign(out: Path, names: Iterable[str]) -> None:
    """Raise UserError if ``out``, a folder to be written, has a folder of one of these names already."""
    if foreign := [name for name in names if (out / name).exists()]:
        raise UserError(
            f"{out} contains {foreign[0]!r}, which this command did not write; choose another data.dir= or remove it"
        )


def duplicate_groups(manifest: Path, name: str, option: str = "mitigation.dedup=true") -> list[list[str]]:
    """The groups of near-duplicates in a set, lists of keys; raises UserError naming ``option`` if the manifest has none."""
    groups_by_set: dict[str, list[list[str]]] | None = read_manifest(manifest).get("duplicates", {}).get(GROUPS)
    if groups_by_set is None:
        instead = ", or set data.exclude= to the list that dejavu dedup within=true writes" if "dedup" in option else ""
        raise UserError(
            f"{option} needs the groups of near-duplicates, which {manifest} does not list; prepare the data again with "
            f"dejavu prepare into another data.dir={instead}"
        )
    return groups_by_set.get(name, [])


def listed_members(manifest: Path) -> list[str]:
    """The sets whose pairs were listed by ``keys`` of prepare, not drawn, such as ["A"]."""
    return sorted(read_manifest(manifest).get("settings", {}).get("keys") or {})
