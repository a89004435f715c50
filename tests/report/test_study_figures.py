"""The figures of studies against their tables: a study of real records, and invented ones with many knobs and series."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from dejavu_lit.measure.figures import BLOCKS
from dejavu_lit.report.figure_files import save
from dejavu_lit.report.figures import NARROW, Plot
from dejavu_lit.report.narrative import study_sentence
from dejavu_lit.report.study_plots import study_plots
from dejavu_lit.report.study_points import knob_label, knobs, points, sort_key
from dejavu_lit.study.ranking import rank

from .test_figures import (  # noqa: F401
    FIGURES,
    bars,
    contents,
    lines,
    no_label_is_cut_or_overlaps_another,
    study_figures,
)

KNOBS = {"text_mask": 0, "logit_scale_fixed": None, "weight_decay": 0.2, "stop_epoch": 25}


def row(name: str, ppg: float, accuracy: float | None, size: int = 2000, seed: int = 0, **more: Any) -> dict[str, Any]:
    """A row of study.json in which every block has the figures ppg, ppg + 0.02 and ppg / 3."""
    values = zip(FIGURES, (ppg, ppg + 0.02, ppg / 3), strict=True)
    block = {f: {"value": v, "mean": v, "std": 0.04, "ci95": [v - 0.02, v + 0.03], "se": 0.01} for f, v in values}
    given = {"overrides": [], "series": None, "public": "scenes", "knobs": KNOBS, "exposure": 25.0} | more
    seen = given.pop("exposure")
    return {
        "name": name, "train_size": size, "seed": seed, **dict.fromkeys(BLOCKS, block), **given,
        "utility": {"target": {"zeroshot_top1": accuracy, "t2i_r1": 0.1}},
        "exposure": {"target": None if seen is None else {"mean": seen}}, "metrics": "nowhere",
    }  # fmt: skip


def knob(name: str, value: Any, ppg: float, accuracy: float, **more: Any) -> dict[str, Any]:
    return row(f"{name} {value}", ppg, accuracy, knobs=KNOBS | {name: value}, **more)


MITIGATIONS = [
    row("default", 0.5, 0.2),
    knob("text_mask", 0.5, 0.1, 0.4),
    knob("text_mask", 0.15, 0.4, 0.3),
    knob("stop_epoch", 5, 0.05, 0.1),
    knob("stop_epoch", 20, 0.45, 0.19),
    knob("logit_scale_fixed", 5.0, 0.3, 0.15),
    knob("weight_decay", 0, 0.52, 0.21),
    knob("weight_decay", 5.0, 0.48, 0.22),
    row("both", 0.08, 0.35, knobs=KNOBS | {"text_mask": 0.5, "weight_decay": 5.0}),
]
SIZES = [
    row(f"{public}, {series}", ppg * share, accuracy, size, public=public, series=series, exposure=seen)
    for series, exposures, gaps in (("epochs", (25, 25), (0.2, 0.5)), ("pairs", (50, 25), (0.7, 0.5)))
    for public, share in (("scenes", 1.0), ("single", 0.5))
    for size, seen, ppg, accuracy in zip((1000, 2000), exposures, gaps, (0.1, 0.2), strict=True)
]


def study_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys((r["name"], r["train_size"]) for r in rows)
    figure = {"value": 0.1, "ci95": [0.05, 0.2]}
    pooled = [{"name": n, "train_size": s, "difference": {"basis": "symmetric", "ppg": figure}} for n, s in names]
    return {"settings": rows, "pooled": [], **rank(rows, pooled, 0.02)}


def drawn(rows: list[dict[str, Any]]) -> dict[str, Plot]:
    return {plot.name: plot for plot in study_plots(study_of(rows))}


def test_each_knob_has_rows_of_its_values_with_the_default_starred() -> None:
    axes = drawn(MITIGATIONS)["mitigations"].drawn().axes
    assert [text.get_text() for text in axes[0].get_yticklabels()] == [
        *("text_mask", "0", "0.15", "0.5"),
        *("stop_epoch", "5", "20", "25"),
        *("logit_scale_fixed", "default", "5"),
        *("weight_decay", "0", "0.2", "5"),
        *("other", "default", "both"),
    ]
    for axis in axes:
        markers = {ys[0]: c.lines[0].get_marker() for c, (_, ys, _) in zip(axis.containers, bars(axis), strict=True)}
        assert [row for row, marker in markers.items() if marker == "*"] == [1, 7, 9, 13, 16]
    values = {"utility": [0.2, 0.3, 0.4], "ppg": [0.5, 0.4, 0.1], "prg": [0.52, 0.42, 0.12]}
    for axis, expected in zip(axes, values.values(), strict=False):
        assert [x for xs, ys, _ in bars(axis) for x in xs if ys[0] < 4] == pytest.approx(expected)
    ends = [e for _, ys, arms in bars(axes[1]) for e in arms if ys[0] < 4]
    np.testing.assert_allclose(ends, [[0.48, 0.53], [0.38, 0.43], [0.08, 0.13]])
    titles = ["zero-shot top-1, %", "precision gap PPG", "recall gap PRG", "AUC gap AUCG"]
    assert [axis.get_title().replace("\n", " ") for axis in axes] == titles


def test_without_a_result_of_the_default_no_other_setting_is_drawn_as_it() -> None:
    study = study_of(MITIGATIONS[1:])
    study["ranking"] = [entry | {"default": "default", "recommended": None} for entry in study["ranking"]]
    plots = {plot.name: plot for plot in study_plots(study | {"recommended": None})}
    assert "mitigations" not in plots
    (axis,) = plots["frontier"].drawn().axes
    assert {container.lines[0].get_marker() for container in axis.containers} == {"o"}
    assert study_sentence(study | {"recommended": None}) == (
        "no setting is recommended, because the default, default, has no result"
    )


def test_the_csv_of_the_mitigations_contains_what_is_drawn() -> None:
    rows = drawn(MITIGATIONS)["mitigations"].rows
    mask = [r for r in rows if r["knob"] == "text_mask"]
    assert [(r["value"], r["default"], r["ppg_value"]) for r in mask] == [
        ("0", True, 0.5),
        ("0.15", False, 0.4),
        ("0.5", False, 0.1),
    ]
    assert len(rows) == 8 + 5  # every setting once, and the default in each column


def test_a_setting_without_utility_leaves_its_cells_of_the_csv_empty(tmp_path: Path) -> None:
    unknown = row("none", 0.4, None) | {"utility": {"target": None}}
    save((tmp_path, ()), drawn([row("default", 0.5, 0.2), unknown])["mitigations"])
    with open(tmp_path / "mitigations.csv", newline="") as file:
        table = {line["setting"]: line for line in csv.DictReader(file)}
    assert (table["none"]["utility_value"], table["default"]["utility_value"]) == ("", "0.2")
    for name, ppg in (("none", "0.4"), ("default", "0.5")):
        assert (table[name]["ppg_value"], table[name]["setting"], table[name]["train_size"]) == (ppg, name, "2000")


def test_seeds_are_averaged_in_the_mitigation_figure(study_figures: dict[str, Plot], contents: dict[str, Any]) -> None:  # noqa: F811
    rows = [r for r in contents["settings"] if r["train_size"] == 90]
    axes = study_figures["mitigations"].drawn().axes
    assert len(axes) == 4  # the settings of this study differ in one knob
    names = ["none", "mask", "mask more"]  # text_mask 0.1, 0.7, 1
    for axis, figure in zip(axes[1:], FIGURES, strict=True):
        means = [np.mean([r["symmetric"][figure]["value"] for r in rows if r["name"] == n]) for n in names]
        np.testing.assert_allclose([xs[0] for xs, _, _ in bars(axis)], means)
        assert [c.lines[0].get_marker() for c in axis.containers] == ["*", "o", "o"]
    assert [text.get_text() for text in axes[0].get_yticklabels()][1:] == ["0.1", "0.7", "1"]


def test_utility_has_the_interval_of_the_gaps() -> None:
    (point,) = points(study_of([row("one", 0.5, accuracy, seed=s) for s, accuracy in enumerate((0.2, 0.25, 0.3))]))
    half = 4.302652730 * 0.05 / np.sqrt(3)  # the t interval of three seeds, as docs/definitions.md has it
    assert [point["utility"][name] for name in ("value", "low", "high")] == pytest.approx(
        [0.25, 0.25 - half, 0.25 + half]
    )
    (two,) = points(study_of([row("one", 0.5, accuracy, seed=s) for s, accuracy in enumerate((0.2, 0.25))]))
    assert (two["utility"]["low"], two["utility"]["high"]) == (0.2, 0.25)


def test_frontier_and_recommendation(study_figures: dict[str, Plot], contents: dict[str, Any]) -> None:  # noqa: F811
    axis = study_figures["frontier"].drawn().axes[0]
    rows = {r["setting"]: r for r in study_figures["frontier"].rows}
    assert {(xs[0], ys[0]) for xs, ys, _ in bars(axis)} == {(r["utility_value"], r["ppg_value"]) for r in rows.values()}
    x, y = lines(axis)["frontier"]
    on = [(rows[n]["utility_value"], rows[n]["ppg_value"]) for n in contents["frontier"]]
    assert sorted(zip(x, y, strict=True)) == sorted(on)
    best = rows[contents["recommended"]]
    assert lines(axis)["recommended"] == ([best["utility_value"]], [best["ppg_value"]])


def test_the_frontier_has_a_panel_for_each_public_set() -> None:
    single = {"public": "single", "overrides": ["evaluate.data.public=single"]}
    more = [row("default on single", 0.2, 0.2, **single), row("mask on single", 0.05, 0.3, **single)]
    plot = drawn([*MITIGATIONS, *more])["frontier"]
    assert [axis.get_title() for axis in plot.drawn().axes] == ["scenes", "single"]
    assert [len(bars(axis)) for axis in plot.drawn().axes] == [9, 2]
    assert [r["setting"] for r in plot.rows if r["recommended"]] == ["text_mask 0.5", "mask on single"]
    assert {r["setting"] for r in plot.rows if r["frontier"]} == {
        "text_mask 0.5",
        "both",
        "stop_epoch 5",
        "mask on single",
    }


def test_points_have_numbers_that_are_explained_below_the_panels() -> None:
    apart = [row(f"a setting with a long name {i}", 0.1 + 0.05 * i, 0.2 + 0.05 * (i % 3)) for i in range(9)]
    figure = drawn(apart)["frontier"].drawn()
    assert [text.get_text() for text in figure.axes[0].texts] == [str(i + 1) for i in range(9)]
    keys = [line for text in figure.texts[:2] for line in text.get_text().splitlines() if line]
    assert keys == [f"{i + 1}  {r['name']}" for i, r in enumerate(apart)]


def test_long_names_end_within_the_picture() -> None:
    plot = drawn([row(f"{'W' * 80} {i}", 0.1 + 0.05 * i, 0.2 + 0.05 * (i % 3)) for i in range(9)])["frontier"]
    for figure in (plot.drawn(), plot.drawn(NARROW)):
        figure.draw_without_rendering()
        assert all(text.get_window_extent().x1 <= figure.bbox.x1 for text in figure.texts)


def test_points_that_nearly_coincide_share_a_label() -> None:
    places = [(0.2, 0.5), (0.6, 0.2), (0.201, 0.5), (0.202, 0.501), (0.203, 0.5)]
    plot = drawn([row(f"s{i}", *place) for i, place in enumerate(places)])["frontier"]
    assert sorted(text.get_text() for text in plot.drawn().axes[0].texts) == ["1, 3–5", "2"]


def test_dataset_size_by_pairs_and_by_exposure() -> None:
    plot = drawn(SIZES)["dataset-size"]
    axes = np.array(plot.drawn().axes).reshape(2, 4)
    assert [axis.get_xlabel() for axis in axes[:, 0]] == ["training pairs", "times each pair was seen"]
    settings = list(dict.fromkeys(r["name"] for r in SIZES))
    for axis_row, x in zip(axes, ("train_size", "exposure"), strict=True):
        for axis, figure in zip(axis_row[1:], FIGURES, strict=True):
            for (xs, ys, ends), setting in zip(bars(axis), settings, strict=True):
                line = [r for r in SIZES if r["name"] == setting]
                seen = [r["train_size"] if x == "train_size" else r["exposure"]["target"]["mean"] for r in line]
                assert xs == seen
                assert ys == [r["symmetric"][figure]["value"] for r in line]
                np.testing.assert_allclose([high - low for low, high in ends], [0.08] * 2)  # ± the paper's std
    colours = [c.lines[0].get_color() for c in axes[0, 1].containers]
    dashes = [c.lines[0].get_linestyle() for c in axes[0, 1].containers]
    assert colours[0] == colours[2] != colours[1] == colours[3]  # public sets
    assert dashes == ["-", "-", "--", "--"]  # series
    assert [(r["setting"], r["train_size"], r["exposure"]) for r in plot.rows][4:6] == [
        ("scenes, pairs", 1000, 50),
        ("scenes, pairs", 2000, 25),
    ]


def test_dataset_size_over_seeds(study_figures: dict[str, Plot], contents: dict[str, Any]) -> None:  # noqa: F811
    axes = study_figures["dataset-size"].drawn().axes
    assert len(axes) == 4  # all pairs were seen equally often, so exposure has no figure
    for axis, figure in zip(axes[1:], FIGURES, strict=True):
        for (xs, ys, _), name in zip(bars(axis), ("none", "mask", "mask more"), strict=True):
            expected = [
                np.mean(
                    [
                        r["symmetric"][figure]["value"]
                        for r in contents["settings"]
                        if (r["name"], r["train_size"]) == (name, x)
                    ]
                )
                for x in xs
            ]
            assert xs == [30, 90]
            np.testing.assert_allclose(ys, expected)


def test_a_study_without_utility_or_exposure_still_has_figures() -> None:
    settings = [row("one", 0.5, None, 1000), row("one", 0.4, None), row("two", 0.3, None)]
    rows = [{**r, "utility": {"target": None}, "exposure": {"target": None}} for r in settings]
    plots = drawn(rows)
    assert set(plots) == {"mitigations", "dataset-size"}
    assert len(plots["dataset-size"].drawn().axes) == 3
    assert points(study_of(rows))[0]["exposure"] is None


def test_no_label_of_many_settings_is_cut() -> None:
    for plot in [*drawn(MITIGATIONS).values(), *drawn(SIZES).values()]:
        no_label_is_cut_or_overlaps_another(plot)


def test_knobs() -> None:
    overrides = ["mitigation.text_mask=0.3", "+recipe.lr=0.1", "evaluate.k=5"]
    assert knobs({"overrides": overrides}) == {"text_mask": 0.3, "recipe.lr": 0.1}
    assert knobs({"overrides": overrides, "knobs": {"text_mask": 0.3, "ema": None}}) == {
        "text_mask": 0.3,
        "ema": None,
        "recipe.lr": 0.1,
    }
    assert [knob_label(value) for value in (True, False, None, 1e-3)] == ["on", "off", "default", "0.001"]
    assert sorted(["loss", 3, True, 0.5, None, "accuracy"], key=sort_key) == [None, True, 0.5, 3, "accuracy", "loss"]
