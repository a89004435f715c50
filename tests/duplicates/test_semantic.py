"""Semantic duplicates against a brute-force comparison of all pairs, in one cell and in many."""

import numpy as np
import pytest

from dejavu_lit.duplicates import semantic
from dejavu_lit.duplicates.semantic import semantic_groups


def vectors(count: int, width: int, spread: float, centers: int, seed: int = 0) -> np.ndarray:
    """Rows of any norm around a few directions, so that many pairs are just above or just below a cosine."""
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(centers, width))
    rows = middle[rng.integers(0, centers, count)] + spread * rng.normal(size=(count, width))
    return (rows * rng.uniform(0.5, 2, (count, 1))).astype(np.float16)


def groups_by_all_pairs(rows: np.ndarray, similarity: float) -> list[int]:
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    root = list(range(len(rows)))
    for first, second in zip(*np.nonzero(np.triu(unit @ unit.T >= similarity, 1)), strict=True):
        low, high = sorted((root[first], root[second]))
        if low != high:
            root = [low if mine == high else mine for mine in root]
    return root


@pytest.mark.parametrize("cells", [1, 3, 12])
@pytest.mark.parametrize("similarity", [0.9, 0.99])
def test_groups_equal_those_of_all_pairs(cells: int, similarity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "QUERIES", 37)  # queries and blocks that divide nothing evenly
    monkeypatch.setattr(semantic, "BLOCK", 50)
    monkeypatch.setattr(semantic, "PROBES", 12)
    rows = vectors(400, 16, 0.12, 30)
    result = semantic_groups(rows, similarity, cells)
    expected = groups_by_all_pairs(rows, similarity)
    assert result.groups.tolist() == expected
    assert len(set(expected)) not in (1, 400)
    assert (result.cells, result.recall, result.checked) == (cells, 1.0, None)
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose((unit[result.links[:, 0]] * unit[result.links[:, 1]]).sum(1), result.cosines, atol=1e-12)
    assert result.cosines.min() >= similarity
    # The links connect the groups, and none is redundant.
    assert len(result.links) == 400 - len(set(expected))
    assert (result.groups[result.links[:, 0]] == result.groups[result.links[:, 1]]).all()


def test_recall_is_measured_if_cells_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "PROBES", 1)
    rows = vectors(1500, 24, 0.3, 60, seed=3)
    result = semantic_groups(rows, 0.85, cells=90)  # more than there are directions, so that some are cut
    full = semantic_groups(rows, 0.85, cells=1)
    assert result.checked is not None
    assert result.checked > 500
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    first, second = np.nonzero(np.triu(unit @ unit.T >= 0.85, 1))
    assert (full.groups[first] == full.groups[second]).all()
    true = float((result.groups[first] == result.groups[second]).mean())
    assert result.recall == pytest.approx(true, abs=0.03)
    assert 0.5 < true < 1
    # Every group is part of a true group.
    assert len(np.unique(np.stack([result.groups, full.groups]), axis=1)[0]) == len(np.unique(result.groups))


def test_identical_images_are_one_group() -> None:
    rows = np.ones((3000, 8), np.float16)
    result = semantic_groups(rows, 0.95)
    assert result.groups.max() == 0
    assert len(result.links) == 2999


def test_a_cosine_of_exactly_the_similarity_is_enough() -> None:
    rows = np.array([[3, 4], [1, 0]], np.float16)  # 3/5
    assert semantic_groups(rows, 0.6).groups.tolist() == [0, 0]
    assert semantic_groups(rows, np.nextafter(0.6, 1)).groups.tolist() == [0, 1]


def test_no_images() -> None:
    assert len(semantic_groups(np.zeros((0, 4), np.float16), 0.9).groups) == 0
