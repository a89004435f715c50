"""The figures of one evaluation, from metrics.json: gaps, recall curves, sample level, sensitivity, subgroups, planted memory.

Each function returns a ``Plot`` whose rows are exactly what is drawn, or None if the evaluation has no data for it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from matplotlib.ticker import MaxNLocator

from dejavu_lit.measure.figures import BLOCKS, DISPLAY_ORDER, FIGURES, SAMPLE_GAPS
from dejavu_lit.report.figures import (
    GOOD,
    INK,
    MARKERS,
    MUTED,
    REFERENCE,
    SERIES,
    SHADE,
    TARGET,
    Plot,
    error_arms,
    legend_above,
    log_x_axis,
    panels,
    shorten,
    style,
    zero_line,
)
from dejavu_lit.report.narrative import interval, signed

RANKINGS = {"distance": "ranked by distance", "hits": "ranked by hits", "gap": "ranked by gap (optimistic)"}
SENSITIVITY = {  # name: title, axis label, one value in words
    "threshold": ("Gaps by the annotator's score threshold", "score threshold", "at score threshold {:g}"),
    "top_m": ("Gaps by number of predicted objects", "top m objects", "with the top {:g} objects"),
}
MAX_GROUPS = 20  # drawn in a subgroup figure; its CSV contains all
Metrics = Mapping[str, Any]


def evaluation_plots(metrics: Metrics) -> list[Plot]:
    """Every figure that this evaluation has data for."""
    with style():
        plots = [gaps(metrics), recall(metrics), sample(metrics), by_k(metrics)]
        plots += [sensitivity(metrics, "threshold"), sensitivity(metrics, "top_m"), epochs(metrics), planted(metrics)]
        plots += [subgroups(column, result) for column, result in (metrics.get("subgroups") or {}).items()]
        return _with_unique_names([plot for plot in plots if plot is not None])


def _with_unique_names(plots: Sequence[Plot]) -> list[Plot]:
    """The plots, with a number in the name of those whose file another plot has: columns' names may differ by signs alone."""
    names = [plot.name for plot in plots]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [replace(plot, name=f"{plot.name}-{n + 1}") if n else plot for plot, n in zip(plots, before, strict=True)]


def figure_row(figure: Mapping[str, Any]) -> dict[str, float]:
    """value, low, high (95 %), and the paper's mean and std if they were measured."""
    low, high = figure["ci95"]
    spread = {name: figure[name] for name in ("mean", "std") if name in figure}
    return {"value": figure["value"], "low": low, "high": high} | spread


def gaps(metrics: Metrics) -> Plot:
    """The five blocks of each figure with their 95 % intervals."""
    measured = [name for name in DISPLAY_ORDER if metrics.get(name)]
    rows: list[dict[str, Any]] = [
        {"block": block, "figure": name} | figure_row(metrics[block][name]) for name in FIGURES for block in measured
    ]
    figure, axes = panels(3, height=0.42 * len(measured) + 0.7, sharey=True)
    colors = {"symmetric": TARGET, "null": MUTED}
    for axis, name in zip(axes[0], FIGURES, strict=True):
        zero_line(axis, horizontal=False)
        for position, row in enumerate(r for r in rows if r["figure"] == name):
            color = colors.get(row["block"], INK)
            size = 7 if row["block"] == "symmetric" else 5
            axis.errorbar(
                [row["value"]], [position], xerr=error_arms([row]), fmt="o", color=color, markersize=size, capsize=3,
                label=row["block"],
            )  # fmt: skip
        axis.set_title(FIGURES[name].label)
        axis.set_yticks(range(len(measured)), [BLOCKS[block].label.replace(" (headline)", "") for block in measured])
        axis.set_ylim(len(measured) - 0.5, -0.5)
        axis.grid(False, axis="y")
    figure.supxlabel("gap, target − reference, with 95 % interval", fontsize=9)
    main = "symmetric" if "symmetric" in measured else "population"
    values = "; ".join(
        f"{FIGURES[name].label} {signed(gap['value'])} ({interval(gap['ci95'])})"
        for name, gap in ((name, metrics[main][name]) for name in FIGURES)
    )
    return Plot("gaps", "Gaps with 95 % intervals", f"The {main} gaps are {values}.", rows, figure)


def recall(metrics: Metrics) -> Plot:
    """P(recall ≥ x) of both models; the area between the curves is AUCG."""
    curve = metrics["curves"]["recall"]
    x, target, reference = (curve[name] for name in ("x", "target", "reference"))
    rows = [{"recall": a, "target": t, "reference": r} for a, t, r in zip(x, target, reference, strict=True)]
    figure, axes = panels(1, width=4.6, height=3.2)
    axis = axes[0][0]
    aucg = signed(metrics["population"]["aucg"]["value"])
    area = f"area between the curves: AUCG {aucg}"
    axis.fill_between(x, target, reference, step="pre", color=SHADE, alpha=0.5, linewidth=0, label=area)
    axis.plot(x, target, drawstyle="steps-pre", color=TARGET, label="target")
    axis.plot(x, reference, drawstyle="steps-pre", color=REFERENCE, linestyle="--", label="reference")
    axis.set(xlabel="recall x", ylabel="share of records with recall ≥ x", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(loc="best")
    text = f"The signed area between the target's and the reference's curve on A is AUCG = {aucg}."
    return Plot("recall", "Share of records with at least a given recall", text, rows, figure)


def sample(metrics: Metrics) -> Plot:
    """The sample-level gaps over L for each ranking, one line for each k and top-m."""
    curves = metrics["curves"]["sample"]
    rows = [
        {"k": curve["k"], "top_m": curve["top_m"], "ranking": ranking, "top": top}
        | {gap: curve[ranking][gap][i] for gap in SAMPLE_GAPS}
        for curve in curves
        for ranking in RANKINGS
        for i, top in enumerate(curve[ranking]["top"])
    ]
    figure, axes = panels(3, 3, height=2.0, sharex=True, sharey=True)
    for axis_row, ranking in zip(axes, RANKINGS, strict=True):
        for axis, gap in zip(axis_row, SAMPLE_GAPS, strict=True):
            zero_line(axis)
            for number, curve in enumerate(curves):
                label = f"k = {curve['k']}" + (f", top {curve['top_m']} objects" if curve["top_m"] else "")
                dash = "--" if curve["top_m"] else "-"
                color = SERIES[number % len(SERIES)]
                axis.plot(curve[ranking]["top"], curve[ranking][gap], dash, color=color, label=label)
            log_x_axis(axis)
        axis_row[0].set_ylabel(RANKINGS[ranking].replace(" (", "\n("))
    for axis, column in zip(axes[0], SAMPLE_GAPS.values(), strict=True):
        axis.set_title(column.label)
    for axis in axes[-1]:
        axis.set_xlabel("L most memorized records")
    legend_above(figure, axes[0][0])
    return Plot("sample", "Gaps on the L most memorized records", _sample_text(metrics), rows, figure)


def _sample_text(metrics: Metrics) -> str:
    by_distance = metrics["sample"]["distance"]
    smallest, largest = by_distance[0], by_distance[-1]
    return (
        f"On the {smallest['top']} records with the smallest distance the recall gap is "
        f"{signed(smallest['recall_gap'])}, on all records {signed(largest['recall_gap'])}."
    )


def by_k(metrics: Metrics) -> Plot | None:
    """The gaps over k."""
    values = [(int(k), blocks) for k, blocks in metrics["by_k"].items()]
    if len(values) < 2:
        return None
    return _gaps_over("by-k", "Gaps by number of neighbors", "k", "at k = {:g}", values)


def sensitivity(metrics: Metrics, name: str) -> Plot | None:
    """The gaps over the annotator's threshold, or over top-m."""
    values = [(row[name], row) for row in metrics["sensitivity"][name] if row.get("population")]
    main = metrics["settings"].get(name)
    if main is not None and main not in [value for value, _ in values]:
        values.append((main, metrics))
    if len(values) < 2:
        return None
    values.sort(key=lambda value: value[0])
    return _gaps_over(f"by-{name.replace('_', '-')}", *SENSITIVITY[name], values)


def _gaps_over(name: str, title: str, label: str, phrase: str, values: Sequence[tuple[float, Metrics]]) -> Plot:
    """The gaps over a number: ``values`` are (x, blocks) in order of x; ``phrase`` says one x in words."""
    shown = [b for b in ("symmetric", "population", "null") if all(blocks.get(b) for _, blocks in values)]
    rows: list[dict[str, Any]] = [
        {"x": x, "block": block, "figure": f} | figure_row(blocks[block][f])
        for block in shown
        for f in FIGURES
        for x, blocks in values
    ]
    figure, axes = panels(3)
    colors = {"symmetric": TARGET, "population": REFERENCE, "null": MUTED}
    for axis, f in zip(axes[0], FIGURES.values(), strict=True):
        zero_line(axis)
        for block, marker in zip(shown, MARKERS, strict=False):
            line = [r for r in rows if r["block"] == block and r["figure"] == f.name]
            axis.errorbar(
                [r["x"] for r in line], [r["value"] for r in line], yerr=error_arms(line), color=colors[block],
                marker=marker, capsize=2, label=block,
            )  # fmt: skip
        axis.set_title(f.label)
        axis.set_xlabel(label)
        axis.set_xticks([x for x, _ in values])
    legend_above(figure, axes[0][0])
    ppg = [r for r in rows if r["block"] == shown[0] and r["figure"] == "ppg"]
    text = f"{shown[0]} PPG: " + ", ".join(f"{signed(r['value'])} {phrase.format(r['x'])}" for r in ppg) + "."
    return Plot(name, title, text[0].upper() + text[1:], rows, figure)


def epochs(metrics: Metrics) -> Plot | None:
    """The gaps during the target's training, beside the null control and the accuracy on the validation set."""
    rows = metrics.get("epochs") or []
    if len(rows) < 2:
        return None
    names = [*FIGURES, *(["val_accuracy"] if all("val_accuracy" in row for row in rows) else [])]
    figure, axes = panels(len(names), width=7.8 / len(names))
    x = [row["epoch"] for row in rows]
    for axis, name in zip(axes[0], names, strict=True):
        values = [row[name] for row in rows]
        if name == "val_accuracy":
            axis.plot(x, values, color=GOOD, marker="^", label="target, validation set")
            axis.set_title("accuracy within a batch")
        else:
            zero_line(axis)
            axis.plot(x, values, color=TARGET, marker="o", label=BLOCKS["population"].label)
            axis.set_title(FIGURES[name].label)
        if name == "ppg":
            low, high = ([row[f"ppg_{end}"] for row in rows] for end in ("low", "high"))
            axis.fill_between(x, low, high, color=SHADE, alpha=0.5, linewidth=0, label="95 % interval")
            null = [row["null_ppg"] for row in rows]
            axis.plot(x, null, "--", color=MUTED, marker="s", label=BLOCKS["null"].label)
        axis.set_xlabel("epochs of training")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend_above(figure, axes[0][0])
    first, last = rows[0], rows[-1]
    text = (
        f"On a sample, PPG is {signed(first['ppg'])} after epoch {first['epoch']:g} and {signed(last['ppg'])} after epoch "
        f"{last['epoch']:g}; on the holdout set, it is {signed(last['null_ppg'])}. Measured during training, in one "
        "direction only."
    )
    return Plot("epochs", "Gaps over the epochs of training", text, rows, figure)


def planted(metrics: Metrics) -> Plot | None:
    """The gaps at each level of exposure: the calibration by planted memory."""
    result = metrics.get("planted")
    if not result:
        return None
    rows = [
        {"exposure": level["exposure"], "records": level["records"], "figure": name} | figure_row(level[name])
        for name in FIGURES
        for level in result["levels"]
    ]
    figure, axes = panels(3)
    for axis, name in zip(axes[0], FIGURES, strict=True):
        line = [r for r in rows if r["figure"] == name]
        zero_line(axis)
        x = [r["exposure"] for r in line]
        axis.errorbar(x, [r["value"] for r in line], yerr=error_arms(line), color=TARGET, marker="o", capsize=3)
        axis.set_title(FIGURES[name].label)
        axis.set_xlabel("times seen in training")
        if min(x) > 0:
            log_x_axis(axis, x)
    levels = ", ".join(
        f"{signed(r['value'])} for pairs seen {r['exposure']:.0f} times" for r in rows if r["figure"] == "prg"
    )
    text = f"PRG is {levels}."
    rho = result["spearman"]["recall"]["rho"]
    if rho is not None:
        text += f" Spearman's rank correlation between exposure and recall gap: {signed(rho)}."
    return Plot("planted", "Planted memory: gaps by exposure", text, rows, figure)


def subgroups(column: str, result: Mapping[str, Any]) -> Plot | None:
    """The gaps of each group of one column with their 95 % intervals; only the largest groups are drawn."""
    groups = result["groups"]
    if not groups:
        return None
    drawn = _drawn_groups(groups)
    figure, axes = panels(3, width=2.5, height=0.21 * len(drawn) + 1.0, sharey=True)
    for axis, name in zip(axes[0], FIGURES, strict=True):
        line = [figure_row(g[name]) for g in drawn]
        zero_line(axis, horizontal=False)
        axis.errorbar(
            [r["value"] for r in line], range(len(line)), xerr=error_arms(line), fmt="o", color=TARGET, markersize=4,
            capsize=2,
        )  # fmt: skip
        axis.set_title(FIGURES[name].label)
        axis.set_yticks(range(len(line)), [f"{shorten(g['group'])}  ({g['records']:,})" for g in drawn])
        axis.set_ylim(len(line) - 0.4, -0.6)
    figure.supxlabel(f"{result['basis']} gap with 95 % interval", fontsize=9)
    largest, smallest = (choose(drawn, key=lambda g: g["ppg"]["value"]) for choose in (max, min))
    text = (
        f"{str(result['basis']).capitalize()} PPG is largest for {largest['group']} ({signed(largest['ppg']['value'])}) "
        f"and smallest for {smallest['group']} ({signed(smallest['ppg']['value'])})."
    )
    if len(groups) > MAX_GROUPS:
        text += f" The {MAX_GROUPS} largest of {len(groups)} groups are shown; the CSV contains all of them."
    rows = [
        {"group": g["group"], "records": g["records"], "figure": f} | figure_row(g[f]) for g in groups for f in FIGURES
    ]
    slug = re.sub(r"[^a-z0-9]+", "-", column.lower()).strip("-") or "column"
    return Plot(f"subgroups-{slug}", f"Gaps by subgroup: {column.replace('_', ' ')}", text, rows, figure)


def _drawn_groups(groups: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The largest groups in the order of the table; numeric ranges in their own order, a selection by PPG."""
    largest = sorted(groups, key=lambda g: -g["records"])[:MAX_GROUPS]
    drawn = [g for g in groups if g in largest]
    if all(re.match(r"[≤>\d]", g["group"]) for g in drawn):
        drawn.sort(key=lambda g: (float(re.findall(r"[\d.]+", g["group"])[-1]), g["group"].startswith(">")))
    elif len(groups) > MAX_GROUPS:
        drawn.sort(key=lambda g: -g["ppg"]["value"])
    return drawn
