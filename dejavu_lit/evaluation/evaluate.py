"""One evaluation: two sides and prepared data in; records, metrics.json and a summary out.

embeddings → neighbors → records → figures. Everything right of the records is computed again in seconds, without a model,
where only statistics change (another k up to the largest, threshold, top_m, objects).
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from dejavu_lit.data.objects import read_objects
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shards import BadPair, ShardSet, read_pairs
from dejavu_lit.evaluation.audited_model import Side, changed_weights, weight_states
from dejavu_lit.evaluation.comparison import Comparison, Material
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.evaluation.utility import quality
from dejavu_lit.measure.metrics import BLOCK_SETS, Settings, measure
from dejavu_lit.measure.per_pair import most_memorized, person_gaps, read_keys, write_csv
from dejavu_lit.measure.recompute import FILES, STATISTICS, WHERE, by_objects, read_evaluation, read_metrics
from dejavu_lit.measure.records import EXPOSURE, Records, write_records
from dejavu_lit.utils.distributed import ALONE, Ranks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, read_object, write_json
from dejavu_lit.utils.provenance import provenance
from dejavu_lit.utils.run_directory import difference

log = logging.getLogger(__name__)

CONTEXT = "context.json"  # what recomputing keeps: utility, exposure, recall of the index
METRICS = "metrics.json"
NEIGHBORS = "neighbors"  # what has been searched, until the records are written
LISTED = 1000  # pairs in memorized.csv, the most memorized first


def evaluate(
    out: Path,
    comparison: Comparison,
    data: DataSpec,
    objects: str | None,
    settings: Settings,
    config: Mapping[str, Any],
    keys: str | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Evaluate, resume or recompute in ``out``, and return the contents of metrics.json; {} on all ranks but the first.

    Args:
        objects: name or folder of the object artifact; None for the data's own.
        config: the resolved settings; they decide what can be taken up from an earlier call.
        keys: a file of keys of A, one a line, whose own gaps are written to persons.json and persons.csv.
        ranks: who shares embedding and search; the first alone works out the figures.

    Raises:
        UserError: models, data or objects that do not fit together.
    """
    with ranks.step():
        fixed = _fixed(config)
        sides = {name: Side(getattr(comparison, name), out) for name in ("target", "reference")}
        fixed |= {name: side.identity for name, side in sides.items()}
        context = read_object(out / CONTEXT) if (out / CONTEXT).is_file() else None
        if context is not None and (changed := difference(_fixed(context["config"]), fixed)):
            raise UserError(f"{out} holds another evaluation ({changed}); choose another out= or remove it")
        known = context.get("weights", {}) if context is not None else {}
        for name, side in sides.items():
            if (file := changed_weights(side.weights, known.get(name, {}))) is not None:
                raise UserError(f"{out} measured other weights than {file} holds now; choose another out= or remove it")
        data.check()
        folder = data.objects_folder(objects)
        statistics = {key: config[key] for key in STATISTICS if key in config}
        others = {str(name): data.objects_folder(name) for name in config.get("by_objects") or ()}
        artifacts = [part for artifact in (folder, *others.values()) for part in artifact.glob("*/*.parquet")]
        statistics["files"] = _state([*artifacts, *([Path(keys)] if keys else [])])
    if ranks.first(context is None or context["largest_k"] < max(settings.ks)):
        weights = {}
        with ranks.step():
            if ranks.rank == 0:
                data.tell_unknown()
                weights = {name: weight_states(side.weights) for name, side in sides.items()}
        found = _search(comparison, data, folder, settings, out, ranks)
        if ranks.rank == 0:
            context = found | {"config": fixed, "weights": weights}
            write_json(out / CONTEXT, context)
            rmtree(out / NEIGHBORS, ignore_errors=True)
    if ranks.rank > 0 or context is None:
        return {}
    if context.get("statistics") == statistics and (out / METRICS).is_file():
        with suppress(UserError):  # damaged, or of another schema: it is worked out again
            finished = read_metrics(out)
            log.info("%s is finished; nothing to do", out)
            return finished
    searched = _searched(folder, context)
    sets, at = read_evaluation(out, folder, settings.threshold, context["public"], searched)
    if context.get("statistics") not in (None, statistics):  # predictions and figures of the rows follow the settings
        for name, records in sets.items():
            write_records(out / FILES[name], records, settings.k, settings.top_m)
    metrics = measure(sets["population"], sets.get("null"), sets.get("swapped"), settings, at)
    metrics |= {name: context[name] for name in ("utility", "exposure", "search")}
    metrics["settings"] |= {name: getattr(comparison, name) for name in ("target", "reference", "public_modality")}
    metrics["settings"] |= {"objects": str(folder), "public": data.public, "data": str(data.folder)}
    metrics["provenance"] = provenance() | {"config": dict(config)}
    if others:
        metrics["by_objects"] = by_objects(out, others, settings, context["public"], searched)
    write_csv(out / "memorized.csv", most_memorized(sets["population"], settings.k, settings.top_m, limit=LISTED))
    if keys is not None:
        _persons(out, sets, keys, settings)
    write_json(out / METRICS, metrics)
    write_json(out / CONTEXT, context | {"statistics": statistics})
    return metrics


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that an evaluation cannot change in its directory: what is searched, but not where it is computed."""
    return {key: value for key, value in config.items() if key not in (*STATISTICS, *WHERE)}


def _state(files: Sequence[Path]) -> str:
    """What changes when one of the files is written again; figures follow their contents, not only their names."""
    return fingerprint([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(files) if p.exists()])


def _persons(out: Path, sets: Mapping[str, Records], keys: str, settings: Settings) -> None:
    """The gaps of the pairs named in a file, ranked against H."""
    if "null" not in sets:
        raise UserError(f"keys={keys} needs the set H to rank against; prepare data with one")
    found = person_gaps(sets["population"], sets["null"], read_keys(keys), settings.k, settings.top_m)
    write_json(out / "persons.json", found)
    rows = [
        {"key": p["key"], "caption": p["caption"]}
        | {f"{kind}_{name}": p[kind][name] for kind in ("gap", "p", "q") for name in p[kind]}
        for p in found["pairs"]
    ]
    write_csv(out / "persons.csv", rows)
    log.info(
        "%d of %d keys measured (%d unknown, %d without objects): %s",
        len(rows),
        found["asked"],
        found["unknown"]["count"],
        found["without_objects"]["count"],
        out / "persons.csv",
    )


def _searched(objects: Path, context: Mapping[str, Any]) -> list[str] | None:
    """The public keys that were searched, where some annotated ones were not; None for all."""
    if not context["public_left_out"]:
        return None
    (annotated,), _ = read_objects([objects / context["public"]])
    return sorted(set(annotated.keys) - set(context["public_left_out"]))


def _search(
    comparison: Comparison, data: DataSpec, objects: Path, settings: Settings, out: Path, ranks: Ranks
) -> dict[str, Any]:
    """Embed, search and write the records of every set; what recomputing keeps. Ranks but the first give {}."""
    from dejavu_lit.evaluation.search_parts import Search

    largest = max(settings.ks)
    with ranks.step():
        material = Material.open(comparison, data, out, largest)
        material.embed(ranks.share)
    with ranks.step():
        public = {role: material.embedded(role) for role in material.sides}
        texts = {(role, name): material.captions(role, name) for role in material.sides for name in material.shards}
        common = sorted(set(public["target"].keys) & set(public["reference"].keys) - data.excluded)
        keys = {name: _measured(material, name, texts, common, comparison.allow_overlap) for name in material.shards}
        if ranks.rank == 0:  # before the search: objects that lack an image need not wait for it
            _warn_of_widths(public, material)
            found, _ = read_objects(
                [*(objects / BLOCK_SETS[n] for n in material.shards), objects / material.public_name],
                settings.threshold,
            )
            truth = {name: annotated.take(keys[name]) for name, annotated in zip(keys, found, strict=False)}
            seen = found[-1].take(common)
        searches = {}
        for role, embeddings in public.items():
            selection = embeddings.selection(common)
            for name in keys:
                folder = out / NEIGHBORS / f"{role}_{name}"
                searches[role, name] = Search(
                    texts[role, name], keys[name], selection, largest, comparison.index, folder, ranks.world
                )
        for one in searches.values():
            one.run(ranks.share)
    if ranks.rank > 0:
        return {}
    neighbors, recalls = {}, []
    for which, one in searches.items():
        neighbors[which], recall = one.result()
        recalls.append(recall)
    target, reference = material.sides["target"], material.sides["reference"]
    exposures = {
        "population": target.exposure(material.shards["population"]),
        "swapped": reference.exposure(material.shards["swapped"]) if "swapped" in material.shards else None,
    }
    for name, shards in material.shards.items():
        # On B the roles are exchanged: the model trained on B is the target there.
        roles = ("reference", "target") if name == "swapped" else ("target", "reference")
        captions, columns = _columns(shards, keys[name])
        if (counts := exposures.get(name)) is not None:
            place = {key: row for row, key in enumerate(material.members[name][0])}
            columns[EXPOSURE] = [int(counts[place[key]]) for key in keys[name]]
        own, other = (neighbors[role, name] for role in roles)
        records = Records(captions, truth[name], seen, own, other, columns)
        write_records(out / FILES[name], records, settings.k, settings.top_m)
    return {
        "largest_k": largest,
        "public": material.public_name,
        "public_left_out": sorted(set(found[-1].keys) - set(common)),
        "utility": {"target": quality(target, data), "reference": quality(reference, data)},
        "exposure": {"target": _span(exposures["population"]), "reference": _span(exposures["swapped"])},
        "search": {"index": comparison.index, "recall": min(recalls)},
    }


def _measured(
    material: Material,
    name: str,
    texts: Mapping[tuple[str, str], Embeddings],
    public: Sequence[str],
    allow_overlap: bool,
) -> list[str]:
    """The keys of a set that are measured: trained on, not excluded, embedded by both sides.

    Raises:
        UserError: some are among the public ones, and that is not allowed.
    """
    trained = set(material.members[name][0]) - material.data.excluded
    if (shared := trained.intersection(public)) and not allow_overlap:
        raise UserError(
            f"data.public={material.data.public} holds {len(shared)} keys of {material.shards[name].folder}, the first is "
            f"{min(shared)}; search other public images, or pass allow_overlap=true"
        )
    known = texts["reference", name].rows
    return [key for key in texts["target", name].keys if key in known and key in trained]


def _warn_of_widths(public: Mapping[str, Embeddings], material: Material) -> None:
    if public["target"].dim != public["reference"].dim and not material.sides["reference"].captions_only:
        log.warning(
            "target and reference have embeddings of %d and %d values: models of different architecture differ in quality "
            "too, so look at the null and the symmetric gap",
            public["target"].dim,
            public["reference"].dim,
        )


def _columns(shards: ShardSet, keys: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Captions and plain columns of the pairs' JSON, for these keys."""
    wanted = {key: row for row, key in enumerate(keys)}
    captions, metas = [""] * len(keys), [{}] * len(keys)  # type: list[str], list[dict[str, Any]]
    for pair in read_pairs(shards, image=False):
        if not isinstance(pair, BadPair) and pair.key in wanted:
            captions[wanted[pair.key]], metas[wanted[pair.key]] = pair.caption, pair.meta
    names = dict.fromkeys(n for meta in metas for n, v in meta.items() if isinstance(v, str | int | float | bool))
    return captions, {name: [meta.get(name) for meta in metas] for name in names}


def _span(counts: np.ndarray | None) -> dict[str, float] | None:
    if counts is None:
        return None
    return {"mean": float(counts.mean()), "min": int(counts.min()), "max": int(counts.max())}
