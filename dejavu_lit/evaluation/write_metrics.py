"""metrics.json and the tables beside it, from the records of an evaluation on disk."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dejavu_lit.data.key_lists import meant_keys, read_keys
from dejavu_lit.data.manifest import MANIFEST, listed_members
from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.context import CONTEXT, METRICS, EvaluationSpec
from dejavu_lit.measure.groups import COLUMNS, group_gaps
from dejavu_lit.measure.membership import holdout_tails, scoreboard
from dejavu_lit.measure.metrics import gap_blocks, measure
from dejavu_lit.measure.per_pair import most_memorized, pair_gaps
from dejavu_lit.measure.recompute import RECORD_FILES, read_evaluation
from dejavu_lit.measure.records import SIDES, Records, write_records
from dejavu_lit.utils.io import write_csv, write_json
from dejavu_lit.utils.provenance import provenance

log = logging.getLogger(__name__)

LISTED_PAIRS = 1000  # rows of memorized.csv, the most memorized pairs first
TABLES = ("memorized.csv", "groups.csv", "persons.json", "persons.csv")
EMPTY = {"groups.csv": COLUMNS, "persons.csv": ("key", "caption")}  # their columns if they have no rows
BASE_TRAINED = "the base was trained on pairs of the same data, so the gaps against it are too small"
BASE_UNKNOWN = (
    "whether the base was trained on pairs of A, B, H or P is not known; if it was, the gaps against it are too small"
)
BASE_BLOCKS = ("population", "null", "corrected")  # of the target against its base


def write_metrics(
    spec: EvaluationSpec,
    context: Mapping[str, Any],
    statistics: Mapping[str, Any],
    against_base: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Compute the figures from the records on disk, and write metrics.json and the tables beside it."""
    out, settings = spec.out, spec.settings
    searched = settings.threshold, context["public"], context["public_left_out"]
    sets, objects_at = read_evaluation(out, spec.objects, *searched)
    metrics = measure(sets["population"], sets.get("null"), sets.get("swapped"), settings, objects_at)
    metrics["membership"] = None
    if spec.evaluation.membership is None:
        metrics["reasons"]["membership"] = "membership=null left it out"
    else:
        listed = any(name in ("A", "B") for name in listed_members(spec.data.folder / MANIFEST))
        scores = context["membership"]
        metrics["membership"] = scoreboard(sets, settings, scores["unavailable"], listed, scores.get("others"))
    metrics |= {name: context[name] for name in ("utility", "exposure", "search", "training_differences")}
    metrics |= {"raw_shards": context["raw_shards"]} if context.get("raw_shards") else {}
    metrics["settings"] |= {name: getattr(spec.evaluation, name) for name in (*SIDES, "public_modality")}
    metrics["settings"] |= {"objects": str(spec.objects), "public": spec.data.public, "data": str(spec.data.folder)}
    metrics["provenance"] = provenance() | {"config": spec.config}
    if against_base is None:
        metrics["base"], metrics["reasons"]["base"] = None, "no base= was given"
    else:
        trained_on = AuditedModel(str(spec.evaluation.base), out).run_json.get("data")
        note = BASE_TRAINED if trained_on is not None and trained_on == context.get("data") else BASE_UNKNOWN
        metrics["base"] = {"model": spec.evaluation.base, "note": note}
        metrics["base"] |= {name: against_base[name] for name in BASE_BLOCKS}
    if spec.further_objects:
        metrics["by_objects"] = {}
    for name, artifact in spec.further_objects.items():  # the same neighbors
        joined, _ = read_evaluation(out, artifact, *searched)
        metrics["by_objects"][name] = gap_blocks(joined, settings, f"in the artifact {name}")
    tables: dict[str, Any] = {
        "memorized.csv": most_memorized(sets["population"], settings.k, settings.top_m, limit=LISTED_PAIRS)
    }
    if (column := spec.evaluation.group) is not None:
        a, h, smallest = sets["population"], sets["null"], settings.smallest_group
        metrics["groups"] = group_gaps(a, h, column, settings.k, settings.top_m, smallest)
        tables["groups.csv"] = metrics["groups"]["groups"]
    if spec.evaluation.keys is not None:
        tables["persons.json"] = _gaps_of_keys(spec, spec.evaluation.keys, sets)
        tables["persons.csv"] = [_as_row(pair) for pair in tables["persons.json"]["pairs"]]
    if context["tabulated"] != statistics:  # the records' predictions follow the settings
        # Not finished until all are written.
        write_json(out / CONTEXT, {**context, "tabulated": None, "statistics": None})
        for block, records in sets.items():
            write_records(out / RECORD_FILES[block], records, settings.k, settings.top_m)
    _write_tables(out, tables)
    write_json(out / METRICS, metrics)
    write_json(out / CONTEXT, {**context, "tabulated": statistics, "statistics": statistics})
    return metrics


def _write_tables(out: Path, tables: Mapping[str, Any]) -> None:
    """Write the tables of these settings, and remove those of earlier ones."""
    for name in TABLES:
        if name not in tables:
            (out / name).unlink(missing_ok=True)
        elif name.endswith(".csv"):
            write_csv(out / name, tables[name], None if tables[name] else EMPTY[name])
        else:
            write_json(out / name, tables[name])


def _gaps_of_keys(spec: EvaluationSpec, keys: str, sets: Mapping[str, Records]) -> dict[str, Any]:
    """The gaps and the membership scores of the pairs in the file ``keys``, ranked against H."""
    population, null, k, top_m = sets["population"], sets["null"], spec.settings.k, spec.settings.top_m
    lines = read_keys(keys, "keys")
    meant = meant_keys(lines, population.truth.rows.keys())
    gaps = pair_gaps(population, null, [meant.get(line, line) for line in lines], k, top_m)
    scores = holdout_tails(population, null, [pair["key"] for pair in gaps["pairs"]], k, top_m)
    for pair in gaps["pairs"]:
        pair["membership"] = scores[pair["key"]]
    # Without any score there is no membership at all, and metrics.json says why.
    by_pair = [scores[pair["key"]].values() for pair in gaps["pairs"]]
    if unscored := sum(all(score["p"] is None for score in found) for found in by_pair if found):
        log.warning(
            "%d of %d keys have no membership scores, because membership.pairs did not draw them; give membership.pairs=null",
            *(unscored, len(gaps["pairs"])),
        )
    log.info(
        "%d of %d keys measured (%d not in A, %d without objects): %s",
        *(len(gaps["pairs"]), gaps["asked"], gaps["unknown"]["count"], gaps["without_objects"]["count"]),
        spec.out / "persons.csv",
    )
    return gaps


def _as_row(pair: Mapping[str, Any]) -> dict[str, Any]:
    """A pair of ``_gaps_of_keys`` as a row of persons.csv."""
    row = {"key": pair["key"], "caption": pair["caption"]}
    row |= {f"{kind}_{name}": pair[kind][name] for kind in ("gap", "p", "q") for name in pair[kind]}
    scores = pair["membership"].items()
    return row | {f"{kind}_{name}": score[kind] for name, score in scores for kind in ("score", "p", "q")}
