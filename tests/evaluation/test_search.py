"""The search against a brute-force search in float64: the same rows and the same distances, bit for bit."""

import numpy as np
import pytest

from dejavu_lit.evaluation import search as module
from dejavu_lit.evaluation import vectors
from dejavu_lit.evaluation.embeddings import Embeddings, write_embeddings
from dejavu_lit.evaluation.search import float32_error, search
from dejavu_lit.evaluation.vectors import Vectors
from dejavu_lit.utils.errors import UserError
from tests.conftest import call

EXACT = ["flat"]


def unit(rng, n, d):
    vectors = rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def best_k(queries, public, k, index):
    return module.best_k(queries, public, k, index, np.arange(sum(map(len, public))))


def oracle(queries, public, k, ids=None):
    """(rows, float64 cosines), every pair computed, sorted by cosine, then by row."""
    q, p = queries.astype(np.float64), public.astype(np.float64)
    scores = (q @ p.T) / (np.sqrt((q * q).sum(1))[:, None] * np.sqrt((p * p).sum(1)))
    ids = np.arange(len(public)) if ids is None else ids
    order = np.lexsort((np.broadcast_to(ids, scores.shape), -scores), axis=1)[:, :k]
    return ids[order], np.take_along_axis(scores, order, axis=1)


def hard(rng, n, m, d):
    """Queries and public vectors with many exact duplicates, near-duplicates in the last bit, and exact hits."""
    queries, public = unit(rng, n, d), unit(rng, m, d)
    public[m // 5 : m // 2] = public[3]
    public[m // 2 : m // 2 + m // 10] = public[: m // 10]
    near = public[m // 10 : m // 5].view(np.uint16)
    near[:, 0] ^= 1
    queries[: n // 4] = public[: n // 4]
    queries[n // 4] = public[3]
    return queries, public


@pytest.mark.parametrize("index", EXACT)
@pytest.mark.parametrize("d", [8, 100])
@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("rows", [10**6, 700])
def test_rows_and_scores_are_those_of_brute_force(index, d, k, rows, monkeypatch):
    monkeypatch.setattr(vectors, "CHUNK_BYTES", 2 * d * rows)
    monkeypatch.setattr(module, "QUERIES_PER_THREAD", 7)
    monkeypatch.setattr(module, "QUERIES_AT_ONCE", 30)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 500)
    monkeypatch.setattr(vectors, "ROWS_AT_ONCE", 500)
    queries, public = hard(np.random.default_rng(d), 200, 3000, d)
    best = best_k(queries, [public[:10], public[10:10], public[10:1500], public[1500:]], k, index)
    expected_rows, expected_scores = oracle(queries, public, k)
    assert np.array_equal(best.rows, expected_rows)
    assert np.array_equal(best.scores, expected_scores)


@pytest.mark.parametrize("index", EXACT)
def test_any_stored_norm(index):
    rng = np.random.default_rng(1)
    queries, public = unit(rng, 50, 32), unit(rng, 800, 32)
    public *= rng.choice([0.001, 0.5, 1, 3], size=(800, 1)).astype(np.float16)
    rows, scores = oracle(queries, public, 5)
    best = best_k(queries, [public], 5, index)
    assert np.array_equal(best.rows, rows)
    assert np.array_equal(best.scores, scores)


@pytest.mark.parametrize("index", EXACT)
def test_ties_follow_the_public_row_and_not_the_stored_position(index):
    rng = np.random.default_rng(2)
    queries, public = hard(rng, 60, 900, 16)
    ids = rng.permutation(900)
    neighbors, recall = search(queries, [public[:500], public[500:]], 20, index, ids)
    rows, scores = oracle(queries, public, 20, ids)
    assert np.array_equal(neighbors.rows, rows)
    assert np.array_equal(neighbors.distances, np.maximum(1 - scores, 0).astype(np.float32))
    assert recall == 1.0
    sorted_public = np.empty_like(public)
    sorted_public[ids] = public
    again, _ = search(queries, [sorted_public], 20, index)
    assert np.array_equal(again.rows, neighbors.rows)


def test_any_batch_of_queries_has_the_same_neighbors(monkeypatch):
    queries, public = hard(np.random.default_rng(4), 90, 700, 24)
    expected, _ = search(queries, [public], 7)
    for start in range(0, 90, 13):
        some, _ = search(queries[start : start + 13], [public], 7)
        assert np.array_equal(some.rows, expected.rows[start : start + 13])
        assert np.array_equal(some.distances, expected.distances[start : start + 13])


def test_memory_maps_of_stored_parts(tmp_path):
    rng = np.random.default_rng(5)
    stored = write_embeddings(tmp_path, [f"{i * 7 % 300:03d}" for i in range(300)], unit(rng, 300, 8), 90)
    queries = unit(rng, 20, 8)
    neighbors, _ = search(queries, stored.parts(), 6, ids=stored.selection(sorted(stored.keys)).ids)
    rows, _ = oracle(queries, stored.load(sorted(stored.keys)), 6)
    assert np.array_equal(neighbors.rows, rows)


def test_float32_scores_stay_within_their_bound():
    rng = np.random.default_rng(6)
    for d in (8, 512, 2048):
        queries, public = unit(rng, 40, d), unit(rng, 400, d)
        public[:40] = queries
        q, p = (
            x.astype(np.float32) / np.linalg.norm(x.astype(np.float32), axis=1, keepdims=True)
            for x in (queries, public)
        )
        rows, scores = oracle(queries, public, 400)
        error = np.abs(np.take_along_axis(q @ p.T, rows, axis=1) - scores).max()
        assert error <= float32_error(d) < 2e-4


@pytest.mark.parametrize("index", EXACT)
def test_stored_unit_vectors_are_ranked_by_direction_and_not_by_length(index):
    rng = np.random.default_rng(10)
    query, sideways = np.linalg.qr(rng.normal(size=(512, 2)))[0].T
    tilted = np.sqrt(1 - 0.015**2) * query + 0.015 * rng.choice([-1, 1], (10, 1)) * sideways
    long, short = (1 + 0.8 * 2**-12) * tilted, (1 - 0.8 * 2**-12) * np.tile(query, (10, 1))
    public = np.concatenate([long, short, unit(rng, 100, 512)]).astype(np.float16)
    loaded = Vectors.load(public, names=["public"])
    assert loaded.units is loaded.stored  # of lengths so close to 1 that they are searched as they are
    queries = query.astype(np.float16)[None]
    best = best_k(queries, [public], 5, index)
    assert (loaded.stored[:10] @ queries[0].astype(np.float32)).min() > (loaded.stored[10:] @ queries[0]).max()
    assert np.array_equal(best.rows, [[10, 11, 12, 13, 14]])
    assert np.array_equal(best.rows, oracle(queries, public, 5)[0])


@pytest.mark.parametrize("index", EXACT)
def test_all_vectors_equal(index):
    public = np.ones((5000, 8), np.float16)
    best = best_k(public[:30], [public], 5, index)
    assert np.array_equal(best.rows, np.tile(np.arange(5), (30, 1)))
    assert best.scores == pytest.approx(1)


@pytest.mark.parametrize("index", EXACT)
def test_opposite_vectors_are_neighbors_if_there_are_no_others(index):
    queries = np.ones((3, 8), np.float16)
    public = -np.arange(1, 41, dtype=np.float16)[:, None] * np.ones((40, 8), np.float16)
    public[:, 0] *= np.linspace(1, 0.2, 40).astype(np.float16)
    best = best_k(queries, [public], 40, index)
    assert np.array_equal(best.rows, oracle(queries, public, 40)[0])
    assert (best.scores < -0.9).all()


@pytest.mark.parametrize("index", EXACT)
def test_a_narrow_cone_in_which_half_precision_cannot_separate_vectors(index):
    rng = np.random.default_rng(9)
    public = (1 + 0.01 * rng.normal(size=(3000, 32))).astype(np.float16)
    queries = (1 + 0.01 * rng.normal(size=(40, 32))).astype(np.float16)
    best = best_k(queries, [public], 10, index)
    rows, scores = oracle(queries, public, 10)
    assert scores[:, -1].min() > 0.999
    assert np.array_equal(best.rows, rows)


def test_an_approximate_index_measures_its_recall():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(8)
    centers = unit(rng, 60, 16)
    public = (centers[rng.integers(0, 60, 4000)] + 0.3 * unit(rng, 4000, 16)).astype(np.float16)
    queries = (centers[rng.integers(0, 60, 150)] + 0.3 * unit(rng, 150, 16)).astype(np.float16)
    ids = rng.permutation(4000)
    neighbors, recall = search(queries, [public[:900], public[900:]], 20, "ivf", ids)
    exact, _ = search(queries, [public], 20, "flat", ids)
    own = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(neighbors.rows, exact.rows, strict=True)])
    assert recall == pytest.approx(own)
    assert 0.5 < recall <= 1
    assert (np.diff(neighbors.distances, axis=1) >= 0).all()
    everything, recall = search(queries, [public], 4000, "ivf", ids)  # more than any list has, so the search is exact
    assert recall == 1.0
    assert np.array_equal(everything.rows, search(queries, [public], 4000, "flat", ids)[0].rows)


@pytest.mark.parametrize(
    ("queries", "public", "k", "message"),
    [
        (
            np.ones((2, 4), np.float16),
            [np.ones((3, 4), np.float16)],
            4,
            "k=4 needs at least 4 public vectors, but there are 3",
        ),
        (np.ones((2, 4), np.float16), [np.ones((3, 4), np.float16)], 0, "k=0"),
        (
            np.ones((2, 4), np.float16),
            [np.ones((3, 5), np.float16)],
            1,
            "the public vectors have 5 values, the queries 4",
        ),
    ],
)
def test_bad_input(queries, public, k, message):
    with pytest.raises(UserError, match=message):
        search(queries, public, k)


@pytest.mark.parametrize(("value", "problem"), [(0, "zero norm"), (np.nan, "NaN"), (-np.inf, "infinity")])
def test_unusable_vectors_are_named(tmp_path, value, problem):
    good, bad = np.ones((4, 4), np.float16), np.ones((4, 4), np.float16)
    bad[2] = value
    with pytest.raises(UserError, match=f"part 1 of the public set: a vector .*{problem}"):
        search(good, [good, bad], 1)
    with pytest.raises(UserError, match=f"queries: a vector .*{problem}"):
        search(bad, [good], 1)
    write_embeddings(tmp_path, list("abcd"), good)
    np.save(tmp_path / "00000.npy", bad)
    with pytest.raises(UserError, match=f"00000.npy: a vector .*{problem}"):
        search(good, Embeddings.open(tmp_path).parts(), 1)


def test_an_index_that_cannot_be_used_is_named_before_anything_is_embedded(runs, tmp_path):
    pair = [f"{side}={runs[side]}" for side in ("target", "reference")]
    done = call("evaluate", *pair, "index=flatt", f"embeddings={tmp_path / 'vectors'}", f"out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert "index=flatt is unknown (did you mean 'flat'?)" in done.stderr
    assert not (tmp_path / "vectors").exists()


def test_an_unknown_index_gets_a_suggestion():
    with pytest.raises(UserError, match=r"index=flatt .*did you mean 'flat'"):
        search(np.ones((1, 4), np.float16), [np.ones((3, 4), np.float16)], 1, "flatt")
    if not hasattr(pytest.importorskip("faiss"), "StandardGpuResources"):
        with pytest.raises(UserError, match="index=gpu needs faiss-gpu"):
            search(np.ones((1, 4), np.float16), [np.ones((3, 4), np.float16)], 1, "gpu")
