"""Counterfactual memorization against plain loops and known answers."""

import numpy as np
import pytest

from dejavu_lit.measure.memorization import counterfactual, reliability


def test_means_and_errors_against_plain_loops() -> None:
    random = np.random.default_rng(0)
    inside, outside = random.normal(size=(5, 30)), random.normal(size=(5, 30))
    inside[0, :10], outside[1, 5:15] = np.nan, np.nan
    inside[:, 29] = np.nan
    inside[1:, 28] = np.nan
    made = counterfactual(inside, outside)
    for pair in range(30):
        kept = [r for r in range(5) if np.isfinite(inside[r, pair]) and np.isfinite(outside[r, pair])]
        differences = [inside[r, pair] - outside[r, pair] for r in kept]
        assert made.halves[pair] == len(kept)
        if not kept:
            assert np.isnan(made.difference[pair])
            continue
        assert made.difference[pair] == pytest.approx(np.mean(differences))
        assert made.inside[pair] == pytest.approx(np.mean([inside[r, pair] for r in kept]))
        if len(kept) > 1:
            assert made.se[pair] == pytest.approx(np.std(differences, ddof=1) / np.sqrt(len(kept)))
        else:
            assert np.isnan(made.se[pair])


def test_reliability_of_a_ranking_is_the_correlation_of_all_halves_with_as_many_others() -> None:
    random = np.random.default_rng(1)
    truth = random.normal(size=4000)
    inside, outside = truth + random.normal(size=(8, 4000)), np.zeros((8, 4000))
    value, reason = reliability(inside, outside)
    assert reason is None
    # The mean of 8 draws with noise of variance 1 has the reliability 1 / (1 + 1 / 8).
    assert value == pytest.approx(8 / 9, abs=0.03)
    noise, _ = reliability(random.normal(size=(8, 4000)), outside)
    assert noise == pytest.approx(0, abs=0.1)
    assert reliability(inside[:2], outside[:2])[0] == pytest.approx(2 / 3, abs=0.04)  # 1 / (1 + 1 / 2)
    assert "1 half cannot be split" in str(reliability(inside[:1], outside[:1])[1])
    assert "same for all" in str(reliability(outside, outside)[1])
    opposite = np.stack([truth, -truth] * 4)  # a negative correlation stays what it is
    assert reliability(opposite, outside)[0] == pytest.approx(-1)
