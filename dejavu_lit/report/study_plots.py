"""The figures of a study, from study.json: mitigations, settings under every score, and the frontier to utility.

Large marks show the mean over the seeds of one setting and size, small ones each seed. Only figures over sizes show more
than the largest training size. Except there, a panel contains only comparable settings (one series, one public set).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dejavu_lit.measure.figures import MEMBERSHIP, UTILITY, signed
from dejavu_lit.report import figures
from dejavu_lit.report.size_plots import dataset_size, law, panel_titles, percent_axis
from dejavu_lit.report.study_points import Point, at_largest_size, flat, knob_label, points, sort_key
from dejavu_lit.study.ranking import utility_measure

COMBINED = "other"  # the group of settings that differ from the default in several knobs
LISTED = 7  # settings below a figure before a second column starts
APART = (24.0, 11.0)  # points between two numbers, across and up
Groups = dict[str, list[tuple[Any, Point]]]  # {knob: (value, point), …}


def study_plots(study: Mapping[str, Any]) -> list[figures.Plot]:
    """Every figure that this study has data for."""
    plots = [frontier(study), mitigations(study), scores_of_settings(study), dataset_size(study), law(study)]
    return [plot for plot in plots if plot is not None]


def mitigations(study: Mapping[str, Any]) -> figures.Plot | None:
    """Each knob's values against utility and the three gaps, a group of rows per knob; a star and a line mark the default."""
    if (group := _compared(study)) is None:
        return None
    default, others = group[0], group[1:]
    groups = _knob_groups(default, others)
    best = min(others, key=lambda p: p["ppg"]["value"])
    text = (
        f"PPG is {signed(default['ppg']['value'])} with {default['setting']}; of the others it is lowest, "
        f"{signed(best['ppg']['value'])}, with {best['setting']}. The star and the dotted line mark {default['setting']}."
    )
    rows = [
        {"knob": knob, "value": knob_label(value), "default": point is default} | flat(point)
        for knob, column in groups.items()
        for value, point in column
    ]
    draw = partial(_draw_mitigations, groups, default, panel_titles(study, group))
    return figures.Plot("mitigations", "Mitigations: utility and memorization", text, rows, draw)


def _compared(study: Mapping[str, Any]) -> list[Point] | None:
    """The largest group of comparable points, the default first; None if nothing is compared with it."""
    group = max(at_largest_size(points(study)), key=len)
    return group if len(group) > 1 and group[0]["default"] else None


def _knob_groups(default: Point, others: Sequence[Point]) -> Groups:
    groups: Groups = {}
    for point in others:
        names = dict.fromkeys([*point["knobs"], *default["knobs"]])
        changed = [name for name in names if point["knobs"].get(name) != default["knobs"].get(name)]
        knob = changed[0] if len(changed) == 1 else COMBINED
        groups.setdefault(knob, []).append((point["knobs"].get(knob, point["setting"]), point))
    for knob, column in groups.items():
        column.append((default["knobs"].get(knob, default["setting"]), default))
        if knob == COMBINED:
            column.sort(key=lambda cell: cell[1] is not default)
        else:
            column.sort(key=lambda cell: sort_key(cell[0]))
    return groups


def _draw_mitigations(groups: Groups, default: Point, titles: Mapping[str, str]) -> Figure:
    labels: list[str] = []
    headings: list[int] = []
    rows: list[tuple[int, Point]] = []
    for knob, column in groups.items():
        headings.append(len(labels))
        labels.append(knob)
        for value, point in column:
            rows.append((len(labels), point))
            labels.append(figures.shorten(point["setting"], 24) if knob == COMBINED else knob_label(value))
    figure, axes = figures.forest(labels, list(titles.values()), "shares, and gaps as differences of shares", headings)
    for axis, name in zip(axes, titles, strict=True):
        if name == "utility":
            axis.set_title(f"{axis.get_title()}, %")  # signs at the ticks would touch
            axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
        else:
            figures.zero_line(axis, horizontal=False)
        axis.axvline(default[name]["value"], color=figures.MUTED, linestyle=":", linewidth=1, label="_default")
        for position, point in rows:
            color = figures.INK if point is default else figures.GOOD if name == "utility" else figures.TARGET
            style = {"fmt": "*", "markersize": 10} if point is default else {"fmt": "o", "markersize": 6}
            figures.interval_bars(axis, {position: point[name]}, color=color, **style)
            values = point[name]["values"]
            if len(values) > 1:
                seeds = [position] * len(values)
                axis.plot(values, seeds, "|", color=color, markersize=7, alpha=0.7, label="_seeds")
    return figure


def scores_of_settings(study: Mapping[str, Any]) -> figures.Plot | None:
    """Every setting under every score: PPG at the left, the AUC of each membership score at the right."""
    group = _compared(study) or []
    names = [name for name in MEMBERSHIP if group and all(name in point for point in group)]
    if not names:
        return None
    default, others = group[0], group[1:]
    lower = [point for point in others if point["ppg"]["value"] < default["ppg"]["value"]]
    counts = ", ".join(
        f"{sum(point[name]['value'] < default[name]['value'] for point in lower)} by {MEMBERSHIP[name].label}"
        for name in names
    )
    also = f"; of these, with a lower AUC: {counts}" if lower else ""
    text = (
        f"Other settings with a lower PPG than {default['setting']}: {len(lower)} of {len(others)}{also}. "
        "An AUC of 0.5 is guessing."
    )
    rows = [flat(point, ("ppg", *names)) for point in group]
    return figures.Plot("scores", "Every setting under every score", text, rows, partial(_draw_scores, group, names))


def _draw_scores(group: Sequence[Point], names: Sequence[str]) -> Figure:
    labels = [figures.shorten(point["setting"], 24) for point in group]
    legend = [MEMBERSHIP[name].label for name in names]
    titles = (f"{group[0]['block']} PPG", "AUC of membership")
    x_label = "gap: difference of shares; AUC: 0.5 is guessing"
    figure, axes = figures.forest(labels, titles, x_label, height=0.45, legend=legend)
    figures.zero_line(axes[0], horizontal=False)
    axes[1].axvline(0.5, color=figures.MUTED, linewidth=1, zorder=1, label="_guessing")
    figures.interval_bars(axes[0], {row: point["ppg"] for row, point in enumerate(group)}, color=figures.INK)
    for number, name in enumerate(names):
        above = 0.13 * (number - (len(names) - 1) / 2)
        style = figures.series(number) | {"fmt": "", "linestyle": "", "markersize": 4, "linewidth": 1}
        bars = {row + above: point[name] for row, point in enumerate(group)}
        figures.interval_bars(axes[1], bars, label=MEMBERSHIP[name].label, **style)
    figures.few_ticks(axes[1].xaxis, 3)
    return figure


def frontier(study: Mapping[str, Any]) -> figures.Plot | None:
    """PPG against utility, the frontier joined by a line and the recommended setting ringed; one panel per group."""
    with_utility = [[p for p in group if "utility" in p] for group in at_largest_size(points(study))]
    groups = [group for group in with_utility if len(group) > 1]
    if not groups:
        return None
    rows = [
        flat(p, ("utility", "ppg", "aucg")) | {name: p[name] for name in ("frontier", "recommended")}
        for group in groups
        for p in group
    ]
    on_frontier = [row["setting"] for row in rows if row["frontier"]]
    chosen = [row["setting"] for row in rows if row["recommended"]]
    text = f"On the frontier: {', '.join(on_frontier)}. " if on_frontier else ""
    text += f"Recommended: {', '.join(chosen)}." if chosen else "No setting qualifies."
    utility = UTILITY[str(utility_measure(study["settings"]))].label
    text += f" Utility: {utility}. Lower right is better."
    draw = partial(_draw_frontier, groups, utility)
    return figures.Plot("frontier", "Memorization against utility", text, rows, draw)


def _draw_frontier(groups: Sequence[list[Point]], utility: str) -> Figure:
    """Points have numbers, whose settings are listed below the panels: names beside them would overlap."""
    names = [p["setting"] for group in groups for p in group]
    legend = ["frontier", "default"]
    if any(p["recommended"] for group in groups for p in group):
        legend.append("recommended")
    columns = 1 if len(names) <= LISTED or figures.is_narrow() else 2
    lines = -(-len(names) // columns)
    titles, below = int(len(groups) > 1), figures.LINE * (lines + 0.8)
    figure, axes = figures.panels(1, len(groups), height=2.3, left=0.75, titles=titles, legend=legend, below=below)
    first = 1
    for axis, group in zip(axes[:, 0], groups, strict=True):
        _draw_points(axis, group)
        axis.set_xlabel(figures.wrapped(f"utility of the target: {utility}"))
        axis.set_ylabel(f"{group[0]['block']} PPG (difference of shares)")
        if len(groups) > 1:
            kinds = (group[0]["series"], group[0]["public"])
            axis.set_title(", ".join(str(kind) for kind in kinds if kind is not None))
        percent_axis(axis.xaxis, 4)
        _write_numbers(axis, {n: (p["utility"]["value"], p["ppg"]["value"]) for n, p in enumerate(group, first)})
        first += len(group)
    width = 0.94 * figure.get_figwidth() / columns
    keys = [figures.fitted(f"{number}  {name}", width) for number, name in enumerate(names, 1)]
    for column in range(columns):
        listed = keys[column * lines : (column + 1) * lines]
        key = "\n".join([*listed, *[""] * (lines - len(listed))])
        figure.text(0.03 + 0.5 * column, 0.02, key, va="bottom", linespacing=1.35)
    return figure


def _write_numbers(axis: Axes, numbered: Mapping[int, tuple[float, float]]) -> None:
    """Write each point's number beside it; points that are too close for numbers of their own share one label, "1, 7–9"."""
    axis.autoscale_view()
    places = {number: axis.transData.transform(point) * 72 / axis.figure.dpi for number, point in numbered.items()}
    clusters: list[list[int]] = []
    for number, place in places.items():
        near = [c for c in clusters if any((abs(place - places[other]) < APART).all() for other in c)]
        clusters = [c for c in clusters if c not in near] + [sorted(sum(near, [number]))]
    for cluster in clusters:
        rightmost = numbered[max(cluster, key=lambda number: places[number][0])]
        axis.annotate(_ranges(cluster), rightmost, xytext=(6, 3), textcoords="offset points")


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: "1, 7–9"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)


def _draw_points(axis: Axes, group: Sequence[Point]) -> None:
    best = sorted((p for p in group if p["frontier"]), key=lambda p: p["utility"]["value"])
    x, y = ([p["utility"]["value"] for p in best], [p["ppg"]["value"] for p in best])
    axis.plot(x, y, color=figures.GOOD, linestyle="--", zorder=2, label="frontier")
    for point in group:
        utility, ppg, is_star = point["utility"]["value"], point["ppg"], point["default"]
        axis.errorbar(
            [utility], [ppg["value"]], yerr=figures.error_arms([ppg]), fmt="*" if is_star else "o",
            color=figures.INK if is_star else figures.TARGET if point["frontier"] else figures.MUTED,
            markersize=11 if is_star else 6, zorder=4 if is_star else 3,
            label="default" if is_star else "_setting",
        )  # fmt: skip
        if point["recommended"]:
            axis.plot(
                [utility], [ppg["value"]], linestyle="", marker="o", markersize=15, markerfacecolor="none",
                markeredgecolor=figures.REFERENCE, markeredgewidth=2, label="recommended",
            )  # fmt: skip
    axis.margins(x=0.2, y=0.15)
    figures.zero_line(axis)
