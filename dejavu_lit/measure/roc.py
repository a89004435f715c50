"""How well a score tells members from non-members: AUC, TPR at a low FPR, ROC points, and the ε that an audit refutes.

AUC = P(member > non-member) + ½ P(equal), with the variance of DeLong, DeLong and Clarke-Pearson (Biometrics 1988)
TPR at FPR α: the share of members at or above the smallest threshold t with #{non-members ≥ t} / n ≤ α
ε ≥ the largest ε with P(Binomial(r, e^ε / (1 + e^ε)) ≥ W) ≤ 0.05, for W of r guesses right (Steinke, Nasr, Jagielski,
NeurIPS 2023; pure differential privacy)

A higher score means "member". A figure that cannot be measured is None, and ``reasons`` says why.
"""

from typing import Any

import numpy as np
from scipy.special import betaincinv, logit

FPRS = (0.01, 0.001)
RESAMPLES = 2000  # stratified, behind the interval of a TPR
ROC_POINTS = 40  # evenly spaced on a logarithmic axis of FPR
NORMAL_95 = 1.959963984540054
CONFIDENCE = 0.95  # of the bound on ε


class Auc:
    """The AUC of the scores of m ≥ 1 members against those of n ≥ 1 non-members, with its placements.

    ``members`` has for each member the share of non-members below it (ties count ½), ``others`` vice versa.
    """

    def __init__(self, members: np.ndarray, others: np.ndarray) -> None:
        self.members, self.others = _share_below(members, others), 1 - _share_below(others, members)
        self.value = float(self.members.mean())

    @property
    def se(self) -> float:
        """DeLong's standard error; NaN with fewer than two members or non-members."""
        return float(np.sqrt(_variance(self.members) + _variance(self.others)))

    def mean_with(self, other: "Auc") -> tuple[float, float]:
        """(mean, standard error) of two AUCs with different members and the same non-members, under different scores."""
        shared = np.cov(self.others, other.others)[0, 1] / len(self.others) if len(self.others) > 1 else np.nan
        variance = self.se**2 + other.se**2 + 2 * shared
        return (self.value + other.value) / 2, float(np.sqrt(max(variance, 0.0)) / 2)


def _share_below(scores: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """The share of ``rivals`` below each score; ties count ½."""
    ascending = np.sort(rivals)
    below, up_to = np.searchsorted(ascending, scores, "left"), np.searchsorted(ascending, scores, "right")
    return np.asarray((below + up_to) / (2 * len(rivals)))


def _variance(placements: np.ndarray) -> float:
    """The variance of their mean."""
    return float(placements.var(ddof=1) / len(placements)) if len(placements) > 1 else np.nan


def auc_figure(value: float, se: float) -> dict[str, Any]:
    """{value, se, ci95}: a normal interval within 0..1; None where the standard error is 0 or unknown."""
    if not se > 0:  # perfect separation, or one member
        return {"value": value, "se": None, "ci95": None}
    low, high = value - NORMAL_95 * se, value + NORMAL_95 * se
    return {"value": value, "se": se, "ci95": [max(low, 0.0), min(high, 1.0)]}


def unusable(members: np.ndarray, others: np.ndarray) -> str | None:
    """Why no figure can be computed from these scores; None if they can be used."""
    for scores, name in ((members, "member"), (others, "non-member")):
        if not len(scores):
            return f"there is no {name} with this score"
        if bad := int((~np.isfinite(scores)).sum()):
            return f"{bad} of {len(scores)} {name}s have a score that is not a finite number"
    if np.all(members == members[0]) and np.all(others == members[0]):
        return "all scores are equal"
    return None


def auc(members: np.ndarray, others: np.ndarray) -> tuple[dict[str, Any] | None, str | None]:
    """({value, se, ci95}, None) of the scores of members and of non-members, or (None, why not)."""
    if reason := unusable(members, others):
        return None, reason
    result = Auc(members, others)
    return auc_figure(result.value, result.se), None


def noted(reasons: dict[str, str], name: str, result: tuple[Any, str | None]) -> Any:
    """The figure of ``result``, (figure, None) or (None, why there is none); the reason is added to ``reasons``."""
    figure, reason = result
    if reason is not None:
        reasons[name] = reason
    return figure


def attack(members: np.ndarray, others: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """The figures of an attack, by the scores of members, float [m], and non-members, float [n]; higher means member.

    ``seed``: of the TPRs' resamples.

    Returns:
        {auc: {value, se, ci95}, tpr_at_fpr: {"0.01": {value, ci95}, "0.001": …}, reasons: {figure: why it is None}}.
    """
    reasons: dict[str, str] = {}
    tprs: dict[str, Any] = dict.fromkeys(map(str, FPRS))
    figure, reason = auc(members, others)
    if figure is None:
        return {"auc": None, "tpr_at_fpr": tprs, "reasons": {"auc": reason, "tpr_at_fpr": reason}}
    if figure["ci95"] is None:
        reasons["auc.ci95"] = "DeLong's variance is 0 where scores separate the two perfectly, and unknown for one pair"
    for fpr in FPRS:
        if len(others) * fpr < 1 - 1e-9:
            reasons[f"tpr_at_fpr.{fpr}"] = f"{len(others)} non-members are fewer than 1 / {fpr:g}"
        else:
            tprs[str(fpr)] = tpr_at(members, others, fpr, seed)
    return {"auc": figure, "tpr_at_fpr": tprs, "reasons": reasons}


def tpr_at(members: np.ndarray, others: np.ndarray, fpr: float, seed: int = 0) -> dict[str, Any]:
    """{value, ci95} of the TPR at ``fpr``, below 1, with a percentile interval over resamples of both classes.

    A resample of n sorted scores has the element ⌊n · U⌋ as its (j + 1)-th largest, with U ~ Beta(j + 1, n − j); the number of
    resampled members above it is binomial. So the resamples are drawn without resampling a single score.
    """
    m, n = len(members), len(others)
    descending, ascending = np.sort(others)[::-1], np.sort(members)
    allowed = int(fpr * n + 1e-9)

    def share_above(rank: np.ndarray | int) -> np.ndarray:
        """The share of members above the non-member of this rank, the largest one having rank 0."""
        return np.asarray((m - np.searchsorted(ascending, descending[rank], side="right")) / m)

    random = np.random.default_rng([seed, allowed])
    ranks = (n * random.beta(allowed + 1, n - allowed, RESAMPLES)).astype(np.int64)
    resampled = random.binomial(m, share_above(ranks)) / m
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": float(share_above(allowed)), "ci95": [float(low), float(high)]}


def roc_points(members: np.ndarray, others: np.ndarray) -> dict[str, list[float]]:
    """{fpr, tpr}: points of the ROC, evenly spaced on a logarithmic axis of FPR, from 0 and 1 / n to 1."""
    n, m = len(others), len(members)
    allowed = np.unique(np.concatenate([[0], np.geomspace(1, n, ROC_POINTS).round(), [n]])).astype(np.int64)
    thresholds = np.append(np.sort(others)[::-1], -np.inf)[allowed]
    fpr = (n - np.searchsorted(np.sort(others), thresholds, side="right")) / n
    tpr = (m - np.searchsorted(np.sort(members), thresholds, side="right")) / m
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}


def spearman(first: np.ndarray, second: np.ndarray) -> tuple[dict[str, Any] | None, str | None]:
    """({value, ci95, pairs}, None) for the rank correlation of n values, or (None, why not).

    The interval is Fisher's z with the standard error √((1 + ρ² / 2) / (n − 3)) of Bonett and Wright (Psychometrika 2000).
    """
    from scipy.stats import spearmanr  # takes a second to import, which recomputing without scores does not need

    n = len(first)
    if n < 4:
        return None, f"{n} pairs are too few for a rank correlation with an interval"
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return None, "a score is not a finite number"
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None, "one of the two scores is the same for all pairs"
    rho = float(np.clip(spearmanr(first, second).statistic, -1, 1))
    z, half = np.arctanh(np.clip(rho, -1 + 1e-15, 1 - 1e-15)), NORMAL_95 * np.sqrt((1 + rho**2 / 2) / (n - 3))
    return {"value": rho, "ci95": [float(np.tanh(z - half)), float(np.tanh(z + half))], "pairs": n}, None


def epsilon_bound(right: int, guesses: int, confidence: float = CONFIDENCE) -> float:
    """The lower bound on ε from ``right`` of ``guesses`` right; 0 if they refute nothing."""
    if right < 1:
        return 0.0
    # P(Binomial(r, p) ≥ W) = I_p(W, r − W + 1), which rises with p.
    return max(0.0, float(logit(betaincinv(right, guesses - right + 1, 1 - confidence))))


def audit(members: np.ndarray, others: np.ndarray, order: np.ndarray, share: float = 0.1) -> dict[str, Any]:
    """The one-run audit of a training: {epsilon, guesses, right, pairs, share, confidence}.

    The extreme ``share`` at each end of the ranking is guessed.

    Args:
        members, others: equally many scores of pairs that a fair coin put into training or not.
        order: integers [2 m] that put equal scores in an order that does not depend on membership.
    """
    scores = np.concatenate([members, others])
    is_member = np.arange(len(scores)) < len(members)
    ranking = np.lexsort((order, -scores))
    count = max(1, round(share * len(scores)))
    right = int(is_member[ranking[:count]].sum() + (~is_member[ranking[-count:]]).sum())
    return {
        "epsilon": epsilon_bound(right, 2 * count),
        "guesses": 2 * count,
        "right": right,
        "pairs": len(scores),
        "share": share,
        "confidence": CONFIDENCE,
    }
