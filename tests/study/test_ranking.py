"""Frontier, recommendation and pooled differences, on tables with answers computed by hand."""

from pathlib import Path

import pytest
from scipy.stats import t

from dejavu_lit.report.narrative import study_sentence
from dejavu_lit.study.cells import Cell
from dejavu_lit.study.ranking import (
    add_verdict,
    comparison_key,
    default_names,
    difference_to_default,
    frontier,
    headline_ranking,
    is_on_frontier,
    is_recommended,
    pool_differences,
    rank,
    recommend,
    setting_means,
    share_removed,
)


def row(name, ppg, aucg, accuracy, size=100, seed=0, public="scenes", series=None, overrides=(), recall=0.5):
    block = None if ppg is None else {"ppg": {"value": ppg}, "aucg": {"value": aucg}}
    return {
        "name": name,
        "overrides": list(overrides),
        "series": series,
        "public": public,
        "train_size": size,
        "seed": seed,
        "symmetric": block,
        "utility": {"target": {"zeroshot_top1": accuracy, "t2i_r1": recall}},
    }


def difference(name, value, low, high, size=100, seed=0, basis="symmetric"):
    figure = {"value": value, "ci95": [low, high]}
    about = {"name": name, "against": "none", "train_size": size, "seed": seed, "basis": basis}
    return {**about, "ppg": figure, "prg": figure, "aucg": figure}


def pooled(*found):
    return [{**d, "difference": d} for d in pool_differences(found).values()]


def test_the_frontier_of_a_table():
    rows = [
        row("none", 0.6, 0.3, 0.50),  # the best accuracy
        row("mask", 0.2, 0.1, 0.49),
        row("worse", 0.3, 0.1, 0.48),  # beaten by mask in PPG and accuracy, equal in AUCG
        row("mixed", 0.3, 0.05, 0.40),  # less AUCG than any
        row("twin", 0.2, 0.1, 0.49),  # as good as mask in everything: neither beats the other
    ]
    assert frontier(rows) == ["none", "mask", "mixed", "twin"]
    assert frontier([]) == []


def test_the_frontier_averages_seeds():
    rows = [
        row("none", 0.6, 0.3, 0.5),
        row("none", 0.4, 0.3, 0.5, seed=1),
        row("mask", 0.7, 0.3, 0.5),
        row("mask", 0.1, 0.3, 0.5, seed=1),  # mean 0.4 against 0.5
    ]
    assert setting_means(rows)["mask"] == pytest.approx((0.4, 0.3, -0.5))
    assert frontier(rows) == ["mask"]


def test_settings_are_averaged_over_the_seeds_that_all_of_them_have():
    rows = [
        row("none", 0.6, 0.3, 0.5),
        row("none", 0.2, 0.1, 0.5, seed=1),  # mask failed with this seed, which gives small gaps
        row("mask", 0.5, 0.2, 0.5),
        row("mask", 0.3, 0.2, 0.5, seed=2),
        row("late", 0.0, 0.0, 0.9, seed=3),  # shares no seed with the others: it cannot be compared
    ]
    assert setting_means(rows) == {"none": (0.6, 0.3, -0.5), "mask": (0.5, 0.2, -0.5)}
    assert frontier(rows) == ["mask"]
    assert rank(rows, [], 0.1)["ranking"][0]["unranked"] == ["late"]


def test_rows_of_other_data_or_objects_are_not_compared():
    rows = [row("none", 0.6, 0.3, 0.5), row("seed 1", 0.1, 0.1, 0.5), row("boxes", 0.1, 0.1, 0.5)]
    rows = [{**r, "data": d, "objects": o} for r, d, o in zip(rows, "abb", "xxy", strict=True)]
    found = rank(rows, [], 0.1)
    assert [(r["data"], r["objects"], r["frontier"]) for r in found["ranking"]] == [
        ("a", "x", ["none"]),
        ("b", "x", ["seed 1"]),
        ("b", "y", ["boxes"]),
    ]


def test_settings_are_ranked_by_a_utility_that_all_of_them_have():
    rows = [row("none", 0.5, 0.2, 0.9, recall=0.1), row("mask", 0.6, 0.3, None, recall=0.2)]
    assert setting_means(rows)["mask"][2] == -0.2  # recall, because mask has no accuracy
    assert setting_means(rows)["none"][2] == -0.1
    assert frontier(rows) == ["none", "mask"]
    lacking = [row("none", 0.5, 0.2, 0.9, recall=None), row("mask", 0.1, 0.1, None, recall=None)]
    assert list(setting_means(lacking)) == ["none"]  # mask has no utility at all, so it is not ranked
    assert rank(lacking, [], 0.1)["ranking"][0]["unranked"] == ["mask"]


def test_settings_without_a_symmetric_block_are_not_ranked():
    rows = [row("none", 0.5, 0.2, 0.5), row("half", None, None, 0.9)]
    assert frontier(rows) == ["none"]
    found = rank([row("half", None, None, 0.9)], [], 0.1)
    assert found["frontier"] == []
    assert found["recommended"] is None
    assert recommend([row("half", None, None, 0.9), row("none", 0.5, 0.2, 0.5)], [], 0.1) is None


def test_the_recommendation_follows_its_rule():
    rows = [
        row("none", 0.6, 0.3, 0.50),
        row("mask", 0.3, 0.1, 0.49),
        row("hard", 0.1, 0.0, 0.40),
        row("noise", 0.55, 0.3, 0.5),
    ]
    found = pooled(
        difference("mask", 0.3, 0.2, 0.4), difference("hard", 0.5, 0.4, 0.6), difference("noise", 0.05, -0.01, 0.1)
    )
    best = recommend(rows, found, 0.02)
    assert (best["name"], best["against"], best["drop"]) == ("mask", "none", 0.3)  # hard costs ten points
    assert best["utility_loss"] == pytest.approx(0.01)
    assert recommend(rows, found, 0.01)["name"] == "mask"  # exactly at the limit
    assert recommend(rows, found, 0.10)["name"] == "hard"
    assert recommend(rows, found, 0.005) is None
    assert recommend(rows, pooled(difference("noise", 0.05, -0.01, 0.1)), 0.10) is None  # not distinguishable
    assert recommend([], [], 0.1) is None


def test_among_equal_drops_the_cheaper_setting_is_recommended():
    rows = [row("none", 0.6, 0.3, 0.5), row("expensive", 0.3, 0.1, 0.45), row("cheap", 0.3, 0.1, 0.49)]
    found = pooled(difference("expensive", 0.3, 0.2, 0.4), difference("cheap", 0.3, 0.2, 0.4))
    assert recommend(rows, found, 0.1)["name"] == "cheap"


def test_nothing_is_recommended_from_one_direction():
    rows = [row("none", 0.6, 0.3, 0.5), row("mask", 0.3, 0.1, 0.5)]
    assert recommend(rows, pooled(difference("mask", 0.3, 0.2, 0.4, basis="population")), 0.1) is None


def test_utility_is_compared_on_the_seeds_of_both():
    rows = [
        row("none", 0.6, 0.3, 0.50),
        row("none", 0.6, 0.3, 0.90, seed=1),  # mask failed with this seed
        row("mask", 0.3, 0.1, 0.49),
    ]
    found = pooled(difference("mask", 0.3, 0.2, 0.4))
    assert recommend(rows, found, 0.02)["utility_loss"] == pytest.approx(0.01)


def test_only_comparable_rows_are_ranked_together():
    single = ["evaluate.data.public=single"]
    rows = [
        row("none", 0.6, 0.3, 0.5),
        row("mask", 0.3, 0.1, 0.5),
        row(
            "none on single", 0.1, 0.0, 0.5, public="single", overrides=single
        ),  # another measurement, not a mitigation
        row("mask on single", 0.2, 0.1, 0.5, public="single", overrides=single),
        row("k 1", 0.0, 0.0, 0.9, overrides=["evaluate.k=1"]),
        row("late", 0.0, 0.0, 0.9, series="equal pairs"),
    ]
    assert len({comparison_key(r) for r in rows}) == 4
    found = rank(rows, pooled(difference("mask", 0.3, 0.2, 0.4)), 0.02)
    assert found["frontier"] == ["mask", "none on single", "k 1", "late"]
    assert found["recommended"] == "mask"
    assert [(r["public"], r["default"], r["frontier"]) for r in found["ranking"]][:2] == [
        ("scenes", "none", ["mask"]),
        ("single", "none on single", ["none on single"]),
    ]


def test_the_default_is_the_first_that_was_planned_of_the_same_series_and_evaluation():
    single = ("evaluate.data.public=single",)

    def planned(name, series=None, overrides=()):
        paths = {"target": Path(name), "reference": Path(name)}
        return Cell(name=name, overrides=overrides, train_size=None, seed=0, series=series, **paths)

    plan = [
        planned("none"),
        planned("mask", overrides=("mitigation.text_mask=0.5",)),
        planned("none, equal pairs", "equal pairs"),
        planned("mask, equal pairs", "equal pairs"),
        planned("none on single", overrides=single),
        planned("mask on single", overrides=single),
    ]
    rows = [  # the default has a result in the last of the three alone
        row("mask", 0.3, 0.1, 0.5, overrides=["mitigation.text_mask=0.5"]),
        row("mask, equal pairs", 0.3, 0.1, 0.5, series="equal pairs"),
        row("none on single", 0.6, 0.3, 0.5, public="single", overrides=single),
        row("mask on single", 0.3, 0.1, 0.5, public="single", overrides=single),
    ]
    assert list(default_names(rows, plan).values())[::-1] == ["none", "none, equal pairs", "none on single"]
    assert list(default_names(rows, ()).values())[::-1] == ["mask", "mask, equal pairs", "none on single"]


def test_where_an_evaluation_is_computed_does_not_matter():
    elsewhere = ["evaluate.device=cuda", "+evaluate.workers=8", "evaluate.embeddings=/tmp/e"]
    assert comparison_key(row("mask", 0.3, 0.1, 0.5, overrides=elsewhere)) == comparison_key(row("none", 0.6, 0.3, 0.5))
    other = comparison_key(row("mask", 0.3, 0.1, 0.5, overrides=["evaluate.data.public=single"]))
    assert other != comparison_key(row("none", 0.6, 0.3, 0.5))


def test_halves_with_one_seed_are_averaged_and_compared_by_half():
    rows = [{**row("none", ppg, 0.3, 0.5), "half": half} for half, ppg in enumerate((0.6, 0.2))]
    assert setting_means(rows)["none"] == pytest.approx((0.4, 0.3, -0.5))
    differences = [{**difference("mask", 0.3, 0.2, 0.4), "half": half} for half in (0, 1)]
    assert pool_differences(differences)["mask", 100]["words"].endswith("(0.200 to 0.400), 2 halves")
    study = {"differences": differences}
    found = {"name": "mask", "train_size": 100, "seed": 0}
    assert difference_to_default(study, {**found, "half": 1}) is differences[1]
    assert difference_to_default(study, {**found, "half": 2}) is None
    earlier = [{k: v for k, v in d.items() if k != "half"} | {"seed": d["half"]} for d in differences]
    assert difference_to_default({"differences": earlier}, {**found, "seed": 1, "half": 1}) is earlier[1]


def test_sizes_are_ranked_separately_and_the_largest_counts():
    rows = [
        row("none", 0.6, 0.3, 0.5, size=50),
        row("mask", 0.5, 0.2, 0.5, size=50),
        row("none", 0.6, 0.3, 0.5),
        row("mask", 0.7, 0.4, 0.5),
    ]
    found = rank(rows, pooled(difference("mask", 0.1, 0.05, 0.2, size=50), difference("mask", -0.1, -0.2, -0.05)), 0.02)
    assert found["frontier"] == ["none"]
    assert found["recommended"] is None
    assert [(r["train_size"], r["frontier"]) for r in found["ranking"]] == [(50, ["mask"]), (100, ["none"])]
    assert found["ranking"][0]["recommended"]["name"] == "mask"


def test_the_sentence_to_quote_is_of_the_largest_size():
    def pooled_row(name, size, ppg):
        return {"name": name, "train_size": size, "symmetric": {"ppg": {"mean": ppg}}, "found": {"found": True}}

    rows = [
        row(name, ppg, 0.3, 0.5, size=size)
        for size, gaps in ((50, (0.8, 0.6)), (100, (0.4, 0.1)))
        for name, ppg in zip(("none", "mask"), gaps, strict=True)
    ]
    found = pooled(difference("mask", 0.2, 0.1, 0.3, size=50), difference("mask", 0.3, 0.2, 0.4))
    study = {"settings": rows, "rule": "…", **rank(rows, found, 0.02)}
    study["pooled"] = [pooled_row(r["name"], r["train_size"], r["symmetric"]["ppg"]["value"]) for r in rows]
    assert study_sentence(study) == (
        "mask removes 75 % of PPG at 100 pairs at no loss of accuracy; memorization is still found, 0.100"
    )
    assert [is_recommended(study, r) for r in rows] == [False, False, False, True]
    assert [is_on_frontier(study, r) for r in rows] == [False, True, False, True]


def test_the_headline_is_of_the_first_series_and_the_frontiers_of_all_count():
    """A second series that has the larger size has its own entry, with its own frontier."""
    entries = [("none", None, 50), ("mask", None, 100), ("none, late", "late", 100), ("none, later", "later", 200)]
    ranking = [{"series": series, "train_size": size, "frontier": [name]} for name, series, size in entries]
    assert headline_ranking({"ranking": ranking}) is ranking[1]
    on = [is_on_frontier({"ranking": ranking}, {"name": name, "train_size": size}) for name, _, size in entries]
    assert on == [True] * 4
    assert not is_on_frontier({"ranking": ranking}, {"name": "none", "train_size": 100})


@pytest.mark.parametrize(
    ("drop", "remaining", "share"),
    [(0.4, 0.1, "80 %"), (0.5, 0.0, "100 %"), (0.61, -0.11, "all"), (-0.1, 0.6, "−20 %"), (0.1, -0.2, None)],
)
def test_a_setting_removes_at_most_all(drop, remaining, share):
    assert share_removed(drop, remaining) == share


def test_differences_are_pooled_over_seeds_within_one_size():
    values = (0.30, 0.36, 0.33)
    found = pool_differences(
        [difference("mask", v, v - 0.5, v + 0.5, seed=s) for s, v in enumerate(values)]
        + [difference("mask", 0.1, -0.1, 0.3, size=50)]
    )
    assert set(found) == {("mask", 100), ("mask", 50)}
    block = found["mask", 100]["ppg"]
    half = t.ppf(0.975, 2) * 0.03 / 3**0.5  # sd of 0.30, 0.33, 0.36 is 0.03
    assert block["sd"] == pytest.approx(0.03)
    assert block["ci95"] == pytest.approx([0.33 - half, 0.33 + half])
    assert block["distinguishable"]
    assert found["mask", 100]["words"] == "PPG 0.330 less than none (0.255 to 0.405), 3 seed pairs"
    assert found["mask", 50]["ppg"]["ci95"] == [-0.1, 0.3]  # one seed: the records' own interval
    words = "not distinguishable from none in PPG (change −0.300 to +0.100), one seed pair"
    assert found["mask", 50]["words"] == words


def test_with_two_seeds_each_interval_must_exclude_0():
    both = pool_differences([difference("mask", 0.3, 0.2, 0.4), difference("mask", 0.1, -0.05, 0.25, seed=1)])
    assert both["mask", 100]["ppg"] == {
        "value": pytest.approx(0.2),
        "sd": pytest.approx(0.2 / 2**0.5),
        "ci95": [-0.05, 0.4],
        "distinguishable": False,
    }


def test_a_larger_gap_is_described_as_larger():
    assert (
        add_verdict(difference("bad", -0.2, -0.3, -0.1))["words"]
        == "PPG 0.200 more than none (0.100 to 0.300), one seed pair"
    )
    assert add_verdict(difference("none", 0.1, 0.0, 0.2))["ppg"]["distinguishable"] is False  # the interval contains 0
