"""LiRA and RMIA against plain loops, and Gaussians whose answer is known."""

import json

import numpy as np
import pytest
from scipy.stats import norm

from dejavu_lit.measure.shadow import lira, rmia, shadow_attacks


def test_lira_against_plain_gaussians() -> None:
    random = np.random.default_rng(0)
    loss, inside, outside = random.normal(size=40), random.normal(1, 1, (3, 40)), random.normal(0, 2, (3, 40))
    made = lira(loss, inside, outside)
    deviations = {}
    for name, shadows in (("in", inside), ("out", outside)):
        deviations[name] = np.sqrt(np.mean([np.var(shadows[:, i], ddof=1) for i in range(40)]))
    for i in range(40):
        p_in = norm.logpdf(loss[i], np.mean(inside[:, i]), deviations["in"])
        p_out = norm.logpdf(loss[i], np.mean(outside[:, i]), deviations["out"])
        assert made[i] == pytest.approx(p_in - p_out)


def test_rmia_against_plain_loops() -> None:
    random = np.random.default_rng(1)
    loss, inside, outside = random.normal(size=20), random.normal(1, 1, (3, 20)), random.normal(0, 1, (3, 20))
    population, shadows = random.normal(size=50), random.normal(size=(6, 50))
    made = rmia(loss, inside, outside, population, shadows)
    for i in range(20):
        p_x = np.mean(np.exp([*inside[:, i], *outside[:, i]]))
        dominated = 0
        for z in range(50):
            dominated += np.exp(loss[i]) / p_x >= np.exp(population[z]) / np.mean(np.exp(shadows[:, z]))
        assert made[i] == pytest.approx(dominated / 50)


def halves(count: int, shift: float, spread: float, n: int = 2000) -> tuple[np.ndarray, ...]:
    """Losses N(difficulty + shift, 1) of members and N(difficulty, 1) of the others; pairs differ by ``spread``."""
    random = np.random.default_rng(2)
    difficulty = random.normal(0, spread, n)
    inside = difficulty + shift + random.normal(size=(count, n))
    outside = difficulty + random.normal(size=(count, n))
    is_in_a = np.array([random.permutation(n) < n // 2 for _ in range(count)])
    return inside, outside, is_in_a, random.normal(0, spread, 300) + random.normal(size=(count, 2, 300))


def test_gaussians_with_a_known_answer() -> None:
    """With many shadows the ratio is that of N(d + 2, 1) and N(d, 1): AUC Φ(2 / √2), whatever the pairs' difficulty d."""
    board, reason = shadow_attacks(*halves(40, 2.0, 5.0))
    assert reason is None
    assert board is not None
    json.dumps(board, allow_nan=False)
    assert board["lira"]["auc"]["mean"] == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.01)
    assert board["lira"]["tpr_at_fpr"]["0.01"]["mean"] == pytest.approx(norm.sf(norm.isf(0.01) - 2), abs=0.04)
    assert len(board["lira"]["auc"]["values"]) == 40
    # Without shadows the difficulty hides the shift: Φ(2 / √(2 + 2 · 25)) = 0.61.
    assert board["rmia"]["auc"]["mean"] > 0.75


@pytest.mark.parametrize("name", ["lira", "rmia"])
def test_every_model_is_attacked_without_its_own_half(name: str) -> None:
    """Pair by pair: the models of the half that is attacked are in no mean, variance or population."""
    inside, outside, is_in_a, population = halves(4, 1.0, 1.0, 40)
    population = population[:, :, :30]
    aucs = []
    for half in range(4):
        others = [h for h in range(4) if h != half]
        for side in range(2):
            scores: dict[bool, list[float]] = {True: [], False: []}
            variance = {
                at: np.mean([np.var([table[h, i] for h in others], ddof=1) for i in range(40)])
                for at, table in (("in", inside), ("out", outside))
            }
            for i in range(40):
                is_member = bool(is_in_a[half, i]) == (side == 0)
                loss = inside[half, i] if is_member else outside[half, i]
                shadows = {"in": [inside[h, i] for h in others], "out": [outside[h, i] for h in others]}
                if name == "lira":
                    logs = [norm.logpdf(loss, np.mean(shadows[at]), np.sqrt(variance[at])) for at in ("in", "out")]
                    scores[is_member].append(logs[0] - logs[1])
                else:
                    ratio = np.exp(loss) / np.mean(np.exp([*shadows["in"], *shadows["out"]]))
                    means = [
                        np.mean([np.exp(population[h, s, z]) for h in others for s in range(2)]) for z in range(30)
                    ]
                    shares = [ratio >= np.exp(population[half, side, z]) / means[z] for z in range(30)]
                    scores[is_member].append(float(np.mean(shares)))
            wins = [(a > b) + (a == b) / 2 for a in scores[True] for b in scores[False]]
            aucs.append(np.mean(wins))
    board, _ = shadow_attacks(inside, outside, is_in_a, population)
    assert board is not None
    assert board[name]["auc"]["values"] == pytest.approx(np.reshape(aucs, (4, 2)).mean(axis=1).tolist())


def test_models_of_nothing_are_not_told_apart() -> None:
    board, _ = shadow_attacks(*halves(6, 0.0, 1.0))
    assert board is not None
    for name in ("lira", "rmia"):
        assert board[name]["auc"]["mean"] == pytest.approx(0.5, abs=0.02)


def test_what_cannot_be_measured_has_a_reason() -> None:
    inside, outside, is_in_a, population = halves(4, 1.0, 1.0, 60)
    assert "3 halves are fewer than the 4" in str(
        shadow_attacks(inside[:3], outside[:3], is_in_a[:3], population[:3])[1]
    )
    assert "no pair has a finite loss" in str(shadow_attacks(inside * np.nan, outside, is_in_a, population)[1])
    one_sided = np.where(np.arange(4)[:, None] == 2, True, is_in_a)
    assert "half 2 dealt all pairs" in str(shadow_attacks(inside, outside, one_sided, population)[1])
    board, _ = shadow_attacks(inside, outside, is_in_a, population)
    assert board is not None
    assert board["lira"]["tpr_at_fpr"] == {"0.01": None, "0.001": None}
