"""The population-level gaps of target against reference, PPG, PRG and AUCG, with their uncertainty.

PPG  = ( #{prec_T > prec_R} − #{prec_T < prec_R} ) / n           PRG = the same with recall
AUCG = the signed area between P(recall_T ≥ x) and P(recall_R ≥ x), which is mean(recall_T) − mean(recall_R)
(Jayaraman, Guo, Chaudhuri, NeurIPS 2024, arXiv 2402.02103; the paper's mean ± std is over 100 draws of 10 % of the records)

Fractions are compared as integers, and AUCG is an exact fraction rounded once, so no figure depends on the order of records.
"""

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

import numpy as np

from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.measure.scores import Scores
from dejavu_lit.measure.settings import Resampling
from dejavu_lit.utils.errors import UserError

MULTINOMIAL_CELLS = 2_000_000  # counts drawn at once by one resampling step: 16 MB


@dataclass(frozen=True)
class Outcomes:
    """Which model wins each record that has objects, int64 [n] each.

    precision, recall: the sign of target − reference; hits: hits_T − hits_R; truth: |G|. The difference of two outcomes
    (``a − b``, the same records under two settings) has the same fields.
    """

    precision: np.ndarray
    recall: np.ndarray
    hits: np.ndarray
    truth: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, records: slice | np.ndarray) -> "Outcomes":
        return Outcomes(*(getattr(self, field.name)[records] for field in fields(self)))

    def __sub__(self, other: "Outcomes") -> "Outcomes":
        if not np.array_equal(self.truth, other.truth):
            raise UserError("only the same records with the same objects can be compared pair by pair")
        return Outcomes(
            self.precision - other.precision, self.recall - other.recall, self.hits - other.hits, self.truth
        )

    def values(self) -> np.ndarray:
        """The per-record values whose means are PPG, PRG and AUCG: the two signs and the recall difference, float64 [n, 3]."""
        return np.stack([self.precision, self.recall, self.hits / self.truth], axis=1).astype(np.float64)

    def tally(self) -> tuple["Outcomes", np.ndarray]:
        """The distinct outcomes in a fixed order, and the number of records with each, int64 [distinct]."""
        # One integer per record sorts far faster than rows of four: signs are within ±2, hits within ±2 |G|.
        largest = int(self.truth.max(initial=1))
        code = ((self.precision + 2) * 5 + self.recall + 2) * (4 * largest + 1) + self.hits + 2 * largest
        code, counts = np.unique(code * (largest + 1) + self.truth, return_counts=True)
        code, truth = np.divmod(code, largest + 1)
        code, hits = np.divmod(code, 4 * largest + 1)
        return Outcomes(code // 5 - 2, code % 5 - 2, hits - 2 * largest, truth), counts


def outcomes(target: Scores, reference: Scores, k: int) -> Outcomes:
    """Compare two models' scores of the same records at ``k``; records without objects are excluded.

    Precisions are compared as hits_T · |Ô_R| against hits_R · |Ô_T|, never as rounded quotients. Raises UserError for scores of
    different records, and for a ``k`` that was not scored.
    """
    if not np.array_equal(target.truth, reference.truth):
        raise UserError("target and reference were scored on different records; score both on the same ones")
    rows = target.has_objects
    hits_t, hits_r = (s.hits[rows, s.column(k)].astype(np.int64) for s in (target, reference))
    size_t, size_r = (np.maximum(s.predicted[rows, s.column(k)], 1).astype(np.int64) for s in (target, reference))
    return Outcomes(
        np.sign(hits_t * size_r - hits_r * size_t),
        np.sign(hits_t - hits_r),
        hits_t - hits_r,
        target.truth[rows].astype(np.int64),
    )


@dataclass(frozen=True)
class Estimate:
    """The three figures, in the order of ``FIGURES``, with their resamples; ``block`` gives their entry in metrics.json.

    value, closed_form_std, se: float64 [3]; draws: [draws, 3]; bootstrap: [bootstrap, 3]; wins, losses: int [3], or None if
    the figures combine several sets.
    """

    value: np.ndarray
    draws: np.ndarray
    bootstrap: np.ndarray
    closed_form_std: np.ndarray
    se: np.ndarray
    wins: np.ndarray | None = None
    losses: np.ndarray | None = None

    def combine(self, other: "Estimate", weight: float, other_weight: float) -> "Estimate":
        """weight · self + other_weight · other, for two sets that were resampled independently."""
        return Estimate(
            weight * self.value + other_weight * other.value,
            weight * self.draws + other_weight * other.draws,
            weight * self.bootstrap + other_weight * other.bootstrap,
            np.hypot(weight * self.closed_form_std, other_weight * other.closed_form_std),
            np.hypot(weight * self.se, other_weight * other.se),
        )

    def interval(self, figure: int) -> tuple[float, float]:
        """The 95 % percentile interval of one figure."""
        low, high = np.quantile(self.bootstrap[:, figure], [0.025, 0.975])
        return float(low), float(high)

    def block(self) -> dict[str, dict[str, Any]]:
        """{figure: {value, mean, std, ci95, closed_form_std, se[, sign_test{p, wins, losses}]}}."""
        block: dict[str, dict[str, Any]] = {}
        for i, figure in enumerate(FIGURES):
            block[figure] = {
                "value": float(self.value[i]),
                "mean": float(self.draws[:, i].mean()),
                "std": float(self.draws[:, i].std()),
                "ci95": list(self.interval(i)),
                "closed_form_std": float(self.closed_form_std[i]),
                "se": float(self.se[i]),
            }
            if self.wins is not None and self.losses is not None:
                wins, losses = int(self.wins[i]), int(self.losses[i])
                block[figure]["sign_test"] = {"p": sign_test(wins, losses), "wins": wins, "losses": losses}
        return block


def estimate(records: Outcomes, resampling: Resampling | None = None, stream: int = 0) -> Estimate:
    """PPG, PRG and AUCG of n records, with the paper's draws and a bootstrap; raises UserError without records.

    Records are resampled by a multinomial draw over the distinct outcomes: the same distribution, at a cost that does not
    grow with n. The standard deviation in closed form is sd(d) / √m for m records per draw; ``se`` is sd(d) / √n.
    ``stream``: the independent random stream; each set of one evaluation has its own.
    """
    if not len(records):
        raise UserError("no record has an object, so there is nothing to measure; lower threshold= or check objects=")
    resampling = resampling or Resampling()
    distinct, counts = records.tally()
    n, sample, values = len(records), max(1, round(resampling.share * len(records))), distinct.values()
    random = np.random.default_rng([resampling.seed, stream])
    recall_gap = mean_recall_gap(distinct.hits * counts, distinct.truth, n)
    value = np.array([distinct.precision @ counts / n, distinct.recall @ counts / n, recall_gap])
    differences = np.stack([distinct.precision, distinct.recall, distinct.hits])
    sd = np.sqrt(counts @ (values - value) ** 2 / n)
    return Estimate(
        value,
        _resample(random, values, counts, sample, resampling.draws),
        _resample(random, values, counts, n, resampling.bootstrap),
        sd / np.sqrt(sample),
        sd / np.sqrt(n),
        (differences > 0) @ counts,
        (differences < 0) @ counts,
    )


def mean_recall_gap(hits: np.ndarray, truth: np.ndarray, n: int) -> float:
    """Σ hits[i] / truth[i] / n as an exact fraction, rounded once; hits and truth are integers [groups], truth ≥ 1."""
    total = sum((Fraction(int(h), int(g)) for h, g in zip(hits, truth, strict=True)), Fraction(0))
    return float(total / n)


def _resample(random: np.random.Generator, values: np.ndarray, counts: np.ndarray, size: int, draws: int) -> np.ndarray:
    """The means of ``draws`` samples of ``size`` records with replacement, float64 [draws, 3]."""
    n, at_once = counts.sum(), max(1, MULTINOMIAL_CELLS // len(counts))
    means = np.empty((draws, values.shape[1]))
    for start in range(0, draws, at_once):
        stop = min(start + at_once, draws)
        times = random.multinomial(size, counts / n, size=stop - start)
        # einsum without BLAS: the same sums in the same order on any number of threads.
        means[start:stop] = np.einsum("dc,cf->df", times, values, optimize=False) / size
    return means


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of wins against losses under even odds, without ties; 1 if there are no wins and no losses."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
