"""Gaps per owner: values by hand, exact p-values against all permutations, false alarms on H, and power for a planted owner."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from dejavu_lit.measure.gaps import outcomes
from dejavu_lit.measure.groups import MOST_RANKED, _rank_test, group_gaps, permutation_p
from dejavu_lit.measure.membership import COLUMNS
from dejavu_lit.measure.records import Records
from dejavu_lit.utils.errors import UserError
from tests.measure.oracle import Case


def records(seed: int, prefix: str, n: int = 200) -> Records:
    case = Case(seed, n=n, prefix=prefix)
    captions = [f"caption {i}" for i in range(n)]
    # JSON of a table has NaN where a pair has no value.
    owners = [(None if i % 20 == 9 else float("nan")) if i % 10 == 9 else f"owner {i % 4}" for i in range(n)]
    return Records(
        captions, case.truth_objects, case.public_objects, case.target, case.reference, {"meta.owner": owners}
    )


def test_the_gaps_of_a_group_are_those_of_its_pairs_alone() -> None:
    a, h = records(0, "a"), records(1, "h")
    found = group_gaps(a, h, "owner", 3, smallest=2)
    rows = np.flatnonzero(a.truth.counts() > 0)
    gaps, holdout = (outcomes(*r.scores([3]), 3) for r in (a, h))
    owners = [a.columns["meta.owner"][row] for row in rows]
    assert found["column"] == "meta.owner"
    assert found["holdout"] == (h.truth.counts() > 0).sum()
    assert found["without"] == sum(owner is None or owner != owner for owner in owners)
    assert [group["p"] for group in found["groups"]] == sorted(group["p"] for group in found["groups"])
    for group in found["groups"]:
        own = np.array([owner == group["group"] for owner in owners])
        assert group["records"] == own.sum()
        expected = gaps.values()[own].mean(axis=0)
        assert [group[name] for name in ("ppg", "prg", "aucg")] == pytest.approx(expected)
        assert group["p"] == permutation_p(gaps.precision[own], holdout.precision)
    q = stats.false_discovery_control([group["p"] for group in found["groups"]])
    assert [group["q"] for group in found["groups"]] == pytest.approx(q)


def test_p_is_the_share_of_all_permutations() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        group, holdout = draw.integers(-1, 2, draw.integers(1, 5)), draw.integers(-1, 2, draw.integers(1, 9))
        pool = np.concatenate([group, holdout])
        sums = [pool[list(rows)].sum() for rows in combinations(range(len(pool)), len(group))]
        assert permutation_p(group, holdout) == pytest.approx(np.mean(np.array(sums) >= group.sum()))


@pytest.mark.parametrize("rates", [(0.3, 0.5, 0.2), (0.05, 0.9, 0.05), (0.5, 0.0, 0.5)])
@pytest.mark.parametrize("size", [3, 25, 100])
def test_false_alarms_are_at_most_nominal_when_the_groups_are_of_h(rates: tuple[float, ...], size: int) -> None:
    """Groups that are drawn as the holdout is; the test is exact, so it may only be too careful."""
    draw = np.random.default_rng(size)
    signs = draw.choice([-1, 0, 1], p=rates, size=(800, size))
    holdouts = draw.choice([-1, 0, 1], p=rates, size=(800, 400))
    p = np.array([permutation_p(group, holdout) for group, holdout in zip(signs, holdouts, strict=True)])
    for level in (0.01, 0.05, 0.2):
        alarms = (p <= level).sum()
        assert stats.binomtest(int(alarms), len(p), level, alternative="greater").pvalue > 1e-3
        if size == 100 and rates[1] < 0.9 and level > 0.01:  # with many decided pairs the levels are nearly reached
            assert alarms >= 0.5 * level * len(p)


def test_a_planted_owner_stands_out() -> None:
    a, h = records(2, "a", 400), records(3, "h", 400)
    owners = list(a.columns["meta.owner"])
    gaps = outcomes(*a.scores([3]), 3).precision
    rows = np.flatnonzero(a.truth.counts() > 0)
    for row in rows[gaps > 0][:40]:
        owners[row] = "planted"
    first = group_gaps(replace(a, columns={"meta.owner": owners}), h, "meta.owner", 3)["groups"][0]
    assert (first["group"], first["records"], first["ppg"]) == ("planted", 40, 1.0)
    assert first["q"] < 1e-6


def scored(given: Records, seed: int, shift: dict[str, float], drawn: float = 0.5) -> Records:
    """The records with membership scores of a drawn share of the pairs, those of some owners shifted under the target."""
    draw = np.random.default_rng(seed)
    values = draw.normal(size=(6, len(given)))
    values[1] += [shift.get(owner, 0.0) for owner in given.columns["meta.owner"]]
    is_drawn = draw.random(len(given)) < drawn
    columns = {
        name: [v if d else None for v, d in zip(row, is_drawn, strict=True)]
        for name, row in zip(COLUMNS, values, strict=True)
    }
    return replace(given, columns={**given.columns, **columns})


def test_the_membership_of_a_group_is_that_of_its_scored_pairs() -> None:
    a, h = scored(records(0, "a"), 0, {"owner 2": 2.0}), scored(records(1, "h"), 1, {})
    found = {group["group"]: group for group in group_gaps(a, h, "owner", 3, smallest=2)["groups"]}
    differences = [
        [
            t - r if t is not None else None
            for t, r in zip(x.columns["target_alignment"], x.columns["reference_alignment"], strict=True)
        ]
        for x in (a, h)
    ]
    holdout = [value for value in differences[1] if value is not None]
    for owner, group in found.items():
        own = [
            value
            for value, name, count in zip(differences[0], a.columns["meta.owner"], a.truth.counts(), strict=True)
            if value is not None and name == owner and count
        ]
        assert group["clipmem_auc"] == pytest.approx(np.mean([x > y for x in own for y in holdout]))
        assert group["clipmem_p"] == pytest.approx(stats.ranksums(own, holdout, "greater").pvalue, rel=0.1)
    assert found["owner 2"]["clipmem_q"] < 1e-3
    assert min(found[f"owner {i}"]["clipmem_q"] for i in (0, 1, 3)) > 0.05
    q = stats.false_discovery_control([group["clipmem_p"] for group in found.values()])
    assert [group["clipmem_q"] for group in found.values()] == pytest.approx(q)


@pytest.mark.parametrize("shift", [0.0, 0.7, 1.5])
@pytest.mark.parametrize(("size", "holdout"), [(3, 30), (8, 1000), (8, 1300), (5, 2500), (40, 300)])
def test_p_of_the_membership_is_that_of_the_exact_test(size: int, holdout: int, shift: float) -> None:
    draw = np.random.default_rng(size)
    own, others = draw.normal(shift, size=size), draw.normal(size=holdout)
    exact = stats.mannwhitneyu(own, others, alternative="greater", method="exact")
    found = _rank_test(own.tolist(), others)
    assert found["clipmem_auc"] == exact.statistic / (size * holdout)
    is_exact = size <= 8 and size * holdout <= MOST_RANKED
    assert found["clipmem_p"] == pytest.approx(exact.pvalue, abs=0 if is_exact else 0.01)


def test_false_alarms_of_the_membership_are_nominal_when_the_groups_are_of_h() -> None:
    """Groups of about 20 scored pairs each, drawn as the holdout is."""
    p = []
    for seed in range(60):
        a, h = (scored(records(2 * seed + i, "ah"[i]), 2 * seed + i, {}) for i in (0, 1))
        p += [group["clipmem_p"] for group in group_gaps(a, h, "owner", 3, smallest=2)["groups"]]
    assert len(p) == 240
    for level in (0.01, 0.05, 0.2):
        alarms = int((np.array(p) <= level).sum())
        assert stats.binomtest(alarms, len(p), level, alternative="greater").pvalue > 1e-3
    assert np.mean(np.array(p) <= 0.2) > 0.1


def test_without_scores_a_group_has_no_membership() -> None:
    a, h = records(0, "a"), records(1, "h")
    for given in ((a, h), (scored(a, 0, {}, drawn=0.0), h), (scored(a, 0, {}), h)):
        groups = group_gaps(*given, "owner", 3, smallest=2)["groups"]
        assert len(groups) == 4
        assert {group[f"clipmem_{name}"] for group in groups for name in ("auc", "p", "q")} == {None}


def test_small_groups_are_counted_and_unknown_columns_are_refused() -> None:
    a, h = records(0, "a"), records(1, "h")
    found = group_gaps(a, h, "owner", 3, smallest=1000)
    assert (found["groups"], found["too_small"]["groups"]) == ([], 4)
    sizes = sorted(group["records"] for group in group_gaps(a, h, "owner", 3, smallest=1)["groups"])
    found = group_gaps(a, h, "owner", 3, smallest=sizes[-1])  # of so many records a group is large enough
    too_small = [size for size in sizes if size < sizes[-1]]
    assert found["too_small"] == {"groups": len(too_small), "records": sum(too_small), "smallest": sizes[-1]}
    assert 0 < len(found["groups"]) == len(sizes) - len(too_small) < len(sizes)
    with pytest.raises(UserError, match=r"group=ower is not an entry .* \(did you mean 'owner'\?\); choose from owner"):
        group_gaps(a, h, "ower", 3)
    with pytest.raises(UserError, match="group=object_count is not an entry"):
        group_gaps(a, h, "object_count", 3)
    with pytest.raises(UserError, match="JSON has no entries"):
        group_gaps(replace(a, columns={}), h, "owner", 3)


def test_an_entry_called_like_a_column_of_ours_is_the_entry() -> None:
    a, h = records(0, "a"), records(1, "h")
    columns = {"exposure": [3] * len(a), "meta.exposure": a.columns["meta.owner"]}
    assert group_gaps(replace(a, columns=columns), h, "exposure", 3)["groups"] == group_gaps(a, h, "owner", 3)["groups"]
