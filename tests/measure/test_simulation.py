"""Simulations of what the statistics promise: coverage of the intervals and false alarms of "found" where nothing is remembered.

The seeds are fixed, and the bounds are about four standard errors of the simulation away from the expected values.
"""

import re
from typing import Any

import numpy as np
import pytest

from dejavu_lit.measure.controls import blocks, memorization_found, pool_blocks
from dejavu_lit.measure.figures import BLOCKS, FIGURES
from dejavu_lit.measure.gaps import Outcomes
from dejavu_lit.measure.settings import Resampling
from tests.conftest import ROOT
from tests.measure.simulation import CASES, PAIRS, SE, Studies, rates, studies


@pytest.fixture(scope="module")
def simulated() -> list[dict[str, float]]:
    """The rates of 200,000 studies a row."""
    return rates()


def evaluation(population: float, null: float, swapped: float) -> dict[str, Any]:
    """A metrics.json of these values, with the intervals that go with record noise of standard deviation SE."""
    values = (population, null, swapped, (population + swapped) / 2, population - null)
    sizes = (SE, SE, SE, SE / np.sqrt(2), SE * np.sqrt(2))
    return {
        block: {f: {"value": v, "se": se, "ci95": [v - 1.959964 * se, v + 1.959964 * se]} for f in FIGURES}
        for block, v, se in zip(BLOCKS, values, sizes, strict=True)
    }


def evaluations(batch: Studies, study: int) -> list[dict[str, Any]]:
    """One study as the contents of its metrics.json files."""
    sets = (batch.population[study], batch.null[study], batch.swapped[study])
    return [evaluation(*values) for values in zip(*map(np.ndarray.tolist, sets), strict=True)]


@pytest.mark.parametrize("pairs", PAIRS)
def test_the_simulation_follows_the_rule_of_the_package(pairs: int) -> None:
    # A wide spread, so that every condition holds in some studies and fails in others.
    batch = studies(np.random.default_rng(pairs), 250, pairs, 0.03, 0.04)
    verdicts = [memorization_found(evaluations(batch, study)) for study in range(250)]
    for condition in ("above_zero", "one_sign", "corrected", "found"):
        expected = getattr(batch, condition)
        assert [bool(each[condition]) for each in verdicts] == expected.tolist()  # null: it cannot be said
        assert 0 < expected.sum() < 250


def test_the_interval_alone_keeps_its_false_alarms(simulated: list[dict[str, float]]) -> None:
    for row in simulated:
        if row["pairs"] >= 3 or not row["spread"]:
            assert 0.015 < row["interval"] < 0.035, row
            assert 0.93 < row["covers"] < 0.97, row


def test_the_whole_rule_is_stricter_than_the_interval(simulated: list[dict[str, float]]) -> None:
    for row in simulated:
        assert row["found"] < row["interval"], row
        if row["pairs"] >= 3 or not row["spread"]:
            assert row["found"] < 0.035, row
    # The larger the shift of quality, the more rarely both directions have one sign by chance.
    for pairs in PAIRS:
        rarer = [row["found"] for row in simulated if row["pairs"] == pairs and not row["spread"]]
        assert rarer == sorted(rarer, reverse=True)


def test_one_seed_pair_promises_less(simulated: list[dict[str, float]]) -> None:
    # Its interval knows the noise of records alone: what training adds to the symmetric gap raises its false alarms.
    alone = {row["spread"]: row for row in simulated if row["pairs"] == 1 and row["shift"] == 0.1}
    assert alone[0.0]["interval"] < 0.035 < alone[0.01]["interval"] < alone[0.04]["interval"]
    assert alone[0.04]["found"] > 0.035


def test_the_table_of_the_documentation_is_this_simulation(simulated: list[dict[str, float]]) -> None:
    text = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")
    number = r"\| ([\d.]+) "
    documented = re.findall(rf"^{number}{number}{number}\| ([\d.]+) % \| ([\d.]+) % \|$", text, re.MULTILINE)
    assert len(documented) == len(simulated) == len(CASES) * len(PAIRS)
    for line, row in zip(documented, simulated, strict=True):
        shift, spread, pairs, interval, found = map(float, line)
        assert (shift, spread, pairs) == (row["shift"], row["spread"], row["pairs"])
        assert interval == pytest.approx(100 * row["interval"], abs=0.4)
        assert found == pytest.approx(100 * row["found"], abs=0.4)


def records(random: np.random.Generator, shift: float, n: int = 300) -> Outcomes:
    """n records with one or two objects; the models differ by ``shift`` in quality and remember nothing."""
    truth = random.integers(1, 3, n)
    more = (1 + np.clip(shift, -0.9, 0.9)) / 2
    hits = np.where(random.random(n) < 0.6, np.where(random.random(n) < more, 1, -1), 0) * random.integers(1, truth + 1)
    sign = np.sign(hits)
    return Outcomes(np.where(random.random(n) < 0.1, 0, sign), sign, hits, truth)


def test_intervals_cover_the_truth_where_nothing_is_remembered() -> None:
    random = np.random.default_rng(11)
    covered = {block: np.zeros(len(FIGURES)) for block in BLOCKS}
    count = 1500
    for study in range(count):
        sets = [records(random, 0.0) for _ in range(3)]
        for name, estimate in blocks(*sets, Resampling(draws=2, bootstrap=500, seed=study)).items():
            assert estimate is not None
            low, high = np.array([estimate.interval(figure) for figure in range(len(FIGURES))]).T
            covered[name] += (low <= 0) & (high >= 0)
    # The three sets have one distribution here, so they are three times as many studies of the same.
    rates = {name: covered[name] / count for name in ("symmetric", "corrected")}
    rates["one set"] = (covered["population"] + covered["null"] + covered["swapped"]) / (3 * count)
    for name, rate in rates.items():
        assert (rate > 0.93).all(), (name, rate)
        assert (rate < 0.97).all(), (name, rate)


@pytest.mark.parametrize(
    ("pairs", "count"),
    [
        (1, 500),
        pytest.param(3, 6000, marks=pytest.mark.slow),
        pytest.param(5, 6000, marks=pytest.mark.slow),
    ],
)
def test_false_alarms_of_whole_studies(pairs: int, count: int) -> None:
    # From records to the sentence: resampling, pooling and the rule as they are used.
    random = np.random.default_rng([pairs, count])
    interval = alarms = 0
    for study in range(count):
        each = []
        for shift in random.normal(0, 0.03, pairs):
            sets = (records(random, shift), records(random, shift), records(random, -shift))
            # Over three seed pairs and more the interval is the t interval, and the bootstrap is not used.
            five_blocks = blocks(*sets, Resampling(draws=2, bootstrap=1000 if pairs < 3 else 100, seed=study))
            each.append({name: estimate.block() if estimate else None for name, estimate in five_blocks.items()})
        verdict = memorization_found(each)
        interval += verdict["above_zero"]
        alarms += bool(verdict["found"])
    few = 4 * np.sqrt(0.025 * 0.975 / count)  # four standard errors of the simulation
    assert 0.025 - few < interval / count < 0.025 + few
    assert 0 < alarms / count < 0.035


def test_t_intervals_of_pooled_figures_cover() -> None:
    batch = studies(np.random.default_rng(3), 2500, 3, 0.05)
    covered = np.zeros(len(BLOCKS))
    for study in range(2500):
        pooled = pool_blocks(evaluations(batch, study))
        intervals = [pooled[block]["ppg"]["ci95"] for block in BLOCKS]
        covered += [low <= 0 <= high for low, high in intervals]
    # population, null and swapped too: over seeds the shift of quality has the mean 0.
    assert (covered / 2500 > 0.93).all()
    assert (covered / 2500 < 0.97).all()
