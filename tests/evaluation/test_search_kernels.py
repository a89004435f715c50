"""The search's loops one by one against numpy, on arrays small enough to run them as plain Python, too (make coverage)."""

from collections.abc import Callable

import numpy as np
import pytest

from dejavu_lit.evaluation import search_kernels as kernels
from dejavu_lit.evaluation.search_index import BF16_ROUNDING

K = 3
HALVES = np.array([[1.5, -0.25, 0.0], [6e-8, -65504, 3e-5], [0, 0, 0]], np.float16)


def test_halves_are_decoded_and_normalised_exactly() -> None:
    bits, values = HALVES.view(np.uint16), HALVES.astype(np.float64)
    copy, norms, decoded, unit = np.zeros_like(bits), np.zeros(3), *np.zeros((2, 3, 3), np.float32)
    kernels.load(bits, copy, norms)
    kernels.decode(bits, decoded)
    kernels.normalise(bits, norms, unit)
    np.testing.assert_array_equal(copy, bits)
    np.testing.assert_array_equal(decoded, HALVES.astype(np.float32))
    np.testing.assert_allclose(norms, np.linalg.norm(values, axis=1), rtol=1e-15)
    np.testing.assert_allclose(unit, values / np.maximum(norms, 1e-30)[:, None], rtol=1e-6)


def test_the_best_are_kept_by_score_then_name_and_none_twice() -> None:
    queries = np.array([[1, 0], [0, 2]], np.float32)
    public = np.array([[3, 4], [1, 0], [0, 1], [2, 0], [-1, 0], [3, 4]], np.float32)
    norms, ids = np.linalg.norm(public.astype(np.float64), axis=1), np.array([7, 9, 4, 2, 5, 1], np.int32)
    rows = np.tile(np.arange(6, dtype=np.int32), (2, 1))
    best_rows, best_scores = np.full((2, K), -1, np.int32), np.full((2, K), -np.inf)
    query_norms, counts, done = np.array([1.0, 2.0]), np.array([6, 6]), np.zeros(2, np.int64)
    for start, stop in ((0, 4), (4, 6), (0, 4)):  # two tiles, and one of them again
        tile = (queries, query_norms, public[start:stop], norms[start:stop], start, rows, done, counts, ids)
        kernels.absorb(*tile, best_rows, best_scores)
        if stop == 6:
            assert done.tolist() == [6, 6]
            done[:] = 0
    assert best_rows.tolist() == [[2, 9, 1], [4, 1, 7]]
    np.testing.assert_allclose(best_scores, [[1, 1, 0.6], [1, 0.8, 0.8]], rtol=1e-15)


def test_scores_above_a_floor() -> None:
    scores, rows, counts = (
        np.array([[1, 3, 2], [0, 0, 0]], np.float32),
        np.zeros((2, 3), np.int32),
        np.zeros(2, np.int64),
    )
    kernels.above(scores, np.array([2, 1], np.float32), 10, rows, counts)
    assert counts.tolist() == [2, 0]
    assert rows[0, :2].tolist() == [11, 12]


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the values cut to bfloat16, int16."""
    return (values.view(np.int32) >> 16).astype(np.int16)


@pytest.mark.parametrize("low", [-1.0, 0.0])
@pytest.mark.parametrize(
    ("collect", "stored", "rounding"),
    [
        (kernels.collect_float32, lambda values: values, 0.0),
        (kernels.collect_bfloat16, bfloat16, BF16_ROUNDING),
    ],
)
def test_the_best_are_always_among_the_candidates(
    collect: Callable[..., None], stored: Callable[[np.ndarray], np.ndarray], rounding: float, low: float
) -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(low, low + 1, (2, 6 * kernels.BLOCK)).astype(np.float32)
    true[1, :] = true[1, 0]  # all alike: too many candidates, given up
    errors, floors = np.full(2, 1e-3, np.float32), np.full(2, -4, np.float32)
    room = 2 * kernels.BLOCK + 8
    values, rows, counts = np.zeros((2, room), np.float32), np.zeros((2, room), np.int32), np.zeros(2, np.int64)
    for start in (0, 3 * kernels.BLOCK):
        tile = stored(np.ascontiguousarray(true[:, start : start + 3 * kernels.BLOCK])).reshape(2, 3, kernels.BLOCK)
        collect(tile, start, K, errors, rounding, floors, values, rows, counts)
    kernels.finish(K, errors, rounding, values, rows, counts)
    assert counts[1] == -1
    found = rows[0, : counts[0]].tolist()
    assert found == sorted(set(found))
    assert set(np.argsort(-true[0])[:K].tolist()) <= set(found)
    assert len(found) < 20  # and few others
