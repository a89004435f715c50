"""metrics.json: every figure of one evaluation, from its records alone; metrics.schema.json describes it.

A part that cannot be measured is null, and ``reasons`` says why under the same name. Everything is deterministic in the
records and the settings.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dejavu_lit.data.objects import Objects
from dejavu_lit.measure.controls import blind_baseline, blocks, memorization_found
from dejavu_lit.measure.exposure import gaps_by_exposure
from dejavu_lit.measure.figures import BLOCK_SETS, BLOCKS
from dejavu_lit.measure.gaps import Outcomes, outcomes
from dejavu_lit.measure.records import EXPOSURE, Records
from dejavu_lit.measure.sample import recall_curves, sample_curves, sample_gaps
from dejavu_lit.measure.scores import Scores
from dejavu_lit.measure.settings import Settings
from dejavu_lit.measure.subgroups import by_subgroup
from dejavu_lit.utils.errors import UserError

VERSIONS = (1, 2)  # of the schema of metrics.json that can be read; 2 added membership, and is what is written

ScorePair = tuple[Scores, Scores]  # target, reference
ObjectsAt = Callable[[float], Mapping[str, Objects]]  # threshold -> objects of A, H, B and the public set P, by name


def measure(
    population: Records,
    null: Records | None = None,
    swapped: Records | None = None,
    settings: Settings | None = None,
    objects_at: ObjectsAt | None = None,
) -> dict[str, Any]:
    """The body of metrics.json, from the records of A, of H and of B, with the model trained on B as ``target``.

    ``objects_at`` reads the objects at another threshold, for ``settings.thresholds``. Raises UserError if no record of A or no
    public image has an object, neighbors do not reach the ks, a subgroup column is unknown, or a record has no row at some
    threshold.
    """
    settings = settings or Settings()
    sets = {n: r for n, r in (("population", population), ("null", null), ("swapped", swapped)) if r is not None}
    scores = {name: records.scores(settings.ks, settings.top_m) for name, records in sets.items()}
    results = {name: outcomes(*pair, settings.k) for name, pair in scores.items()}
    reasons = _reasons(results)
    main = _blocks(scores, settings.k, settings)  # refuses records without any object
    if not len(population.public.codes):
        raise UserError(
            "no public image has an object, so nothing can be predicted; lower threshold= or check objects="
        )
    subgroups = by_subgroup(  # before all other bootstraps, which an unknown column would cost
        settings.subgroups,
        (population, results["population"]),
        (swapped, results["swapped"]) if swapped is not None and len(results["swapped"]) else None,
        settings.smallest_group,
    )
    by_top_m = {m: {name: r.scores([settings.k], m) for name, r in sets.items()} for m in settings.top_ms}
    distance = population.target.distances[:, 0]
    body: dict[str, Any] = {
        "schema": VERSIONS[-1],
        "k": settings.k,
        "counts": _counts(sets),
        **main,
        "by_k": {str(k): _blocks_and_sample(scores, k, distance, settings) for k in settings.ks},
        "sample": sample_gaps(*scores["population"], distance, settings.k, settings.tops),
        "curves": _curves(scores["population"], {m: s["population"] for m, s in by_top_m.items()}, distance, settings),
        "sensitivity": {
            "threshold": _by_threshold(sets, settings, objects_at),
            "top_m": [
                {"top_m": m} | _blocks_and_sample(s, settings.k, distance, settings) for m, s in by_top_m.items()
            ],
        },
        "blind": blind_baseline(population, *scores["population"], settings.k),
        "found": memorization_found([main]),
        "subgroups": subgroups,
        "planted": _planted(population, results["population"], reasons),
        "settings": settings.as_json(),
    }
    return body | {"reasons": reasons}


def gap_blocks(sets: Mapping[str, Records], settings: Settings, context: str) -> dict[str, Any]:
    """The counts and the five blocks alone; if no record of A has an object, null blocks and a reason that ends in
    ``context``."""
    counts = _counts(sets)
    if not counts["records"]:
        return {"counts": counts, **dict.fromkeys(BLOCKS), "reason": f"no record of A has an object {context}"}
    scores = {name: records.scores([settings.k], settings.top_m) for name, records in sets.items()}
    return {"counts": counts, **_blocks(scores, settings.k, settings)}


def _counts(sets: Mapping[str, Records]) -> dict[str, Any]:
    def count(records: Records) -> dict[str, int]:
        with_objects = int((records.truth.counts() > 0).sum())
        return {"records": with_objects, "without_objects": len(records) - with_objects}

    population = sets["population"]
    controls = {name: count(sets[name]) if name in sets else None for name in ("null", "swapped")}
    return count(population) | controls | {"public": len(population.public), "labels": len(population.public.labels)}


def _reasons(results: Mapping[str, Outcomes]) -> dict[str, str]:
    """{block: why it cannot be measured}."""
    reasons = {}
    for name, dependent in (("null", "corrected"), ("swapped", "symmetric")):
        if name not in results:
            option = "; swapped=true measures it, if the reference was trained on it" if name == "swapped" else ""
            reasons[name] = f"the set {BLOCK_SETS[name]} was not measured{option}"
        elif not len(results[name]):
            reasons[name] = f"no record of the set {BLOCK_SETS[name]} has an object"
        if name in reasons:
            reasons[dependent] = f"it needs {name}, but {reasons[name]}"
    return reasons


def _blocks(scores: Mapping[str, ScorePair], k: int, settings: Settings) -> dict[str, Any]:
    results = {name: outcomes(*pair, k) for name, pair in scores.items()}
    estimates = blocks(results["population"], results.get("null"), results.get("swapped"), settings)
    return {name: estimate.block() if (estimate := estimates[name]) else None for name in BLOCKS}


def _blocks_and_sample(
    scores: Mapping[str, ScorePair], k: int, distance: np.ndarray, settings: Settings
) -> dict[str, Any]:
    sample = sample_gaps(*scores["population"], distance, k, settings.tops)
    return _blocks(scores, k, settings) | {"sample": sample}


def _curves(
    scores: ScorePair, by_top_m: Mapping[int, ScorePair], distance: np.ndarray, settings: Settings
) -> dict[str, Any]:
    """The recall curves, and the sample-level curves for every k and, at the main k, for every other top-m."""
    lines = [(k, settings.top_m, scores) for k in settings.ks]
    lines += [(settings.k, m, pair) for m, pair in by_top_m.items() if m != settings.top_m]
    return {
        "recall": recall_curves(*scores, settings.k),
        "sample": [{"k": k, "top_m": m} | sample_curves(*pair, distance, k) for k, m, pair in lines],
    }


def _by_threshold(
    sets: Mapping[str, Records], settings: Settings, objects_at: ObjectsAt | None
) -> list[dict[str, Any]]:
    if not settings.thresholds:
        return []
    if objects_at is None:
        raise UserError("thresholds= needs the object artifact; also give objects=, or leave thresholds empty")
    rows = []
    for threshold in settings.thresholds:
        objects = objects_at(threshold)
        joined = {name: r.with_objects(objects[BLOCK_SETS[name]], objects["P"]) for name, r in sets.items()}
        rows.append({"threshold": threshold} | gap_blocks(joined, settings, f"at threshold {threshold}"))
    return rows


def _planted(records: Records, results: Outcomes, reasons: dict[str, str]) -> dict[str, Any] | None:
    """The gaps by exposure; None, with an entry in ``reasons``, if the exposure is unknown or about equal for all pairs."""
    if EXPOSURE not in records.columns:
        reasons["planted"] = "it is not known how often training saw each pair"
        return None
    with_objects = records.truth.counts() > 0
    by_exposure = gaps_by_exposure(results, np.asarray(records.columns[EXPOSURE])[with_objects])
    if by_exposure is None:
        reasons["planted"] = "every pair was seen about equally often"
    return by_exposure
