"""The figures of a study, from study.json: dataset size, the mitigation figure, and the frontier of memorization and utility.

Seeds of one setting and size are drawn as small points, their mean as the large one; only the dataset-size figure looks at
more than the largest training size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
    legend_above,
    logarithmic,
    name_points,
    panels,
    shorten,
    style,
    zero,
)
from dejavu_lit.report.words import FIGURES, UTILITY, signed

MEASURES = ("zeroshot_top1", "t2i_r1")  # utility: the first that the study has
Row = Mapping[str, Any]


def study_plots(study: Mapping[str, Any]) -> list[Plot]:
    """Every figure that this study has data for."""
    with style():
        made = [mitigations(study), frontier(study), dataset_size(study)]
        return [plot for plot in made if plot is not None]


def measure(rows: Sequence[Row]) -> str | None:
    """The utility that the figures show: the first of ``MEASURES`` that some row has."""
    return next((m for m in MEASURES if any(utility(row, m) is not None for row in rows)), None)


def utility(row: Row, name: str) -> float | None:
    """The target model's utility, in 0..1."""
    value = ((row.get("utility") or {}).get("target") or {}).get(name)
    return None if value is None else float(value)


def points(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict a (setting, size): name, train_size, seeds, knobs, and for utility and each gap value, low, high and values.

    The gaps are symmetric where both directions were measured, else the target's alone. low and high are the t interval
    over 3 seeds and more, the records' bootstrap with one seed, and the span of the seeds' values with two.
    """
    rows = study["settings"]
    which = measure(rows)
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["name"], row["train_size"]), []).append(row)
    block = "symmetric" if all(row.get("symmetric") for row in rows) else "population"
    made = []
    for (name, size), group in groups.items():
        point: dict[str, Any] = {"setting": name, "train_size": size, "seeds": len(group), "knobs": knobs(group[0])}
        point["block"] = block
        if which is not None and (found := [u for r in group if (u := utility(r, which)) is not None]):
            point["utility"] = {"value": float(np.mean(found)), "low": min(found), "high": max(found), "values": found}
        for figure in FIGURES:
            figures = [r[block][figure] for r in group]
            pooled = next((p for p in study.get("pooled", []) if (p["name"], p["train_size"]) == (name, size)), None)
            point[figure] = _pool(figures, pooled[block][figure]["ci95"] if pooled and pooled.get(block) else None)
        made.append(point)
    return made


def _pool(figures: Sequence[Row], over_seeds: Sequence[float] | None) -> dict[str, Any]:
    values = [f["value"] for f in figures]
    low, high = over_seeds or (figures[0]["ci95"] if len(figures) == 1 else (min(values), max(values)))
    return {
        "value": float(np.mean(values)), "low": low, "high": high, "values": values,
        "std": float(np.mean([f["std"] for f in figures])),
    }  # fmt: skip


def knobs(row: Row) -> dict[str, str]:
    """{knob: value} of a setting's overrides, without the group's name: ``mitigation.text_mask=0.3`` is text_mask: 0.3."""
    pairs = (override.partition("=") for override in row["overrides"])
    return {name.lstrip("+~").rsplit(".", 1)[-1]: value for name, _, value in pairs}


def flat(point: Mapping[str, Any], measures: Sequence[str] = ("utility", *FIGURES)) -> dict[str, Any]:
    """A point as a row of the CSV."""
    row = {name: point[name] for name in ("setting", "train_size", "seeds", "block")}
    row["overrides"] = " ".join(f"{k}={v}" for k, v in point["knobs"].items())
    for m in measures:
        if m in point:
            row |= {f"{m}_{part}": point[m][part] for part in ("value", "low", "high", "std") if part in point[m]}
    return row


def _largest(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    size = max(p["train_size"] for p in found)
    return [p for p in found if p["train_size"] == size]


def mitigations(study: Mapping[str, Any]) -> Plot | None:
    """Each knob's values with utility and the three gaps, the default setting marked by a star and a line."""
    found = _largest(points(study))
    if len(found) < 2:
        return None
    default, others = found[0], found[1:]
    lines = [(default, "default: " + default["setting"])]
    lines += sorted(((p, p["setting"]) for p in others), key=lambda line: sorted(line[0]["knobs"]))
    names = (["utility"] if all("utility" in p for p in found) else []) + list(FIGURES)
    titles = {"utility": f"utility: {UTILITY[measure(study['settings']) or MEASURES[0]]}"} | FIGURES
    figure, axes = panels(len(names), width=2.1, height=0.3 * len(lines) + 1.0, sharey=True)
    for axis, name in zip(axes[0], names, strict=True):
        if name != "utility":
            zero(axis, horizontal=False)
        axis.axvline(default[name]["value"], color=MUTED, linestyle=":", linewidth=1, label="_default")
        for place, (point, _) in enumerate(lines):
            star = point is default
            _bar(axis, point[name], place, "*" if star else "o", INK if star else GOOD if name == "utility" else TARGET)
        axis.set_title(titles[name])
        axis.set_yticks(range(len(lines)), [shorten(label) for _, label in lines])
        axis.set_ylim(len(lines) - 0.4, -0.6)
        axis.grid(False, axis="y")
    best = min(others, key=lambda p: p["ppg"]["value"])
    text = (
        f"PPG is {signed(default['ppg']['value'])} under the default {default['setting']} and smallest, "
        f"{signed(best['ppg']['value'])}, under {best['setting']}."
    )
    rows = [flat(point) for point, _ in lines]
    return Plot("mitigations", "Mitigations: utility and memorization", text, rows, figure)


def _bar(axis: Axes, value: Mapping[str, Any], place: float, marker: str, colour: str) -> None:
    arms = [[value["value"] - value["low"]], [value["high"] - value["value"]]]
    size = 11 if marker == "*" else 6
    axis.errorbar([value["value"]], [place], xerr=arms, fmt=marker, color=colour, markersize=size, capsize=2)
    if len(value["values"]) > 1:
        seeds = [place + 0.22] * len(value["values"])
        axis.plot(value["values"], seeds, "|", color=colour, markersize=5, alpha=0.7, label="_seeds")


def frontier(study: Mapping[str, Any]) -> Plot | None:
    """Symmetric PPG against utility, the frontier joined by a line and the recommended setting ringed."""
    found = [p for p in _largest(points(study)) if "utility" in p]
    if len(found) < 2:
        return None
    best = sorted((p for p in found if p["setting"] in study["frontier"]), key=lambda p: p["utility"]["value"])
    figure, axes = panels(1, width=6.2, height=4.0)
    axis = axes[0][0]
    x, y = ([p["utility"]["value"] for p in best], [p["ppg"]["value"] for p in best])
    axis.plot(x, y, color=GOOD, linestyle="--", zorder=2, label="frontier")
    for number, point in enumerate(found):
        u, g = point["utility"]["value"], point["ppg"]
        star = number == 0
        axis.errorbar(
            [u], [g["value"]], yerr=[[g["value"] - g["low"]], [g["high"] - g["value"]]], fmt="*" if star else "o",
            color=INK if star else TARGET if point in best else MUTED, markersize=11 if star else 6, capsize=2, zorder=3,
            label="default" if star else "_setting",
        )  # fmt: skip
        if point["setting"] == study.get("recommended"):
            ring = {"marker": "o", "markersize": 17, "markerfacecolor": "none", "markeredgecolor": REFERENCE}
            axis.plot([u], [g["value"]], linestyle="", markeredgewidth=2, label="recommended", **ring)
    axis.margins(x=0.15, y=0.15)
    zero(axis)
    axis.set_xlabel(f"utility of the target: {UTILITY[measure(study['settings']) or MEASURES[0]]}")
    axis.set_ylabel(f"{found[0]['block']} PPG")
    axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    legend_above(figure, axis)
    named = [
        (p["utility"]["value"], *(p["ppg"][n] for n in ("value", "low", "high")), shorten(p["setting"])) for p in found
    ]
    name_points(axis, named)
    recommended = study.get("recommended")
    text = f"On the frontier: {', '.join(p['setting'] for p in best)}. " if best else ""
    text += f"Recommended: {recommended}." if recommended else "No setting is recommended."
    rows = [
        flat(p, ("utility", "ppg", "aucg"))
        | {"frontier": p["setting"] in study["frontier"], "recommended": p["setting"] == recommended}
        for p in found
    ]
    return Plot("frontier", "Memorization against utility", text, rows, figure)


def dataset_size(study: Mapping[str, Any]) -> Plot | None:
    """Utility and gaps (mean over seeds ± the paper's std) by training-set size, a line for each setting."""
    found = points(study)
    sizes = sorted({p["train_size"] for p in found})
    if len(sizes) < 2:
        return None
    names = (["utility"] if all("utility" in p for p in found) else []) + list(FIGURES)
    titles = {"utility": UTILITY[measure(study["settings"]) or MEASURES[0]]} | FIGURES
    figure, axes = panels(len(names), width=2.3, height=2.6)
    settings = list(dict.fromkeys(p["setting"] for p in found))
    for axis, name in zip(axes[0], names, strict=True):
        if name != "utility":
            zero(axis)
        for number, setting in enumerate(settings):
            line = sorted((p for p in found if p["setting"] == setting), key=lambda p: p["train_size"])
            apart = ScaledTranslation((number - (len(settings) - 1) / 2) / 26, 0, figure.dpi_scale_trans)
            axis.errorbar(
                [p["train_size"] for p in line], [p[name]["value"] for p in line],
                yerr=[p[name].get("std", 0.0) for p in line], color=SERIES[number % len(SERIES)],
                marker=MARKERS[number % len(MARKERS)], capsize=2, label=shorten(setting),
                transform=axis.transData + apart,
            )  # fmt: skip
        ends = [(p["train_size"], p[name]["value"] + e * p[name].get("std", 0.0)) for p in found for e in (-1, 1)]
        axis.update_datalim(ends)  # lines moved apart by a transform do not count of themselves
        logarithmic(axis, sizes)
        axis.margins(x=0.2)
        axis.tick_params(axis="x", labelrotation=30)
        axis.set_title(titles[name])
        axis.set_xlabel("training pairs")
    legend_above(figure, axes[0][0])
    first = sorted((p for p in found if p["setting"] == settings[0]), key=lambda p: p["train_size"])
    text = (
        f"{settings[0]}: PPG "
        + ", ".join(f"{signed(p['ppg']['value'])} at {p['train_size']:,} pairs" for p in first)
        + "."
    )
    return Plot("dataset-size", "Training-set size, utility and memorization", text, [flat(p) for p in found], figure)
