"""The scoreboard: how well each membership score tells pairs that a model was trained on from those of H.

cosine, alignment, loss   of one model, see model_scores.py
cosine_calibrated         cosine_T − cosine_R; Watson et al., ICLR 2022
clipmem                   alignment_T − alignment_R; Wang et al., ICLR 2025 (arXiv 2502.07830)
dejavu                    hits_T − hits_R at the main k

The scores of one model are columns of the records (``target_cosine``, …), None for pairs that were not drawn, so the scoreboard
needs no model. It compares A with H under the target; ``swapped`` compares B with H under the reference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dejavu_lit.data.splits import hash_order, seeded_hash
from dejavu_lit.measure.figures import BLOCK_SETS, MEMBERSHIP
from dejavu_lit.measure.model_scores import MODEL_SCORES, OTHERS
from dejavu_lit.measure.per_pair import add_q, tail
from dejavu_lit.measure.records import SIDES, Records
from dejavu_lit.measure.roc import Auc, attack, auc, auc_figure, audit, noted, roc_points, spearman, unusable
from dejavu_lit.measure.settings import Settings

COLUMNS = tuple(f"{side}_{score}" for side in SIDES for score in MODEL_SCORES)
LISTED = "the pairs of A or B were listed, and the audit needs membership that a fair coin decided"
DIFFERENCES = {"cosine_calibrated": "cosine", "clipmem": "alignment"}  # target minus reference of a model's score


class ScoredSet:
    """The scored pairs of one set's records, with every score: ``keys`` [n] and float64 [n] per score.

    All pairs count where no model has scores of its own, since the gap in hits needs none.
    """

    def __init__(self, records: Records, k: int, top_m: int | None = None) -> None:
        columns = {name: records.columns[name] for name in COLUMNS if name in records.columns}
        is_drawn = [any(value is not None for value in values) for values in zip(*columns.values(), strict=True)]
        rows = np.flatnonzero(is_drawn) if columns else np.arange(len(records))
        self.keys = [records.keys[row] for row in rows.tolist()]
        self._columns = {name: np.array(column, np.float64)[rows] for name, column in columns.items()}  # None is NaN
        target, reference = records.scores([k], top_m)
        self.has_objects = target.has_objects[rows]
        self._hits = (target.hits[rows, 0].astype(np.int64) - reference.hits[rows, 0]).astype(np.float64)

    def values(self, score: str, exchanged: bool = False) -> np.ndarray | None:
        """One score of every pair; with ``exchanged`` the other model is the target. None if a model lacks it.

        ``dejavu`` is for the pairs with objects only.
        """
        target, reference = reversed(SIDES) if exchanged else SIDES
        if score == "dejavu":
            hits: np.ndarray = self._hits[self.has_objects]
            return -hits if exchanged else hits
        name = DIFFERENCES.get(score, score)
        first, second = (self._columns.get(f"{side}_{name}") for side in (target, reference))
        if score not in DIFFERENCES or first is None:
            return first
        return None if second is None else np.asarray(first - second)


def scoreboard(
    sets: Mapping[str, Records],
    settings: Settings,
    unavailable: Mapping[str, str] | None = None,
    listed: bool = False,
    others: int | None = None,
) -> dict[str, Any] | None:
    """Every membership score's figures, from the records of A (population), H (null) and, if measured, B (swapped).

    Args:
        settings: k and top_m of ``dejavu``, and the seed of the resamples.
        unavailable: {column of A's records: why it is missing}; of B's records, "swapped." and the column.
        listed: whether the pairs of A or B were given, not drawn; then there is no bound on ε, which needs a fair coin.
        others: the number of pairs of H that each was compared with; by default all scored pairs of H but one, at most 512.

    Returns:
        None if the records have no scores, else {pairs: {A, H, B}, others, SCORE: {auc, tpr_at_fpr, swapped: {auc, tpr_at_fpr},
        symmetric, control, unseen, spearman, roc, reasons}, epsilon: {epsilon, guesses, right, …}, reasons}. ``symmetric`` is the
        mean of both AUCs, ``control`` the AUC of one half of H against the other, ``unseen`` that of B against H under the
        target. A score that is missing is None, with the reason in ``reasons``.
    """
    unavailable = dict(unavailable or {})
    if "null" not in sets or (not any(name in sets["population"].columns for name in COLUMNS) and not unavailable):
        return None
    scored = {name: ScoredSet(records, settings.k, settings.top_m) for name, records in sets.items()}
    reasons: dict[str, str] = {}
    board: dict[str, Any] = {}
    for score in MEMBERSHIP:
        if scored["population"].values(score) is None:
            board[score] = None
            reasons[score] = _why_missing(score, unavailable)
        else:
            board[score] = _score_figures(score, scored, settings.seed, unavailable)
    board["epsilon"] = noted(reasons, "epsilon", (None, LISTED) if listed else _audit(scored))
    counts = {name: len(scored[block].keys) if block in scored else 0 for block, name in BLOCK_SETS.items()}
    others = min(OTHERS, max(counts["H"] - 1, 0)) if others is None else others
    return {"pairs": counts, "others": others, **board, "unavailable": unavailable, "reasons": reasons}


def _why_missing(score: str, unavailable: Mapping[str, str], swapped: bool = False) -> str:
    name = DIFFERENCES.get(score, score)
    sides = SIDES[::-1] if swapped else SIDES  # of the models as A's records name them
    needed = [f"{side}_{name}" for side in (sides if score in DIFFERENCES else sides[:1])]
    needed += [f"swapped.{column}" for column in needed] if swapped else []
    return next((unavailable[column] for column in needed if column in unavailable), "the records have no such scores")


def _score_figures(
    score: str, scored: Mapping[str, ScoredSet], seed: int, unavailable: Mapping[str, str]
) -> dict[str, Any]:
    """The entry of one score that the target has."""
    members, others = (scored[block].values(score) for block in ("population", "null"))
    assert members is not None
    assert others is not None
    entry = attack(members, others, seed)
    reasons = entry.pop("reasons")
    entry["swapped"], entry["symmetric"], entry["unseen"] = None, None, None
    if "swapped" not in scored:
        reasons["swapped"] = reasons["symmetric"] = reasons["unseen"] = "the set B was not measured"
    else:
        b = scored["swapped"]
        swapped, exchanged = b.values(score), scored["null"].values(score, exchanged=True)
        if swapped is None or exchanged is None:
            reasons["swapped"] = reasons["symmetric"] = _why_missing(score, unavailable, swapped=True)
        else:
            entry["swapped"] = attack(swapped, exchanged, seed)
            # Both directions have the same pairs of H, in the same order.
            reason = unusable(members, others) or unusable(swapped, exchanged)
            mean = None if reason else auc_figure(*Auc(members, others).mean_with(Auc(swapped, exchanged)))
            entry["symmetric"] = noted(reasons, "symmetric", (mean, reason))
        if score in MODEL_SCORES:
            unseen = b.values(score, exchanged=True)
            missing = (None, "the records have no such scores")
            entry["unseen"] = noted(reasons, "unseen", missing if unseen is None else auc(unseen, others))
        else:
            reasons["unseen"] = "one of the two models compared was trained on B"
    first = _first_half(scored["null"], score)
    entry["control"] = noted(reasons, "control", auc(others[first], others[~first]))
    a = scored["population"]
    gaps = a.values("dejavu")
    assert gaps is not None
    correlation = (None, "it is the score itself") if score == "dejavu" else spearman(members[a.has_objects], gaps)
    entry["spearman"] = noted(reasons, "spearman", correlation)
    entry["roc"] = roc_points(members, others) if entry["auc"] else None
    return entry | {"reasons": reasons}


def _first_half(null: ScoredSet, score: str) -> np.ndarray:
    """Which of the scored pairs of H are in the first half, by hash; bool [n]."""
    keys = [key for key, kept in zip(null.keys, null.has_objects, strict=True) if kept or score != "dejavu"]
    ranks = np.argsort(hash_order(keys, 0, "control"), kind="stable")
    return np.asarray(ranks < len(keys) // 2)


def _audit(scored: Mapping[str, ScoredSet]) -> tuple[dict[str, Any] | None, str | None]:
    """The bound on ε by ``alignment`` of the target alone: the reference has seen the complement, so it may not be used."""
    if "swapped" not in scored:
        return None, "the set B was not measured"
    a, b = scored["population"], scored["swapped"]
    members, others = a.values("alignment"), b.values("alignment", exchanged=True)
    if members is None or others is None:
        return None, "the target has no alignment scores"
    if reason := unusable(members, others):
        return None, reason
    size = min(len(members), len(others))
    order = seeded_hash([*a.keys[:size], *b.keys[:size]], 0, "audit")
    return audit(members[:size], others[:size], order), None


def holdout_tails(
    population: Records, null: Records, keys: Sequence[str], k: int, top_m: int | None = None
) -> dict[str, dict[str, dict[str, float | None]]]:
    """{key: {score: {score, p, q}}} of pairs of A: p = (1 + #{H ≥ score}) / (1 + |H|), q as in ``pair_gaps``.

    The three values are None for pairs without a finite score; a score that a model lacks is missing.
    """
    a, h = ScoredSet(population, k, top_m), ScoredSet(null, k, top_m)
    chosen = set(keys)
    rows = [row for row, key in enumerate(a.keys) if key in chosen]
    tails: dict[str, dict[str, dict[str, float | None]]] = {key: {} for key in keys}
    for score in MEMBERSHIP:
        values, holdout = a.values(score), h.values(score)
        if score == "dejavu" or values is None or holdout is None or not np.isfinite(holdout).all() or not len(holdout):
            continue  # the gap in hits has its own p-value
        for key in keys:
            tails[key][score] = {"score": None, "p": None, "q": None}
        scored = [row for row in rows if np.isfinite(values[row])]
        for row, p in zip(scored, tail(holdout, values[scored]).tolist(), strict=True):
            tails[a.keys[row]][score] |= {"score": float(values[row]), "p": p}
        add_q(tails[key][score] for key in keys)
    return tails
