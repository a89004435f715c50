"""Every figure's plotted data against metrics.json or study.json, and its files."""

import csv
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib.axes import Axes
from matplotlib.font_manager import fontManager

from dejavu_lit.report.evaluation import Evaluation
from dejavu_lit.report.figure_files import ALL_FORMATS, draw_figures, save
from dejavu_lit.report.figures import (
    DARK,
    LABELS,
    NARROW,
    SIZE,
    WIDTH,
    Plot,
    error_arms,
    families,
    forest,
    panels,
    spaced_ticks,
    style,
    text_width,
)
from dejavu_lit.report.gap_plots import subgroups
from dejavu_lit.report.plots import evaluation_plots
from dejavu_lit.report.study_plots import study_plots
from dejavu_lit.training.loggers import CsvLogger
from dejavu_lit.utils.io import read_json, write_json
from tests.fonts import write_font

FIGURES = ("ppg", "prg", "aucg")


@pytest.fixture(scope="module")
def metrics(evaluation: Path) -> dict[str, Any]:
    return dict(read_json(evaluation / "metrics.json"))


@pytest.fixture(scope="module")
def plots(metrics: dict[str, Any]) -> dict[str, Plot]:
    return {plot.name: plot for plot in evaluation_plots(metrics)}


@pytest.fixture(scope="module")
def contents(study: Path) -> dict[str, Any]:
    return dict(read_json(study / "study.json"))


@pytest.fixture(scope="module")
def study_figures(contents: dict[str, Any]) -> dict[str, Plot]:
    return {plot.name: plot for plot in study_plots(contents)}


def bars(axis: Axes) -> list[tuple[list[float], list[float], list[list[float]]]]:
    """The error bars of an axis: (x, y, [low, high] ends along the direction of the bar)."""
    drawn = []
    for container in axis.containers:
        line, _, arms = container.lines
        ends = [np.asarray(segment) for arm in arms for segment in arm.get_segments()]
        along = 0 if any(s[0, 0] != s[-1, 0] for s in ends) else 1
        drawn.append((list(line.get_xdata()), list(line.get_ydata()), [[s[0, along], s[-1, along]] for s in ends]))
    return drawn


def forest_rows(axis: Axes) -> list[tuple[float, float, list[float]]]:
    """The rows of a forest from the top: (y, value, [low, high])."""
    return sorted(entry for xs, ys, ends in bars(axis) for entry in zip(ys, xs, ends, strict=True))


def lines(axis: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """{label: (x, y)} of the lines that a legend shows."""
    named = [line for line in axis.lines if not str(line.get_label()).startswith("_")]
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in named}


def test_arms_of_an_interval_are_never_negative() -> None:
    assert error_arms([{"value": 0.5, "low": 0.51, "high": 0.7}, {"value": 1.0, "low": 0.4, "high": 0.9}]) == [
        [0.0, 0.6],
        [pytest.approx(0.2), 0.0],
    ]


def test_gaps_have_their_unit_beside_the_panels(plots: dict[str, Plot], study_figures: dict[str, Plot]) -> None:
    for name in ("by-k", "by-threshold", "by-top-m", "planted", "sample", "sample-top-m"):
        assert plots[name].drawn().get_supylabel() == "gap (difference of shares)", name
    assert study_figures["dataset-size"].drawn().get_supylabel() == "gap (difference of shares)"


def test_gaps(plots: dict[str, Plot], metrics: dict[str, Any]) -> None:
    blocks = ("population", "swapped", "symmetric", "null", "corrected")
    for axis, figure in zip(plots["gaps"].drawn().axes, FIGURES, strict=True):
        rows, values, intervals = zip(*forest_rows(axis), strict=True)
        assert rows == (0, 1, 2, 3, 4)
        assert list(values) == [metrics[b][figure]["value"] for b in blocks]
        np.testing.assert_allclose(intervals, [metrics[b][figure]["ci95"] for b in blocks])
    labels = [text.get_text() for text in plots["gaps"].drawn().axes[0].get_yticklabels()]
    assert [label.split(":")[0] for label in labels] == ["A", "B", "symmetric", "H", "corrected"]


def test_recall_curves_and_the_area_between(plots: dict[str, Plot], metrics: dict[str, Any]) -> None:
    axis = plots["recall"].drawn().axes[0]
    curve = metrics["curves"]["recall"]
    drawn = lines(axis)
    assert drawn["target"] == (curve["x"], curve["target"])
    assert drawn["reference"] == (curve["x"], curve["reference"])
    assert all(line.get_drawstyle() == "steps-pre" for line in axis.lines)
    # The shaded area is the AUCG: each step reaches back to the recall before it.
    x, t, r = (np.array(curve[n]) for n in ("x", "target", "reference"))
    assert np.sum(np.diff(x) * (t - r)[1:]) == pytest.approx(metrics["population"]["aucg"]["value"])


def test_sample_level(plots: dict[str, Plot], metrics: dict[str, Any]) -> None:
    curves = metrics["curves"]["sample"]
    by_k = [curve for curve in curves if curve["top_m"] is None]
    by_m = [curve for curve in curves if curve["k"] == metrics["k"]]
    assert len(by_k) > 1
    assert len(by_m) > 2
    for name, shown in (("sample", by_k), ("sample-top-m", by_m)):
        axes = iter(plots[name].drawn().axes)
        for ranking in ("distance", "hits", "gap"):
            for gap in ("precision_gap", "recall_gap", "f1_gap"):
                drawn = list(lines(next(axes)).values())
                assert drawn == [(curve[ranking]["top"], curve[ranking][gap]) for curve in shown]


def test_sample_level_at_another_number_of_objects(metrics: dict[str, Any]) -> None:
    curves = [curve | {"top_m": curve["top_m"] or 4} for curve in metrics["curves"]["sample"]]
    changed = metrics | {
        "curves": metrics["curves"] | {"sample": curves},
        "settings": metrics["settings"] | {"top_m": 4},
    }
    lines_drawn = {row["line"] for row in next(p for p in evaluation_plots(changed) if p.name == "sample").rows}
    assert lines_drawn == {f"k = {k}" for k in metrics["settings"]["ks"]}


@pytest.mark.parametrize(
    ("tops", "words"),
    [
        ([], ""),
        ([10], "With k = 5, on the 10 records with the smallest distance the recall gap is +0.100."),
        ([39, 10, 1], "on the 10 records with the smallest distance the recall gap is +0.100, on all records +0.390."),
        ([10, 30], "is +0.100, on the 30 records +0.300."),
    ],
)
def test_the_sample_level_in_words(tops: list[int], words: str, metrics: dict[str, Any]) -> None:
    assert metrics["counts"]["records"] == 39
    curve = {"top": tops} | {key: [top / 100 for top in tops] for key in ("precision_gap", "recall_gap", "f1_gap")}
    curves = [c | {"distance": curve} for c in metrics["curves"]["sample"]]
    changed = metrics | {"curves": metrics["curves"] | {"sample": curves}}
    text = next(plot for plot in evaluation_plots(changed) if plot.name == "sample").text
    assert text.endswith(words)
    assert bool(text) == bool(tops)


@pytest.mark.parametrize("name", ["by-k", "by-threshold", "by-top-m"])
def test_sensitivity(name: str, plots: dict[str, Plot], metrics: dict[str, Any]) -> None:
    key = {"by-threshold": "threshold", "by-top-m": "top_m"}.get(name)
    if key is None:
        values = [(int(k), blocks) for k, blocks in metrics["by_k"].items()]
    else:
        values = [(row[key], row) for row in metrics["sensitivity"][key]]
        if key == "threshold":
            values.append((metrics["settings"]["threshold"], metrics))
    if len(values) < 2:
        assert name not in plots
        return
    for axis, figure in zip(plots[name].drawn().axes, FIGURES, strict=True):
        for (xs, ys, ends), block in zip(bars(axis), ("symmetric", "population", "null"), strict=True):
            assert xs == [x for x, _ in values]
            assert ys == [blocks[block][figure]["value"] for _, blocks in values]
            np.testing.assert_allclose(ends, [blocks[block][figure]["ci95"] for _, blocks in values])


def test_planted_memory(plots: dict[str, Plot], metrics: dict[str, Any]) -> None:
    levels = metrics["planted"]["levels"]
    assert [level["exposure"] for level in levels] == [2, 20]
    for axis, figure in zip(plots["planted"].drawn().axes, FIGURES, strict=True):
        ((xs, ys, ends),) = bars(axis)
        assert xs == [2, 20]
        assert ys == [level[figure]["value"] for level in levels]
        np.testing.assert_allclose(ends, [level[figure]["ci95"] for level in levels])


@pytest.mark.parametrize(
    ("rho", "words"), [(0.25, " Spearman's rank correlation between exposure and recall gap: +0.250."), (None, "")]
)
def test_planted_memory_in_words(metrics: dict[str, Any], rho: float | None, words: str) -> None:
    first, second = metrics["planted"]["levels"]
    levels = [first | {"prg": first["prg"] | {"value": -0.1}}, second | {"prg": second["prg"] | {"value": 0.3}}]
    changed = {"planted": {"levels": levels, "spearman": {"recall": {"rho": rho}}}}
    text = next(plot for plot in evaluation_plots(metrics | changed) if plot.name == "planted").text
    assert text == f"PRG by exposure (times seen in training): −0.100 at exposure 2, +0.300 at exposure 20.{words}"


def gaps_over_epochs(evaluation: Path, target: object) -> list[dict[str, float]]:
    return Evaluation(evaluation, {"settings": {"target": str(target)}}, None).epochs()


def test_epochs(metrics: dict[str, Any], tmp_path: Path) -> None:
    names = ("ppg", "prg", "aucg", "ppg_low", "ppg_high", "null_ppg", "corrected_ppg")
    rows = [{name: round(0.1 * (i + 1) + 0.01 * place, 3) for place, name in enumerate(names)} for i in range(3)]
    run = tmp_path / "study" / "runs" / "none-s0-target"
    log = CsvLogger(run)
    run.mkdir(parents=True)
    for number, row in enumerate(rows):
        epoch = 5 * (number + 1) - 1  # counted from 0 in metrics.csv
        log.log_metrics({"loss": 2.0, "val_loss": 1.0, "val_accuracy": 0.5 + 0.1 * number, "epoch": epoch}, 10 * epoch)
        log.log_metrics({f"gap/{name}": value for name, value in row.items()} | {"epoch": epoch}, 10 * epoch)
        later = {"loss": 2.0, "val_accuracy": 0.9, "epoch": epoch + 1}  # an epoch that was not measured
        log.log_metrics(later, 10 * epoch + 5)
    evaluation = tmp_path / "study" / "evaluations" / "none-s0"
    assert gaps_over_epochs(evaluation, "moved/none-s0-target") == []  # beside the runs, but not in a study
    write_json(tmp_path / "study" / "study.json", {})
    measured = gaps_over_epochs(evaluation, "moved/none-s0-target")  # a study that was moved
    assert measured == gaps_over_epochs(Path("x"), run)
    assert [r["epoch"] for r in measured] == [5, 10, 15]
    assert [{name: r[name] for name in names} for r in measured] == rows
    assert [r["epoch"] for r in gaps_over_epochs(evaluation, f"{run}@10")] == [5, 10]
    assert gaps_over_epochs(evaluation, "ViT-B-32@openai") == []
    (tmp_path / "me@host").mkdir()
    renamed = run.rename(tmp_path / "me@host" / "x@5")  # folder names that contain an @
    (renamed / "config.yaml").touch()
    assert gaps_over_epochs(Path("x"), renamed) == measured
    assert [r["epoch"] for r in gaps_over_epochs(Path("x"), f"{renamed}@10")] == [5, 10]

    plot = next(p for p in evaluation_plots(metrics | {"epochs": measured}) if p.name == "epochs")
    for axis, name in zip(plot.drawn().axes, (*FIGURES, "val_accuracy"), strict=True):
        drawn = next(iter(lines(axis).values()))
        assert drawn == ([5, 10, 15], [r[name] for r in measured])
    first = plot.drawn().axes[0]
    assert lines(first)["H: null control"] == ([5, 10, 15], [r["null_ppg"] for r in measured])
    (band,) = first.collections
    corners = band.get_paths()[0].vertices
    assert {(5.0, rows[0]["ppg_low"]), (15.0, rows[2]["ppg_high"])} <= {(x, y) for x, y in corners.tolist()}
    assert [dict(row) for row in plot.rows] == measured
    assert not [p for p in evaluation_plots(metrics | {"epochs": measured[:1]}) if p.name == "epochs"]
    no_label_is_cut_or_overlaps_another(plot)
    file = renamed / "metrics.csv"  # damaged: a figure of the last epoch is missing, and then a field does not end
    kept = [line for line in file.read_text().splitlines() if not ("gap/null_ppg" in line and ",14," in line)]
    file.write_text("\n".join([*kept, '"' + "x" * csv.field_size_limit() + "y"]))
    assert gaps_over_epochs(Path("x"), renamed) == measured[:2]


def test_subgroups(plots: dict[str, Plot], metrics: dict[str, Any]) -> None:
    groups = metrics["subgroups"]["object"]["groups"]
    for axis, figure in zip(plots["subgroups-object"].drawn().axes, FIGURES, strict=True):
        drawn = bars(axis)
        assert [x for xs, _, _ in drawn for x in xs] == [group[figure]["value"] for group in groups]
        np.testing.assert_allclose(
            [e for _, _, ends in drawn for e in ends], [group[figure]["ci95"] for group in groups]
        )
    names = [text.get_text() for text in plots["subgroups-object"].drawn().axes[0].get_yticklabels()]
    assert names == [f"{group['group']}  ({group['records']})" for group in groups]


@pytest.mark.parametrize(
    ("names", "drawn"),
    [
        (["> 1e+06", "≤ -5", "-5 < … ≤ 1e+06"], ["≤ -5", "-5 < … ≤ 1e+06", "> 1e+06"]),
        (["10+", "9", "2"], ["2", "9", "10+"]),
        (["03.05.2021", "10 a.m.", "127.0.0.1", ">", "5"], ["03.05.2021", "10 a.m.", "127.0.0.1", ">", "5"]),
    ],
)
def test_subgroups_in_the_order_of_their_numbers_if_all_have_one(
    names: list[str], drawn: list[str], metrics: dict[str, Any]
) -> None:
    group = metrics["subgroups"]["object"]["groups"][0]
    result = {"basis": "symmetric", "groups": [group | {"group": name, "records": 7} for name in names]}
    labels = subgroups("meta.x", result).drawn().axes[0].get_yticklabels()
    assert [label.get_text().partition("  ")[0] for label in labels] == drawn


def test_a_control_character_in_a_name_leaves_the_figure_valid(metrics: dict[str, Any], tmp_path: Path) -> None:
    """XML has none, not even in comments, and a browser shows nothing of an SVG that is not valid."""
    group = metrics["subgroups"]["object"]["groups"][0] | {"group": "dog\x1b]0;\x07 <b>", "records": 7}
    plot = subgroups("meta.x", {"basis": "symmetric", "groups": [group]})
    assert plot is not None
    save((tmp_path, ("svg",)), plot)
    drawn = [ElementTree.parse(path) for path in tmp_path.glob("*.svg")]  # raises for what is not valid
    assert len(drawn) == 4


def test_of_many_groups_the_words_are_about_those_that_are_drawn(metrics: dict[str, Any]) -> None:
    group = metrics["subgroups"]["object"]["groups"][0]
    groups = [
        group | {"group": f"g{i}", "records": 100 - i, "ppg": group["ppg"] | {"value": i / 100}} for i in range(30)
    ]
    plot = subgroups("meta.x", {"basis": "symmetric", "groups": groups})
    assert plot is not None
    assert plot.text == (
        "Symmetric PPG is largest for g19 (+0.190) and smallest for g0 (0.000) among the 20 largest of 30 groups (the CSV "
        "contains all of them). In parentheses: records."
    )
    assert len(plot.rows) == 30 * 3


def test_ticks_are_spaced_for_their_labels() -> None:
    def apart(small: float, large: float) -> bool:
        return 1.3 * small <= large

    assert spaced_ticks([22.4, 24, 24.8, 48, 90], apart) == [24.8, 48, 90]
    assert spaced_ticks([500, 1000, 2000], apart) == [500, 1000, 2000]
    assert spaced_ticks([], apart) == []


def test_without_data_there_is_no_figure(metrics: dict[str, Any], contents: dict[str, Any]) -> None:
    empty = metrics | {"planted": None, "by_k": {"5": metrics["by_k"]["5"]}, "subgroups": {}}
    empty["sensitivity"] = {"threshold": [], "top_m": []}
    assert [plot.name for plot in evaluation_plots(empty)] == ["gaps", "recall", "sample", "sample-top-m"]
    single = contents | {"settings": contents["settings"][:1], "pooled": contents["pooled"][:1]}
    assert study_plots(single) == []


def test_one_direction_only(metrics: dict[str, Any]) -> None:
    alone = metrics | {"swapped": None, "symmetric": None, "null": None, "corrected": None}
    plot = evaluation_plots(alone)[0]
    assert [row["block"] for row in plot.rows] == ["population"] * 3
    assert "population gaps" in plot.text
    with_holdout = evaluation_plots(metrics | {"swapped": None, "symmetric": None})[0]
    assert with_holdout.text.startswith("The corrected gaps are PPG")


def test_files_of_every_plot(plots: dict[str, Plot], study_figures: dict[str, Plot], tmp_path: Path) -> None:
    for plot in (plots["gaps"], plots["subgroups-object"], study_figures["frontier"]):
        save((tmp_path, ALL_FORMATS), plot)
        assert (tmp_path / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / f"{plot.name}.pdf").read_bytes().startswith(b"%PDF")
        for width in ("", "-narrow"):
            light, dark = ((tmp_path / f"{plot.name}{width}{end}.svg").read_text() for end in ("", "-dark"))
            assert "<svg" in light
            assert not any(colour in dark for colour in DARK if colour not in DARK.values())
            assert len(light) == len(dark)
            assert f'width="{72 * (NARROW if width else WIDTH):g}pt"' in light  # a page shows it in its own size
        with open(tmp_path / f"{plot.name}.csv", newline="") as file:
            table = list(csv.DictReader(file))
        assert len(table) == len(plot.rows)
        for row, line in zip(plot.rows, table, strict=True):
            assert line == {name: "" if v is None else str(v).removeprefix("'") for name, v in row.items()} or any(
                text.startswith("'") for text in line.values()
            )


def test_a_figure_of_the_same_numbers_is_not_drawn_again(
    metrics: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = metrics | {"subgroups": {}, "planted": None, "sensitivity": {"threshold": [], "top_m": []}}
    first = draw_figures("evaluation", few, tmp_path / "one")
    (tmp_path / "one" / "recall.csv").unlink()  # an incomplete figure is drawn again
    with monkeypatch.context() as patch:
        patch.setattr(Plot, "drawn", None)
        with pytest.raises(TypeError):
            draw_figures("evaluation", few, tmp_path / "x", earlier=tmp_path / "one")
    second = draw_figures("evaluation", few, tmp_path / "two", earlier=tmp_path / "one")
    monkeypatch.setattr(Plot, "drawn", None)
    third = draw_figures("evaluation", few, tmp_path / "three", earlier=tmp_path / "two")
    assert first == second == third
    names = {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "three").iterdir()} == names


def test_same_numbers_same_bytes(metrics: dict[str, Any], tmp_path: Path) -> None:
    for folder in ("one", "two"):
        with style():
            save((tmp_path / folder, ALL_FORMATS), evaluation_plots(metrics)[0])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def no_label_is_cut_or_overlaps_another(plot: Plot) -> None:
    for width, figure in ((WIDTH, plot.drawn()), (NARROW, plot.drawn(NARROW))):
        name, frame = f"{plot.name} of {width} inches", figure.bbox
        with style(width):
            figure.draw_without_rendering()
        for axis in figure.axes:
            assert axis.has_data(), f"{name} has an empty panel"
            for side in (axis.xaxis, axis.yaxis):
                low, high = sorted(side.get_view_interval())
                ticks = [t for t in side.get_major_ticks() if low <= t.get_loc() <= high]
                labels = [t.label1 for t in ticks if t.label1.get_visible() and t.label1.get_text()]
                boxes = [label.get_window_extent() for label in labels]
                for a, b in pairwise(boxes):
                    assert not a.padded(-1).overlaps(b.padded(-1)), f"{name} has overlapping ticks"
                for box in [*boxes, *([side.label.get_window_extent()] if side.label.get_text() else [])]:
                    assert frame.x0 - 1 <= box.x0, f"{name} is cut at the left"
                    assert box.x1 <= frame.x1 + 1, f"{name} is cut at the right"
                    assert frame.y0 - 1 <= box.y0, f"{name} is cut at the bottom"


def test_no_label_is_cut_or_overlaps_another(plots: dict[str, Plot], study_figures: dict[str, Plot]) -> None:
    for plot in [*plots.values(), *study_figures.values()]:
        no_label_is_cut_or_overlaps_another(plot)


@pytest.mark.parametrize("width", [WIDTH, NARROW])
def test_labels_of_any_length_fit_beside_the_panels(width: float) -> None:
    with style(width):
        figure, axes = forest(["W" * 300, "short"], ["one", "two", "three", "four"], "x")
    long, short = (label.get_text() for label in axes[0].get_yticklabels())
    assert (long[0], long[-1], short) == ("W", "…", "short")
    assert text_width(long) <= LABELS
    for axis in axes:
        axis.plot([0, 1], [0, 1])
    no_label_is_cut_or_overlaps_another(Plot("p", "t", "w", [], lambda: figure))


def test_the_narrow_figure_is_drawn_for_pages_only(metrics: dict[str, Any], tmp_path: Path) -> None:
    save((tmp_path, ("png",)), evaluation_plots(metrics)[0])
    assert {path.name for path in tmp_path.iterdir()} == {"gaps.png", "gaps.csv"}


@pytest.fixture
def chinese_font(tmp_path: Path) -> Iterator[None]:
    """An installed font that has one Chinese character."""
    write_font(tmp_path / "font.ttf", "冠")
    installed = list(fontManager.ttflist)
    fontManager.addfont(tmp_path / "font.ttf")
    families.cache_clear()
    yield
    fontManager.ttflist[:] = installed
    families.cache_clear()


def test_chinese_labels_are_drawn_with_an_installed_font(chinese_font: None, tmp_path: Path) -> None:
    assert text_width("冠冠") == pytest.approx(2 * SIZE / 72, rel=0.02)
    plot = Plot("p", "t", "w", [{"label": "冠"}], lambda: panels(1)[0])
    with style(), warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot.drawn()
        figure.text(0.5, 0.5, "冠")
        figure.savefig(tmp_path / "p.svg")  # without a warning


def test_a_character_that_no_font_has_is_drawn_without_a_warning(tmp_path: Path) -> None:
    plot = Plot("p", "t", "w", [{"label": "\ue000"}], lambda: forest(["\ue000"], ["one"], "x")[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save((tmp_path, ("svg",)), plot)
