"""Random halves: how the pool is dealt, and that a dealt set reads as if its pairs were in shards of their own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.shards import write_shards
from dejavu_lit.data import shards
from dejavu_lit.data.halves import deal, open_half, open_pool
from dejavu_lit.data.prepared import DataSpec
from dejavu_lit.data.shard_index import read_index
from dejavu_lit.data.shards import Pair, ShardSet, index_shard, read_pairs, write_shard
from dejavu_lit.report.evaluation import Evaluation
from dejavu_lit.utils.errors import UserError

KEYS = [f"k{i:04d}" for i in range(1000)]


def sides(keys: list[str], groups: list[list[str]], sizes: tuple[int, int], half: int = 1) -> dict[str, int]:
    return dict(zip(keys, deal(keys, groups, sizes, 0, half).tolist(), strict=True))


def test_both_sides_get_their_size_and_every_half_is_another_deal() -> None:
    first, second = sides(KEYS, [], (500, 500)), sides(KEYS, [], (500, 500), half=2)
    for dealt in (first, second):
        assert sorted(dealt.values()) == [0] * 500 + [1] * 500
    same = np.mean([first[key] == second[key] for key in KEYS])
    assert 0.45 < same < 0.55
    assert sides(KEYS[::-1], [], (500, 500)) == first  # in whatever order they come
    uneven = sides(KEYS, [], (700, 300))
    assert sum(uneven.values()) == 300


def test_the_deal_by_hand() -> None:
    from dejavu_lit.data.splits import seeded_hash

    keys = KEYS[:6]
    order = [keys[i] for i in np.argsort(seeded_hash(keys, 5, "half 3"))]
    dealt = dict(zip(keys, deal(keys, [], (4, 2), 5, 3).tolist(), strict=True))
    assert [dealt[key] for key in order] == [0, 1, 0, 1, 0, 0]


def test_groups_of_duplicates_stay_together() -> None:
    groups = [KEYS[start : start + 5] for start in range(0, 400, 5)]
    dealt = sides(KEYS, groups, (500, 500))
    for group in groups:
        assert len({dealt[key] for key in group}) == 1
    assert list(dealt.values()).count(0) == list(dealt.values()).count(1) == 500
    assert (
        sides(KEYS, [group[::-1] for group in groups], (500, 500)) == dealt
    )  # the smallest key decides, not the first
    # Two places on each side are too few for a third group of three.
    assert sorted(sides(KEYS[:9], [KEYS[:3], KEYS[3:6], KEYS[6:9]], (5, 4)).values()) == [-1] * 3 + [0] * 3 + [1] * 3


def prepared(folder: Path, **settings: object) -> Path:
    for name, start in (("A", 0), ("B", 10)):
        pairs = [Pair(key, key.encode(), "png", f"caption of {key}") for key in KEYS[start : start + 10]]
        write_shards(folder / name, pairs, pairs_per_shard=4)
    groups = {"A": [KEYS[:2]], "B": []}
    manifest = {"schema": 1, "settings": settings, "duplicates": {"groups": groups}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_dealt_set_reads_like_any_other(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    a, b = (open_half(folder, name, 0, 1) for name in "AB")
    assert 18 <= len(a) + len(b) <= 20  # a group of two at the end may find one free place on each side
    assert not set(a.keys()) & set(b.keys())
    assert set(a.keys() + b.keys()) <= set(KEYS[:20])
    assert set(a.keys()) != set(KEYS[:10])
    for side in (a, b):
        assert (KEYS[0] in side.keys()) == (KEYS[1] in side.keys())
    for side in (a, b):
        pairs = list(read_pairs(side))
        assert [pair.key for pair in pairs if isinstance(pair, Pair)] == side.keys()
        assert all(isinstance(pair, Pair) and pair.image == pair.key.encode() for pair in pairs)
        assert side.keys(3) == side.keys()[:3]
        assert len(set(side.names)) == len(side.names)
    assert a.fingerprint != open_half(folder, "A", 0, 2).fingerprint
    assert a.fingerprint == open_half(folder, "A", 0, 1).fingerprint
    assert not list(tmp_path.glob("*half*"))


def test_a_shard_with_fewer_pairs_than_when_it_was_dealt_is_refused(tmp_path: Path) -> None:
    side = open_half(prepared(tmp_path), "A", 0, 1)
    shard = next(number for number, chosen in enumerate(side.positions) if len(chosen))  # type: ignore[attr-defined]
    with write_shard(side.paths[shard]):  # type: ignore[attr-defined]
        pass
    index_shard.cache_clear()
    with pytest.raises(UserError, match="has fewer pairs than when the halves were dealt; restore the shard"):
        side.index(shard)


def test_with_a_training_size_every_half_deals_the_pairs_of_the_first(tmp_path: Path) -> None:
    """The first pairs of A and of B, whatever the half: a pair is in every half or in none."""
    folder = prepared(tmp_path)
    pool = {*KEYS[1:5], *KEYS[10:14]}  # one is excluded, so the next one counts
    for half in (1, 2, 3):
        a, b = (open_half(folder, name, 0, half, 4, frozenset(KEYS[:1])) for name in "AB")
        assert set(a.keys()) | set(b.keys()) == pool
        assert len(a) == len(b) == 4
        assert 0 not in a.sizes + b.sizes


def test_excluded_pairs_are_not_counted_as_training_pairs(tmp_path: Path) -> None:
    (tmp_path / "exclude.txt").write_text("\n".join([*KEYS[:3], KEYS[12], "elsewhere"]))
    data = DataSpec("mine", dir=str(prepared(tmp_path / "data")), exclude=str(tmp_path / "exclude.txt"))
    assert [data.training_pairs(side) for side in ("target", "reference")] == [7, 9]
    assert sum(replace(data, half=1).training_pairs(side) for side in ("target", "reference")) == 16
    assert replace(data, train_size=5).training_pairs("target") == 5


def test_each_shard_of_the_training_size_is_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(tmp_path)
    indexed: list[str] = []
    monkeypatch.setattr(shards, "index_shard", lambda path: indexed.append(str(path)) or read_index(path))
    whole = len(ShardSet.open(folder / "A").names)
    open_half(folder, "A", 0, 1)
    assert len(indexed) == len(set(indexed)) == 2 * whole
    indexed.clear()
    open_half(folder, "A", 0, 1, 1)
    assert {Path(path).name for path in indexed} == {"00000.tar"}


def test_the_pool_has_the_pairs_of_every_half(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    pool = open_pool(folder)
    assert pool.keys() == KEYS[:20]
    assert [pair.key for pair in read_pairs(pool) if isinstance(pair, Pair)] == KEYS[:20]
    config = {"half": 1, "train_size": 4, "exclude": "moved.txt"}
    report = Evaluation(tmp_path, {"settings": {"public": "P"}, "provenance": {"config": {"data": config}}}, folder)
    own, _ = report.shards()
    assert own is not None
    assert set(own.keys()) >= set(open_half(folder, "A", 0, 1, 4).keys())


def test_the_first_pairs_of_a_dealt_set_come_from_both(tmp_path: Path) -> None:
    a = open_half(prepared(tmp_path), "A", 0, 1)
    sources = [name.partition("-")[0] for name in a.names]
    assert sources[:4] == ["A", "B", "A", "B"]
    assert {key in KEYS[:10] for key in a.keys(5)} == {True, False}


def test_given_members_are_not_dealt_anew(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"keys\.A= of dejavu prepare; membership was given, not drawn"):
        open_half(prepared(tmp_path, keys={"A": "fingerprint"}), "A", 0, 1)


def test_data_without_groups_of_duplicates_is_refused(tmp_path: Path) -> None:
    folder = prepared(tmp_path)
    (folder / "manifest.json").write_text(json.dumps({"schema": 1, "duplicates": {}}))
    with pytest.raises(UserError, match=r"data\.half=1 needs the groups of near-duplicates"):
        open_half(folder, "A", 0, 1)
