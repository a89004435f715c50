import re
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dejavu_lit.measure.controls import (
    beats_blind,
    blind_baseline,
    blocks,
    compare_settings,
    few_records_sentence,
    memorization_found,
    pool_blocks,
)
from dejavu_lit.measure.figures import BLOCKS, FIGURES
from dejavu_lit.measure.gaps import Outcomes, estimate, outcomes
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.scores import Neighbors
from dejavu_lit.measure.settings import Resampling
from dejavu_lit.utils.errors import UserError
from tests.measure.oracle import Case, objects


def signs(rng: np.random.Generator, shift: float, n: int = 400) -> Outcomes:
    """n records whose signs have mean ``shift``; |G| = 2 and hits follow the sign."""
    sign = np.where(rng.random(n) < (1 + shift) / 2, 1, -1) * (rng.random(n) < 0.8)
    return Outcomes(sign, sign, sign, np.full(n, 2))


def evaluation(population: float, null: float | None, swapped: float | None, half: float = 0.02) -> dict[str, Any]:
    """A metrics.json of chosen values, ±``half`` as its intervals."""
    symmetric = None if swapped is None else (population + swapped) / 2
    values = dict(
        zip(BLOCKS, (population, null, swapped, symmetric, None if null is None else population - null), strict=True)
    )
    return {
        name: None if v is None else {f: {"value": v, "se": half / 2, "ci95": [v - half, v + half]} for f in FIGURES}
        for name, v in values.items()
    }


def test_blocks_follow_their_definitions() -> None:
    rng = np.random.default_rng(0)
    a, h, b = (signs(rng, shift) for shift in (0.6, 0.1, 0.3))
    got = blocks(a, h, b, Resampling())
    value = {name: e.value for name, e in got.items() if e}
    np.testing.assert_array_equal(value["symmetric"], (value["population"] + value["swapped"]) / 2)
    np.testing.assert_array_equal(value["corrected"], value["population"] - value["null"])
    # Resampled independently: variances add.
    se = {name: e.se for name, e in got.items() if e}
    np.testing.assert_allclose(
        got["corrected"].bootstrap.std(axis=0), np.hypot(se["population"], se["null"]), rtol=0.08
    )
    np.testing.assert_allclose(se["symmetric"], np.hypot(se["population"], se["swapped"]) / 2)
    draws = [got[name].bootstrap[:, 0] for name in ("population", "null", "swapped")]
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.08
    alone = blocks(a, None, None, Resampling())
    assert [name for name in BLOCKS if alone[name] is None] == ["null", "swapped", "symmetric", "corrected"]
    np.testing.assert_array_equal(alone["population"].bootstrap, got["population"].bootstrap)


def test_pool_against_scipy() -> None:
    values = [0.54, 0.63, 0.60, 0.69, 0.29]
    got = pool_blocks([evaluation(v, 0.0, v) for v in values])["symmetric"]["ppg"]
    assert got["mean"] == pytest.approx(0.55)
    assert got["sd"] == pytest.approx(np.std(values, ddof=1))
    assert got["ci95"] == pytest.approx(stats.t.interval(0.95, 4, np.mean(values), stats.sem(values)))
    assert got["sampling_sd"] == pytest.approx(0.01)
    assert got["training_sd"] == pytest.approx(np.sqrt(np.var(values, ddof=1) - 1e-4))
    two = pool_blocks([evaluation(v, None, v) for v in values[:2]])
    assert two["symmetric"]["ppg"]["ci95"] is None
    assert two["symmetric"]["ppg"]["sd"] > 0
    assert two["null"] is None
    assert pool_blocks([evaluation(0.5, 0, 0.5)])["population"]["ppg"]["sd"] is None


def test_found_by_the_rule() -> None:
    verdict = memorization_found([evaluation(0.5, 0.1, 0.3)])
    assert verdict["found"] is True
    assert (
        verdict["words"] == "Memorization was found: symmetric PPG 0.400, 95 % interval 0.380 to 0.420, one seed pair."
    )
    for metrics, why in (
        (evaluation(0.01, 0.0, 0.02), "interval is not entirely above 0"),
        (evaluation(0.9, 0.0, -0.3), r"directions disagree \(0.900 and −0.300\)"),
        (evaluation(0.9, 0.0, 0.0), r"do not both have a gap \(0.900 and 0.000\)"),
        (evaluation(0.3, 0.4, 0.6), r"no larger than the holdout's \(corrected −0.100\)"),
        (evaluation(-0.5, -0.4, -0.5), "interval is not entirely above 0"),
    ):
        got = memorization_found([metrics])
        assert got["found"] is False
        assert re.search(why, got["words"])
    assert memorization_found([evaluation(0.5, None, 0.5)])["found"] is None
    assert "set B and the holdout set H" in memorization_found([evaluation(0.5, None, None)])["words"]


def test_nothing_can_be_said_if_the_models_differ_as_much_on_the_holdout() -> None:
    # 1 epoch on 500 pairs against 25 on 2,000: the better model wins in both directions.
    for metrics in (evaluation(-0.83, -0.9, 0.96), evaluation(0.96, 0.9, -0.83), evaluation(0.5, 0.45, 0.1)):
        got = memorization_found([metrics])
        assert got["found"] is None
        assert "cannot be said" in got["words"]
        assert got["interval"] is not None
    # Nothing there, and a null within its noise: not shown, as ever.
    assert memorization_found([evaluation(0.005, 0.01, 0.005)])["found"] is False
    # Found but for a null that is as large, however noisy it is.
    assert memorization_found([evaluation(0.2, 0.15, 0.06, half=0.1)])["found"] is not True
    assert memorization_found([evaluation(v, v - 0.05, v / 4) for v in (0.5, 0.51, 0.52)])["found"] is None
    assert memorization_found([evaluation(0.5, 0.1, 0.4), evaluation(0.5, 0.48, 0.4)])["found"] is None


def test_found_over_seed_pairs() -> None:
    three = memorization_found([evaluation(v, 0.0, v) for v in (0.5, 0.52, 0.54)])
    assert three["found"] is True
    assert "3 seed pairs" in three["words"]
    # Each pair alone passes, the three together are too far apart.
    assert memorization_found([evaluation(v, 0.0, v) for v in (0.1, 0.2, 0.9)])["found"] is False
    # Two pairs: too few for an interval over seeds, so each must pass alone.
    assert memorization_found([evaluation(0.5, 0.0, 0.5), evaluation(0.4, 0.0, 0.4)])["found"] is True
    assert memorization_found([evaluation(0.5, 0.0, 0.5), evaluation(0.01, 0.0, 0.01)])["found"] is False
    assert memorization_found([evaluation(0.5, 0.0, 0.5), evaluation(0.4, 0.5, 0.4)])["found"] is False
    assert "too few" in memorization_found([evaluation(0.5, 0.0, 0.5)] * 2)["words"]
    # The words give the numbers of the pair that fails, not a mean that would not.
    words = memorization_found([evaluation(0.9, 0.0, 0.1), evaluation(0.5, 0.0, -0.3)])["words"]
    assert "the two directions disagree (0.500 and −0.300)" in words
    assert "symmetric PPG 0.500 and 0.100, the lower of two 95 % intervals 0.080 to 0.120, two seed pairs" in words


@pytest.mark.parametrize("pairs", [3, 5])
def test_false_alarms_under_the_null_model(pairs: int) -> None:
    # A quality shift δ ~ N(0, σ) of opposite sign in the two directions, plus record noise; nothing is remembered.
    rng = np.random.default_rng(pairs)
    alarms = interval = 0
    for _ in range(1000):
        shift, noise = rng.normal(0, 0.1, pairs), rng.normal(0, 0.02, (3, pairs))
        forward, backward, null = shift + noise[0], -shift + noise[1], shift + noise[2]
        got = memorization_found([evaluation(a, h, b) for a, h, b in zip(forward, null, backward, strict=True)])
        alarms += bool(got["found"])
        interval += got["above_zero"]
    assert 0.015 <= interval / 1000 <= 0.035  # the interval alone keeps its 2.5 %
    assert alarms <= interval  # the other conditions only make it stricter


def test_blind_by_hand() -> None:
    labels = ["cat", "dog", "emu"]
    public = objects([{"dog"}, {"dog", "cat"}, {"dog", "emu"}, {"emu", "cat"}], labels, "p")
    truth = objects([{"dog"}, {"cat", "emu"}, set()], labels, "a")
    near = Neighbors(np.array([[0], [1], [2]], np.int32), np.zeros((3, 1), np.float32))
    far = Neighbors(np.array([[3], [2], [2]], np.int32), np.zeros((3, 1), np.float32))
    records = Records(("", "", ""), truth, public, near, far)
    got = blind_baseline(records, *records.scores([1]), 1)
    # |Ô| is 1, 2 for the target and 2, 2 for the reference: 1.75, rounded 2. dog 3 times, then cat before emu.
    assert got["objects"] == 2
    assert got["labels"] == ["dog", "cat"]
    assert got["blind"] == {"precision": 0.5, "recall": 0.75, "f1": 0.6}
    assert got["target"]["precision"] == 0.75
    assert got["reference"] == {"precision": 0.25, "recall": 0.25, "f1": 0.25}
    assert got["beaten"] is False
    assert "the target is not better in recall; the reference is not better in precision and recall" in got["words"]
    assert "precision 0.750 and 0.250 against 0.500" in got["words"]


def test_sets_with_too_few_records_are_named() -> None:
    counts = {"records": 1, "null": {"records": 19}, "swapped": {"records": 20}}
    assert few_records_sentence(counts).startswith("Records with objects: 1 in A, 19 in H. Below about 20,")
    assert few_records_sentence({"records": 20, "null": None, "swapped": {"records": 0}}) == ""


def test_both_models_must_exceed_the_blind_baseline_in_both_rates() -> None:
    blind = {"precision": 0.2, "recall": 0.4}
    better, worse = {"precision": 0.21, "recall": 0.41}, {"precision": 0.3, "recall": 0.4}
    for target, reference, beaten in ((better, better, True), (better, worse, False), (worse, better, False)):
        baseline = {"objects": 3, "blind": blind, "target": target, "reference": reference}
        answer, words = beats_blind(baseline)
        assert answer is beaten
        assert ("do not both beat the blind baseline" in words) is not beaten


def test_compare_is_paired() -> None:
    case, other, swapped = Case(1, n=80), Case(2, n=80), Case(3, n=80, prefix="b")
    first = case.records()
    second = Records(first.captions, first.truth, first.public, other.target, first.reference)
    b = swapped.records()
    got = compare_settings((first, b), (second, b), 3)
    parts = [outcomes(*r.scores([3]), 3) for r in (first, second)]
    direct = estimate(parts[0] - parts[1])
    assert got["basis"] == "symmetric"
    assert got["ppg"]["value"] == direct.value[0] / 2  # the B side is the same, so it adds nothing, not even noise
    assert got["ppg"]["se"] == pytest.approx(direct.se[0] / 2)
    apart = np.hypot(*(estimate(p).se[0] for p in parts)) / 2
    assert got["ppg"]["se"] < apart
    # Joined by key in any order; records missing on one side are excluded.
    order = list(reversed(second.keys))[10:]
    rows = np.array([second.truth.rows[key] for key in order])
    shuffled = Records(
        [second.captions[p] for p in rows], second.truth.take(order), second.public,
        second.target[rows], second.reference[rows],
    )  # fmt: skip
    alone = compare_settings((first, None), (shuffled, b), 3)
    assert alone["basis"] == "population"
    common = [i for i, key in enumerate(first.keys) if key in set(order) and case.truth[i]]
    assert alone["records"] == {"A": len(common)}
    with pytest.raises(UserError, match="share no records"):
        compare_settings((first, None), (b, None), 3)
