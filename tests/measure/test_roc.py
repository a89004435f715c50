"""The attack figures against scikit-learn, bootstraps and simulations, and cases by hand."""

import numpy as np
import pytest
from scipy.stats import binom, norm, spearmanr

from dejavu_lit.measure.roc import Auc, attack, audit, epsilon_bound, roc_points, spearman, tpr_at


def two_sets(seed: int, m: int, n: int, shift: float, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    members, others = random.normal(shift, 1, m), random.normal(0, 1, n)
    return (members.round(), others.round()) if ties else (members, others)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("m", "n", "shift"), [(50, 80, 0.5), (1000, 3000, 2.0), (7, 5, 0.0)])
def test_auc_and_tpr_against_scikit_learn(m: int, n: int, shift: float, ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    members, others = two_sets(1, m, n, shift, ties)
    truth, scores = np.repeat([1, 0], [m, n]), np.concatenate([members, others])
    assert Auc(members, others).value == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    for level in (0.001, 0.01, 0.2):
        assert tpr_at(members, others, level)["value"] == tpr[fpr <= level + 1e-12].max()
    points = roc_points(members, others)
    assert points["fpr"][0] == 0
    assert points["tpr"][-1] == points["fpr"][-1] == 1
    for x, y in zip(points["fpr"], points["tpr"], strict=True):
        assert y == tpr[fpr <= x + 1e-12].max()


def test_by_hand() -> None:
    members, others = np.array([3.0, 2.0, 2.0]), np.array([2.0, 1.0])
    # Pairs: 3 beats both, each 2 beats the 1 and ties with the 2: (2 + 1.5 + 1.5) / 6.
    assert Auc(members, others).value == pytest.approx(5 / 6)
    assert Auc(members, others).members.tolist() == [1, 0.75, 0.75]
    assert Auc(members, others).others.tolist() == pytest.approx([2 / 3, 1])
    hundred = np.arange(100.0)
    assert tpr_at(np.array([98.5, 99.5, 97.0]), hundred, 0.01)["value"] == pytest.approx(2 / 3)  # above 98 is allowed
    assert tpr_at(np.array([98.0, 98.5]), hundred, 0.01)["value"] == 0.5


@pytest.mark.parametrize(("shift", "ties"), [(0.3, False), (1.5, True)])
def test_delong_against_bootstraps(shift: float, ties: bool) -> None:
    members, others = two_sets(2, 300, 200, shift, ties)
    random = np.random.default_rng(0)
    draws = [Auc(random.choice(members, 300), random.choice(others, 200)).value for _ in range(10_000)]
    assert Auc(members, others).se == pytest.approx(np.std(draws), rel=0.04)


def test_the_interval_of_a_tpr_is_that_of_stratified_resamples() -> None:
    members, others = two_sets(3, 500, 1000, 1.0)
    random = np.random.default_rng(1)
    draws = []
    for _ in range(4000):
        drawn = np.sort(random.choice(others, 1000))[::-1]
        draws.append((random.choice(members, 500) > drawn[10]).mean())
    assert tpr_at(members, others, 0.01)["ci95"] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
def test_coverage_of_delongs_interval(shift: float) -> None:
    truth, hits = norm.cdf(shift / np.sqrt(2)), 0
    for seed in range(2000):
        low, high = attack(*two_sets(seed, 150, 200, shift), seed)["auc"]["ci95"]
        hits += low <= truth <= high
    assert 0.93 <= hits / 2000 <= 0.97


def test_coverage_of_the_mean_of_two_directions_that_share_their_non_members() -> None:
    """The scores of H under one model are nearly those under the other, reversed, as for a calibrated score."""
    truth, hits, independent = norm.cdf(1 / np.sqrt(2)), 0, []
    for seed in range(1500):
        random = np.random.default_rng(seed)
        a, b, h = random.normal(1, 1, 150), random.normal(1, 1, 150), random.normal(0, 1, 100)
        first, second = Auc(a, h), Auc(b, -h)
        mean, se = first.mean_with(second)
        hits += abs(mean - truth) <= 1.96 * se
        independent.append(np.hypot(first.se, second.se) / 2 / se)
    assert 0.93 <= hits / 1500 <= 0.97
    assert np.mean(independent) > 1.1  # without the covariance the interval would be too wide


def test_what_cannot_be_measured_has_a_reason() -> None:
    some = np.arange(50.0)
    assert "no member" in attack(np.zeros(0), some)["reasons"]["auc"]
    assert "no non-member" in attack(some, np.zeros(0))["reasons"]["auc"]
    assert "all scores are equal" in attack(np.ones(9), np.ones(8))["reasons"]["auc"]
    assert "1 of 50 members" in attack(np.where(some == 3, np.nan, some), some)["reasons"]["auc"]
    few = attack(some + 1, some)
    assert few["tpr_at_fpr"] == {"0.01": None, "0.001": None}
    assert "fewer than 1 / 0.01" in few["reasons"]["tpr_at_fpr.0.01"]
    apart = attack(some + 100, some)
    assert apart["auc"] == {"value": 1.0, "se": None, "ci95": None}
    assert "auc.ci95" in apart["reasons"]
    assert attack(some[:1], some)["auc"]["ci95"] is None
    thousand = attack(some, np.arange(1000.0))
    assert thousand["tpr_at_fpr"]["0.001"] is not None


def test_spearman_and_its_interval() -> None:
    random = np.random.default_rng(0)
    first = random.normal(size=400)
    second = first + random.normal(size=400)
    figure, reason = spearman(first, second)
    assert reason is None
    assert figure is not None
    assert figure["value"] == pytest.approx(spearmanr(first, second).statistic)
    assert figure["ci95"][0] < figure["value"] < figure["ci95"][1]
    assert spearman(first, np.ones(400))[1] == "one of the two scores is the same for all pairs"
    assert "too few" in str(spearman(first[:3], second[:3])[1])
    hits = 0
    for seed in range(1000):
        pair = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 100)
        made = spearman(pair[:, 0], pair[:, 1])[0]
        assert made is not None
        hits += made["ci95"][0] <= 6 / np.pi * np.arcsin(0.3) <= made["ci95"][1]
    assert 0.92 <= hits / 1000 <= 0.98


def test_the_bound_on_epsilon_is_the_largest_that_is_refuted() -> None:
    for right, guesses in ((800, 800), (520, 800), (400, 800), (0, 800), (1, 1)):
        bound = epsilon_bound(right, guesses)
        p = np.exp(bound) / (1 + np.exp(bound))
        if bound > 0:
            assert binom.sf(right - 1, guesses, p) == pytest.approx(0.05)
        else:
            assert binom.sf(right - 1, guesses, 0.5) > 0.05
    assert epsilon_bound(800, 800) == pytest.approx(5.6, abs=0.05)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_the_bound_is_valid_for_randomized_response(epsilon: float) -> None:
    """Each pair's score tells its coin with the odds e^ε: the bound may exceed ε in 5 % of the runs."""
    above = 0
    for seed in range(1000):
        random = np.random.default_rng(seed)
        honest = random.random(400) < np.exp(epsilon) / (1 + np.exp(epsilon))
        scores = np.where(np.repeat([True, False], 200) == honest, 1.0, 0.0)
        above += audit(scores[:200], scores[200:], random.permutation(400))["epsilon"] > epsilon
    assert above <= 50


def test_equal_scores_are_guessed_by_the_given_order_not_by_membership() -> None:
    ones = np.ones(100)
    order = np.random.default_rng(0).permutation(200)
    chance = audit(ones, ones, order)
    assert chance["guesses"] == 40
    assert 10 <= chance["right"] <= 30
    assert chance["epsilon"] == 0
    assert audit(ones + 1, ones, order)["right"] == 40
