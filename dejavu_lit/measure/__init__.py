"""Arrays and tables in, figures out: the measurement, without torch, models or Hydra.

from dejavu_lit.measure import Neighbors, Records, Settings, measure, read_objects

(a, p), _ = read_objects(["objects/NAME/A", "objects/NAME/P"], threshold=0.5)
public, truth = p.take(sorted(p.keys)), a.take(keys)               # rows count the public keys in sorted order
records = Records(captions, truth, public, Neighbors(rows_t, distances_t), Neighbors(rows_r, distances_r))
body = measure(records, settings=Settings(k=10))                   # the body of metrics.json
"""

from importlib import import_module
from typing import Any

# Name -> module. Modules are imported on first use, so that a single part does not import numba, scipy and pyarrow.
_MODULES = {
    "Objects": "dejavu_lit.data.objects",
    "read_objects": "dejavu_lit.data.objects",
    "Neighbors": "dejavu_lit.measure.scores",
    "Scores": "dejavu_lit.measure.scores",
    "score": "dejavu_lit.measure.scores",
    "predict": "dejavu_lit.measure.scores",
    "Records": "dejavu_lit.measure.records",
    "read_records": "dejavu_lit.measure.records",
    "write_records": "dejavu_lit.measure.records",
    "Outcomes": "dejavu_lit.measure.gaps",
    "Resampling": "dejavu_lit.measure.settings",
    "estimate": "dejavu_lit.measure.gaps",
    "outcomes": "dejavu_lit.measure.gaps",
    "sign_test": "dejavu_lit.measure.gaps",
    "blind_baseline": "dejavu_lit.measure.controls",
    "blocks": "dejavu_lit.measure.controls",
    "compare_settings": "dejavu_lit.measure.controls",
    "memorization_found": "dejavu_lit.measure.controls",
    "pool_blocks": "dejavu_lit.measure.controls",
    "sample_gaps": "dejavu_lit.measure.sample",
    "sample_curves": "dejavu_lit.measure.sample",
    "by_subgroup": "dejavu_lit.measure.subgroups",
    "gaps_by_exposure": "dejavu_lit.measure.exposure",
    "pair_gaps": "dejavu_lit.measure.per_pair",
    "most_memorized": "dejavu_lit.measure.per_pair",
    "write_csv": "dejavu_lit.measure.per_pair",
    "Settings": "dejavu_lit.measure.settings",
    "attack": "dejavu_lit.measure.roc",
    "scoreboard": "dejavu_lit.measure.membership",
    "counterfactual": "dejavu_lit.measure.memorization",
    "measure": "dejavu_lit.measure.metrics",
    "read_evaluation": "dejavu_lit.measure.recompute",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
