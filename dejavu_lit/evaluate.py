"""One evaluation: two sides and prepared data in; records, metrics.json and a summary out.

embeddings → neighbours → records → figures. Everything right of the records is computed again in seconds, without a model,
where only statistics change (another k up to the largest, threshold, top_m, objects).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dejavu_lit.data.left_out import prefix
from dejavu_lit.data.shards import BadPair, ShardSet, read_pairs
from dejavu_lit.data.spec import MANIFEST, DataSpec
from dejavu_lit.errors import UserError
from dejavu_lit.files import file_sha256, fingerprint, read_json, write_json
from dejavu_lit.launch import difference, provenance
from dejavu_lit.measure.memorized import most_memorized, write_csv
from dejavu_lit.measure.metrics import SETS, Settings, measure
from dejavu_lit.measure.persons import person_gaps, read_keys
from dejavu_lit.measure.records import EXPOSURE, Records, write_records
from dejavu_lit.measure.saved import FILES, STATISTICS, WHERE, by_objects, read_evaluation
from dejavu_lit.measure.vectors import Embeddings
from dejavu_lit.objects.artifact import read_objects
from dejavu_lit.quality import quality
from dejavu_lit.sides import Modality, Side

log = logging.getLogger(__name__)

CONTEXT = "context.json"  # what recomputing keeps: utility, exposure, recall of the index
METRICS = "metrics.json"
LISTED = 1000  # pairs in memorized.csv, the most memorized first


@dataclass(frozen=True)
class Comparison:
    """Which neighbours are searched: everything that an evaluation cannot change without the embeddings."""

    target: str
    reference: str
    index: str = "flat"
    public_modality: Modality = "image"  # what the target's captions are compared with: pictures of P, or its captions
    swapped: bool | None = None  # measure B too; None: where the reference is known to have trained on it
    allow_overlap: bool = False  # let both sides have trained on the same data
    device: str = "cpu"
    workers: int = 2
    embeddings: str | None = None  # where embeddings of models that are no run of ours are kept

    def __post_init__(self) -> None:
        if self.public_modality not in ("image", "text"):
            raise UserError(f"public_modality={self.public_modality} must be image or text")


def evaluate(
    out: Path,
    comparison: Comparison,
    data: DataSpec,
    objects: str | None,
    settings: Settings,
    config: Mapping[str, Any],
    keys: str | None = None,
) -> dict[str, Any]:
    """Evaluate, resume or recompute in ``out``, and return the contents of metrics.json.

    Args:
        objects: name or folder of the object artifact; None for the data's own.
        config: the resolved settings; they decide what can be taken up from an earlier call.
        keys: a file of keys of A, one a line, whose own gaps are written to persons.json and persons.csv.

    Raises:
        UserError: models, data or objects that do not fit together.
    """
    fixed = _fixed(config)
    for name in ("target", "reference"):
        fixed[name] = Side(getattr(comparison, name), out).identity
    context = read_json(out / CONTEXT) if (out / CONTEXT).is_file() else None
    if context is not None and (changed := difference(_fixed(context["config"]), fixed)):
        raise UserError(f"{out} holds another evaluation ({changed}); choose another out= or remove it")
    data.check()
    folder = data.objects_folder(objects)
    statistics = {key: config[key] for key in STATISTICS if key in config}
    others = {str(name): data.objects_folder(name) for name in config.get("by_objects") or ()}
    artifacts = [part for artifact in (folder, *others.values()) for part in artifact.glob("*/*.parquet")]
    statistics["files"] = _state([*artifacts, *([Path(keys)] if keys else [])])
    if context is not None and context.get("statistics") == statistics and (out / METRICS).is_file():
        log.info("%s is finished; nothing to do", out)
        return dict(read_json(out / METRICS))
    if context is None or context["largest_k"] < max(settings.ks):
        context = _search(comparison, data, folder, settings, out) | {"config": fixed}
        write_json(out / CONTEXT, context)
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


def _search(comparison: Comparison, data: DataSpec, objects: Path, settings: Settings, out: Path) -> dict[str, Any]:
    """Embed, search and write the records of every set; what recomputing keeps."""
    from dejavu_lit.measure.search import search

    target, reference = _sides(comparison, out)
    _check_training(target, reference, comparison, data)
    shards, members = _measured(target, reference, comparison, data)
    swapped = "swapped" in shards
    public_shards = ShardSet.open(data.public_folder())
    if (largest := max(settings.ks)) > len(public_shards):
        raise UserError(
            f"k={largest} is more than the {len(public_shards)} pictures of {public_shards.folder}; choose smaller k and ks"
        )
    data.check_labelled()
    public_name = data.public_sets.get(data.public, data.public_folder().name)
    texts: dict[tuple[str, str], Embeddings] = {}
    public: dict[str, Embeddings] = {}
    for role, side in (("target", target), ("reference", reference)):
        modality: Modality = "text" if side.captions_only else comparison.public_modality
        public[role] = side.embeddings(public_shards, public_name, modality)
        for name in shards:
            texts[role, name] = side.embeddings(shards[name], SETS[name], "text", members[name][1])
    if public["target"].dim != public["reference"].dim and not reference.captions_only:
        log.warning(
            "target and reference have embeddings of %d and %d values: models of different architecture differ in quality "
            "too, so look at the null and the symmetric gap",
            public["target"].dim,
            public["reference"].dim,
        )
    common = sorted(set(public["target"].keys) & set(public["reference"].keys) - data.excluded)
    keys = {}
    for name in shards:
        trained = set(members[name][0]) - data.excluded
        both = (k for k in texts["target", name].keys if k in texts["reference", name].rows)
        keys[name] = [key for key in both if key in trained]
        if (shared := trained.intersection(common)) and not comparison.allow_overlap:
            raise UserError(
                f"data.public={data.public} holds {len(shared)} keys of {shards[name].folder}, the first is {min(shared)}; "
                "search other public pictures, or pass allow_overlap=true"
            )
    found, _ = read_objects([*(objects / SETS[n] for n in shards), objects / public_name], settings.threshold)
    truth = {name: annotated.take(keys[name]) for name, annotated in zip(shards, found, strict=False)}
    seen = found[-1].take(common)
    recall = {}
    neighbours = {}
    for role in ("target", "reference"):
        parts, ids = _public_vectors(public[role], common)
        for name in shards:
            vectors = texts[role, name].load(keys[name])
            neighbours[role, name], recall[f"{role}_{name}"] = search(
                vectors, parts, max(settings.ks), comparison.index, ids
            )
    exposures = {
        "population": target.exposure(shards["population"]),
        "swapped": reference.exposure(shards["swapped"]) if swapped else None,
    }
    for name in shards:
        # On B the roles are exchanged: the model trained on B is the target there.
        roles = ("reference", "target") if name == "swapped" else ("target", "reference")
        captions, columns = _columns(shards[name], keys[name])
        if (counts := exposures.get(name)) is not None:
            place = {key: row for row, key in enumerate(members[name][0])}
            columns[EXPOSURE] = [int(counts[place[key]]) for key in keys[name]]
        own, other = (neighbours[role, name] for role in roles)
        records = Records(captions, truth[name], seen, own, other, columns)
        write_records(out / FILES[name], records, settings.k, settings.top_m)
    return {
        "largest_k": max(settings.ks),
        "public": public_name,
        "public_left_out": sorted(set(found[-1].keys) - set(common)),
        "utility": {"target": quality(target, data), "reference": quality(reference, data)},
        "exposure": {"target": _span(exposures["population"]), "reference": _span(exposures["swapped"])},
        "search": {"index": comparison.index, "recall": min(recall.values())},
    }


def _sides(comparison: Comparison, out: Path) -> tuple[Side, Side]:
    store = Path(comparison.embeddings) if comparison.embeddings else out / "embeddings"
    target, reference = (
        Side(name, store, comparison.device, comparison.workers) for name in (comparison.target, comparison.reference)
    )
    return target, reference


def _measured(
    target: Side, reference: Side, comparison: Comparison, data: DataSpec
) -> tuple[dict[str, ShardSet], dict[str, tuple[list[str], int]]]:
    """The sets that are measured, and of each the keys of the first pairs that count and how many pairs those are of it."""
    swapped = _knows_b(reference) if comparison.swapped is None else comparison.swapped
    shards = {name: data.shards(SETS[name]) for name in SETS if name != "swapped" or swapped}
    used = {"population": target.data or data, "null": data, "swapped": reference.data or data}
    sizes = {name: used[name].train_size if name != "null" else None for name in shards}
    return shards, {name: prefix(shards[name], sizes[name], used[name].excluded) for name in shards}


def embed_share(comparison: Comparison, data: DataSpec, out: Path, share: tuple[int, int]) -> None:
    """Embed every n-th shard from the i-th on of all that ``evaluate`` needs, for ``share`` = (i, n)."""
    target, reference = _sides(comparison, out)
    _check_training(target, reference, comparison, data)
    shards, members = _measured(target, reference, comparison, data)
    public = ShardSet.open(data.public_folder())
    public_name = data.public_sets.get(data.public, data.public_folder().name)
    for side in (target, reference):
        side.embed_share(public, public_name, "text" if side.captions_only else comparison.public_modality, None, share)
        for name in shards:
            side.embed_share(shards[name], SETS[name], "text", members[name][1], share)
        if not side.captions_only:  # utility
            for name in ("H", *filter(None, [data.labelled])):
                side.embed_share(data.shards(name), name, "image", None, share)


def _columns(shards: ShardSet, keys: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Captions and plain columns of the pairs' JSON, for these keys."""
    wanted = {key: row for row, key in enumerate(keys)}
    captions, metas = [""] * len(keys), [{}] * len(keys)  # type: list[str], list[dict[str, Any]]
    for pair in read_pairs(shards, image=False):
        if not isinstance(pair, BadPair) and pair.key in wanted:
            captions[wanted[pair.key]], metas[wanted[pair.key]] = pair.caption, pair.meta
    names = dict.fromkeys(n for meta in metas for n, v in meta.items() if isinstance(v, str | int | float | bool))
    return captions, {name: [meta.get(name) for meta in metas] for name in names}


def _public_vectors(embeddings: Embeddings, keys: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The public vectors as stored with their places among the sorted keys; loaded where some are left out."""
    if len(embeddings) == len(keys):
        return embeddings.parts(), embeddings.ranks()
    return [embeddings.load(keys)], None


def _knows_b(reference: Side) -> bool:
    """Whether the reference is known to have trained on B: a run that did, or embeddings that bring B."""
    return reference.trained_on == "B" or (reference.given is not None and (reference.given / "B" / "text").is_dir())


def _check_training(target: Side, reference: Side, comparison: Comparison, data: DataSpec) -> None:
    """Refuse what would make the gap meaningless: exchanged sides, or both trained on the same pairs."""
    if target.captions_only:
        raise UserError(f"target={target.name} embeds captions only; a text model can be the reference alone")
    for side in (target, reference):
        _ = side.record
    if comparison.allow_overlap:
        return
    if target.trained_on == "B":
        raise UserError(f"target={target.name} was trained with side=reference; exchange target and reference")
    if reference.trained_on == "A" and target.trained_on == "A":
        raise UserError(
            f"target={target.name} and reference={reference.name} were both trained on A; "
            "train a reference with side=reference, or pass allow_overlap=true"
        )
    manifest = file_sha256(data.folder / MANIFEST)
    for side in (target, reference):
        if side.record.get("data", manifest) != manifest:
            raise UserError(
                f"{side.name} was trained on other data than {data.folder}, whose sets may overlap with it; "
                "give the data of the runs, or pass allow_overlap=true"
            )


def _span(counts: np.ndarray | None) -> dict[str, float] | None:
    if counts is None:
        return None
    return {"mean": float(counts.mean()), "min": int(counts.min()), "max": int(counts.max())}
