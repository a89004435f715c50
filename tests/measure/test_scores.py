import numpy as np
import pytest

from dejavu_lit.measure import scores as module
from dejavu_lit.measure.scores import Neighbors, predict, score
from dejavu_lit.utils.errors import UserError
from tests.measure.oracle import Case, objects


def three_records() -> tuple[Neighbors, "module.Objects", "module.Objects"]:
    public = objects([{"cat", "dog"}, {"dog"}, set(), {"emu", "fox"}], ["cat", "dog", "emu", "fox"], "p")
    truth = objects([{"cat", "emu"}, set(), {"dog"}], ["cat", "dog", "emu", "fox"], "a")
    rows = np.array([[0, 1, 3], [3, 2, 0], [2, 3, 1]], np.int32)
    distances = np.array([[0.1, 0.2, 0.3], [0.1, 0.1, 0.1], [0.5, 0.5, 0.75]], np.float32)
    return Neighbors(rows, distances), public, truth


def test_three_records_by_hand() -> None:
    neighbors, public, truth = three_records()
    result = score(neighbors, public, truth, ks=[1, 2, 3])
    assert result.hits.tolist() == [[1, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert result.predicted.tolist() == [[2, 2, 4], [2, 2, 4], [0, 2, 3]]
    assert result.truth.tolist() == [2, 0, 1]
    assert result.has_objects.tolist() == [True, False, True]
    assert result.precision(3).tolist() == [0.5, 0.0, 1 / 3]
    assert result.precision(1).tolist() == [0.5, 0.0, 0.0]  # the last record's Ô is empty
    np.testing.assert_array_equal(result.recall(3), [1.0, np.nan, 1.0])


def test_top_m_by_hand() -> None:
    # Record 0 at k = 3: dog twice; then cat (0.9), emu and fox (0.7 each): similarity first, label order second.
    neighbors, public, truth = three_records()

    def names(m: int) -> list[str]:
        starts, codes = predict(neighbors, public, 3, m)
        return [public.labels[code] for code in codes[starts[0] : starts[1]]]

    assert names(1) == ["dog"]
    assert names(2) == ["cat", "dog"]
    assert names(3) == ["cat", "dog", "emu"]
    assert names(9) == ["cat", "dog", "emu", "fox"]
    assert score(neighbors, public, truth, [3], top_m=3).hits[:, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("top_m", [None, 1, 3, 50])
# Few labels are joined as words of 64 bits (64, 65: their edges), many as lists of codes.
@pytest.mark.parametrize(
    ("labels", "most", "dense"),
    [(1, 1, True), (12, 7, True), (64, 9, True), (65, 9, True), (130, 3, True), (900, 2, False)],
)
def test_agrees_with_plain_sets(seed: int, top_m: int | None, labels: int, most: int, dense: bool) -> None:
    case = Case(seed, labels=labels, most=most)
    fits = -(-labels // 64) * len(case.public) <= module.WORDS_PER_OBJECT * len(case.public_objects.codes)
    assert fits == dense
    ks = [1, 3, 6]
    result = score(case.target, case.public_objects, case.truth_objects, ks, top_m)
    for column, k in enumerate(ks):
        starts, codes = predict(case.target, case.public_objects, k, top_m)
        for i, truth in enumerate(case.truth):
            guess = case.guess("target", i, k, top_m)
            assert {case.public_objects.labels[c] for c in codes[starts[i] : starts[i + 1]]} == guess
            assert codes[starts[i] : starts[i + 1]].tolist() == sorted(codes[starts[i] : starts[i + 1]].tolist())
            assert result.hits[i, column] == len(guess & truth)
            assert result.predicted[i, column] == len(guess)
            assert result.truth[i] == len(truth)


def test_chunks_and_read_only_inputs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, n=101)
    unchunked = score(case.target, case.public_objects, case.truth_objects, [2, 5], top_m=2)
    monkeypatch.setattr(module, "CHUNK", 7)
    case.target.rows.setflags(write=False)
    case.public_objects.codes.setflags(write=False)
    chunked = score(case.target, case.public_objects, case.truth_objects, [2, 5], top_m=2)
    np.testing.assert_array_equal(unchunked.hits, chunked.hits)
    np.testing.assert_array_equal(unchunked.predicted, chunked.predicted)


def test_no_records() -> None:
    case = Case(0, n=0)
    result = score(case.target, case.public_objects, case.truth_objects, [3])
    assert result.hits.shape == (0, 1)
    assert predict(case.target, case.public_objects, 3)[0].tolist() == [0]


def test_mistakes_are_named() -> None:
    case = Case(1)
    args = (case.target, case.public_objects, case.truth_objects)
    for ks in ([], [0, 1], [3, 3], [5, 1]):
        with pytest.raises(UserError, match="increasing"):
            score(*args, ks)
    with pytest.raises(UserError, match="k=7 exceeds the 6"):
        score(*args, [7])
    with pytest.raises(UserError, match="different labels"):
        score(case.target, case.public_objects, objects(case.truth, [*case.labels, "zzz"], "a"), [3])
    with pytest.raises(UserError, match="objects for 3 records and neighbors for 40"):
        score(case.target, case.public_objects, objects(case.truth[:3], case.labels, "a"), [3])
    with pytest.raises(UserError, match="objects for 2 images"):
        score(case.target, objects(case.public[:2], case.labels, "p"), case.truth_objects, [3])
    with pytest.raises(UserError, match="k=4 was not scored"):
        score(*args, [3]).precision(4)
    with pytest.raises(UserError, match="the same shape"):
        Neighbors(np.zeros((2, 3), np.int32), np.zeros((2, 2), np.float32))
    with pytest.raises(UserError, match="negative row"):
        Neighbors(np.full((1, 1), -1, np.int32), np.zeros((1, 1), np.float32))
    with pytest.raises(UserError, match="finite"):
        Neighbors(np.zeros((1, 1), np.int32), np.full((1, 1), np.nan, np.float32))
