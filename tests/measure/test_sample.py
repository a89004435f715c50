import numpy as np
import pytest

from dejavu_lit.measure.gaps import estimate, outcomes
from dejavu_lit.measure.sample import RANKINGS, rank, recall_curves, sample_curves, sample_gaps, sizes
from dejavu_lit.measure.scores import Scores
from tests.measure.oracle import Case


def by_hand() -> tuple[Scores, Scores, np.ndarray]:
    """Four records, the second without objects."""
    truth = np.array([2, 0, 4, 1], np.int32)
    column = lambda *v: np.array([v], np.int32).T  # noqa: E731
    target = Scores((1,), column(1, 0, 3, 1), column(2, 3, 3, 1), truth)
    reference = Scores((1,), column(1, 0, 1, 0), column(4, 3, 2, 0), truth)
    return target, reference, np.array([0.3, 0.0, 0.3, 0.1], np.float32)


def test_rankings_by_hand() -> None:
    target, reference, distance = by_hand()
    order = {by: rank(target, reference, distance, 1, by).tolist() for by in RANKINGS}
    assert order == {"distance": [3, 0, 2], "hits": [2, 0, 3], "gap": [2, 3, 0]}  # ties keep the record order


def test_table_by_hand() -> None:
    got = sample_gaps(*by_hand(), 1, [2])["distance"]
    # Records 4 and 1: precision 1, 1/2 against 0, 1/4; recall 1, 1/2 against 0, 1/2.
    assert got == [
        {
            "top": 2,
            "fraction": 2 / 3,
            "target_precision": 0.75,
            "target_recall": 0.75,
            "target_f1": 0.75,
            "reference_precision": 0.125,
            "reference_recall": 0.25,
            "reference_f1": 1 / 6,
            "precision_gap": 0.625,
            "recall_gap": 0.5,
            "f1_gap": 0.75 - 1 / 6,
        }
    ]


def test_nothing_right_gives_an_f1_of_zero() -> None:
    target, _, distance = by_hand()
    nothing = Scores((1,), target.hits * 0, target.predicted, target.truth)
    assert sample_gaps(nothing, nothing, distance, 1, [1.0])["gap"][0]["target_f1"] == 0.0
    assert sample_curves(nothing, nothing, distance, 1)["hits"]["f1_gap"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("top_m", [None, 2])
def test_agrees_with_plain_sets(seed: int, top_m: int | None) -> None:
    case = Case(seed, n=70)
    records, k = case.records(), 4
    target, reference = records.scores([2, k], top_m)
    distance = records.target.distances[:, 0]
    with_objects = [i for i, g in enumerate(case.truth) if g]
    hits = {
        m: {i: len(case.guess(m, i, k, top_m) & case.truth[i]) for i in with_objects} for m in ("target", "reference")
    }
    key = {
        "distance": lambda i: float(case.target.distances[i, 0]),
        "hits": lambda i: -hits["target"][i],
        "gap": lambda i: hits["reference"][i] - hits["target"][i],
    }
    figures = {m: dict(zip(with_objects, case.figures(m, k, top_m), strict=True)) for m in ("target", "reference")}
    tops = [1, 7, 0.1, 0.5, 1.0]
    got, lines = sample_gaps(target, reference, distance, k, tops), sample_curves(target, reference, distance, k)
    for by in RANKINGS:
        order = sorted(with_objects, key=key[by])
        for row, top in zip(
            got[by], [1, 7, -(-len(with_objects) // 10), -(-len(with_objects) // 2), len(with_objects)], strict=True
        ):
            assert row["top"] == top
            for i, name in enumerate(("precision", "recall")):
                mean = {m: float(sum(figures[m][j][i] for j in order[:top]) / top) for m in figures}
                assert row[f"target_{name}"] == pytest.approx(mean["target"], rel=1e-15)
                assert row[f"{name}_gap"] == pytest.approx(mean["target"] - mean["reference"], abs=1e-15)
                if top in lines[by]["top"]:
                    at = lines[by]["top"].index(top)
                    assert lines[by][f"{name}_gap"][at] == pytest.approx(row[f"{name}_gap"], abs=1e-13)
                    assert lines[by]["f1_gap"][at] == pytest.approx(row["f1_gap"], abs=1e-13)
        assert lines[by]["top"][0] == 1
        assert lines[by]["top"][-1] == len(with_objects)
        assert len(lines[by]["top"]) <= 40


def test_sizes() -> None:
    assert sizes([1, 10, 0.001, 0.01, 0.1, 1.0], 700) == [
        (1, 1 / 700),
        (10, 1 / 70),
        (1, 0.001),
        (7, 0.01),
        (70, 0.1),
        (700, 1.0),
    ]
    assert sizes([5, 0.5], 3) == [(2, 0.5)]  # an L above n is omitted
    assert sizes([3, 4], 3) == [(3, 1.0)]


def test_curves_have_forty_points_on_a_log_scale() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 4, 3000).astype(np.int32)
    side = [Scores((1,), rng.binomial(truth, p)[:, None].astype(np.int32), truth[:, None], truth) for p in (0.5, 0.4)]
    tops = sorted({round(3000 ** (i / 39)) for i in range(40)})
    assert [got["top"] for got in sample_curves(*side, rng.random(3000), 1).values()] == [tops] * 3


def test_recall_curves_begin_at_zero_and_choose_among_many_recalls() -> None:
    def side(hits: np.ndarray, truth: np.ndarray) -> Scores:
        return Scores((1,), hits[:, None].astype(np.int32), hits[:, None].astype(np.int32), truth.astype(np.int32))

    high = side(np.array([2, 1]), np.array([4, 1]))
    assert recall_curves(high, high, 1) == {
        "x": [0.0, 0.5, 1.0],
        "target": [1.0, 1.0, 0.5],
        "reference": [1.0, 1.0, 0.5],
    }
    many = side(np.arange(1, 600), np.full(599, 600))
    got = recall_curves(many, many, 1)
    assert got["x"] == [round(i * 600 / 399) / 600 for i in range(400)]


def test_the_recall_curves_enclose_aucg() -> None:
    case = Case(4, n=90)
    target, reference = case.records().scores([3])
    got = recall_curves(target, reference, 3)
    recall = [float(r) for _, r in case.figures("target", 3)]
    assert got["target"] == pytest.approx([sum(r >= x for r in recall) / len(recall) for x in got["x"]])
    width = np.diff(got["x"])
    area = (width * (np.array(got["target"]) - np.array(got["reference"]))[1:]).sum()
    assert area == pytest.approx(estimate(outcomes(target, reference, 3)).value[2], abs=1e-12)
    few = recall_curves(target, reference, 3, points=3)
    assert len(few["x"]) == 3
    assert (few["x"][0], few["x"][-1]) == (0.0, 1.0)
