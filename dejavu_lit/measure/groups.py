"""Groups of pairs, such as one owner's images: was this group's data used, and how strongly is it remembered?

The gaps of a group are those of its pairs in A. Its p-value asks whether they could be pairs that neither model trained on:
if they were, every choice of n pairs among the group's n and the holdout's would be equally likely, so
p = P(S ≥ s), with S = #{target more precise} − #{reference more precise} among n pairs drawn from all of these. The counts of
wins, losses and ties are hypergeometric, so p is exact (Fisher's permutation test). q is Benjamini–Hochberg over the groups.

The membership of a group is the AUC of CLIPMem, its scored pairs against those of H, with the p-value of Mann and Whitney.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.measure.gaps import Outcomes, mean_recall_gap, outcomes
from dejavu_lit.measure.membership import ScoredSet
from dejavu_lit.measure.records import META, Records
from dejavu_lit.measure.subgroups import is_missing
from dejavu_lit.utils.errors import UserError, suggest

SCORE = "clipmem"  # the reference's alignment takes away how well a group's captions fit at all
COLUMNS = ("group", "records", *FIGURES, "p", "q", *(f"{SCORE}_{name}" for name in ("auc", "p", "q")))  # of a group
# Products of two sizes up to which p is exact if one of them is at most 8: scipy takes the square of the product in steps, a
# quarter of a minute for 8 scored pairs against 50,000.
MOST_RANKED = 10_000


def group_gaps(
    population: Records, null: Records, column: str, k: int, top_m: int | None = None, smallest: int = 20
) -> dict[str, Any]:
    """The gaps and the membership of every group of A, with p-values against H.

    Args:
        population: the records of A; null: of H, under the same two models.
        column: an entry of the pairs' JSON, with or without ``meta.``; its values name the groups.
        k, top_m: as in ``score``; smallest: groups with fewer records are only counted.

    Returns:
        {column, holdout: |H| with objects, groups: [{group, records, ppg, prg, aucg, p, q, clipmem_auc, clipmem_p, clipmem_q}],
        smallest p first, too_small: {groups, records, smallest}, without: records of A without a value}. The last three figures
        of a group are None if the records have no such scores, or none of its pairs was drawn for them.

    Raises:
        UserError: an unknown column, or no record of H with objects.
    """
    from scipy.stats import false_discovery_control  # takes a second to import

    name = _entry(column, population)
    measured, holdout = (outcomes(*records.scores([k], top_m), k) for records in (population, null))
    if not len(holdout):
        raise UserError("no record of the holdout set H has an object, so there is nothing to compare the groups with")
    with_objects = np.flatnonzero(population.truth.counts() > 0).tolist()
    values = [population.columns[name][row] for row in with_objects]
    members: dict[str, list[int]] = {}
    for row, value in enumerate(values):
        if not is_missing(value):
            members.setdefault(str(value), []).append(row)
    large = {group: rows for group, rows in members.items() if len(rows) >= smallest}
    p = [permutation_p(measured.precision[rows], holdout.precision) for rows in large.values()]
    q = false_discovery_control(p).tolist()
    keys = {group: [population.keys[with_objects[row]] for row in rows] for group, rows in large.items()}
    membership = _membership(ScoredSet(population, k, top_m), ScoredSet(null, k, top_m), keys)
    groups = [
        {
            "group": group,
            "records": len(rows),
            **_gaps(measured[np.array(rows)]),
            "p": p[i],
            "q": q[i],
            **membership[group],
        }
        for i, (group, rows) in enumerate(large.items())
    ]
    return {
        "column": name,
        "holdout": len(holdout),
        "groups": sorted(groups, key=lambda group: (group["p"], -group["ppg"], group["group"])),
        "too_small": {
            "groups": len(members) - len(large),
            "records": sum(map(len, members.values())) - sum(map(len, large.values())),
            "smallest": smallest,
        },
        "without": sum(map(is_missing, values)),
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


def _membership(
    population: ScoredSet, null: ScoredSet, groups: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float | None]]:
    """{group: {clipmem_auc, clipmem_p, clipmem_q}} for the keys of every group; None if it has no scored pair."""
    from scipy.stats import false_discovery_control

    names = COLUMNS[-3:]
    figures: dict[str, dict[str, float | None]] = {group: dict.fromkeys(names) for group in groups}
    scores, holdout = population.values(SCORE), null.values(SCORE)
    if scores is None or holdout is None or not len(holdout):
        return figures
    score_of = dict(zip(population.keys, scores.tolist(), strict=True))
    scored = {group: [score_of[key] for key in keys if key in score_of] for group, keys in groups.items()}
    tests = {group: _rank_test(own, holdout) for group, own in scored.items() if own}
    q = false_discovery_control([test.pvalue for test in tests.values()]).tolist()
    for (group, test), adjusted in zip(tests.items(), q, strict=True):
        auc = float(test.statistic / (len(scored[group]) * len(holdout)))
        figures[group] = dict(zip(names, (auc, float(test.pvalue), adjusted), strict=True))
    return figures


def _rank_test(group: Sequence[float], holdout: np.ndarray) -> Any:
    """The test of Mann and Whitney that a group's scores are above the holdout's: its statistic and p-value."""
    from scipy.stats import mannwhitneyu

    method = "auto" if len(group) * len(holdout) <= MOST_RANKED else "asymptotic"
    return mannwhitneyu(group, holdout, alternative="greater", method=method)


def permutation_p(group: np.ndarray, holdout: np.ndarray) -> float:
    """P(S ≥ s) for the signs (−1, 0 or 1) of a group, int [n], exchanged with those of the holdout, int [m]."""
    from scipy.stats import hypergeom  # takes a second to import

    wins, losses = (int((group == sign).sum() + (holdout == sign).sum()) for sign in (1, -1))
    decided = np.arange(len(group) + 1)  # pairs of the drawn ones that are not ties
    probability = hypergeom.pmf(decided, len(group) + len(holdout), wins + losses, len(group))
    decided, probability = decided[probability > 0], probability[probability > 0]
    needed = np.ceil((decided + group.sum()) / 2)  # wins among them for S ≥ s
    return float(min(1.0, probability @ hypergeom.sf(needed - 1, wins + losses, wins, decided)))
