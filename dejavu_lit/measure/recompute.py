"""Another k, threshold or top-m from an evaluation's saved records, in a second or two and without a model.

body = recompute("outputs/eval", "DATA/objects/scenes", k=5, threshold=0.7)     # the body of metrics.json
sets, at = read_evaluation("outputs/eval", "DATA/objects/scenes")                # the records, for everything else
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from dejavu_lit.data.objects import Objects, read_objects
from dejavu_lit.measure.metrics import BLOCK_SETS, VERSION, ObjectsAt, Settings, gaps, measure
from dejavu_lit.measure.records import Records, read_records
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import read_object

FILES = {"population": "records.parquet", "null": "records_null.parquet", "swapped": "records_swapped.parquet"}
# Settings of an evaluation that need no model, and those that only say where it is computed.
STATISTICS = ("k", "ks", "threshold", "top_m", "statistics", "objects", "by_objects", "keys")
WHERE = ("device", "workers", "embeddings")
CARRIED = ("utility", "exposure", "provenance", "search")  # what other k or objects do not change


def read_evaluation(
    folder: Path | str,
    objects: Path | str,
    threshold: float,
    public: str = "P",
    public_keys: Sequence[str] | None = None,
) -> tuple[dict[str, Records], ObjectsAt]:
    """The records of an evaluation's folder, joined to the objects at ``threshold``.

    Args:
        folder: holds records.parquet and, where they were measured, records_null.parquet and records_swapped.parquet.
        objects: the artifact, a folder with one subfolder a set.
        threshold: lowest annotator's score that counts, 0..1.
        public: the name of the public set that was searched; public_keys: its searched keys, if not all of them.

    Returns:
        {population|null|swapped: Records} of those that exist, and a function that reads the objects at another threshold,
        as ``measure`` wants it.

    Raises:
        UserError: no records, or objects that lack a key.
    """
    folder, objects = Path(folder), Path(objects)
    there = {name: folder / file for name, file in FILES.items() if (folder / file).exists()}
    if "population" not in there:
        raise UserError(
            f"{folder} holds no {FILES['population']}; give the folder of an evaluation (dejavu evaluate out=…)"
        )

    def at(threshold: float) -> Mapping[str, Objects]:
        names = [BLOCK_SETS[name] for name in there]
        read, _ = read_objects([*(objects / name for name in names), objects / public], threshold)
        searched = read[-1].take(sorted(read[-1].keys if public_keys is None else public_keys))
        return dict(zip(names, read, strict=False)) | {"P": searched}

    first = at(threshold)
    return {name: read_records(path, first[BLOCK_SETS[name]], first["P"]) for name, path in there.items()}, at


def by_objects(
    folder: Path | str,
    artifacts: Mapping[str, Path],
    settings: Settings,
    public: str = "P",
    public_keys: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The gaps under further artifacts, from the same neighbors: {name: {counts, the five blocks}}.

    Args:
        artifacts: {name: folder}, each of one annotator; all hold the images that were measured and searched.
        folder, public, public_keys: as for ``read_evaluation``.

    Raises:
        UserError: an artifact that lacks an image, mixes annotators, or was kept above ``settings.threshold`` only.
    """
    found = {}
    for name, artifact in artifacts.items():
        sets, _ = read_evaluation(folder, artifact, settings.threshold, public, public_keys)
        found[name] = gaps(sets, settings, f"in the artifact {name}")
    return found


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics.json of an evaluation; raises UserError where it is missing, damaged or of another schema."""
    import jsonschema

    path = folder / "metrics.json"
    found = read_object(path, VERSION)
    schema = json.loads((files("dejavu_lit.measure") / "metrics.schema.json").read_text(encoding="utf-8"))
    wrong = next(jsonschema.Draft202012Validator(schema).iter_errors(found), None)
    if wrong is not None:
        raise UserError(f"{path} is damaged ({wrong.json_path}: {wrong.message[:200]}); run dejavu evaluate again")
    return found


def recompute(
    folder: Path | str,
    objects: Path | str,
    public: str = "P",
    public_keys: Sequence[str] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """metrics.json anew from saved records, with some of its settings changed.

    Args:
        folder, objects, public, public_keys: as for ``read_evaluation``.
        changes: fields of ``Settings`` to change; a ``k`` that is not among ``ks`` is added to them.

    Returns:
        The body of metrics.json, with utility, exposure and provenance carried over from the evaluation's own.

    Raises:
        UserError: an unknown setting, metrics of another schema, k beyond the saved neighbors.
    """
    old = read_metrics(Path(folder))
    known = {field.name for field in fields(Settings)}
    if unknown := sorted(set(changes) - known):
        raise UserError(f"{unknown[0]!r} is no setting of the measurement; there are {', '.join(sorted(known))}")
    values = {name: value for name, value in old["settings"].items() if name in known} | changes
    values["ks"] = sorted({*values["ks"], values["k"]})
    settings = Settings(**values)
    sets, at = read_evaluation(folder, objects, settings.threshold, public, public_keys)
    body = measure(sets["population"], sets.get("null"), sets.get("swapped"), settings, at)
    carried = {name: old[name] for name in CARRIED if name in old}
    return body | carried | {"settings": old["settings"] | body["settings"]}
