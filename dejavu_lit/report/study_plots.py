"""The figures of a study, from study.json: the mitigations, the frontier of memorization and utility, and dataset size.

Small marks show the seeds of one setting and size, the large one their mean. Only the dataset-size figure shows more than the
largest training size. Except there, a panel contains only comparable settings (one series, one public set).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from dejavu_lit.measure.figures import FIGURES, UTILITY
from dejavu_lit.report.figures import (
    GOOD,
    INK,
    MARKERS,
    MUTED,
    REFERENCE,
    SERIES,
    TARGET,
    Plot,
    error_arms,
    label_points,
    legend_above,
    log_x_axis,
    panels,
    shorten,
    style,
    zero_line,
)
from dejavu_lit.report.narrative import signed
from dejavu_lit.report.study_points import Point, at_largest_size, changed_knobs, flat, knob_label, points, sort_key
from dejavu_lit.study.ranking import utility_measure

COMBINED = "other"  # the panel of settings that differ from the default in several knobs
LINE_STYLES = ("-", "--", ":", "-.")
Columns = dict[str, list[tuple[Any, Point]]]  # {knob: (value, point), …}


def study_plots(study: Mapping[str, Any]) -> list[Plot]:
    """Every figure that this study has data for."""
    with style():
        plots = [mitigations(study), frontier(study), dataset_size(study)]
        return [plot for plot in plots if plot is not None]


def mitigations(study: Mapping[str, Any]) -> Plot | None:
    """Each knob's values against utility and the three gaps, one column per knob; a star and a line mark the default."""
    group = max(at_largest_size(points(study)), key=len)
    if len(group) < 2:
        return None
    default, others = group[0], group[1:]
    columns = _knob_columns(default, others)
    figure = _draw_mitigations(columns, default, _measured(group), _titles(study))
    best = min(others, key=lambda p: p["ppg"]["value"])
    text = (
        f"PPG is {signed(default['ppg']['value'])} with {default['setting']} and lowest, "
        f"{signed(best['ppg']['value'])}, with {best['setting']}. The star and the dotted line mark {default['setting']}."
    )
    rows = [
        {"knob": knob, "value": knob_label(knob, value), "default": point is default} | flat(point)
        for knob, column in columns.items()
        for value, point in column
    ]
    return Plot("mitigations", "Mitigations: utility and memorization", text, rows, figure)


def _knob_columns(default: Point, others: Sequence[Point]) -> Columns:
    columns: Columns = {}
    for point in others:
        changed = changed_knobs(point, default)
        knob = changed[0] if len(changed) == 1 else COMBINED
        columns.setdefault(knob, []).append((point["knobs"].get(knob, point["setting"]), point))
    for knob, column in columns.items():
        column.append((default["knobs"].get(knob, default["setting"]), default))
        if knob == COMBINED:
            column.sort(key=lambda cell: cell[1] is not default)
        else:
            column.sort(key=lambda cell: sort_key(cell[0]))
    return columns


def _draw_mitigations(columns: Columns, default: Point, names: Sequence[str], titles: Mapping[str, str]) -> Figure:
    widths = [0.42 * max(3, len(column)) + 0.5 for column in columns.values()]
    figure, axes = panels(
        len(columns), len(names), width=sum(widths) / len(widths) + 0.25, height=1.55, sharey="row",
        width_ratios=widths,
    )  # fmt: skip
    for axis_row, name in zip(axes, names, strict=True):
        axis_row[0].set_ylabel(titles[name])
        for axis, (knob, column) in zip(axis_row, columns.items(), strict=True):
            _draw_knob(axis, knob, column, default, name)
            axis.tick_params(axis="x", labelbottom=name == names[-1])
        if name == "utility":
            _percent(axis_row[0].yaxis)
    for axis, knob in zip(axes[0], columns, strict=True):
        axis.set_title(knob)
    return figure


def _draw_knob(axis: Axes, knob: str, column: Sequence[tuple[Any, Point]], default: Point, name: str) -> None:
    if name != "utility":
        zero_line(axis)
    axis.axhline(default[name]["value"], color=MUTED, linestyle=":", linewidth=1, label="_default")
    numeric = [(x, p[name]["value"]) for x, (v, p) in enumerate(column) if sort_key(v)[0] == 1 and knob != COMBINED]
    axis.plot([x for x, _ in numeric], [y for _, y in numeric], color=MUTED, linewidth=0.7, zorder=1.5, label="_line")
    for position, (_, point) in enumerate(column):
        is_default = point is default
        color = INK if is_default else GOOD if name == "utility" else TARGET
        _error_bar(axis, point[name], position, "*" if is_default else "o", color)
    ticks = [shorten(point["setting"], 18) if knob == COMBINED else knob_label(knob, v) for v, point in column]
    rotation: dict[str, Any] = {"rotation": 90} if any(len(t) > 8 for t in ticks) or len(ticks) > 7 else {}
    axis.set_xticks(range(len(column)), ticks, **rotation)
    axis.set_xlim(-0.6, len(column) - 0.4)
    axis.grid(False, axis="x")


def _error_bar(axis: Axes, figure: Mapping[str, Any], x: float, marker: str, color: str) -> None:
    size = 11 if marker == "*" else 6
    arms = error_arms([figure])
    axis.errorbar([x], [figure["value"]], yerr=arms, fmt=marker, color=color, markersize=size, capsize=2)
    if len(figure["values"]) > 1:
        seeds = [x + 0.25] * len(figure["values"])
        axis.plot(seeds, figure["values"], "_", color=color, markersize=5, alpha=0.7, label="_seeds")


def frontier(study: Mapping[str, Any]) -> Plot | None:
    """PPG against utility, the frontier joined by a line and the recommended setting ringed; one panel per group."""
    with_utility = [[p for p in group if "utility" in p] for group in at_largest_size(points(study))]
    groups = [group for group in with_utility if len(group) > 1]
    if not groups:
        return None
    figure, axes = panels(len(groups), width=6.2 if len(groups) == 1 else 5.0, height=4.4)
    rows = []
    for axis, group in zip(axes[0], groups, strict=True):
        recommended = _recommended(study, group)
        _draw_frontier(axis, group, study["frontier"], recommended)
        axis.set_xlabel(f"utility of the target: {_titles(study)['utility']}")
        axis.set_ylabel(f"{group[0]['block']} PPG")
        if len(groups) > 1:
            axis.set_title(_group_title(group[0]))
        _percent(axis.xaxis)
        rows += [
            flat(p, ("utility", "ppg", "aucg"))
            | {"frontier": p["setting"] in study["frontier"], "recommended": p["setting"] == recommended}
            for p in group
        ]
    legend_above(figure, axes[0][0])
    for axis, group in zip(axes[0], groups, strict=True):
        label_points(
            axis,
            [
                (p["utility"]["value"], *(p["ppg"][n] for n in ("value", "low", "high")), shorten(p["setting"]))
                for p in group
            ],
        )
    on_frontier = [row["setting"] for row in rows if row["frontier"]]
    chosen = [row["setting"] for row in rows if row["recommended"]]
    text = f"On the frontier: {', '.join(on_frontier)}. " if on_frontier else ""
    text += f"Recommended: {', '.join(chosen)}." if chosen else "No setting is recommended."
    return Plot("frontier", "Memorization against utility", text, rows, figure)


def _draw_frontier(axis: Axes, group: Sequence[Point], on_frontier: Sequence[str], recommended: str | None) -> None:
    best = sorted((p for p in group if p["setting"] in on_frontier), key=lambda p: p["utility"]["value"])
    x, y = ([p["utility"]["value"] for p in best], [p["ppg"]["value"] for p in best])
    axis.plot(x, y, color=GOOD, linestyle="--", zorder=2, label="frontier")
    for number, point in enumerate(group):
        utility, ppg = point["utility"]["value"], point["ppg"]
        is_default = number == 0
        axis.errorbar(
            [utility], [ppg["value"]], yerr=error_arms([ppg]), fmt="*" if is_default else "o",
            color=INK if is_default else TARGET if point in best else MUTED, markersize=11 if is_default else 6,
            capsize=2, zorder=4 if is_default else 3, label="default" if is_default else "_setting",
        )  # fmt: skip
        if point["setting"] == recommended:
            axis.plot(
                [utility], [ppg["value"]], linestyle="", marker="o", markersize=17, markerfacecolor="none",
                markeredgecolor=REFERENCE, markeredgewidth=2, label="recommended",
            )  # fmt: skip
    axis.margins(x=0.2, y=0.15)
    zero_line(axis)


def _recommended(study: Mapping[str, Any], group: Sequence[Point]) -> str | None:
    """The recommended setting among comparable points."""
    if not study.get("ranking"):
        return study.get("recommended")
    names = {point["setting"] for point in group}
    size = group[0]["train_size"]
    choices = (r["recommended"] for r in study["ranking"] if r["default"] in names and r["train_size"] == size)
    return next((choice["name"] for choice in choices if choice), None)


def _group_title(point: Point) -> str:
    return ", ".join(str(part) for part in (point["series"], point["public"]) if part is not None)


def dataset_size(study: Mapping[str, Any]) -> Plot | None:
    """Utility and gaps (mean over seeds ± the paper's std) by training-set size and by exposure, one line per setting."""
    every_point = points(study)
    if len({p["train_size"] for p in every_point}) < 2:
        return None
    names, titles = _measured(every_point), _titles(study)
    x_labels = {"train_size": "training pairs"}
    if all(p["exposure"] is not None for p in every_point) and len({p["exposure"] for p in every_point}) > 1:
        x_labels["exposure"] = "times each pair was seen"
    figure, axes = panels(len(names), len(x_labels), width=2.4, height=2.5)
    settings = list(dict.fromkeys(p["setting"] for p in every_point))
    for axis_row, (x, label) in zip(axes, x_labels.items(), strict=True):
        for axis, name in zip(axis_row, names, strict=True):
            if name != "utility":
                zero_line(axis)
            _draw_lines(axis, every_point, settings, x, name)
            axis.set_xlabel(label)
            if x == "train_size":
                axis.set_title(titles[name])
        if "utility" in names:
            _percent(axis_row[0].yaxis)
    legend_above(figure, axes[0][-1])
    text = " ".join(
        f"{setting}: PPG "
        + ", ".join(f"{signed(p['ppg']['value'])} at {p['train_size']:,} pairs" for p in _by_size(every_point, setting))
        + "."
        for setting in settings
    )
    rows = [flat(p) for p in every_point]
    return Plot("dataset-size", "Training-set size, utility, and memorization", text, rows, figure)


def _by_size(points: Sequence[Point], setting: str) -> list[Point]:
    return sorted((p for p in points if p["setting"] == setting), key=lambda p: p["train_size"])


def _draw_lines(axis: Axes, points: Sequence[Point], settings: Sequence[str], x: str, name: str) -> None:
    """One line per setting, shifted slightly; with several public sets they have the colors, and series the line styles."""
    publics, series = (list(dict.fromkeys(p[part] for p in points)) for part in ("public", "series"))
    for number, setting in enumerate(settings):
        line = _by_size(points, setting)
        color = publics.index(line[0]["public"]) if len(publics) > 1 else number
        shift = ScaledTranslation((number - (len(settings) - 1) / 2) / 26, 0, axis.figure.dpi_scale_trans)
        axis.errorbar(
            [p[x] for p in line], [p[name]["value"] for p in line], yerr=[p[name].get("std", 0.0) for p in line],
            color=SERIES[color % len(SERIES)], marker=MARKERS[number % len(MARKERS)], capsize=2,
            linestyle=LINE_STYLES[series.index(line[0]["series"]) % len(LINE_STYLES)], label=shorten(setting, 40),
            transform=axis.transData + shift,
        )  # fmt: skip
    ends = [(p[x], p[name]["value"] + sign * p[name].get("std", 0.0)) for p in points for sign in (-1, 1)]
    axis.update_datalim(ends)  # autoscaling ignores lines with a transform
    log_x_axis(axis, sorted({p[x] for p in points}))
    axis.margins(x=0.2)
    axis.tick_params(axis="x", labelrotation=30)


def _measured(points: Sequence[Point]) -> list[str]:
    return (["utility"] if all("utility" in p for p in points) else []) + list(FIGURES)


def _titles(study: Mapping[str, Any]) -> dict[str, str]:
    measure = utility_measure(study["settings"])
    utility = UTILITY[measure].label if measure else ""
    return {"utility": utility} | {name: figure.label for name, figure in FIGURES.items()}


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
