"""Arrays and tables in, figures out: the measurement, without torch, models or Hydra.

from dejavu_lit.measure import Neighbors, Records, Settings, measure, read_objects

(a, p), _ = read_objects(["objects/NAME/A", "objects/NAME/P"], threshold=0.5)
public, truth = p.take(sorted(p.keys)), a.take(keys)               # rows count the public keys in sorted order
records = Records(captions, truth, public, Neighbors(rows_t, distances_t), Neighbors(rows_r, distances_r))
body = measure(records, settings=Settings(k=10))                   # the body of metrics.json
"""

from importlib import import_module
from typing import Any

# Modules are imported on first use, so that a single part does not import numba, scipy and pyarrow.
_NAMES = {
    "data.objects": ("Objects", "read_objects"),
    "measure.scores": ("Neighbors", "Scores", "score", "predict"),
    "measure.records": ("Records", "read_columns", "read_records", "write_records"),
    "measure.gaps": ("Outcomes", "estimate", "outcomes", "sign_test"),
    "measure.settings": ("Resampling", "Settings"),
    "measure.controls": ("blind_baseline", "blocks", "compare_settings", "memorization_found", "pool_blocks"),
    "measure.sample": ("sample_gaps", "sample_curves"),
    "measure.subgroups": ("by_subgroup",),
    "measure.exposure": ("gaps_by_exposure",),
    "measure.per_pair": ("pair_gaps", "most_memorized"),
    "measure.roc": ("attack",),
    "measure.membership": ("scoreboard",),
    "measure.memorization": ("counterfactual",),
    "measure.metrics": ("measure",),
    "measure.recompute": ("read_evaluation",),
    "utils.io": ("write_csv",),
}
_MODULES = {name: f"dejavu_lit.{module}" for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
