"""The membership scores of an evaluation: embed the drawn pairs of A, H and B, and add their scores to the records.

A set is written in the order of a hash of its keys, so its first pairs are a draw by hash.
"""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dejavu_lit.evaluation.audited_model import AuditedModel
from dejavu_lit.evaluation.comparison import EvaluationInputs
from dejavu_lit.evaluation.embeddings import Embeddings
from dejavu_lit.measure.figures import BLOCK_SETS
from dejavu_lit.measure.membership import COLUMNS
from dejavu_lit.measure.model_scores import MODEL_SCORES, OtherPairs, drawn_others, model_scores
from dejavu_lit.measure.recompute import RECORD_FILES
from dejavu_lit.measure.records import SIDES, replace_columns
from dejavu_lit.measure.settings import MembershipSettings
from dejavu_lit.utils.distributed import Ranks
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.progress import progress

PAIRS_AT_ONCE = 65_536  # whose vectors are in memory

log = logging.getLogger(__name__)

PairVectors = tuple[Embeddings, Embeddings]  # of images and captions


def write_scores(inputs: EvaluationInputs, settings: MembershipSettings, out: Path, ranks: Ranks) -> dict[str, Any]:
    """Write the scores of both models into the records in ``out``; ranks share the embedding, and the first one does the rest.

    Returns:
        {unavailable: {column of A's records: why it is missing}, others: how many pairs of H each is compared with}.
    """
    models = {role: model for role, model in inputs.models.items() if not model.captions_only}
    with ranks.step():
        drawn = {block: _draw(inputs, block, settings.pairs) for block in inputs.shards}
        for model in models.values():
            for block, (_, span) in drawn.items():
                with suppress(UserError):  # a score that cannot be computed is null, with the reason
                    model.embed(inputs.shards[block], BLOCK_SETS[block], "image", span, ranks.share)
    with ranks.step():
        if ranks.rank > 0:
            return {}
        unavailable: dict[str, str] = {}
        vectors: dict[str, dict[str, PairVectors]] = {}
        for role, model in inputs.models.items():
            names = [f"{role}_{score}" for score in MODEL_SCORES]
            if model.captions_only:
                unavailable |= dict.fromkeys(names, f"{model.name} embeds no images")
                continue
            if model.embeddings_folder is not None:
                unavailable[f"{role}_loss"] = "embeddings:DIR has no logit scale"
            opened: dict[str, PairVectors] = {}
            for block, (_, span) in drawn.items():
                try:
                    opened[block] = _open(model, inputs, block, span)
                except UserError as error:
                    log.warning("no membership scores of %s on %s: %s", model.name, BLOCK_SETS[block], error)
                    prefix = "swapped." if block == "swapped" else ""  # without B the figures of A and H remain
                    unavailable |= dict.fromkeys((prefix + name for name in names), str(error))
            if {"population", "null"} <= opened.keys():
                vectors[role] = opened
        keys = {
            block: _common(names, [sets[block] for sets in vectors.values() if block in sets])
            for block, (names, _) in drawn.items()
        }
        # Of all of H, so that the number of drawn pairs does not change what a pair is compared with.
        others = drawn_others(_common(inputs.members["null"][0], [sets["null"] for sets in vectors.values()]))
        if len(others) < 2:
            reason = f"H has {len(others)} usable pairs, so there is no other pair to compare with"
            unavailable |= {f"{role}_{score}": reason for role in vectors for score in MODEL_SCORES}
            vectors = {}
        for block in drawn:
            columns: dict[str, dict[str, float]] = {}
            for role, sets in vectors.items():
                if block not in sets:
                    continue
                # On B the roles are exchanged: the model trained on B is the target there.
                side = SIDES[1 - SIDES.index(role)] if block == "swapped" else role
                scores = _scores(models[role], keys[block], sets[block], others, sets["null"])
                columns |= {f"{side}_{name}": values for name, values in scores.items()}
            replace_columns(out / RECORD_FILES[block], COLUMNS, columns)
        return {"unavailable": unavailable, "others": max(len(others) - 1, 0)}


def _draw(inputs: EvaluationInputs, block: str, pairs: int | None) -> tuple[list[str], int]:
    """The keys of the drawn pairs of a measured set, and how many of its first pairs are embedded: all of H."""
    members, span = inputs.members[block]
    if pairs is None or pairs >= len(members):
        return members, span
    return members[:pairs], span if block == "null" else inputs.shards[block].keys(span).index(members[pairs - 1]) + 1


def _open(model: AuditedModel, inputs: EvaluationInputs, block: str, span: int) -> PairVectors:
    """The vectors of one model; raises UserError if they cannot be compared."""
    shards, name = inputs.shards[block], BLOCK_SETS[block]
    images, captions = model.embeddings(shards, name, "image", span), model.embeddings(shards, name, "text", span)
    if images.dim != captions.dim:
        raise UserError(
            f"its images of {name} have {images.dim} values, its captions {captions.dim}; no pair has a cosine"
        )
    return images, captions


def _common(drawn: Sequence[str], vectors: Sequence[PairVectors]) -> list[str]:
    """The drawn keys that every model has both vectors of."""
    rows = [embeddings.rows for pair in vectors for embeddings in pair]
    return [key for key in drawn if all(key in known for known in rows)]


def _scores(
    model: AuditedModel, keys: Sequence[str], vectors: PairVectors, other_keys: Sequence[str], null: PairVectors
) -> dict[str, dict[str, float]]:
    """{score: {key: value}} of the pairs ``keys`` under one model."""
    others = OtherPairs(other_keys, *(embeddings.load(other_keys) for embeddings in null))
    scale = model.encoder.logit_scale if model.embeddings_folder is None else None
    values: dict[str, dict[str, float]] = {}
    starts = range(0, len(keys), PAIRS_AT_ONCE)
    for start in progress(starts, f"scoring {len(keys)} pairs", unit="block"):
        some = keys[start : start + PAIRS_AT_ONCE]
        images, captions = (embeddings.load(some) for embeddings in vectors)
        for name, scores in model_scores(some, images, captions, others, scale).items():
            values.setdefault(name, {}).update(zip(some, scores.tolist(), strict=True))
    return values
