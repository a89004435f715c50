"""The statistics against other libraries: scipy, scikit-learn, faiss and torchmetrics on the same data.

What the tests of each module already compare with scipy (the bootstrap of one set, the sign test's formula, t intervals,
McNemar, Benjamini–Hochberg, Spearman) or scikit-learn (zero-shot accuracy) is not repeated.
"""

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics import MeanMetric
from torchmetrics.retrieval import RetrievalHitRate
from torchmetrics.wrappers import BootStrapper

from dejavu_lit.evaluation.search import search
from dejavu_lit.evaluation.utility import linear_probe, retrieval
from dejavu_lit.measure.controls import blocks, compare_settings
from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.measure.gaps import Estimate, Outcomes, outcomes
from dejavu_lit.measure.per_pair import pair_gaps
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.sample import RANKINGS, rank, recall_curves, sample_gaps
from dejavu_lit.measure.settings import Resampling
from tests.measure.oracle import Case

metrics = pytest.importorskip("sklearn.metrics")
MANY = Resampling(bootstrap=4000)  # the quantiles of 4,000 resamples scatter by about 4 % of the standard error
THREE = {"population": Case(1, n=400), "null": Case(2, n=300, prefix="h"), "swapped": Case(3, n=350, prefix="b")}


def outcomes_of(name: str, k: int = 3) -> Outcomes:
    """The outcomes of one of the three sets."""
    return outcomes(*THREE[name].records().scores([k]), k)


def raw(name: str, k: int = 3) -> np.ndarray:
    """What PPG, PRG and AUCG are the means of, from plain sets: float64 [n, 3]."""
    pairs = zip(THREE[name].figures("target", k), THREE[name].figures("reference", k), strict=True)
    signs = [(int(t[0] > r[0]) - int(t[0] < r[0]), int(t[1] > r[1]) - int(t[1] < r[1]), t[1] - r[1]) for t, r in pairs]
    return np.array(signs, np.float64)


def five_blocks() -> dict[str, Estimate | None]:
    """The five blocks with many resamples."""
    return blocks(outcomes_of("population"), outcomes_of("null"), outcomes_of("swapped"), MANY)


@pytest.mark.parametrize(
    ("block", "others", "weights"),
    [("symmetric", "swapped", (0.5, 0.5)), ("corrected", "null", (1.0, -1.0))],
)
def test_intervals_of_two_sets_are_scipys(block: str, others: str, weights: tuple[float, float]) -> None:
    # scipy resamples each of several samples independently, as the definition asks.
    got = five_blocks()[block]
    assert got is not None
    first, second = raw("population"), raw(others)
    for i, figure in enumerate(FIGURES):
        peer = stats.bootstrap(
            (first[:, i], second[:, i]),
            lambda a, b, axis=-1: weights[0] * a.mean(axis=axis) + weights[1] * b.mean(axis=axis),
            n_resamples=4000,
            method="percentile",
            rng=7,
            batch=200,
        )
        np.testing.assert_allclose(got.interval(i), peer.confidence_interval, atol=0.25 * got.se[i], err_msg=figure)
        assert got.se[i] == pytest.approx(peer.standard_error, rel=0.08)


def test_the_paired_comparison_is_scipys_paired_bootstrap() -> None:
    case, other = THREE["population"], Case(9, n=400)
    first = case.records()
    second = Records(first.captions, first.truth, first.public, other.target, first.reference)
    got = compare_settings((first, None), (second, None), 3, resampling=MANY)
    columns = []
    for neighbors in (case.target, other.target):
        changed = Case(1, n=400)
        changed.target = neighbors
        pairs = zip(changed.figures("target", 3), changed.figures("reference", 3), strict=True)
        columns.append([int(t[0] > r[0]) - int(t[0] < r[0]) for t, r in pairs])
    first_signs, second_signs = (np.array(column, np.float64) for column in columns)
    assert got["ppg"]["value"] == pytest.approx((first_signs - second_signs).mean(), abs=1e-12)
    peer = stats.bootstrap(
        (first_signs, second_signs),
        lambda a, b, axis=-1: (a - b).mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=4000,
        method="percentile",
        rng=7,
        batch=200,
    )
    np.testing.assert_allclose(got["ppg"]["ci95"], peer.confidence_interval, atol=0.25 * got["ppg"]["se"])


def test_the_spread_of_draws_is_torchmetrics_bootstrapper() -> None:
    values = raw("population")
    got = blocks(outcomes_of("population"), None, None, Resampling(draws=4000, share=1.0, bootstrap=4000))["population"]
    assert got is not None
    torch.manual_seed(0)
    peer = BootStrapper(
        MeanMetric(), num_bootstraps=1500, quantile=torch.tensor([0.025, 0.975]), sampling_strategy="multinomial"
    )
    peer.update(torch.from_numpy(values[:, 0]))
    expected = peer.compute()
    assert got.draws[:, 0].mean() == pytest.approx(float(expected["mean"]), abs=0.1 * got.se[0])
    assert got.draws[:, 0].std() == pytest.approx(float(expected["std"]), rel=0.08)
    np.testing.assert_allclose(got.interval(0), expected["quantile"].numpy(), atol=0.25 * got.se[0])


@pytest.mark.parametrize("top_m", [None, 2])
@pytest.mark.parametrize("side", ["target", "reference"])
def test_precision_and_recall_are_scikit_learns(side: str, top_m: int | None) -> None:
    case, k = THREE["population"], 4
    kept = [i for i, truth in enumerate(case.truth) if truth]
    matrix = [
        [[label in names for label in case.labels] for names in sets]
        for sets in ([case.truth[i] for i in kept], [case.guess(side, i, k, top_m) for i in kept])
    ]
    truth, guess = (np.array(rows, np.int8) for rows in matrix)
    got = dict(zip(("target", "reference"), case.records().scores([2, k], top_m), strict=True))[side]
    for name, figure in (("precision", got.precision), ("recall", got.recall)):
        score = getattr(metrics, f"{name}_score")
        mine = figure(k)[got.has_objects]
        assert mine.mean() == pytest.approx(score(truth, guess, average="samples", zero_division=0), rel=1e-12)
        each = [score(t, g, zero_division=0) for t, g in zip(truth[:30], guess[:30], strict=True)]
        np.testing.assert_allclose(mine[:30], each, rtol=1e-12)


@pytest.mark.parametrize("by", RANKINGS)
def test_the_sample_level_is_scikit_learns_on_the_chosen_records(by: str) -> None:
    case, k, top = THREE["swapped"], 4, 25
    records = case.records()
    scores = records.scores([k])
    order = rank(*scores, records.target.distances[:, 0], k, by)[:top]
    row = sample_gaps(*scores, records.target.distances[:, 0], k, [top])[by][0]
    truth = np.array([[label in case.truth[i] for label in case.labels] for i in order])
    for side in ("target", "reference"):
        guess = np.array([[label in case.guess(side, i, k) for label in case.labels] for i in order])
        for name in ("precision", "recall"):
            score = getattr(metrics, f"{name}_score")
            expected = score(truth, guess, average="samples", zero_division=0)
            assert row[f"{side}_{name}"] == pytest.approx(expected, rel=1e-12)


def test_aucg_is_the_difference_of_scikit_learns_areas() -> None:
    k = 3
    target, reference = THREE["population"].records().scores([k])
    lines = recall_curves(target, reference, k, points=10**6)
    # The curves are steps that are high on (x[i − 1], x[i]]; as a polygon each x comes twice.
    x = np.repeat(lines["x"], 2)[1:-1]
    areas = [metrics.auc(x, np.repeat(lines[side], 2)[2:]) for side in ("target", "reference")]
    got = five_blocks()["population"]
    assert got is not None
    assert got.value[2] == pytest.approx(areas[0] - areas[1], abs=1e-12)


def test_p_values_of_pairs_trace_scikit_learns_roc() -> None:
    # Told apart by the gap, A's pairs from H's: (n p − 1) / (n − 1) of a pair is the false positive rate at its own gap.
    population, null = THREE["population"].records(), THREE["null"].records()
    bare = {key for key, truth in zip(population.keys, THREE["population"].truth, strict=True) if not truth}
    got = pair_gaps(population, null, [key for key in population.keys if key not in bare], 3)
    mine = np.array([pair["gap"]["recall"] for pair in got["pairs"]])
    theirs = raw("null")[:, 2].round(12)
    rates, _, thresholds = metrics.roc_curve(
        np.repeat([1, 0], [len(mine), len(theirs)]), np.concatenate([mine, theirs]), drop_intermediate=False
    )
    at = {float(threshold): float(rate) for threshold, rate in zip(thresholds, rates, strict=True)}
    n = len(theirs)
    p = [pair["p"]["recall"] for pair in got["pairs"]]
    np.testing.assert_allclose(
        [((n + 1) * value - 1) / n for value in p], [at[gap] for gap in mine.tolist()], atol=1e-12
    )


def vectors(seed: int, n: int, d: int = 48) -> np.ndarray:
    """Random directions as they are stored, float16 [n, d]."""
    directions = np.random.default_rng(seed).standard_normal((n, d))
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float16)


def test_neighbors_are_those_of_scikit_learn_and_faiss() -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    faiss = pytest.importorskip("faiss")
    queries, public, k = vectors(0, 150), vectors(1, 4000), 25
    got, _ = search(queries, [public[:1300], public[1300:]], k)

    peer = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine")
    distances, rows = peer.fit(public.astype(np.float64)).kneighbors(queries.astype(np.float64))
    np.testing.assert_array_equal(got.rows, rows)
    np.testing.assert_allclose(got.distances, distances, atol=1e-6)

    wide = [block.astype(np.float32) for block in (queries, public)]
    for block in wide:
        faiss.normalize_L2(block)
    flat = faiss.IndexFlatIP(public.shape[1])
    flat.add(wide[1])
    scores, rows = flat.search(wide[0], k)
    np.testing.assert_allclose(1 - got.distances, scores, atol=1e-6)
    assert (rows != got.rows).mean() < 0.01  # faiss rounds to float32: neighbors nearer to each other may change places


def test_retrieval_is_torchmetrics_hit_rate() -> None:
    captions = vectors(3, 120, 16)
    images = (captions + 1.5 * vectors(4, 120, 16)).astype(np.float16)
    got = retrieval(images, captions)
    unit = [
        block.astype(np.float64) / np.linalg.norm(block.astype(np.float64), axis=1, keepdims=True)
        for block in (images, captions)
    ]
    cosine = torch.from_numpy(unit[0] @ unit[1].T)
    own = torch.eye(120, dtype=torch.bool)
    query = torch.arange(120).repeat_interleave(120)
    for name, table_ in (("i2t", cosine), ("t2i", cosine.T)):
        for top in (1, 5, 10):
            peer = RetrievalHitRate(top_k=top)
            assert got[f"{name}_r{top}"] == pytest.approx(float(peer(table_.flatten(), own.flatten(), query)), abs=1e-6)
    assert 0.2 < got["i2t_r1"] < 0.99  # neither nothing nor everything is found


def test_the_linear_probe_is_scikit_learns_pipeline() -> None:
    linear_model, pipeline = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.pipeline")
    preprocessing, selection = (
        pytest.importorskip("sklearn.preprocessing"),
        pytest.importorskip("sklearn.model_selection"),
    )
    random = np.random.default_rng(5)
    classes = np.arange(900) % 3
    images = (vectors(6, 3, 24)[classes] + 0.35 * random.standard_normal((900, 24))).astype(np.float16)
    got = linear_probe(images, [f"class {c}" for c in classes])["linear_probe"]
    peer = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression(max_iter=1000))
    folds = selection.StratifiedKFold(5, shuffle=True, random_state=0)
    scores = selection.cross_val_score(peer, images.astype(np.float64), classes, cv=folds)
    # Another fifth is tested: 180 images scatter by 3 to 4 points.
    assert got == pytest.approx(scores.mean(), abs=0.12)
    assert 0.5 < got < 0.98
