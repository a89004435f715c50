"""Groups of pairs, such as one owner's images: was this group's data used, and how strongly is it remembered?

The gaps of a group are those of its pairs in A. Its p-value asks whether they could be pairs that neither model trained on:
if they were, every choice of n pairs among the group's n and the holdout's would be equally likely, so
p = P(S ≥ s), with S = #{target more precise} − #{reference more precise} among n pairs drawn from all of these. The counts of
wins, losses and ties are hypergeometric, so p is exact (Fisher's permutation test). q is Benjamini–Hochberg over the groups.

The membership of a group is the AUC of CLIPMem, its scored pairs against those of H, with the p-value of Mann and Whitney.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.measure.gaps import Outcomes, mean_recall_gap, outcomes
from dejavu_lit.measure.membership import ScoredSet
from dejavu_lit.measure.per_pair import add_q
from dejavu_lit.measure.records import META, Records
from dejavu_lit.measure.subgroups import is_missing
from dejavu_lit.utils.errors import UserError, suggest
from dejavu_lit.utils.progress import progress

SCORE = "clipmem"  # the reference's alignment takes away how well a group's captions fit at all
COLUMNS = ("group", "records", *FIGURES, "p", "q", *(f"{SCORE}_{name}" for name in ("auc", "p", "q")))  # of a group
# Products of two sizes up to which p is exact if one of them is at most 8: scipy takes the square of the product in steps, a
# quarter of a minute for 8 scored pairs against 50,000.
MOST_RANKED = 10_000


def group_gaps(
    population: Records, null: Records, column: str, k: int, top_m: int | None = None, smallest: int = 20
) -> dict[str, Any]:
    """The gaps and the membership of every group of A, with p-values against H (``null``), under the same two models.

    Args:
        column: an entry of the pairs' JSON, with or without ``meta.``; its values name the groups.
        smallest: groups with fewer records are only counted.

    Returns:
        {column, holdout: |H| with objects, groups: [{group, records, ppg, prg, aucg, p, q, clipmem_auc, clipmem_p, clipmem_q}],
        smallest p first, too_small: {groups, records, smallest}, without: records of A without a value}. The last three figures
        of a group are None if the records have no such scores, or none of its pairs was drawn for them. Raises UserError for an
        unknown column, or if no record of H has objects.
    """
    name = _entry(column, population)
    measured, holdout = (outcomes(*records.scores([k], top_m), k) for records in (population, null))
    if not len(holdout):
        raise UserError("no record of the holdout set H has an object, so there is nothing to compare the groups with")
    with_objects = np.flatnonzero(population.truth.counts() > 0).tolist()
    members: dict[str, list[int]] = {}
    for position, record in enumerate(with_objects):
        if not is_missing(value := population.columns[name][record]):
            members.setdefault(str(value), []).append(position)
    large = {group: positions for group, positions in members.items() if len(positions) >= smallest}
    a, h = ScoredSet(population, k, top_m), ScoredSet(null, k, top_m)
    scores, unseen = a.values(SCORE), h.values(SCORE)
    score_of: dict[str, float] = {}
    if scores is not None and unseen is not None and len(unseen):
        score_of = dict(zip(a.keys, scores.tolist(), strict=True))
        unseen = np.sort(unseen)  # scipy sorts them with each group again, which takes less time if they are sorted
    groups = []
    for group, positions in progress(large.items(), "comparing groups", unit="group"):
        row: dict[str, Any] = {**dict.fromkeys(COLUMNS), "group": group, "records": len(positions)}
        row |= _gaps(measured[np.array(positions)])
        row["p"] = permutation_p(measured.precision[positions], holdout.precision)
        keys = [population.keys[with_objects[position]] for position in positions]
        if unseen is not None and (scored := [score_of[key] for key in keys if key in score_of]):
            row |= _rank_test(scored, unseen)
        groups.append(row)
    add_q(groups)
    add_q(groups, f"{SCORE}_")
    return {
        "column": name,
        "holdout": len(holdout),
        "groups": sorted(groups, key=lambda group: (group["p"], -group["ppg"], group["group"])),
        "too_small": {
            "groups": len(members) - len(large),
            "records": sum(map(len, members.values())) - sum(map(len, large.values())),
            "smallest": smallest,
        },
        "without": len(with_objects) - sum(map(len, members.values())),
    }


def _entry(column: str, population: Records) -> str:
    """The records' column of an entry of the pairs' JSON; raises UserError if they have no such entry."""
    name = META + column.removeprefix(META)  # an entry called like a column of ours is the entry
    if name not in population.columns:
        entries = [other.removeprefix(META) for other in population.columns if other.startswith(META)]
        raise UserError(
            f"group={column} is not an entry of these pairs' JSON{suggest(column, entries)}; choose from {', '.join(entries)}, "
            "or name an entry of few pairs in a new out="
            if entries
            else f"group={column}: these pairs' JSON has no entries; prepare them from data with a column of that name"
        )
    return name


def _gaps(group: Outcomes) -> dict[str, float]:
    n = len(group)
    values = (group.precision.sum() / n, group.recall.sum() / n, mean_recall_gap(group.hits, group.truth, n))
    return dict(zip(FIGURES, map(float, values), strict=True))


def _rank_test(group: Sequence[float], holdout: np.ndarray) -> dict[str, float]:
    """{clipmem_auc, clipmem_p}: the test of Mann and Whitney that a group's scores are above the holdout's."""
    from scipy.stats import mannwhitneyu

    pairs = len(group) * len(holdout)
    test = mannwhitneyu(group, holdout, alternative="greater", method="auto" if pairs <= MOST_RANKED else "asymptotic")
    return {f"{SCORE}_auc": float(test.statistic / pairs), f"{SCORE}_p": float(test.pvalue)}


def permutation_p(group: np.ndarray, holdout: np.ndarray) -> float:
    """P(S ≥ s) for the signs (−1, 0 or 1) of a group, int [n], exchanged with those of the holdout, int [m]."""
    from scipy.stats import hypergeom  # takes a second to import

    wins, losses = (int((group == sign).sum() + (holdout == sign).sum()) for sign in (1, -1))
    decided = np.arange(len(group) + 1)  # pairs of the drawn ones that are not ties
    probability = hypergeom.pmf(decided, len(group) + len(holdout), wins + losses, len(group))
    decided, probability = decided[probability > 0], probability[probability > 0]
    needed = np.ceil((decided + group.sum()) / 2)  # wins among them for S ≥ s
    return float(min(1.0, probability @ hypergeom.sf(needed - 1, wins + losses, wins, decided)))
