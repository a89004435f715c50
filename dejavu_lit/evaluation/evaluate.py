"""One evaluation: two models and prepared data in; records, metrics.json and a summary out.

Models → embeddings → neighbors → records → figures. If only statistics change (another k up to the largest, threshold,
top_m, objects), the figures are recomputed from the records in seconds, without a model.
"""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np

from dejavu_lit.data.epoch import exposure_range
from dejavu_lit.data.manifest import MANIFEST
from dejavu_lit.data.objects import Objects, check_images, read_objects
from dejavu_lit.data.shards import BadPair, ShardSet, read_pairs
from dejavu_lit.evaluation.audited_model import AuditedModel, weight_states
from dejavu_lit.evaluation.comparison import EmbeddedSets, EvaluationInputs, training_differences
from dejavu_lit.evaluation.context import (
    CONTEXT,
    EvaluationSpec,
    finished_metrics,
    fixed_settings,
    read_context,
    statistics_of,
)
from dejavu_lit.evaluation.membership import write_scores
from dejavu_lit.evaluation.utility import utility
from dejavu_lit.evaluation.write_metrics import write_metrics
from dejavu_lit.measure.figures import BLOCK_SETS
from dejavu_lit.measure.recompute import RECORD_FILES
from dejavu_lit.measure.records import EXPOSURE, META, SIDES, Records, write_records
from dejavu_lit.measure.scores import Neighbors
from dejavu_lit.utils.distributed import SINGLE_PROCESS, Ranks
from dejavu_lit.utils.io import file_sha256, read_json_object, visible_files, write_json
from dejavu_lit.utils.progress import progress

if TYPE_CHECKING:
    from dejavu_lit.evaluation.search_parts import Search

log = logging.getLogger(__name__)

NEIGHBORS = "neighbors"  # the folder of searched parts, removed once the records are written
RAW_SHARDS_NOTE = (
    "trained on raw shards: ranks took equal numbers of steps, so exposure is an expected value; the measured and searched "
    "pairs are samples"
)
# Share of the pairs below which an entry of their JSON gets no column: names of each pair's own would make n².
RARE = 0.01


def evaluate(spec: EvaluationSpec, ranks: Ranks = SINGLE_PROCESS) -> dict[str, Any]:
    """Evaluate, resume or recompute, and return the contents of metrics.json; {} on all ranks but the first.

    ``ranks`` share embedding and search; the first one alone computes the figures. Raises UserError if models, data or objects do
    not fit together, or changed since an earlier call.
    """
    with ranks.step():
        models = {role: AuditedModel(str(getattr(spec.evaluation, role)), spec.out) for role in SIDES}
        fixed = fixed_settings(spec, models)
        spec.data.check()
        data = file_sha256(spec.data.folder / MANIFEST)
        context = read_context(spec, fixed, models, data)
        statistics = statistics_of(spec)
    settings = spec.evaluation.membership
    is_searched = (
        context is not None
        and context["largest_k"] >= max(spec.settings.ks)
        and set(context["records"]) <= set(_record_files(spec))
    )
    scored = (context or {}).get("membership") if is_searched else None
    is_scored = settings is None or (scored is not None and scored["pairs"] == settings.pairs)
    is_searched, is_scored = ranks.first((is_searched, is_scored))
    if not (is_searched and is_scored):
        with ranks.step():
            inputs = EvaluationInputs.open(spec.evaluation, spec.data, spec.out, max(spec.settings.ks))
    if not is_searched:
        with ranks.step():  # the weights before they are loaded
            weights = {role: weight_states(m.weights) for role, m in models.items()} if ranks.rank == 0 else {}
        searched = _embed_search_and_write_records(spec, inputs, ranks)
        with ranks.step():
            if ranks.rank == 0:
                context = searched | {"config": fixed, "weights": weights, "data": data, "tabulated": statistics}
                context["records"] = _record_files(spec)
                write_json(spec.out / CONTEXT, context)
                rmtree(spec.out / NEIGHBORS, ignore_errors=True)
    if not is_scored and settings is not None:
        with ranks.step():
            if ranks.rank == 0 and context is not None and context.pop("membership", None) is not None:
                write_json(spec.out / CONTEXT, context)  # until all records have their new scores
        scores = write_scores(inputs, settings, spec.out, ranks)
        with ranks.step():
            if ranks.rank == 0 and context is not None:
                context |= {"membership": {"pairs": settings.pairs, **scores}, "records": _record_files(spec)}
                write_json(spec.out / CONTEXT, context)
    against_base = evaluate(spec.against_base, ranks) if spec.against_base else None
    if ranks.rank > 0 or context is None:
        return {}
    if (finished := finished_metrics(spec.out, context, statistics)) is not None:
        return finished
    _check_images(spec, context["images"])
    return write_metrics(spec, context, statistics, against_base)


def _record_files(spec: EvaluationSpec) -> list[str]:
    """The names of the files with records and their further columns."""
    return [path.name for path in visible_files(spec.out, "records*.parquet")]


def _embed_search_and_write_records(spec: EvaluationSpec, inputs: EvaluationInputs, ranks: Ranks) -> dict[str, Any]:
    """Write the records of every set, and return what recomputing needs; {} on all ranks but the first."""
    from dejavu_lit.evaluation.search import load_faiss  # loads numba, which recomputing does not need

    largest_k = max(spec.settings.ks)
    with ranks.step():
        if not (spec.out / NEIGHBORS).is_dir():  # an index that cannot be used is named before hours of embedding
            load_faiss(spec.evaluation.index)
        if ranks.rank == 0:
            spec.data.warn_of_unknown_keys()
        inputs.embed(ranks.share)
    with ranks.step():
        embedded = EmbeddedSets.open(inputs, spec.evaluation.allow_overlap)
        # Before the search, which would be in vain if images lack objects.
        objects, known = _read_objects(spec, inputs, embedded) if ranks.rank == 0 else ({}, {})
        searches = _searches(spec, embedded, largest_k, ranks.world)
        for search in searches.values():
            search.run(ranks.share)
    with ranks.step():
        if ranks.rank > 0:
            return {}
        results = {name: search.result() for name, search in searches.items()}
        # How often training saw each pair: A by the target, B by the reference; None if unknown.
        trained_on = {"target": "population", "reference": "swapped"}
        measured = [(role, block) for role, block in trained_on.items() if block in inputs.shards]
        exposures = {block: inputs.models[role].exposure(inputs.shards[block]) for role, block in measured}
        # An earlier one would take the new records for its own, and for scored.
        (spec.out / CONTEXT).unlink(missing_ok=True)
        neighbors = {name: found for name, (found, _) in results.items()}
        _write_records(spec, inputs, embedded, objects, neighbors, exposures)
        return {
            "largest_k": largest_k,
            "public": spec.data.public_name,
            **known,
            "utility": {role: utility(model, spec.data) for role, model in inputs.models.items()},
            "exposure": {role: exposure_range(exposures.get(block)) for role, block in trained_on.items()},
            "raw_shards": _raw_shards(inputs),
            # A base is trained otherwise by design.
            "training_differences": None if spec.is_against_base else training_differences(**inputs.models),
            "search": {
                "index": spec.evaluation.index,
                "recall": min(recall for _, recall in results.values()),
                "copies": _public_copies(spec, inputs.public),
            },
        }


def _raw_shards(inputs: EvaluationInputs) -> dict[str, Any] | None:
    """What is known of the raw shards that the models were trained on; None for prepared data."""
    if inputs.data.shards is None:
        return None
    models = inputs.models.items()
    expected = {role: (model.run_json.get("exposure") or {}).get("mean") for role, model in models}
    known = read_json_object(inputs.data.folder / MANIFEST)["raw_shards"]
    return {**known, "expected_exposure": expected, "note": RAW_SHARDS_NOTE}


def _public_copies(spec: EvaluationSpec, public: ShardSet) -> int:
    """How many public images are exact copies of others, with a warning if there are any, and one for a set elsewhere."""
    from dejavu_lit.data.near_duplicates import exact_copies  # loads scipy, which recomputing does not need

    public_set = spec.data.public_set
    if spec.data.exclude is None and spec.data.set_name(public_set) != public.folder.name:
        log.warning(
            "the public set %s was not prepared with A, B and H: images that are also in these sets fake or hide memorization; "
            "dejavu dedup … 'sets=[%s]' lists them for data.exclude=",
            *(
                spec.data.public,
                ",".join([*filter(lambda name: (spec.data.folder / name).is_dir(), "ABH"), public_set]),
            ),
        )
    if copies := exact_copies(public, spec.data.excluded):
        log.warning(
            "%d images of the public set %s are exact copies of others: copies replace distinct neighbors, so gaps are "
            "underestimated; leave them out by data.exclude= (dejavu dedup within=true lists them)",
            *(copies, spec.data.public),
        )
    return copies


def _read_objects(
    spec: EvaluationSpec, inputs: EvaluationInputs, embedded: EmbeddedSets
) -> tuple[dict[str, Objects], dict[str, Any]]:
    """The objects of the measured images, by block, and of the searched ones, "public"; and what context.json has of them."""
    # A and B as one: in a random half each has pairs of both.
    trained = ["A", "B"] if spec.data.half else [BLOCK_SETS[block] for block in inputs.shards if block != "null"]
    sets = {name: ShardSet.open(spec.data.set_folder(name)) for name in (*trained, BLOCK_SETS["null"])}
    images = {name: shards.images() for name, shards in {**sets, spec.data.public_name: inputs.public}.items()}
    _check_images(spec, images)
    others = (spec.objects / name for name in (BLOCK_SETS["null"], spec.data.public_name))
    (pool, holdout, public), _ = read_objects(
        [[spec.objects / name for name in trained], *others], spec.settings.threshold
    )
    objects = {block: (holdout if block == "null" else pool).take(keys) for block, keys in embedded.keys.items()}
    left_out = sorted(set(public.keys) - set(embedded.public_keys))
    return objects | {"public": public.take(embedded.public_keys)}, {"public_left_out": left_out, "images": images}


def _check_images(spec: EvaluationSpec, images: Mapping[str, Mapping[str, str]]) -> None:
    for artifact in (spec.objects, *spec.further_objects.values()):
        check_images(artifact, images)


def _searches(spec: EvaluationSpec, embedded: EmbeddedSets, k: int, world: int) -> dict[tuple[str, str], "Search"]:
    """The search of every (role, block)."""
    from dejavu_lit.evaluation.search_parts import Search  # loads numba, which recomputing does not need

    searches = {}
    for role, embeddings in embedded.public.items():
        public = embeddings.selection(embedded.public_keys)
        for block, keys in embedded.keys.items():
            folder = spec.out / NEIGHBORS / f"{role}_{block}"
            captions = embedded.captions[role, block]
            searches[role, block] = Search(captions, keys, public, k, spec.evaluation.index, folder, world)
    return searches


def _write_records(
    spec: EvaluationSpec,
    inputs: EvaluationInputs,
    embedded: EmbeddedSets,
    objects: Mapping[str, Objects],
    neighbors: Mapping[tuple[str, str], Neighbors],
    exposures: Mapping[str, np.ndarray | None],
) -> None:
    """Write the records of every set: captions, objects, both models' neighbors, exposure and entries of the pairs' JSON."""
    asked = {name.removeprefix(META) for name in (spec.evaluation.group, *spec.settings.subgroups) if name is not None}
    names: list[str] | None = None  # those of A, because subgroups compare the same columns of A and B
    for block, shards in inputs.shards.items():
        keys = embedded.keys[block]
        members, span = inputs.members[block]
        captions, entries = _captions_and_json(shards, keys, span)
        names = _tabulated_names(entries, asked) if names is None else names
        columns: dict[str, list[Any]] = {META + name: [entry.get(name) for entry in entries] for name in names}
        if (exposure := exposures.get(block)) is not None:
            position = {key: row for row, key in enumerate(members)}
            columns[EXPOSURE] = [int(exposure[position[key]]) for key in keys]
        # On B the roles are exchanged: the model trained on B is the target there.
        target, reference = (neighbors[role, block] for role in (reversed(SIDES) if block == "swapped" else SIDES))
        records = Records(captions, objects[block], objects["public"], target, reference, columns)
        write_records(spec.out / RECORD_FILES[block], records, spec.settings.k, spec.settings.top_m)


def _captions_and_json(shards: ShardSet, keys: Sequence[str], span: int) -> tuple[list[str], list[dict[str, Any]]]:
    """The captions and the JSON of the pairs ``keys``, which are among the first ``span`` of a set."""
    rows = {key: row for row, key in enumerate(keys)}
    captions, entries = [""] * len(keys), [{}] * len(keys)  # type: list[str], list[dict[str, Any]]
    pairs = islice(read_pairs(shards, image=False), span)
    for pair in progress(pairs, f"reading captions of {shards.folder.name}", span, "pair"):
        if not isinstance(pair, BadPair) and pair.key in rows:
            captions[rows[pair.key]], entries[rows[pair.key]] = pair.caption, pair.meta
    return captions, entries


def _tabulated_names(entries: Sequence[Mapping[str, Any]], asked: Collection[str]) -> list[str]:
    """The names that have a plain value in at least ``RARE`` of the pairs' JSON or are ``asked`` for; others are counted."""
    counts = Counter(n for entry in entries for n, v in entry.items() if isinstance(v, str | int | float | bool))
    rare = {name: count for name, count in counts.items() if count < RARE * len(entries) and name not in asked}
    if rare:
        log.warning(
            "%d of %d entries of the pairs' JSON are in fewer than %g %% of the pairs, the first is %r; "
            "the records have no columns for them; name one in group= or statistics.subgroups= of a new out= to keep it",
            *(len(rare), len(counts), 100 * RARE, next(iter(rare))),
        )
    return [name for name in counts if name not in rare]
