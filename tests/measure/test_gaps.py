from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from dejavu_lit.measure.gaps import Outcomes, estimate, mean_recall_gap, outcomes, sign_test
from dejavu_lit.measure.scores import Scores
from dejavu_lit.measure.settings import Resampling
from tests.conftest import message_of
from tests.measure.oracle import Case


def scores(hits: list[int], predicted: list[int], truth: list[int]) -> Scores:
    return Scores((1,), np.array([hits], np.int32).T, np.array([predicted], np.int32).T, np.array(truth, np.int32))


def random_outcomes(seed: int, n: int = 3000, shift: float = 0.2) -> Outcomes:
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 6, n)
    hits_t, hits_r = rng.binomial(truth, 0.4 + shift), rng.binomial(truth, 0.4)
    return Outcomes(np.sign(hits_t - hits_r + rng.integers(-1, 2, n)), np.sign(hits_t - hits_r), hits_t - hits_r, truth)


def test_three_records_by_hand() -> None:
    # Record 1: 2/4 = 1/2, a tie of precision; recall 2/3 > 1/3. Record 2: Ô empty against 0 hits, ties. Record 3 has no
    # objects. Record 4: 1/3 > 1/4 of precision, equal recall.
    results = outcomes(
        scores([2, 0, 0, 1], [4, 0, 3, 3], [3, 1, 0, 2]), scores([1, 0, 0, 1], [2, 5, 1, 4], [3, 1, 0, 2]), 1
    )
    assert results.precision.tolist() == [0, 0, 1]
    assert results.recall.tolist() == [1, 0, 0]
    block = estimate(results).block()
    assert block["ppg"]["value"] == 1 / 3
    assert block["prg"]["value"] == 1 / 3
    assert block["aucg"]["value"] == float(Fraction(1, 9))
    assert block["prg"]["sign_test"] == {"p": 1.0, "wins": 1, "losses": 0}


def test_precision_is_compared_exactly() -> None:
    # The second pair differs by 2e-19, which no float64 quotient shows.
    big = 2**31 - 1
    target, reference = (
        scores([1, big - 1], [3, big], [2, 2]),
        scores([333_333_333, big - 2], [999_999_999, big - 1], [2, 2]),
    )
    assert outcomes(target, reference, 1).precision.tolist() == [0, 1]
    assert outcomes(reference, target, 1).precision.tolist() == [0, -1]


def test_the_tally_counts_every_record_once() -> None:
    results = random_outcomes(7, n=200)
    for which in (
        results,
        results - results[::-1][::-1],
        Outcomes(results.precision * 2, results.recall * -2, results.hits * 2, results.truth),
    ):
        distinct, counts = which.tally()
        rows = list(zip(*(getattr(which, c).tolist() for c in ("precision", "recall", "hits", "truth")), strict=True))
        got = zip(*(getattr(distinct, c).tolist() for c in ("precision", "recall", "hits", "truth")), strict=True)
        assert dict(zip(got, counts.tolist(), strict=True)) == Counter(rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_m", [None, 2])
def test_agrees_with_plain_sets(seed: int, top_m: int | None) -> None:
    case = Case(seed, n=60)
    target, reference = case.records().scores([2, 5], top_m)
    for k in (2, 5):
        pairs = list(zip(case.figures("target", k, top_m), case.figures("reference", k, top_m), strict=True))
        n = len(pairs)
        block = estimate(outcomes(target, reference, k)).block()
        for i, figure in enumerate(("ppg", "prg")):
            wins, losses = sum(t[i] > r[i] for t, r in pairs), sum(t[i] < r[i] for t, r in pairs)
            assert block[figure]["value"] == (wins - losses) / n
            assert block[figure]["sign_test"]["wins"] == wins
            assert block[figure]["sign_test"]["losses"] == losses
        assert block["aucg"]["value"] == float(sum(t[1] - r[1] for t, r in pairs) / n)


@pytest.mark.parametrize("seed", range(3))
def test_aucg_is_the_area_between_the_curves(seed: int) -> None:
    case = Case(seed)
    target, reference = case.figures("target", 4), case.figures("reference", 4)
    steps = sorted({Fraction(0), Fraction(1)} | {r for _, r in target + reference})
    area = Fraction(0)
    for low, high in pairwise(steps):  # both curves are constant on (low, high]
        area += (high - low) * (sum(r >= high for _, r in target) - sum(r >= high for _, r in reference))
    results = outcomes(*case.records().scores([4]), 4)
    assert estimate(results).block()["aucg"]["value"] == float(area / len(target))


def test_spread_against_the_closed_form_and_scipy() -> None:
    results = random_outcomes(0)
    values = results.values()
    # 20,000 draws pin the standard deviation down to 0.5 %; the paper's 100 scatter by 7 %.
    got = estimate(results, Resampling(draws=20_000, bootstrap=4000))
    sample = round(0.1 * len(results))
    np.testing.assert_allclose(got.closed_form_std, values.std(axis=0) / np.sqrt(sample), rtol=1e-12)
    np.testing.assert_allclose(got.draws.std(axis=0), got.closed_form_std, rtol=0.025)
    np.testing.assert_allclose(got.draws.mean(axis=0), got.value, atol=4 * got.closed_form_std.max() / np.sqrt(20_000))
    np.testing.assert_allclose(got.se, values.std(axis=0) / np.sqrt(len(results)), rtol=1e-12)
    assert got.block()["ppg"]["std"] == got.draws[:, 0].std()
    for i in range(3):
        peer = stats.bootstrap((values[:, i],), np.mean, n_resamples=4000, method="percentile", rng=1, batch=200)
        np.testing.assert_allclose(got.interval(i), peer.confidence_interval, atol=0.15 * got.se[i])


def test_a_single_record() -> None:
    block = estimate(Outcomes(*(np.array([v]) for v in (1, 0, 1, 2)))).block()
    assert block["ppg"]["ci95"] == [1.0, 1.0]
    assert block["aucg"]["value"] == 0.5
    assert block["prg"]["std"] == 0.0


def test_only_the_seed_matters_not_the_order_of_records() -> None:
    results = random_outcomes(2, n=500)
    shuffled = results[np.random.default_rng(0).permutation(500)]
    assert estimate(results).block() == estimate(shuffled).block()
    assert estimate(results).block() != estimate(results, Resampling(seed=1)).block()
    assert estimate(results).block() != estimate(results, stream=1).block()
    assert estimate(results, Resampling(seed=1)).value.tolist() == estimate(results).value.tolist()


def test_combined_sets_are_resampled_independently() -> None:
    first, second = estimate(random_outcomes(3)), estimate(random_outcomes(4, shift=0.0), stream=1)
    mean = first.combine(second, 0.5, 0.5)
    np.testing.assert_allclose(mean.value, (first.value + second.value) / 2)
    np.testing.assert_allclose(mean.se, np.sqrt(first.se**2 + second.se**2) / 2)
    np.testing.assert_allclose(mean.bootstrap.std(axis=0), mean.se, rtol=0.08)
    assert "sign_test" not in mean.block()["ppg"]


def test_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    hit = np.zeros(3)
    for i in range(300):
        truth = rng.integers(1, 4, 200)
        t, r = rng.binomial(truth, 0.5), rng.binomial(truth, 0.5)
        sign = np.sign(t - r)
        got = estimate(Outcomes(sign, sign, t - r, truth), Resampling(bootstrap=400, seed=i))
        hit += [low <= 0 <= high for low, high in map(got.interval, range(3))]
    assert (hit / 300 > 0.91).all()  # nominal 0.95, standard error 0.013
    assert (hit / 300 < 0.985).all()


def test_the_sign_test_by_hand() -> None:
    assert sign_test(0, 0) == sign_test(5, 5) == 1
    assert sign_test(2, 4) == sign_test(4, 2) == pytest.approx(2 * (1 + 6 + 15) / 2**6)
    assert sign_test(8, 1) == pytest.approx(2 * (1 + 9) / 2**9)


def test_resampling_has_bounds_and_the_defaults_of_the_paper() -> None:
    assert Resampling() == Resampling(draws=100, share=0.1, bootstrap=2000, seed=0)
    Resampling(draws=2, share=1, bootstrap=100)
    for wrong, must in (
        ({"draws": 1}, "draws=1 must be at least 2"),
        ({"bootstrap": 99}, "bootstrap=99 must be at least 100"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"share": 0.0}, "share=0.0 must be above 0 and at most 1"),
        ({"share": 1.5}, "share=1.5 must be above 0 and at most 1"),
    ):
        assert message_of(lambda wrong=wrong: Resampling(**wrong)) == must


def test_a_difference_of_two_settings_by_hand() -> None:
    truth = np.array([2, 4])
    first = Outcomes(np.array([1, -1]), np.array([1, 0]), np.array([2, 0]), truth)
    second = Outcomes(np.array([-1, 0]), np.array([0, 1]), np.array([1, 3]), truth)
    results = first - second
    assert (results.precision.tolist(), results.recall.tolist(), results.hits.tolist()) == ([2, -1], [1, -1], [1, -3])
    assert results.truth.tolist() == [2, 4]
    assert results.values().tolist() == [[2, 1, 0.5], [-1, -1, -0.75]]
    block = estimate(results).block()
    assert [block[figure]["value"] for figure in ("ppg", "prg", "aucg")] == [0.5, 0, -0.125]
    assert block["ppg"]["sign_test"] == {"p": 1.0, "wins": 1, "losses": 1}


def test_combine_weights_both_sets() -> None:
    few = Resampling(draws=3, bootstrap=100)
    first, second = estimate(random_outcomes(3, n=50), few), estimate(random_outcomes(4, n=40), few, stream=1)
    results = first.combine(second, 0.25, -2)
    for name in ("value", "draws", "bootstrap"):
        np.testing.assert_array_equal(getattr(results, name), 0.25 * getattr(first, name) - 2 * getattr(second, name))
    for name in ("closed_form_std", "se"):
        np.testing.assert_allclose(
            getattr(results, name), np.sqrt((0.25 * getattr(first, name)) ** 2 + (2 * getattr(second, name)) ** 2)
        )
    assert results.wins is None
    assert results.losses is None


def test_draws_equal_numpys_multinomial_for_any_batch() -> None:
    rng = np.random.default_rng(3)
    truth = np.arange(1, 1001)  # a thousand distinct outcomes: 2,500 samples of them are drawn in two batches
    results = Outcomes(rng.integers(-1, 2, 1000), rng.integers(-1, 2, 1000), rng.integers(-truth, truth + 1), truth)
    got = estimate(results, Resampling(draws=5, share=0.25, bootstrap=2500, seed=4), stream=2)
    distinct, counts = results.tally()
    random = np.random.default_rng([4, 2])
    for means, size in ((got.draws, 250), (got.bootstrap, 1000)):
        times = random.multinomial(size, counts / 1000, size=len(means))
        np.testing.assert_allclose(means, times @ distinct.values() / size, atol=1e-12)


def test_counts_stay_integers() -> None:
    results = outcomes(scores([1], [2], [3]), scores([0], [1], [3]), 1)
    assert {column.dtype for column in (results.precision, results.recall, results.hits, results.truth)} == {
        np.dtype(np.int64)
    }
    assert len(results[:0].tally()[1]) == 0
    assert mean_recall_gap(np.array([1, -1]), np.array([3, 2]), 5) == float(Fraction(-1, 30))
    with pytest.raises(ValueError, match="zip"):
        mean_recall_gap(np.array([1]), np.array([3, 2]), 5)


def test_a_block_summarizes_its_resamples() -> None:
    got = estimate(random_outcomes(5, n=300), Resampling(draws=20, bootstrap=200))
    for i, (figure, block) in enumerate(got.block().items()):
        assert figure == ("ppg", "prg", "aucg")[i]
        assert list(block) == ["value", "mean", "std", "ci95", "closed_form_std", "se", "sign_test"]
        assert block["value"] == got.value[i]
        assert block["mean"] == got.draws[:, i].mean()
        assert block["std"] == got.draws[:, i].std()
        assert block["ci95"] == np.quantile(got.bootstrap[:, i], [0.025, 0.975]).tolist()
        assert block["closed_form_std"] == got.closed_form_std[i]
        assert block["se"] == got.se[i]


def test_mistakes_are_named() -> None:
    assert message_of(lambda: estimate(random_outcomes(0)[:0])) == (
        "no record has an object, so there is nothing to measure; lower threshold= or check objects="
    )
    assert message_of(lambda: outcomes(scores([1], [1], [1]), scores([1], [1], [2]), 1)) == (
        "target and reference were scored on different records; score both on the same ones"
    )
    assert message_of(lambda: random_outcomes(0) - random_outcomes(1)) == (
        "only the same records with the same objects can be compared pair by pair"
    )
