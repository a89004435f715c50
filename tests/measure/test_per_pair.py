from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dejavu_lit.measure.per_pair import pair_gaps, read_keys
from dejavu_lit.utils.errors import UserError
from tests.measure.oracle import Case, objects


def test_ranks_against_plain_sets() -> None:
    a, h = Case(1), Case(2, n=90, prefix="h")
    h.public, h.public_objects = a.public, a.public_objects
    holdout = [
        (t[0] - r[0], t[1] - r[1]) for t, r in zip(h.figures("target", 4, 3), h.figures("reference", 4, 3), strict=True)
    ]
    with_objects = [i for i, g in enumerate(a.truth) if g]
    own = dict(
        zip(with_objects, zip(a.figures("target", 4, 3), a.figures("reference", 4, 3), strict=True), strict=True)
    )
    got = pair_gaps(a.records(), h.records(), [f"a{i:05d}" for i in range(39, -1, -1)], 4, 3)
    assert [p["key"] for p in got["pairs"]] == [f"a{i:05d}" for i in reversed(with_objects)]
    assert got["without_objects"]["count"] == 40 - len(with_objects)
    assert got["holdout"] == len(holdout)
    for pair in got["pairs"]:
        t, r = own[int(pair["key"][1:])]
        for f, name in enumerate(("precision", "recall")):
            gap = t[f] - r[f]
            assert pair["gap"][name] == pytest.approx(float(gap), abs=1e-11)
            reached = sum(gaps[f] >= gap for gaps in holdout)  # exact fractions: ties are ties
            assert pair["p"][name] == (1 + reached) / (1 + len(holdout))
    for name in ("precision", "recall", "hits"):
        q = stats.false_discovery_control([p["p"][name] for p in got["pairs"]])
        assert [p["q"][name] for p in got["pairs"]] == pytest.approx(q.tolist())


def test_p_values_under_the_null_keep_their_level() -> None:
    small = []
    for seed in (3, 5, 7):
        a, h = Case(seed, n=400), Case(seed + 1, n=400, prefix="h")
        h.public, h.public_objects = a.public, a.public_objects
        p = [pair["p"]["recall"] for pair in pair_gaps(a.records(), h.records(), a.truth_objects.keys, 4)["pairs"]]
        assert min(p) > 0
        small += [value <= 0.1 for value in p]
    assert 0.03 < np.mean(small) < 0.13  # at most 0.1, and below it by ties; standard error 0.014 with that of H


def test_unknown_keys_are_counted(tmp_path: Path) -> None:
    a, h = Case(1).records(), Case(2, prefix="h").records()
    (tmp_path / "keys.txt").write_text("a00003\n\nnobody\na00003\nh00001\n")
    keys = read_keys(tmp_path / "keys.txt")
    assert keys == ["a00003", "nobody", "h00001"]
    got = pair_gaps(a, replace(h, public=a.public), keys, 3)
    assert got["asked"] == 3
    assert got["unknown"] == {"count": 2, "first": ["nobody", "h00001"]}
    with pytest.raises(UserError, match="none of the 2 keys is a pair"):
        pair_gaps(a, h, ["nobody", "nothing"], 3)
    with pytest.raises(UserError, match="nothing to rank against"):
        pair_gaps(a, replace(h, truth=objects([set()] * 40, list(h.truth.labels), "h")), ["a00003"], 3)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="has no keys"):
        read_keys(tmp_path / "empty.txt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_keys(tmp_path / "bytes.txt")
