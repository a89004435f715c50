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

from dejavu_lit.data.shards import BadPair, ShardSet, read_pairs
from dejavu_lit.data.spec import DataSpec
from dejavu_lit.errors import UserError
from dejavu_lit.files import read_json, write_json
from dejavu_lit.launch import difference, provenance
from dejavu_lit.measure.metrics import Settings, measure
from dejavu_lit.measure.records import EXPOSURE, Records, read_records, write_records
from dejavu_lit.measure.vectors import Embeddings
from dejavu_lit.objects.artifact import Annotator, Objects, read_objects
from dejavu_lit.sides import Modality, Side

log = logging.getLogger(__name__)

FILES = {"A": "records.parquet", "H": "records_null.parquet", "B": "records_swapped.parquet"}
CONTEXT = "context.json"  # what recomputing keeps: utility, exposure, recall of the index
METRICS = "metrics.json"
STATISTICS = ("k", "ks", "threshold", "top_m", "statistics", "objects")  # settings that need no model


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


def evaluate(
    out: Path,
    comparison: Comparison,
    data: DataSpec,
    objects: str | None,
    settings: Settings,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Evaluate, resume or recompute in ``out``, and return the contents of metrics.json.

    Args:
        objects: name or folder of the object artifact; None for the data's own.
        config: the resolved settings; they decide what can be taken up from an earlier call.

    Raises:
        UserError: models, data or objects that do not fit together.
    """
    fixed = {key: value for key, value in config.items() if key not in STATISTICS}
    context = read_json(out / CONTEXT) if (out / CONTEXT).is_file() else None
    if context is not None and (changed := difference(context["config"], fixed)):
        raise UserError(f"{out} holds another evaluation ({changed}); choose another out= or remove it")
    data.check()
    folder = data.objects_folder(objects)
    if context is None or context["largest_k"] < max(settings.ks):
        records, context = _search(comparison, data, folder, settings, out)
        context["config"] = fixed
    else:
        records = _read(out, data, folder, settings)
    for name, found in records.items():
        write_records(out / FILES[name], found, settings.k, settings.top_m)
    write_json(out / CONTEXT, context)
    metrics = measure(records["A"], records.get("H"), records.get("B"), settings)
    metrics |= {name: context[name] for name in ("utility", "exposure", "search")}
    metrics["settings"] |= {"target": comparison.target, "reference": comparison.reference, "objects": str(folder)}
    metrics["provenance"] = provenance() | {"config": dict(config)}
    write_json(out / METRICS, metrics)
    return metrics


def _search(
    comparison: Comparison, data: DataSpec, objects: Path, settings: Settings, out: Path
) -> tuple[dict[str, Records], dict[str, Any]]:
    """Embed and search: the records of every set, and what recomputing keeps."""
    from dejavu_lit.measure.search import search

    store = Path(comparison.embeddings) if comparison.embeddings else out / "embeddings"
    target, reference = (Side(n, store, comparison.device, comparison.workers) for n in (comparison.target, comparison.reference))
    _check_training(target, reference, comparison)
    swapped = reference.trained_on == "B" if comparison.swapped is None else comparison.swapped
    shards = {name: data.shards(name) for name in ("A", "H", *(["B"] if swapped else []))}
    limit = _train_size(target, reference, data)
    limits = {"A": limit, "B": limit, "H": None}

    public_shards = ShardSet.open(data.public_folder())
    public_name = data.public_sets.get(data.public, data.public_folder().name)
    texts: dict[tuple[str, str], Embeddings] = {}
    public: dict[str, Embeddings] = {}
    for role, side in (("target", target), ("reference", reference)):
        modality: Modality = "text" if side.captions_only else comparison.public_modality
        public[role] = side.embeddings(public_shards, public_name, modality)
        for name in shards:
            texts[role, name] = side.embeddings(shards[name], name, "text", limits[name])
    if public["target"].dim != public["reference"].dim and not reference.captions_only:
        log.warning(
            "target and reference have embeddings of %d and %d values: models of different architecture differ in quality "
            "too, so look at the null and the symmetric gap",
            public["target"].dim,
            public["reference"].dim,
        )
    common = sorted(set(public["target"].keys) & set(public["reference"].keys))
    keys = {n: [k for k in texts["target", n].keys if k in texts["reference", n].rows] for n in shards}
    truth, seen, _ = _objects(objects, list(shards), public_name, keys, common, settings.threshold)
    columns = {name: _columns(shards[name], keys[name]) for name in shards}
    recall, records = {}, {}
    neighbours = {}
    for role in ("target", "reference"):
        parts, ids = _public_vectors(public[role], common)
        for name in shards:
            vectors = texts[role, name].load(keys[name])
            neighbours[role, name], recall[f"{role}_{name}"] = search(
                vectors, parts, max(settings.ks), comparison.index, ids
            )
    exposures = {"A": target.exposure(shards["A"]), "B": reference.exposure(shards["B"]) if swapped else None}
    for name in shards:
        # On B the roles are exchanged: the model trained on B is the target there.
        roles = ("reference", "target") if name == "B" else ("target", "reference")
        captions, extra = columns[name]
        if (counts := exposures.get(name)) is not None:
            place = {key: row for row, key in enumerate(shards[name].keys(len(counts)))}
            extra[EXPOSURE] = [int(counts[place[key]]) for key in keys[name]]
        records[name] = Records(
            captions, truth[name], seen, neighbours[roles[0], name], neighbours[roles[1], name], extra
        )
    context = {
        "largest_k": max(settings.ks),
        "sets": list(shards),
        "public": public_name,
        "utility": _utility(target, reference, data, out),
        "exposure": {
            "target": _span(exposures["A"]),
            "reference": _span(exposures["B"] if swapped else None),
        },
        "search": {"index": comparison.index, "recall": min(recall.values())},
    }
    return records, context


def _read(out: Path, data: DataSpec, objects: Path, settings: Settings) -> dict[str, Records]:
    """The saved records, joined to the objects of these settings."""
    import pyarrow.parquet as pq

    context = read_json(out / CONTEXT)
    keys = {n: pq.read_table(out / FILES[n], columns=["key"])["key"].to_pylist() for n in context["sets"]}
    truth, public, _ = _objects(objects, context["sets"], context["public"], keys, None, settings.threshold)
    return {name: read_records(out / FILES[name], truth[name], public) for name in context["sets"]}


def _objects(
    folder: Path,
    sets: Sequence[str],
    public: str,
    keys: Mapping[str, Sequence[str]],
    public_keys: Sequence[str] | None,
    threshold: float,
) -> tuple[dict[str, Objects], Objects, Annotator]:
    """The objects of every set and of the public pictures (all annotated ones by default), sorted by key."""
    found, annotator = read_objects([*(folder / name for name in sets), folder / public], threshold)
    truth = {name: objects.take(keys[name]) for name, objects in zip(sets, found, strict=False)}
    return truth, found[-1].take(sorted(found[-1].keys) if public_keys is None else public_keys), annotator


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


def _check_training(target: Side, reference: Side, comparison: Comparison) -> None:
    """Refuse what would make the gap meaningless: exchanged sides, or both trained on the same pairs."""
    if target.captions_only:
        raise UserError(f"target={target.name} embeds captions only; a text model can be the reference alone")
    for side in (target, reference):
        _ = side.record
    if comparison.allow_overlap:
        return
    if target.trained_on == "B":
        raise UserError(f"target={target.name} was trained with side=reference; exchange target and reference")
    both = [side.data.folder.resolve() for side in (target, reference) if side.data]
    if reference.trained_on == "A" and target.trained_on == "A":
        raise UserError(
            f"target={target.name} and reference={reference.name} were both trained on A; "
            "train a reference with side=reference, or pass allow_overlap=true"
        )
    if len(set(both)) == 2:
        raise UserError(
            f"target was trained on {both[0]} and reference on {both[1]}, whose sets may overlap; "
            "train both on the same prepared data, or pass allow_overlap=true"
        )


def _train_size(target: Side, reference: Side, data: DataSpec) -> int | None:
    """How many pairs of A and B were trained on: the runs' own setting, else data.train_size."""
    sizes = [side.data.train_size for side in (target, reference) if side.data]
    if len(set(sizes)) == 2:
        log.warning("target and reference were trained on different numbers of pairs (%s and %s)", *sizes)
    return sizes[0] if target.data else data.train_size


def _utility(target: Side, reference: Side, data: DataSpec, out: Path) -> dict[str, Any]:
    return {}


def _span(counts: np.ndarray | None) -> dict[str, float] | None:
    if counts is None:
        return None
    return {"mean": float(counts.mean()), "min": int(counts.min()), "max": int(counts.max())}
