"""The figures of a study over its training sizes: utility and gaps by size and exposure, and the law over T/N."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import linregress, t

from dejavu_lit.measure.figures import FIGURES, MEMBERSHIP, UTILITY, decimal, signed
from dejavu_lit.report import figures
from dejavu_lit.report.gap_plots import GAP_TITLES, GAP_UNIT
from dejavu_lit.report.study_points import Point, flat, points
from dejavu_lit.study.ranking import utility_measure

LINE_STYLES = ("-", "--", ":", "-.")
FEWEST_SIZES = 3  # points behind a fitted slope and its interval


def dataset_size(study: Mapping[str, Any]) -> figures.Plot | None:
    """Utility and gaps (mean over seeds ± the paper's std) by training-set size and by exposure, one line per setting."""
    every_point = points(study)
    if len({p["train_size"] for p in every_point}) < 2:
        return None
    x_labels = {"train_size": "training pairs"}
    if all(p["exposure"] is not None for p in every_point) and len({p["exposure"] for p in every_point}) > 1:
        x_labels["exposure"] = "times each pair was seen"
    settings = list(dict.fromkeys(p["setting"] for p in every_point))
    sentences = []
    for setting in settings:
        gaps = [f"{signed(p['ppg']['value'])} at {p['train_size']:,} pairs" for p in _by_size(every_point, setting)]
        sentences.append(f"{setting}: PPG {', '.join(gaps)}.")
    text = " ".join([*sentences, "Bars: the standard deviation of draws of the records."])
    title, rows = "Training-set size, utility, and memorization", list(map(flat, every_point))
    draw = partial(_draw_sizes, every_point, settings, x_labels, panel_titles(study, every_point))
    return figures.Plot("dataset-size", title, text, rows, draw)


def _draw_sizes(
    every_point: Sequence[Point], settings: Sequence[str], x_labels: Mapping[str, str], titles: Mapping[str, str]
) -> Figure:
    legend = [figures.shorten(setting, 40) for setting in settings]
    figure, axes = figures.panels(
        2, 2 * len(x_labels), height=1.15, left=0.7, titles=1, legend=legend, y_label=GAP_UNIT
    )
    for number, (x, label) in enumerate(x_labels.items()):
        block = axes[2 * number : 2 * number + 2].flat
        for axis, (name, title) in zip(block, titles.items(), strict=False):
            _draw_lines(axis, every_point, dict(zip(settings, legend, strict=True)), x, name)
            axis.set_xlabel(label)
            axis.set_title(title.replace("\n", " "))
            if name == "utility":
                percent_axis(axis.yaxis, 4)
            else:
                figures.zero_line(axis)
                figures.few_ticks(axis.yaxis, 4)
        for axis in block[len(titles) :]:
            axis.remove()
    return figure


def _by_size(points: Sequence[Point], setting: str) -> list[Point]:
    return sorted((p for p in points if p["setting"] == setting), key=lambda p: p["train_size"])


def _draw_lines(axis: Axes, points: Sequence[Point], labels: Mapping[str, str], x: str, name: str) -> None:
    """One line per setting of ``labels``; with several public sets they have the colors, and series the line styles."""
    publics, series = (list(dict.fromkeys(p[part] for p in points)) for part in ("public", "series"))
    for number, (setting, label) in enumerate(labels.items()):
        line = _by_size(points, setting)
        style = figures.series(number)
        if len(publics) > 1:
            style["color"] = figures.series(publics.index(line[0]["public"]))["color"]
        axis.errorbar(
            [p[x] for p in line], [p[name]["value"] for p in line], yerr=[p[name].get("std", 0.0) for p in line],
            linestyle=LINE_STYLES[series.index(line[0]["series"]) % len(LINE_STYLES)], label=label, **style,
        )  # fmt: skip
    figures.log_x_axis(axis, sorted({p[x] for p in points}))
    axis.margins(x=0.15)


def law(study: Mapping[str, Any]) -> figures.Plot | None:
    """Gaps and AUC − 0.5 over T/N on logarithmic axes, with the fitted power law of each setting over its sizes and series.

    T/N is the exposure: the pairs seen in training over the training size. A law O(T/N) has a slope of at most 1.
    """
    lines: dict[str, list[Point]] = {}
    for point in points(study):
        if point["exposure"]:
            name = point["setting"]
            lines.setdefault(name.removesuffix(f", {point['series']}"), []).append(point)
    names = [name for name in (*FIGURES, *MEMBERSHIP) if all(name in p for line in lines.values() for p in line)]
    rows = []
    for setting, line in lines.items():
        for name in names:
            excess = 0.5 if name in MEMBERSHIP else 0.0
            # Two series may share a model, which counts once.
            seen = dict.fromkeys((p["train_size"], p["exposure"], p[name]["value"] - excess) for p in line)
            shown = [(size, x, y) for size, x, y in seen if y > 0]
            slope = _slope([(x, y) for _, x, y in shown])
            rows += [
                {"setting": setting, "measure": name, "train_size": size, "exposure": x, "value": y} | slope
                for size, x, y in shown
            ]
    fitted = {(r["measure"], r["setting"]): r for r in rows if r["slope"] is not None}
    if not fitted:
        return None
    main = {key: row for key, row in fitted.items() if key[0] in ("ppg", "cosine")} or fitted
    slopes = [f"{_label(name)} ({setting}) {_slope_text(row)}" for (name, setting), row in main.items()]
    text = (
        "T/N: pairs seen in training over training pairs. Slopes of the fitted lines with their 95 % intervals, where 1 is "
        f"proportional to T/N: {', '.join(slopes)}; the others are in the panels and the CSV. Values of 0 or less are left out."
    )
    return figures.Plot("law", "Memorization and membership against T/N", text, rows, partial(_draw_law, rows))


def _slope(seen: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """The slope of log value over log T/N by least squares, with its t interval; None below three points or one T/N."""
    if len(seen) < FEWEST_SIZES or len({x for x, _ in seen}) < 2:
        return {"slope": None, "slope_low": None, "slope_high": None, "intercept": None}
    fit = linregress(*np.log10(np.array(seen)).T)
    half = float(t.ppf(0.975, len(seen) - 2) * fit.stderr)
    slope, intercept = float(fit.slope), float(fit.intercept)
    return {"slope": slope, "slope_low": slope - half, "slope_high": slope + half, "intercept": intercept}


def _slope_text(row: Mapping[str, Any]) -> str:
    slope, low, high = (decimal(row[name], 2) for name in ("slope", "slope_low", "slope_high"))
    return f"{slope} ({low} to {high})"


def _label(name: str) -> str:
    return FIGURES[name].label if name in FIGURES else f"AUC − 0.5 of {MEMBERSHIP[name].label}"


def _draw_law(rows: Sequence[Mapping[str, Any]]) -> Figure:
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    names = list(dict.fromkeys(row["measure"] for row in rows))
    legend = [figures.shorten(setting, 40) for setting in settings]
    y_label = f"{GAP_UNIT}, or AUC − 0.5" if set(names) - set(FIGURES) else GAP_UNIT
    figure, axes = figures.panels(
        2, -(-len(names) // 2), height=1.05, left=0.8, titles=1, legend=legend, count=len(names),
        x_label="T/N: times each pair was seen", y_label=y_label,
    )  # fmt: skip
    for axis, name in zip(axes, names, strict=True):
        slopes = []
        for number, setting in enumerate(settings):
            line = [row for row in rows if (row["setting"], row["measure"]) == (setting, name)]
            style = figures.series(number)
            x, y = (np.array([row[part] for row in line]) for part in ("exposure", "value"))
            axis.plot(x, y, linestyle="", label=legend[number], **style)
            if line and line[0]["slope"] is not None:
                ends = np.array([x.min(), x.max()])
                fit = 10 ** line[0]["intercept"] * ends ** line[0]["slope"]
                axis.plot(ends, fit, color=style["color"], linewidth=1, label="_fit")
                slopes.append((f"slope {_slope_text(line[0])}", style["color"]))
        axis.set_title(_label(name))
        figures.log_x_axis(axis, sorted({row["exposure"] for row in rows}))
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** (0.25 * len(slopes)))  # room for the slopes
        figures.log_ticks(axis.yaxis)
        for number, (label, color) in enumerate(slopes):
            axis.text(0.03, 0.97 - 0.16 * number, label, color=color, transform=axis.transAxes, va="top")
    return figure


def panel_titles(study: Mapping[str, Any], points: Sequence[Point]) -> dict[str, str]:
    """{measure: title of its panel} of a study's figures: utility if all points have it, and the gaps."""
    measure = utility_measure(study["settings"])
    if measure is None or not all("utility" in p for p in points):
        return GAP_TITLES
    return {"utility": UTILITY[measure].label.replace(" ", "\n", 1)} | GAP_TITLES


def percent_axis(axis: Any, bins: int = 2) -> None:
    """A few ticks in percent."""
    figures.few_ticks(axis, bins)
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
