"""From neighbors and objects to figures: everything here runs on arrays and tables, without a model.

from dejavu_lit.measure import Neighbors, Records, Settings, measure, read_objects

(a, p), _ = read_objects(["objects/NAME/A", "objects/NAME/P"], threshold=0.5)
public, truth = p.take(sorted(p.keys)), a.take(keys)               # rows count the public keys in sorted order
records = Records(captions, truth, public, Neighbors(rows_t, distances_t), Neighbors(rows_r, distances_r))
body = measure(records, settings=Settings(k=10))                   # the body of metrics.json
"""

from importlib import import_module
from typing import Any

# Name -> module; imported on first use, so that importing one part of the package does not import all of them.
_NAMES = {
    "Neighbors": "scores",
    "Scores": "scores",
    "score": "scores",
    "predict": "scores",
    "Records": "records",
    "read_records": "records",
    "write_records": "records",
    "Outcomes": "population",
    "Resampling": "population",
    "estimate": "population",
    "outcomes": "population",
    "sign_test": "population",
    "blind": "controls",
    "blocks": "controls",
    "compare": "controls",
    "found": "controls",
    "pool": "controls",
    "table": "sample",
    "curves": "sample",
    "by_subgroup": "subgroups",
    "planted_memory": "planted",
    "person_gaps": "persons",
    "most_memorized": "memorized",
    "write_csv": "memorized",
    "PPG": "torch_metrics",
    "PRG": "torch_metrics",
    "AUCG": "torch_metrics",
    "SampleLevelGap": "torch_metrics",
    "Embeddings": "vectors",
    "write_embeddings": "vectors",
    "Settings": "metrics",
    "measure": "metrics",
    "recompute": "saved",
    "read_evaluation": "saved",
}
__all__ = [*_NAMES, "Objects", "read_objects"]


def __getattr__(name: str) -> Any:
    if name in ("Objects", "read_objects"):
        return getattr(import_module("dejavu_lit.data.objects"), name)
    if name in _NAMES:
        return getattr(import_module(f"dejavu_lit.measure.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
