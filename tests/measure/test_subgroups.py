from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dejavu_lit.measure import subgroups as subgroups_module
from dejavu_lit.measure.gaps import Outcomes, outcomes
from dejavu_lit.measure.records import Records
from dejavu_lit.measure.subgroups import GroupMeans, by_subgroup, group_order, two_sided
from dejavu_lit.utils.errors import UserError
from tests.measure.oracle import Case


def audited(seed: int, prefix: str = "a", n: int = 300) -> tuple[Records, Outcomes, Case]:
    case = Case(seed, n=n, prefix=prefix)
    columns = {
        "place": [None if i % 10 == 0 else ("north", "south")[i % 2] for i in range(n)],
        "width": [100 + i for i in range(n)],
        "flag": [i % 3 == 0 for i in range(n)],
    }
    plain = case.records()
    records = Records(
        tuple("word " * (1 + i % 12) for i in range(n)),
        plain.truth,
        plain.public,
        plain.target,
        plain.reference,
        columns,
    )
    return records, outcomes(*records.scores([3]), 3), case


def by_brute_force(case: Case, chosen: list[int]) -> tuple[float, float, float]:
    kept = [i for i, g in enumerate(case.truth) if g]
    pairs = dict(zip(kept, zip(case.figures("target", 3), case.figures("reference", 3), strict=True), strict=True))
    members = [pairs[i] for i in chosen if i in pairs]
    signs = [sum((t[f] > r[f]) - (t[f] < r[f]) for t, r in members) / len(members) for f in (0, 1)]
    return signs[0], signs[1], float(sum(t[1] - r[1] for t, r in members) / len(members))


def test_values_against_brute_force() -> None:
    records, results, case = audited(1)
    columns = ("object", "caption_words", "object_count", "place", "width", "flag")
    got = by_subgroup(columns, (records, results), smallest=1)
    n = range(len(case.truth))
    cuts = np.quantile([100 + i for i in n if case.truth[i]], [0.25, 0.5, 0.75])
    chosen = {
        ("object", "l003"): [i for i in n if "l003" in case.truth[i]],
        ("caption_words", "5 < … ≤ 10"): [i for i in n if 5 < 1 + i % 12 <= 10],
        ("object_count", "4"): [i for i in n if len(case.truth[i]) == 4],
        ("place", "north"): [i for i in n if i % 10 and i % 2 == 0],
        ("place", "(none)"): [i for i in n if i % 10 == 0],
        ("width", f"> {cuts[2]:g}"): [i for i in n if 100 + i > cuts[2]],
        ("flag", "True"): [i for i in n if i % 3 == 0],
    }
    for (column, name), members in chosen.items():
        row = next(g for g in got[column]["groups"] if g["group"] == name)
        assert row["records"] == sum(bool(case.truth[i]) for i in members)
        assert tuple(row[f]["value"] for f in ("ppg", "prg", "aucg")) == pytest.approx(by_brute_force(case, members))
        low, high = row["ppg"]["ci95"]
        assert low < row["ppg"]["value"] < high
    assert len(got["width"]["groups"]) == 4
    assert sum(g["records"] for g in got["flag"]["groups"]) == len(results)


def test_numbers_that_differ_after_their_sixth_digit_have_bins_of_their_own() -> None:
    records, results, case = audited(1)
    days = [20230101 + i for i in range(300)]
    got = by_subgroup(("day",), (replace(records, columns={"meta.day": days}), results), smallest=1)["meta.day"]
    cuts = np.quantile([day for day, g in zip(days, case.truth, strict=True) if g], [0.25, 0.5, 0.75])
    low, middle, high = (repr(cut).removesuffix(".0") for cut in cuts.tolist())
    names = [f"≤ {low}", f"{low} < … ≤ {middle}", f"{middle} < … ≤ {high}", f"> {high}"]
    assert sorted((g["group"] for g in got["groups"]), key=group_order) == names
    assert max(g["records"] for g in got["groups"]) < 0.3 * len(results)
    assert group_order("nan") == (np.inf, "nan")  # a text: NaN has no place in an order


def test_a_nan_is_no_value() -> None:
    records, results, case = audited(1)
    for name, numbers in (("few", [1.0, 2.0]), ("many", [float(i) for i in range(100)])):
        values = [np.nan if i % 3 == 0 else numbers[i % len(numbers)] for i in range(300)]
        column = {f"meta.{name}": values}
        groups = by_subgroup((name,), (replace(records, columns=column), results), smallest=1)[f"meta.{name}"]["groups"]
        of_name = {g["group"]: g["records"] for g in groups}
        assert of_name["(none)"] == sum(bool(case.truth[i]) for i in range(0, 300, 3))
        assert len(of_name) == (3 if name == "few" else 5)
        assert not any("nan" in group for group in of_name)


def test_infinity_and_numbers_beyond_a_float_are_in_the_outer_bins() -> None:
    records, results, _ = audited(1)
    column = [float("inf") if i % 3 == 0 else -(10**400) if i % 7 == 0 else float(i) for i in range(300)]
    got = by_subgroup(("x",), (replace(records, columns={"meta.x": column}), results), smallest=1)["meta.x"]
    with_objects = [value for value, n in zip(column, records.truth.counts(), strict=True) if n]
    cuts = np.quantile([value for value in with_objects if abs(value) < 1e300], [0.25, 0.5, 0.75]).tolist()
    of_name = {g["group"]: g["records"] for g in got["groups"]}
    assert of_name[f"≤ {cuts[0]:g}"] == sum(value <= cuts[0] for value in with_objects)
    assert of_name[f"> {cuts[2]:g}"] == sum(value > cuts[2] for value in with_objects)
    huge = replace(records, columns={"meta.x": [10**400 + i for i in range(300)]})  # as names
    assert len(by_subgroup(("x",), (huge, results), smallest=1)["meta.x"]["groups"]) > 100


def test_entries_of_the_json_cannot_be_taken_for_ours() -> None:
    records, results, case = audited(1)
    n = len(case.truth)
    times, exif = [3] * n, ["1/60", "1/250"] * (n // 2)
    columns = {"exposure": times, "meta.exposure": exif, "meta.object": exif, "meta.place": ["here"] * n}
    records = replace(records, columns=columns)
    got = by_subgroup(("object", "meta.object", "exposure", "meta.exposure", "place"), (records, results), smallest=1)
    assert list(got) == ["object", "meta.object", "exposure", "meta.exposure", "meta.place"]
    groups = {column: {g["group"] for g in result["groups"]} for column, result in got.items()}
    assert groups["object"] == {label for g in case.truth for label in g}
    assert groups["exposure"] == {"3"}
    assert groups["meta.exposure"] == groups["meta.object"] == {"1/60", "1/250"}
    # The bare name is the photograph's if training's exposure is unknown, and under one name for both sets.
    del columns["exposure"]
    assert list(by_subgroup(("exposure",), (records, results))) == ["meta.exposure"]
    unlike = replace(records, columns={"exposure": times, **columns})
    assert list(by_subgroup(("exposure",), (unlike, results), (records, results))) == ["meta.exposure"]
    with pytest.raises(UserError, match=r"subgroups=meta.plac is unknown \(did you mean 'meta.place'\?\)"):
        by_subgroup(("meta.plac",), (records, results))


def test_symmetric_over_both_sets() -> None:
    (a, results_a, case_a), (b, results_b, case_b) = audited(2), audited(3, "b")
    got = by_subgroup(("object",), (a, results_a), (b, results_b), smallest=1)["object"]
    assert got["basis"] == "symmetric"
    row = next(g for g in got["groups"] if g["group"] == "l005")
    each = [by_brute_force(c, [i for i, g in enumerate(c.truth) if "l005" in g]) for c in (case_a, case_b)]
    assert row["ppg"]["value"] == pytest.approx((each[0][0] + each[1][0]) / 2)
    assert row["aucg"]["value"] == pytest.approx((each[0][2] + each[1][2]) / 2)


def test_small_groups_are_counted() -> None:
    records, results, case = audited(4, n=60)
    got = by_subgroup(("object_count",), (records, results), smallest=12)["object_count"]
    sizes = {n: sum(len(g) == n for g in case.truth) for n in range(1, 6)}
    small = {n: size for n, size in sizes.items() if 0 < size < 12}
    assert small
    assert got["too_small"] == {"groups": len(small), "records": sum(small.values()), "smallest": 12}
    assert sorted(g["group"] for g in got["groups"]) == sorted(str(n) for n in sizes if n not in small)
    nothing = by_subgroup(("object",), (records, results), smallest=1000)["object"]
    assert nothing["groups"] == []
    assert nothing["too_small"]["groups"] == 12


def test_only_the_groups_that_differ_most_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    records, results, _ = audited(4)
    complete = subgroups_module.by_subgroup(("object",), (records, results))["object"]
    monkeypatch.setattr(subgroups_module, "MAX_LISTED", 3)
    few = subgroups_module.by_subgroup(("object",), (records, results))["object"]
    assert (few["tested"], len(few["groups"])) == (12, 3)
    nearest = sorted(complete["groups"], key=lambda g: g["ppg"]["rest_p"])[:3]
    assert few["groups"] == [g for g in complete["groups"] if g in nearest]  # with the q-values of all of them


def test_a_planted_group_stands_out() -> None:
    rng = np.random.default_rng(0)
    records, _, _ = audited(5)
    n = int((records.truth.counts() > 0).sum())
    remembered = np.array(
        [v == "north" for v, g in zip(records.columns["place"], records.truth.counts(), strict=True) if g]
    )
    sign = np.where(rng.random(n) < np.where(remembered, 0.9, 0.5), 1, -1)
    got = by_subgroup(("place", "flag"), (records, Outcomes(sign, sign, sign, np.ones(n, int))))
    p = {g["group"]: g["ppg"] for g in got["place"]["groups"]}
    assert p["north"]["rest_q"] < 1e-6
    assert p["north"]["value"] > 0.6
    assert p["south"]["rest_q"] < 1e-3  # and the others stay below
    assert all(g["ppg"]["rest_q"] > 0.01 for g in got["flag"]["groups"])


def test_p_values_against_mcnemar_and_permutation() -> None:
    rng = np.random.default_rng(1)
    values = rng.choice([-1.0, 0.0, 1.0], p=[0.2, 0.3, 0.5], size=(80, 1)).repeat(3, axis=1)
    means = GroupMeans.of(values, np.arange(80), np.zeros(80, int), 1)
    wins, losses = (values[:, 0] > 0).sum(), (values[:, 0] < 0).sum()
    p = two_sided(means.mean, means.null_variance)[0, 0]
    assert p == pytest.approx(stats.chi2.sf((wins - losses) ** 2 / (wins + losses), 1))
    # rest_p against a permutation test of the group's mean.
    records, _, _ = audited(6, n=120)
    n = int((records.truth.counts() > 0).sum())
    sign = rng.choice([-1, 0, 1], size=n)
    row = by_subgroup(("flag",), (records, Outcomes(sign, sign, sign, np.ones(n, int))))["flag"]["groups"][0]
    drawn = np.array([rng.permutation(sign)[: row["records"]].mean() for _ in range(4000)])
    peer = (np.abs(drawn - sign.mean()) >= abs(row["ppg"]["value"] - sign.mean()) - 1e-12).mean()
    assert row["ppg"]["rest_p"] == pytest.approx(peer, abs=0.06)


def test_intervals_cover_even_when_a_group_agrees() -> None:
    rng = np.random.default_rng(2)
    for p in ([0.05, 0.05, 0.9], [0.3, 0.4, 0.3]):
        values = rng.choice([-1.0, 0.0, 1.0], p=p, size=(4000 * 25, 1))
        low, high = GroupMeans.of(values, np.arange(len(values)), np.repeat(np.arange(4000), 25), 4000).interval()
        truth = p[2] - p[0]
        assert 0.93 < ((low <= truth + 1e-9) & (high >= truth - 1e-9)).mean() < 0.99
    low, high = GroupMeans.of(np.ones((30, 3)), np.arange(30), np.zeros(30, int), 1).interval()
    assert low[0, 0] < 0.95
    assert high[0, 0] == 1.0


def test_an_unknown_column_names_the_known_ones() -> None:
    records, results, _ = audited(7)
    with pytest.raises(
        UserError, match=r"subgroups=widht .*did you mean 'width'.*object, caption_words, object_count, place"
    ):
        by_subgroup(("widht",), (records, results))
