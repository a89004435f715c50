import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dejavu_lit.measure.per_pair import most_memorized, pair_gaps
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import csv_cell, write_csv
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


def test_unknown_keys_are_counted() -> None:
    a, h = Case(1).records(), Case(2, prefix="h").records()
    got = pair_gaps(a, replace(h, public=a.public), ["a00003", "nobody", "a00003", "h00001"], 3)
    assert got["asked"] == 3
    assert got["unknown"] == {"count": 2, "first": ["nobody", "h00001"]}
    with pytest.raises(UserError, match="none of the 2 keys is a pair"):
        pair_gaps(a, h, ["nobody", "nothing"], 3)
    with pytest.raises(UserError, match="nothing to rank against"):
        pair_gaps(a, replace(h, truth=objects([set()] * 40, list(h.truth.labels), "h")), ["a00003"], 3)


@pytest.mark.parametrize("top_m", [None, 2])
def test_the_most_memorized_against_plain_sets(top_m: int | None) -> None:
    case = Case(1)
    rows = most_memorized(case.records(), 4, top_m, limit=None)
    guess = {m: [case.guess(m, i, 4, top_m) for i in range(40)] for m in ("target", "reference")}
    with_objects = [i for i, g in enumerate(case.truth) if g]
    gap = {
        i: len(guess["target"][i] & case.truth[i]) - len(guess["reference"][i] & case.truth[i]) for i in with_objects
    }
    assert [row["key"] for row in rows] == [f"a{i:05d}" for i in sorted(with_objects, key=lambda i: -gap[i])]
    assert [row["rank"] for row in rows] == list(range(1, len(with_objects) + 1))
    for row in rows:
        i = int(row["key"][1:])
        truth, t, r = case.truth[i], guess["target"][i], guess["reference"][i]
        assert row["objects"] == sorted(truth)
        assert row["only_target"] == sorted(truth & t - r)
        assert row["only_reference"] == sorted(truth & r - t)
        assert row["both_right"] == sorted(truth & r & t)
        assert row["missed"] == sorted(truth - r - t)
        assert row["target_wrong"] == sorted(t - truth)
        assert row["target_hits"] == len(t & truth)
        assert row["reference_recall"] == len(r & truth) / len(truth)
        assert row["target_neighbors"] == [f"p{j:05d}" for j in case.target.rows[i, :4]]
        assert row["reference_distances"] == case.reference.distances[i, :4].tolist()


def test_the_limit_keeps_the_first_rows() -> None:
    records = Case(2).records()
    assert most_memorized(records, 4, limit=5) == most_memorized(records, 4, limit=None)[:5]


def test_csv(tmp_path: Path) -> None:
    records = Case(3).records()
    hostile = replace(records, captions=('=HYPERLINK("http://x")', *records.captions[1:-1], 'a "quoted",\nlong one'))
    rows = most_memorized(hostile, 4, limit=None)
    write_csv(tmp_path / "memorized.csv", rows)
    with open(tmp_path / "memorized.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["key"] for row in written] == [row["key"] for row in rows]
    assert written[0]["target_neighbors"].split("; ") == rows[0]["target_neighbors"]
    captions = {row["key"]: row["caption"] for row in written}
    assert all(not caption.startswith("=") for caption in captions.values())
    last = records.keys[-1]
    assert last not in captions or captions[last] == 'a "quoted",\nlong one'
    keys = [{"key": key, "target_neighbors": [key, "b"], "caption": key} for key in ("-abc", "=1+1")]
    write_csv(tmp_path / "keys.csv", keys)
    assert (tmp_path / "keys.csv").read_text().splitlines()[1:] == ["-abc,-abc; b,'-abc", "'=1+1,'=1+1; b,'=1+1"]
    assert [csv_cell("caption", text) for text in ("\uff1d1", "\n=1", "", "1=1", "(a)")] == [
        "'\uff1d1",
        "'\n'=1",
        "",
        "1=1",
        "(a)",
    ]
    divided = [
        csv_cell("caption", text)
        for text in ('a;"=A1', "a cat;=A1", "a\n@A1", "a\t-A1", " =A1", "a;b = c", "a - b", "a, -1")
    ]
    assert divided == ["a;\"'=A1", "a cat;'=A1", "a\n'@A1", "a\t'-A1", " '=A1", "a;b = c", "a - b", "a, -1"]
    assert csv_cell("objects", ["cat", "=A1"]) == "cat; '=A1"
    write_csv(tmp_path / "none.csv", [], ("rank", "key"))
    assert (tmp_path / "none.csv").read_text() == "rank,key\n"
