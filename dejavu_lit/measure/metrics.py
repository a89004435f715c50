"""metrics.json: every figure of one evaluation, from its records alone.

    body = measure(A, H, B, Settings(k=10, ks=(1, 5, 10)), objects_at)     # Records; H and B may be None
    write_json("metrics.json", body | {"utility": …, "exposure": …, "provenance": …})

The body has, as metrics.schema.json describes: schema, k, counts, the five blocks (population, null, swapped, symmetric,
corrected), by_k, sample, curves, sensitivity, blind, found, subgroups, planted, settings. What cannot be had is null, and
``reasons`` says why under the same name. Everything is deterministic in the records and the settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dejavu_lit.data.objects import Objects
from dejavu_lit.measure.controls import BLOCKS, blind, blocks, found
from dejavu_lit.measure.exposure import planted_memory
from dejavu_lit.measure.population import Outcomes, Resampling, outcomes
from dejavu_lit.measure.records import EXPOSURE, Records
from dejavu_lit.measure.sample import curves, recall_curves, table
from dejavu_lit.measure.scores import Scores
from dejavu_lit.measure.subgroups import BUILT_IN, by_subgroup, check_columns
from dejavu_lit.utils.errors import UserError

VERSION = 1
BLOCK_SETS = {"population": "A", "null": "H", "swapped": "B"}

Scored = tuple[Scores, Scores]  # target, reference
ObjectsAt = Callable[
    [float], Mapping[str, Objects]
]  # threshold -> the objects of the sets A, H, B and of the public set P


@dataclass(frozen=True)
class Settings:
    """What is measured. Lists may be given where tuples are."""

    k: int = 10  # the main number of neighbors
    ks: Sequence[int] = (1, 5, 10)  # for by_k; increasing, k among them
    threshold: float = 0.5  # the annotator's score that counts, applied to G and Ô alike when the objects are read
    thresholds: Sequence[float] = ()  # further ones, for sensitivity
    top_m: int | None = None  # predict the m objects found in most neighbors; None predicts all
    top_ms: Sequence[int] = ()  # further ones, for sensitivity
    draws: int = 100  # the paper's mean ± std: draws of ``share`` of the records, with replacement
    share: float = 0.1
    bootstrap: int = 2000  # resamples behind the 95 % intervals
    seed: int = 0
    tops: Sequence[int | float] = (10, 100, 0.001, 0.01, 0.1, 1.0)  # sample level: L itself (int) or its share (float)
    subgroups: Sequence[str] = BUILT_IN  # columns: built-in ones and those of the pairs' JSON
    smallest_group: int = 20

    def __post_init__(self) -> None:
        for name in ("ks", "thresholds", "top_ms", "tops", "subgroups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        ks = list(self.ks)
        if not ks or ks != sorted(set(ks)) or ks[0] < 1:
            raise UserError(f"ks={ks} must be increasing numbers of at least 1, each once")
        if self.k not in ks:
            raise UserError(f"k={self.k} is not among ks={ks}; add it to ks= or choose one of them as k=")
        for name, values in (("threshold", [self.threshold]), ("thresholds", self.thresholds)):
            if any(not 0 <= t <= 1 for t in values):
                raise UserError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        for name, numbers in (("top_m", [self.top_m] if self.top_m is not None else []), ("top_ms", self.top_ms)):
            if any(m < 1 for m in numbers):
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if any((isinstance(t, int) and t < 1) or (isinstance(t, float) and not 0 < t <= 1) for t in self.tops):
            raise UserError(
                f"tops={list(self.tops)} must be whole numbers of at least 1 or shares above 0 and at most 1.0"
            )
        if self.smallest_group < 2:
            raise UserError(f"smallest_group={self.smallest_group} must be at least 2")
        self.resampling()

    def resampling(self) -> Resampling:
        """The part that says how spreads are found."""
        return Resampling(self.draws, self.share, self.bootstrap, self.seed)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}


def measure(
    population: Records,
    null: Records | None = None,
    swapped: Records | None = None,
    settings: Settings | None = None,
    objects_at: ObjectsAt | None = None,
) -> dict[str, Any]:
    """The body of metrics.json.

    Args:
        population: the records of A; null: of H; swapped: of B, with ``target`` the model trained on B.
        settings: what is measured; all neighbors must reach the largest of its ks.
        objects_at: gives the objects at another threshold, by set name; needed for ``settings.thresholds`` only.

    Raises:
        UserError: no record of A has an object, neighbors that do not reach ks, an unknown subgroup column, a record
            without objects at some threshold.
    """
    settings = settings or Settings()
    sets = {n: r for n, r in (("population", population), ("null", null), ("swapped", swapped)) if r is not None}
    for name, records in sets.items():
        _check(records, settings)
        if name != "null":  # subgroups compare A and B alone
            check_columns(settings.subgroups, records)
    scored = {name: records.scores(settings.ks, settings.top_m) for name, records in sets.items()}
    results = {name: outcomes(*s, settings.k) for name, s in scored.items()}
    reasons = _reasons(results)
    main = _blocks(scored, settings.k, settings)
    by_top_m = {m: {name: r.scores([settings.k], m) for name, r in sets.items()} for m in settings.top_ms}
    distance = population.target.distances[:, 0]

    def sample(which: Scored, k: int) -> dict[str, Any]:
        return table(*which, distance, k, settings.tops)

    lines = [(k, settings.top_m, scored["population"]) for k in settings.ks]
    lines += [(settings.k, m, s["population"]) for m, s in by_top_m.items() if m != settings.top_m]
    body: dict[str, Any] = {
        "schema": VERSION,
        "k": settings.k,
        "counts": _counts(sets),
        **main,
        "by_k": {
            str(k): _blocks(scored, k, settings) | {"sample": sample(scored["population"], k)} for k in settings.ks
        },
        "sample": sample(scored["population"], settings.k),
        "curves": {
            "recall": recall_curves(*scored["population"], settings.k),
            "sample": [{"k": k, "top_m": m} | curves(*s, distance, k) for k, m, s in lines],
        },
        "sensitivity": {
            "threshold": _by_threshold(sets, settings, objects_at),
            "top_m": [
                {"top_m": m} | _blocks(s, settings.k, settings) | {"sample": sample(s["population"], settings.k)}
                for m, s in by_top_m.items()
            ],
        },
        "blind": blind(population, *scored["population"], settings.k),
        "found": found([main]),
        "subgroups": by_subgroup(
            settings.subgroups,
            (population, results["population"]),
            (swapped, results["swapped"]) if swapped is not None and len(results["swapped"]) else None,
            settings.smallest_group,
        ),
        "planted": _planted(population, results["population"], reasons),
        "settings": settings.as_json(),
    }
    return body | {"reasons": reasons}


def _check(records: Records, settings: Settings) -> None:
    if records.k < settings.ks[-1]:
        raise UserError(
            f"ks={list(settings.ks)} goes beyond the {records.k} neighbors there are; lower ks= or search again"
        )


def _counts(sets: dict[str, Records]) -> dict[str, Any]:
    def kept(records: Records) -> dict[str, int]:
        with_objects = int((records.truth.counts() > 0).sum())
        return {"records": with_objects, "without_objects": len(records) - with_objects}

    first = sets["population"]
    others = {name: kept(sets[name]) if name in sets else None for name in ("null", "swapped")}
    return kept(first) | others | {"public": len(first.public), "labels": len(first.public.labels)}


def _reasons(results: dict[str, Outcomes]) -> dict[str, str]:
    """{block: why it cannot be had}."""
    reasons = {}
    for name, needed_by in (("null", "corrected"), ("swapped", "symmetric")):
        if name not in results:
            reasons[name] = f"the set {BLOCK_SETS[name]} was not measured"
        elif not len(results[name]):
            reasons[name] = f"no record of the set {BLOCK_SETS[name]} has an object"
        if name in reasons:
            reasons[needed_by] = f"it needs {name}, but {reasons[name]}"
    return reasons


def _blocks(scored: Mapping[str, Scored], k: int, settings: Settings) -> dict[str, Any]:
    results = {name: found for name, s in scored.items() if len(found := outcomes(*s, k))}
    if "population" not in results:
        raise UserError("no record of A has an object, so nothing can be measured; lower threshold= or check objects=")
    made = blocks(results["population"], results.get("null"), results.get("swapped"), settings.resampling())
    return {name: one.block() if (one := made[name]) else None for name in BLOCKS}


def _by_threshold(sets: dict[str, Records], settings: Settings, objects_at: ObjectsAt | None) -> list[dict[str, Any]]:
    if not settings.thresholds:
        return []
    if objects_at is None:
        raise UserError("thresholds= needs the object artifact; give objects= as well, or leave thresholds empty")
    rows = []
    for threshold in settings.thresholds:
        objects = objects_at(threshold)
        joined = {name: r.with_objects(objects[BLOCK_SETS[name]], objects["P"]) for name, r in sets.items()}
        rows.append({"threshold": threshold} | gaps(joined, settings, f"at threshold {threshold}"))
    return rows


def gaps(sets: Mapping[str, Records], settings: Settings, where: str) -> dict[str, Any]:
    """The counts and the five blocks alone; where no record of A has an object, null blocks and the reason, ``where`` in it."""
    counts = _counts(dict(sets))
    if not counts["records"]:
        return {"counts": counts, **dict.fromkeys(BLOCKS), "reason": f"no record of A has an object {where}"}
    scored = {name: records.scores([settings.k], settings.top_m) for name, records in sets.items()}
    return {"counts": counts, **_blocks(scored, settings.k, settings)}


def _planted(records: Records, results: Outcomes, reasons: dict[str, str]) -> dict[str, Any] | None:
    if EXPOSURE not in records.columns:
        reasons["planted"] = "it is not known how often training saw each pair"
        return None
    kept = records.truth.counts() > 0
    made = planted_memory(results, np.asarray(records.columns[EXPOSURE], np.float64)[kept])
    if made is None:
        reasons["planted"] = "every pair was seen equally often"
    return made
