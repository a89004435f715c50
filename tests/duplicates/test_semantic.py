"""Semantic duplicates against the comparison of all pairs, in one cell and in many."""

import numpy as np
import pytest

from dejavu_lit.duplicates import semantic as duplicates
from dejavu_lit.duplicates.semantic import semantic_groups
from dejavu_lit.utils.errors import UserError


def vectors(count: int, width: int, spread: float, centres: int, seed: int = 0) -> np.ndarray:
    """Rows around a few directions, of any norm: many pairs lie just within or just beyond a cosine."""
    draw = np.random.default_rng(seed)
    middle = draw.normal(size=(centres, width))
    rows = middle[draw.integers(0, centres, count)] + spread * draw.normal(size=(count, width))
    return (rows * draw.uniform(0.5, 2, (count, 1))).astype(np.float16)


def groups_by_all_pairs(rows: np.ndarray, similarity: float) -> list[int]:
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    root = list(range(len(rows)))
    for one, other in zip(*np.nonzero(np.triu(unit @ unit.T >= similarity, 1)), strict=True):
        low, high = sorted((root[one], root[other]))
        if low != high:
            root = [low if mine == high else mine for mine in root]
    return root


@pytest.mark.parametrize("cells", [1, 3, 12])
@pytest.mark.parametrize("similarity", [0.9, 0.99])
def test_groups_are_those_of_comparing_all_pairs(
    cells: int, similarity: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "TILE", 37)  # tiles, and blocks of candidates, that do not divide anything
    monkeypatch.setattr(duplicates, "BLOCK", 50)
    monkeypatch.setattr(duplicates, "PROBES", 12)
    rows = vectors(400, 16, 0.12, 30)
    found = semantic_groups(rows, similarity, cells)
    expected = groups_by_all_pairs(rows, similarity)
    assert found.groups.tolist() == expected
    assert len(set(expected)) not in (1, 400)
    assert (found.cells, found.recall, found.checked) == (cells, 1.0, None)
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose((unit[found.links[:, 0]] * unit[found.links[:, 1]]).sum(1), found.cosines, atol=1e-12)
    assert found.cosines.min() >= similarity
    # The links alone connect the groups, none too many.
    assert len(found.links) == 400 - len(set(expected))
    assert (found.groups[found.links[:, 0]] == found.groups[found.links[:, 1]]).all()


def test_recall_is_measured_where_cells_were_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PROBES", 1)
    rows = vectors(1500, 24, 0.3, 60, seed=3)
    found = semantic_groups(rows, 0.85, cells=25)
    full = semantic_groups(rows, 0.85, cells=1)
    assert found.checked is not None
    assert found.checked > 500
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    one, other = np.nonzero(np.triu(unit @ unit.T >= 0.85, 1))
    assert (full.groups[one] == full.groups[other]).all()
    true = float((found.groups[one] == found.groups[other]).mean())
    assert found.recall == pytest.approx(true, abs=0.03)
    assert 0.5 < true < 1
    # Every group that was found is part of a true one.
    assert len(np.unique(np.stack([found.groups, full.groups]), axis=1)[0]) == len(np.unique(found.groups))


def test_images_that_are_all_alike_are_one_group() -> None:
    rows = np.ones((3000, 8), np.float16)
    found = semantic_groups(rows, 0.95)
    assert found.groups.max() == 0
    assert len(found.links) == 2999


@pytest.mark.parametrize("similarity", [0, 1, 1.5, -0.2])
def test_similarity_out_of_range(similarity: float) -> None:
    with pytest.raises(UserError, match="similarity="):
        semantic_groups(np.ones((2, 2), np.float16), similarity)


def test_no_images() -> None:
    assert len(semantic_groups(np.zeros((0, 4), np.float16), 0.9).groups) == 0
