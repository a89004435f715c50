"""Blocks of a search that ranks share: the same neighbors to the last bit; parts are kept or computed again."""

import numpy as np
import pytest

from dejavu_lit.evaluation import search_parts
from dejavu_lit.evaluation.embeddings import open_part, write_embeddings
from dejavu_lit.evaluation.search import search
from dejavu_lit.evaluation.search_parts import Search
from dejavu_lit.utils.errors import UserError

K = 7


@pytest.fixture
def stored(tmp_path):
    """(captions, public images, keys of each) with many equal vectors, hence ties."""
    rng = np.random.default_rng(3)
    public = rng.standard_normal((240, 16))
    public[60:180] = public[rng.integers(0, 60, 120)]
    queries = np.concatenate([public[:30], rng.standard_normal((23, 16))])
    keys = [f"q{i:03d}" for i in rng.permutation(53)], [f"p{i:03d}" for i in rng.permutation(240)]
    stored = [write_embeddings(tmp_path / n, k, v, 50) for n, k, v in zip("qp", keys, (queries, public), strict=True)]
    return *stored, *keys


def search_all(queries, public, query_keys, common):
    """The result of one search with everything in memory."""
    return search(queries.load(query_keys), [public.load(common)], K)


@pytest.mark.parametrize("world", [1, 2, 3, 60])
def test_blocks_of_any_number_of_ranks_equal_one_search(stored, tmp_path, world, monkeypatch):
    monkeypatch.setattr(search_parts, "BLOCK", 20)
    queries, public, query_keys, public_keys = stored
    common = sorted(public_keys)[5:-5]
    ranks = [
        Search(queries, query_keys, public.selection(common), K, "flat", tmp_path / "parts", world)
        for _ in range(world)
    ]
    for rank in reversed(range(world)):
        ranks[rank].run((rank, world))
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert len(parts) == {1: 3, 2: 4, 3: 3, 60: 53}[world]
    neighbors, recall = ranks[0].result()
    expected, _ = search_all(queries, public, query_keys, common)
    assert recall == 1.0
    assert np.array_equal(neighbors.rows, expected.rows)
    assert np.array_equal(neighbors.distances, expected.distances)
    assert (np.diff(neighbors.distances[:30, :2]) == 0).any()  # there were ties
    assert parts == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}


def test_missing_damaged_and_foreign_parts_are_computed_again(stored, tmp_path):
    queries, public, query_keys, public_keys = stored
    common = sorted(public_keys)
    folder = tmp_path / "parts"
    Search(queries, query_keys, public.selection(common[:-1]), K, "flat", folder, 2).run()
    shared = Search(queries, query_keys, public.selection(common), K, "flat", folder, 2)
    shared.run((0, 2))
    damaged, foreign = sorted(folder.iterdir())
    damaged.write_bytes(damaged.read_bytes()[:200])
    neighbors, _ = shared.result()
    expected, _ = search_all(queries, public, query_keys, common)
    assert np.array_equal(neighbors.rows, expected.rows)
    assert np.array_equal(neighbors.distances, expected.distances)
    foreign.unlink()
    assert np.array_equal(shared.result()[0].rows, expected.rows)
    assert [path.name for path in sorted(folder.iterdir())] == [damaged.name, foreign.name]


def test_an_approximate_index_is_built_once_per_rank(stored, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(search_parts, "BLOCK", 10)
    queries, public, query_keys, public_keys = stored
    shared = Search(queries, query_keys, public.selection(sorted(public_keys)), K, "ivf", tmp_path / "parts", 2)
    for rank in range(2):
        shared.run((rank, 2))
    neighbors, recall = shared.result()
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert neighbors.rows.shape == (53, K)
    assert 0 < recall <= 1


def test_a_selection_is_the_stored_vectors_of_its_keys(stored):
    _, public, _, public_keys = stored
    chosen = sorted(public_keys)[::3]
    some = public.selection(chosen)
    assert np.array_equal(np.sort(some.ids), np.arange(len(chosen)))
    assert np.array_equal(np.concatenate(some.parts)[np.argsort(some.ids)], public.load(chosen))
    every = public.selection(sorted(public_keys))
    assert [len(part) for part in every.parts] == [50, 50, 50, 50, 40]
    assert [sorted(public_keys)[row] for row in every.ids] == public_keys


def test_the_file_of_an_unusable_vector_is_named(stored, tmp_path):
    queries, public, query_keys, public_keys = stored
    vectors = np.array(open_part(tmp_path / "p", "00001"))
    vectors[33] = 0
    np.save(tmp_path / "p" / "00001.npy", vectors)
    chosen = sorted(set(public_keys) - {public_keys[50 + 7], public_keys[50 + 20]})
    with pytest.raises(UserError, match=r"00001\.npy: a vector has zero norm \(as 1 of "):
        Search(queries, query_keys, public.selection(chosen), K, "flat", tmp_path / "parts").run()
