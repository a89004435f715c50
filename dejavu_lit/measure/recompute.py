"""The saved records and figures of an evaluation, from which other figures follow in seconds and without a model."""

import json
from collections.abc import Collection, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu_lit.data.objects import Objects, read_objects
from dejavu_lit.measure.figures import BLOCK_SETS
from dejavu_lit.measure.metrics import VERSIONS, ObjectsAt
from dejavu_lit.measure.records import Records, read_records
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, read_json_object

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator

METRICS_SCHEMA = "metrics.schema.json"
RECORD_FILES = {"population": "records.parquet", "null": "records_null.parquet", "swapped": "records_swapped.parquet"}
# Options of an evaluation that can change without searching again.
MODEL_FREE_OPTIONS = (
    *("k", "ks", "threshold", "top_m", "statistics"),
    *("objects", "by_objects", "keys", "membership", "group", "base"),
)
# Options that decide where an evaluation is computed and stored, which its figures do not depend on.
PLACEMENT_OPTIONS = ("device", "workers", "embeddings")
_ERRORS: dict[str, str | None] = {}  # of ``schema_error``, by the fingerprint of a schema's name and a content


def read_evaluation(
    folder: Path | str,
    objects: Path | str,
    threshold: float,
    public: str = "P",
    left_out: Collection[str] = (),
    blocks: Collection[str] = tuple(RECORD_FILES),
) -> tuple[dict[str, Records], ObjectsAt]:
    """The records in an evaluation's folder, joined to the objects at ``threshold``, the lowest annotator score that counts.

    Args:
        folder: has records.parquet and, if they were measured, records_null.parquet and records_swapped.parquet.
        objects: the artifact, a folder with one subfolder per set.
        public: the name of the public set that was searched; left_out: its annotated keys that were not.
        blocks: those to read.

    Returns:
        {population|null|swapped: Records} of the files that exist, and the ``objects_at`` for ``measure``, which reads the
        objects at another threshold. Raises UserError if the folder has no records, or the objects have no row for a key.
    """
    folder, objects = Path(folder), Path(objects)
    paths = {name: folder / file for name, file in RECORD_FILES.items() if name in blocks and (folder / file).exists()}
    if "population" not in paths:
        raise UserError(
            f"{folder} has no {RECORD_FILES['population']}; give the folder of an evaluation (dejavu evaluate out=…)"
        )

    def objects_at(threshold: float) -> Mapping[str, Objects]:
        # A and B as one: in a random half each has pairs of both, even where B is not measured.
        a, h, b = (objects / BLOCK_SETS[name] for name in ("population", "null", "swapped"))
        trained = [a, b] if "swapped" in paths or any(b.glob("*.parquet")) else [a]
        holdout = [h] if "null" in paths else []
        pool, *rest, public_objects = read_objects([trained, *holdout, objects / public], threshold)[0]
        searched = public_objects.take(sorted(public_objects.rows.keys() - left_out))
        by_set = {BLOCK_SETS[name]: rest[0] if name == "null" else pool for name in paths}
        return by_set | {"P": searched}

    joined = objects_at(threshold)
    records = {name: read_records(path, joined[BLOCK_SETS[name]], joined["P"]) for name, path in paths.items()}
    return records, objects_at


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics.json of an evaluation; raises UserError if it is missing, damaged or has another schema."""
    path = folder / "metrics.json"
    metrics = read_json_object(path)
    if metrics.get("schema", VERSIONS[0]) not in VERSIONS:
        read_json_object(path, VERSIONS[-1])  # raises, with both numbers
    damage = schema_error(metrics, "dejavu_lit.measure", METRICS_SCHEMA)
    if damage is None and any(len(set(map(len, curve.values()))) > 1 for curve in _curves(metrics)):
        damage = "the lists of a curve differ in length"
    if damage is not None:
        raise UserError(f"{path} is damaged ({damage}); run dejavu evaluate again")
    return metrics


def _curves(metrics: Mapping[str, Any]) -> list[dict[str, list[float]]]:
    """All curves of a metrics.json that fits its schema, {column: its values}."""
    samples = [curve for entry in metrics["curves"]["sample"] for curve in entry.values() if isinstance(curve, dict)]
    scores = [board for board in (metrics.get("membership") or {}).values() if isinstance(board, dict)]
    return [metrics["curves"]["recall"], *samples, *(board["roc"] for board in scores if board.get("roc"))]


def schema_error(content: Any, package: str, name: str) -> str | None:
    """What the JSON schema ``name`` of a package refuses in the content of a file, None if nothing.

    Commands read a file several times, a study those of hundreds of evaluations, so each content is validated once.
    """
    key = fingerprint([name, content])
    if key not in _ERRORS:
        error = next(_validator(package, name).iter_errors(content), None)
        _ERRORS[key] = None if error is None else f"{error.json_path}: {error.message[:200]}"
    return _ERRORS[key]


@cache
def _validator(package: str, name: str) -> "Draft202012Validator":
    """The validator of a schema, which may refer to the definitions of metrics.json."""
    from jsonschema import Draft202012Validator
    from referencing import Registry, Resource

    schema = json.loads((files(package) / name).read_text(encoding="utf-8"))
    metrics = json.loads((files("dejavu_lit.measure") / METRICS_SCHEMA).read_text(encoding="utf-8"))
    registry: Registry[Any] = Registry().with_resource(METRICS_SCHEMA, Resource.from_contents(metrics))
    return Draft202012Validator(schema, registry=registry)
