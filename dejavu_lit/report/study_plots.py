"""The figures of a study, from study.json: dataset size, the mitigation figure, and the frontier of memorization and utility.

Seeds of one setting and size are drawn as small marks, their mean as the large one; only the dataset-size figure looks at
more than the largest training size. Only comparable settings (one series, one public set) share a panel, but there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from dejavu_lit.report.figures import (
    GOOD,
    INK,
    MARKERS,
    MUTED,
    REFERENCE,
    SERIES,
    TARGET,
    Plot,
    errors,
    legend_above,
    logarithmic,
    name_points,
    panels,
    shorten,
    style,
    zero,
)
from dejavu_lit.report.study_points import Point, changed, flat, largest, order, points, shown
from dejavu_lit.report.words import FIGURES, UTILITY, signed
from dejavu_lit.study.ranking import measure_of

COMBINED = "other"  # the panel of settings that differ from the default in several knobs


def study_plots(study: Mapping[str, Any]) -> list[Plot]:
    """Every figure that this study has data for."""
    with style():
        made = [mitigations(study), frontier(study), dataset_size(study)]
        return [plot for plot in made if plot is not None]


def _measured(found: Sequence[Point]) -> list[str]:
    return (["utility"] if all("utility" in p for p in found) else []) + list(FIGURES)


def _titles(study: Mapping[str, Any]) -> dict[str, str]:
    measure = measure_of(study["settings"])
    return {"utility": UTILITY[measure] if measure else ""} | FIGURES


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")


def mitigations(study: Mapping[str, Any]) -> Plot | None:
    """Each knob's values against utility and the three gaps, a column a knob, the default marked by a star and a line."""
    groups = largest(points(study))
    found = max(groups, key=len)
    if len(found) < 2:
        return None
    default, others = found[0], found[1:]
    columns: dict[str, list[tuple[Any, Point]]] = {}
    for point in others:
        differing = changed(point, default)
        knob = differing[0] if len(differing) == 1 else COMBINED
        columns.setdefault(knob, []).append((point["knobs"].get(knob, point["setting"]), point))
    for knob, column in columns.items():
        column.append((default["knobs"].get(knob, default["setting"]), default))
        column.sort(key=lambda one: order(one[0]) if knob != COMBINED else (one[1] is not default, 0.0, ""))
    names, titles = _measured(found), _titles(study)
    widths = [0.42 * max(3, len(column)) + 0.5 for column in columns.values()]
    figure, axes = panels(
        len(columns), len(names), width=sum(widths) / len(widths) + 0.25, height=1.55, sharey="row",
        width_ratios=widths,
    )  # fmt: skip
    for across, name in zip(axes, names, strict=True):
        across[0].set_ylabel(titles[name])
        last = name == names[-1]
        for axis, (knob, column) in zip(across, columns.items(), strict=True):
            if name != "utility":
                zero(axis)
            axis.axhline(default[name]["value"], color=MUTED, linestyle=":", linewidth=1, label="_default")
            line = [(x, p[name]["value"]) for x, (v, p) in enumerate(column) if order(v)[0] == 1 and knob != COMBINED]
            axis.plot([x for x, _ in line], [y for _, y in line], color=MUTED, linewidth=0.7, zorder=1.5, label="_line")
            for place, (_, point) in enumerate(column):
                star = point is default
                colour = INK if star else GOOD if name == "utility" else TARGET
                _bar(axis, point[name], place, "*" if star else "o", colour)
            ticks = [shorten(point["setting"], 18) if knob == COMBINED else shown(knob, v) for v, point in column]
            turned = {"rotation": 90} if any(len(t) > 8 for t in ticks) or len(ticks) > 7 else {}
            axis.set_xticks(range(len(column)), ticks, **turned)
            axis.set_xlim(-0.6, len(column) - 0.4)
            axis.grid(False, axis="x")
            axis.tick_params(axis="x", labelbottom=last)
        if name == "utility":
            _percent(across[0].yaxis)
    for axis, knob in zip(axes[0], columns, strict=True):
        axis.set_title(knob)
    best = min(others, key=lambda p: p["ppg"]["value"])
    text = (
        f"PPG is {signed(default['ppg']['value'])} under {default['setting']} and smallest, "
        f"{signed(best['ppg']['value'])}, under {best['setting']}. The star and the dotted line are {default['setting']}."
    )
    rows = [
        {"knob": knob, "value": shown(knob, value), "default": point is default} | flat(point)
        for knob, column in columns.items()
        for value, point in column
    ]
    return Plot("mitigations", "Mitigations: utility and memorization", text, rows, figure)


def _bar(axis: Axes, value: Mapping[str, Any], place: float, marker: str, colour: str) -> None:
    size = 11 if marker == "*" else 6
    axis.errorbar([place], [value["value"]], yerr=errors([value]), fmt=marker, color=colour, markersize=size, capsize=2)
    if len(value["values"]) > 1:
        seeds = [place + 0.25] * len(value["values"])
        axis.plot(seeds, value["values"], "_", color=colour, markersize=5, alpha=0.7, label="_seeds")


def frontier(study: Mapping[str, Any]) -> Plot | None:
    """Symmetric PPG against utility, the frontier joined by a line and the recommended setting ringed; a panel a group."""
    every = [[p for p in group if "utility" in p] for group in largest(points(study))]
    groups = [group for group in every if len(group) > 1]
    if not groups:
        return None
    figure, axes = panels(len(groups), width=6.2 if len(groups) == 1 else 5.0, height=4.4)
    rows = []
    for axis, found in zip(axes[0], groups, strict=True):
        recommended = _recommended(study, found)
        best = sorted((p for p in found if p["setting"] in study["frontier"]), key=lambda p: p["utility"]["value"])
        x, y = ([p["utility"]["value"] for p in best], [p["ppg"]["value"] for p in best])
        axis.plot(x, y, color=GOOD, linestyle="--", zorder=2, label="frontier")
        for number, point in enumerate(found):
            u, g = point["utility"]["value"], point["ppg"]
            star = number == 0
            axis.errorbar(
                [u], [g["value"]], yerr=errors([g]), fmt="*" if star else "o",
                color=INK if star else TARGET if point in best else MUTED, markersize=11 if star else 6, capsize=2,
                zorder=4 if star else 3, label="default" if star else "_setting",
            )  # fmt: skip
            if point["setting"] == recommended:
                ring = {"marker": "o", "markersize": 17, "markerfacecolor": "none", "markeredgecolor": REFERENCE}
                axis.plot([u], [g["value"]], linestyle="", markeredgewidth=2, label="recommended", **ring)
        axis.margins(x=0.2, y=0.15)
        zero(axis)
        axis.set_xlabel(f"utility of the target: {_titles(study)['utility']}")
        axis.set_ylabel(f"{found[0]['block']} PPG")
        if len(groups) > 1:
            axis.set_title(_group(found[0]))
        _percent(axis.xaxis)
        rows += [
            flat(p, ("utility", "ppg", "aucg"))
            | {"frontier": p["setting"] in study["frontier"], "recommended": p["setting"] == recommended}
            for p in found
        ]
    legend_above(figure, axes[0][0])
    for axis, found in zip(axes[0], groups, strict=True):
        name_points(
            axis,
            [
                (p["utility"]["value"], *(p["ppg"][n] for n in ("value", "low", "high")), shorten(p["setting"]))
                for p in found
            ],
        )
    on = [row["setting"] for row in rows if row["frontier"]]
    chosen = [row["setting"] for row in rows if row["recommended"]]
    text = f"On the frontier: {', '.join(on)}. " if on else ""
    text += f"Recommended: {', '.join(chosen)}." if chosen else "No setting is recommended."
    return Plot("frontier", "Memorization against utility", text, rows, figure)


def _recommended(study: Mapping[str, Any], found: Sequence[Point]) -> str | None:
    """The recommended setting among comparable points."""
    if not study.get("ranking"):
        return study.get("recommended")
    names = {point["setting"] for point in found}
    size = found[0]["train_size"]
    chosen = (r["recommended"] for r in study["ranking"] if r["default"] in names and r["train_size"] == size)
    return next((one["name"] for one in chosen if one), None)


def _group(point: Point) -> str:
    return ", ".join(str(part) for part in (point["series"], point["public"]) if part is not None)


def dataset_size(study: Mapping[str, Any]) -> Plot | None:
    """Utility and gaps (mean over seeds ± the paper's std) by training-set size and by exposure, a line a setting."""
    found = points(study)
    sizes = sorted({p["train_size"] for p in found})
    if len(sizes) < 2:
        return None
    names, titles = _measured(found), _titles(study)
    axes_of = {"train_size": "training pairs"}
    if all(p["exposure"] is not None for p in found) and len({p["exposure"] for p in found}) > 1:
        axes_of["exposure"] = "times each pair was seen"
    figure, axes = panels(len(names), len(axes_of), width=2.4, height=2.5)
    settings = list(dict.fromkeys(p["setting"] for p in found))
    for across, (x, label) in zip(axes, axes_of.items(), strict=True):
        for axis, name in zip(across, names, strict=True):
            if name != "utility":
                zero(axis)
            _lines(axis, found, settings, x, name)
            axis.set_xlabel(label)
            if x == "train_size":
                axis.set_title(titles[name])
        if "utility" in names:
            _percent(across[0].yaxis)
    legend_above(figure, axes[0][-1])
    text = " ".join(
        f"{setting}: PPG "
        + ", ".join(f"{signed(p['ppg']['value'])} at {p['train_size']:,} pairs" for p in _line(found, setting))
        + "."
        for setting in settings
    )
    return Plot("dataset-size", "Training-set size, utility and memorization", text, [flat(p) for p in found], figure)


def _line(found: Sequence[Point], setting: str) -> list[Point]:
    return sorted((p for p in found if p["setting"] == setting), key=lambda p: p["train_size"])


def _lines(axis: Axes, found: Sequence[Point], settings: Sequence[str], x: str, name: str) -> None:
    """One line a setting, moved apart a little; colours are public sets where there are several, dashes the series."""
    figure = axis.figure
    publics, series = (list(dict.fromkeys(p[part] for p in found)) for part in ("public", "series"))
    for number, setting in enumerate(settings):
        line = _line(found, setting)
        place = publics.index(line[0]["public"]) if len(publics) > 1 else number
        apart = ScaledTranslation((number - (len(settings) - 1) / 2) / 26, 0, figure.dpi_scale_trans)
        axis.errorbar(
            [p[x] for p in line], [p[name]["value"] for p in line], yerr=[p[name].get("std", 0.0) for p in line],
            color=SERIES[place % len(SERIES)], marker=MARKERS[number % len(MARKERS)], capsize=2,
            linestyle=("-", "--", ":", "-.")[series.index(line[0]["series"]) % 4], label=shorten(setting, 40),
            transform=axis.transData + apart,
        )  # fmt: skip
    ends = [(p[x], p[name]["value"] + e * p[name].get("std", 0.0)) for p in found for e in (-1, 1)]
    axis.update_datalim(ends)  # lines moved apart by a transform do not count of themselves
    logarithmic(axis, sorted({p[x] for p in found}))
    axis.margins(x=0.2)
    axis.tick_params(axis="x", labelrotation=30)
