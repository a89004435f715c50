"""Blocks of a search that ranks share: the neighbors of one process to the last bit, and parts that are kept or made again."""

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
    """(captions, public images, keys of each) with many equal vectors, so with ties."""
    rng = np.random.default_rng(3)
    public = rng.standard_normal((240, 16))
    public[60:180] = public[rng.integers(0, 60, 120)]
    queries = np.concatenate([public[:30], rng.standard_normal((23, 16))])
    keys = [f"q{i:03d}" for i in rng.permutation(53)], [f"p{i:03d}" for i in rng.permutation(240)]
    made = [write_embeddings(tmp_path / n, k, v, 50) for n, k, v in zip("qp", keys, (queries, public), strict=True)]
    return *made, *keys


def whole(queries, public, asked, common):
    """What one search of everything in memory finds."""
    return search(queries.load(asked), [public.load(common)], K, "float32")


@pytest.mark.parametrize("world", [1, 2, 3, 60])
@pytest.mark.parametrize("index", ["float32", "flat"])
def test_blocks_of_any_number_of_ranks_give_the_neighbors_of_one_search(stored, tmp_path, world, index, monkeypatch):
    monkeypatch.setattr(search_parts, "BLOCK", 20)
    queries, public, asked, names = stored
    common = sorted(names)[5:-5]
    ranks = [
        Search(queries, asked, public.selection(common), K, index, tmp_path / "parts", world) for _ in range(world)
    ]
    for rank in reversed(range(world)):
        ranks[rank].run((rank, world))
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    assert len(parts) == {1: 3, 2: 4, 3: 3, 60: 53}[world]
    found, recall = ranks[0].result()
    expected, _ = whole(queries, public, asked, common)
    assert recall == 1.0
    assert np.array_equal(found.rows, expected.rows)
    assert np.array_equal(found.distances, expected.distances)
    assert (np.diff(found.distances[:30, :2]) == 0).any()  # there were ties
    assert parts == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}


def test_parts_that_are_missing_damaged_or_of_another_search_are_made_again(stored, tmp_path):
    queries, public, asked, names = stored
    common = sorted(names)
    folder = tmp_path / "parts"
    Search(queries, asked, public.selection(common[:-1]), K, "flat", folder, 2).run()
    one = Search(queries, asked, public.selection(common), K, "flat", folder, 2)
    one.run((0, 2))
    kept, other = sorted(folder.iterdir())
    kept.write_bytes(kept.read_bytes()[:200])
    found, _ = one.result()
    expected, _ = whole(queries, public, asked, common)
    assert np.array_equal(found.rows, expected.rows)
    assert np.array_equal(found.distances, expected.distances)
    other.unlink()
    assert np.array_equal(one.result()[0].rows, expected.rows)
    assert [path.name for path in sorted(folder.iterdir())] == [kept.name, other.name]


def test_an_approximate_index_is_built_once_a_rank(stored, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    monkeypatch.setattr(search_parts, "BLOCK", 10)
    queries, public, asked, names = stored
    shared = Search(queries, asked, public.selection(sorted(names)), K, "ivf", tmp_path / "parts", 2)
    for rank in range(2):
        shared.run((rank, 2))
    found, recall = shared.result()
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert found.rows.shape == (53, K)
    assert 0 < recall <= 1


def test_a_set_without_queries(stored, tmp_path):
    queries, public, _, names = stored
    found, recall = Search(queries, [], public.selection(sorted(names)), K, "flat", tmp_path / "parts").result()
    assert (len(found), found.k, recall) == (0, K, 1.0)


def test_a_selection_is_the_stored_vectors_of_its_keys(stored):
    _, public, _, names = stored
    chosen = sorted(names)[::3]
    some = public.selection(chosen)
    assert np.array_equal(np.sort(some.ids), np.arange(len(chosen)))
    assert np.array_equal(np.concatenate(some.parts)[np.argsort(some.ids)], public.load(chosen))
    every = public.selection(sorted(names))
    assert [len(part) for part in every.parts] == [50, 50, 50, 50, 40]
    assert [sorted(names)[row] for row in every.ids] == names


def test_an_unusable_vector_is_named_by_its_row_in_the_file(stored, tmp_path):
    queries, public, asked, names = stored
    vectors = np.array(open_part(tmp_path / "p", "00001"))
    vectors[33] = 0
    np.save(tmp_path / "p" / "00001.npy", vectors)
    chosen = sorted(set(names) - {names[50 + 7], names[50 + 20]})
    with pytest.raises(UserError, match=r"00001\.npy: the vector in row 33 has zero norm"):
        Search(queries, asked, public.selection(chosen), K, "flat", tmp_path / "parts").run()
