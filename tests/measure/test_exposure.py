import numpy as np
import pytest
from scipy import stats

from dejavu_lit.measure.exposure import exposure_levels, gaps_by_exposure, spearman
from dejavu_lit.measure.gaps import Outcomes
from dejavu_lit.utils.errors import UserError


def test_the_gap_rises_with_exposure() -> None:
    rng = np.random.default_rng(0)
    times = np.repeat([1, 4, 16], [600, 200, 100])
    exposure = 20 * times - rng.integers(0, 3, 900)  # an epoch skips a few pairs
    truth = np.full(900, 4)
    hits = rng.binomial(4, 0.3 + 0.2 * np.log(times) / np.log(16)) - rng.binomial(4, 0.3, 900)
    got = gaps_by_exposure(Outcomes(np.sign(hits), np.sign(hits), hits, truth), exposure)
    assert [level["records"] for level in got["levels"]] == [600, 200, 100]
    assert [round(level["exposure"] / 20) for level in got["levels"]] == [1, 4, 16]
    assert [level["low"] for level in got["levels"]] == [18, 78, 318]
    for name in ("ppg", "prg", "aucg"):
        values = [level[name]["value"] for level in got["levels"]]
        assert values == sorted(values)
    first = got["levels"][0]
    assert first["hits"] == hits[:600].mean()
    assert first["ppg"]["value"] == pytest.approx(np.sign(hits[:600]).mean())
    assert first["aucg"]["value"] == pytest.approx(hits[:600].mean() / 4)
    peer = stats.spearmanr(exposure, hits)
    assert got["spearman"]["hits"]["rho"] == pytest.approx(peer.statistic)
    assert got["spearman"]["hits"]["p"] == pytest.approx(peer.pvalue, rel=1e-6)


def test_levels_by_hand() -> None:
    assert exposure_levels(np.array([30, 0, 10, 15, 16, 0, 24, 25])).tolist() == [3, 0, 1, 1, 2, 0, 2, 3]


def test_spearman_of_extremes() -> None:
    assert spearman(np.arange(5), np.arange(5) ** 3) == pytest.approx({"rho": 1.0, "p": 0.0})
    assert spearman(np.arange(5), np.zeros(5)) == {"rho": None, "p": None}
    assert spearman(np.arange(3), np.arange(3))["rho"] == pytest.approx(1)
    assert spearman(np.arange(2), np.arange(2))["rho"] is None


def test_mistakes_are_named() -> None:
    outcomes = Outcomes(*np.ones((4, 3), int))
    assert gaps_by_exposure(outcomes, np.array([10, 11, 12, 12])) is None
    with pytest.raises(UserError, match="a number of at least 0"):
        gaps_by_exposure(outcomes, np.array([1, np.nan, 2, 3]))
