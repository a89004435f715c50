import csv
from dataclasses import replace
from pathlib import Path

import pytest

from dejavu_lit.measure.per_pair import most_memorized, write_csv
from tests.measure.oracle import Case


@pytest.mark.parametrize("top_m", [None, 2])
def test_rows_against_plain_sets(top_m: int | None) -> None:
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
    write_csv(tmp_path / "none.csv", [])
    assert (tmp_path / "none.csv").read_text() == "rank,key\n" or (
        tmp_path / "none.csv"
    ).read_bytes() == b"rank,key\r\n"
