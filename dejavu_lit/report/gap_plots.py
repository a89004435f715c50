"""The figures of one evaluation that show the three gaps side by side: blocks, subgroups, sensitivity, planted memorization."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from math import isfinite
from typing import Any

from matplotlib.figure import Figure

from dejavu_lit.measure.figures import BLOCKS, FIGURES, headline, signed
from dejavu_lit.measure.subgroups import group_order
from dejavu_lit.report import figures
from dejavu_lit.report.narrative import capitalized, interval, measured_blocks
from dejavu_lit.report.scalars import figure_row

GAP_TITLES = {"ppg": "precision\ngap PPG", "prg": "recall\ngap PRG", "aucg": "AUC\ngap AUCG"}
GAP_AXIS = "gap, target − reference (difference of shares)"
GAP_UNIT = "gap (difference of shares)"  # for y axes, which are shorter
SENSITIVITY = {  # name: title, axis label, one value in words
    "k": ("Gaps by number of neighbors", "nearest neighbors k", "at k = {:g}"),
    "threshold": ("Gaps by the annotator's score threshold", "annotator's score threshold", "at score threshold {:g}"),
    "top_m": (
        "Gaps by number of predicted objects",
        "objects predicted, most frequent first",
        "with the top {:g} objects",
    ),
}
BLOCK_NAMES = {"symmetric": "symmetric", "population": "A: target − reference", "null": "H: null control"}
MAX_GROUPS = 20  # drawn in a subgroup figure; its CSV contains all
Metrics = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def gaps(metrics: Metrics) -> figures.Plot:
    """The five blocks of each figure with their 95 % intervals."""
    measured = measured_blocks(metrics)
    rows: list[dict[str, Any]] = [
        {"block": block, "figure": name} | figure_row(metrics[block][name]) for name in FIGURES for block in measured
    ]
    main = headline(metrics)
    values = "; ".join(
        f"{figure.label} {signed(metrics[main][name]['value'])} ({interval(metrics[main][name]['ci95'])})"
        for name, figure in FIGURES.items()
    )
    text = f"The {main} gaps are {values}. The lines are 95 % intervals."
    labels = [BLOCKS[name].label.replace(" (headline)", "") for name in measured]
    draw = partial(_draw_forest, rows, labels, GAP_AXIS, {main: figures.TARGET, "null": figures.MUTED})
    return figures.Plot("gaps", "Gaps with 95 % intervals", text, rows, draw)


def _draw_forest(rows: Rows, labels: Sequence[str], x_label: str, colors: Mapping[str, str]) -> Figure:
    """A row per label, the three gaps beside each other; ``colors``: of the blocks that differ from ``INK``."""
    figure, axes = figures.forest(labels, list(GAP_TITLES.values()), x_label)
    for axis, name in zip(axes, FIGURES, strict=True):
        figures.zero_line(axis, horizontal=False)
        bars: dict[str, dict[float, Mapping[str, Any]]] = defaultdict(dict)
        for position, row in enumerate(r for r in rows if r["figure"] == name):
            bars[colors.get(row.get("block", ""), figures.INK)][position] = row
        for color, of_color in bars.items():
            figures.interval_bars(axis, of_color, color=color)
    return figure


def subgroups(column: str, result: Mapping[str, Any]) -> figures.Plot | None:
    """The gaps of each group of one column with their 95 % intervals; only the largest groups are drawn."""
    groups = result["groups"]
    if not groups:
        return None
    drawn = groups[:MAX_GROUPS]  # the largest are first
    if all(isfinite(group_order(g["group"])[0]) for g in drawn):  # numbers, or ranges of them
        drawn = sorted(drawn, key=lambda g: group_order(g["group"]))
    elif len(groups) > MAX_GROUPS:
        drawn = sorted(drawn, key=lambda g: -g["ppg"]["value"])
    largest, smallest = (choose(drawn, key=lambda g: g["ppg"]["value"]) for choose in (max, min))
    among = ""
    if len(groups) > MAX_GROUPS:
        among = f" among the {MAX_GROUPS} largest of {len(groups)} groups (the CSV contains all of them)"
    text = (
        f"{capitalized(result['basis'])} PPG is largest for {largest['group']} ({signed(largest['ppg']['value'])}) and smallest "
        f"for {smallest['group']} ({signed(smallest['ppg']['value'])}){among}. In parentheses: records."
    )
    rows = [
        {"group": g["group"], "records": g["records"], "figure": f} | figure_row(g[f]) for g in groups for f in FIGURES
    ]
    slug = re.sub(r"[^a-z0-9]+", "-", column.lower()).strip("-") or "column"
    title = f"Gaps by subgroup: {column.replace('_', ' ')}"
    labels = [f"{figures.shorten(g['group'], 24)}  ({g['records']:,})" for g in drawn]
    shown = [{"figure": f} | figure_row(g[f]) for g in drawn for f in FIGURES]
    draw = partial(_draw_forest, shown, labels, f"{result['basis']} {GAP_AXIS}", {"": figures.TARGET})
    return figures.Plot(f"subgroups-{slug}", title, text, rows, draw)


def sensitivity(metrics: Metrics, name: str) -> figures.Plot | None:
    """The gaps over k, over the annotator's threshold, or over top-m."""
    by_k = [{"k": int(k), **blocks} for k, blocks in metrics["by_k"].items()]
    rows = by_k if name == "k" else metrics["sensitivity"][name]
    values = [(row[name], row) for row in rows if row.get("population")]
    main = metrics["settings"].get(name)
    if main is not None and main not in [value for value, _ in values]:
        values.append((main, metrics))
    if len(values) < 2:
        return None
    values.sort(key=lambda value: value[0])
    return _gaps_over(f"by-{name.replace('_', '-')}", *SENSITIVITY[name], values)


def planted(metrics: Metrics) -> figures.Plot | None:
    """The gaps at each level of exposure: the calibration by planted memorization."""
    result = metrics.get("planted")
    if not result:
        return None
    rows = [
        {"exposure": level["exposure"], "records": level["records"], "figure": name} | figure_row(level[name])
        for name in FIGURES
        for level in result["levels"]
    ]
    levels = [f"{signed(r['value'])} at exposure {r['exposure']:.3g}" for r in rows if r["figure"] == "prg"]
    text = f"PRG by exposure (times seen in training): {', '.join(levels)}."
    rho = result["spearman"]["recall"]["rho"]
    if rho is not None:
        text += f" Spearman's rank correlation between exposure and recall gap: {signed(rho)}."
    draw = partial(_draw_gaps_over, rows, "exposure", "times seen in training")
    return figures.Plot("planted", "Planted memorization: gaps by exposure", text, rows, draw)


def _gaps_over(name: str, title: str, label: str, phrase: str, values: Sequence[tuple[float, Metrics]]) -> figures.Plot:
    """The gaps over a number: ``values`` are (x, blocks) in order of x; ``phrase`` says one x in words."""
    shown = [b for b in BLOCK_NAMES if all(blocks.get(b) for _, blocks in values)]
    rows: list[dict[str, Any]] = [
        {"x": x, "block": block, "figure": f} | figure_row(blocks[block][f])
        for block in shown
        for f in FIGURES
        for x, blocks in values
    ]
    ppg = [r for r in rows if r["block"] == shown[0] and r["figure"] == "ppg"]
    text = f"{shown[0]} PPG: " + ", ".join(f"{signed(r['value'])} {phrase.format(r['x'])}" for r in ppg) + "."
    return figures.Plot(name, title, capitalized(text), rows, partial(_draw_gaps_over, rows, "x", label))


def _draw_gaps_over(rows: Rows, x: str, label: str) -> Figure:
    """The three gaps over the column ``x``, one line per block."""
    blocks = list(dict.fromkeys(row.get("block", "symmetric") for row in rows))
    legend = [BLOCK_NAMES[block] for block in blocks] if len(blocks) > 1 else ()
    figure, axes = figures.panels(3, left=0.7, legend=legend, x_label=label, y_label=GAP_UNIT, sharey=True)
    measured = {row[x] for row in rows}
    span = max(measured) - min(measured)
    ticks = figures.spaced_ticks(measured, lambda low, high: high - low >= 0.24 * span)
    colors = {"symmetric": figures.TARGET, "population": figures.REFERENCE, "null": figures.MUTED}
    for axis, name in zip(axes[0], FIGURES, strict=True):
        figures.zero_line(axis)
        for block, marker in zip(blocks, figures.MARKERS, strict=False):
            line = [r for r in rows if r.get("block", "symmetric") == block and r["figure"] == name]
            values = [r["value"] for r in line]
            axis.errorbar(
                [r[x] for r in line], values, yerr=figures.error_arms(line), color=colors[block], marker=marker,
                label=BLOCK_NAMES[block] if legend else None,
            )  # fmt: skip
        axis.set_title(GAP_TITLES[name])
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    return figure
