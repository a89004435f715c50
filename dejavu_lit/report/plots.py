"""The figures of one evaluation, from metrics.json: gaps, recall curves, sample level, sensitivity, subgroups, planted memory.

Each function gives a ``Plot`` whose rows are exactly what is drawn, or None where the evaluation has nothing to draw.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

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
    errors,
    legend_above,
    logarithmic,
    panels,
    shorten,
    style,
    zero,
)
from dejavu_lit.report.words import BLOCKS, FIGURES, interval, signed

GAPS = {"precision_gap": "precision gap", "recall_gap": "recall gap", "f1_gap": "F1 gap"}
RANKED = {"distance": "ranked by distance", "hits": "ranked by hits", "gap": "ranked by gap (optimistic)"}
GROUPS = 20  # drawn of a subgroup figure; its CSV holds all
Metrics = Mapping[str, Any]


def evaluation_plots(metrics: Metrics) -> list[Plot]:
    """Every figure that this evaluation has data for."""
    with style():
        made = [gaps(metrics), recall(metrics), sample(metrics), by_k(metrics)]
        made += [sensitivity(metrics, "threshold"), sensitivity(metrics, "top_m"), epochs(metrics), planted(metrics)]
        made += [subgroups(column, found) for column, found in (metrics.get("subgroups") or {}).items()]
        return [plot for plot in made if plot is not None]


def figure_row(figure: Mapping[str, Any]) -> dict[str, float]:
    """value, low, high (95 %), and the paper's mean and std where there are any."""
    low, high = figure["ci95"]
    more = {name: figure[name] for name in ("mean", "std") if name in figure}
    return {"value": figure["value"], "low": low, "high": high} | more


def gaps(metrics: Metrics) -> Plot:
    """The five blocks of each figure with their 95 % intervals."""
    there = [name for name in BLOCKS if metrics.get(name)]
    rows: list[dict[str, Any]] = [{"block": b, "figure": f} | figure_row(metrics[b][f]) for f in FIGURES for b in there]
    figure, axes = panels(3, height=0.42 * len(there) + 0.7, sharey=True)
    colours = {"symmetric": TARGET, "null": MUTED}
    for axis, (name, short) in zip(axes[0], FIGURES.items(), strict=True):
        zero(axis, horizontal=False)
        for place, row in enumerate(r for r in rows if r["figure"] == name):
            colour = colours.get(row["block"], INK)
            big = 7 if row["block"] == "symmetric" else 5
            axis.errorbar(
                [row["value"]], [place], xerr=errors([row]), fmt="o", color=colour, markersize=big, capsize=3,
                label=row["block"],
            )  # fmt: skip
        axis.set_title(short)
        axis.set_yticks(range(len(there)), [BLOCKS[b].replace(" (headline)", "") for b in there])
        axis.set_ylim(len(there) - 0.5, -0.5)
        axis.grid(False, axis="y")
    figure.supxlabel("gap, target − reference, with 95 % interval", fontsize=9)
    main = "symmetric" if "symmetric" in there else "population"
    words = "; ".join(
        f"{short} {signed(metrics[main][name]['value'])} ({interval(metrics[main][name]['ci95'])})"
        for name, short in FIGURES.items()
    )
    return Plot("gaps", "Gaps with 95 % intervals", f"The {main} gaps are {words}.", rows, figure)


def recall(metrics: Metrics) -> Plot:
    """P(recall ≥ x) of both models; the area between the curves is AUCG."""
    curve = metrics["curves"]["recall"]
    rows = [
        {"recall": x, "target": t, "reference": r}
        for x, t, r in zip(curve["x"], curve["target"], curve["reference"], strict=True)
    ]
    figure, axes = panels(1, width=4.6, height=3.2)
    axis = axes[0][0]
    x, target, reference = (curve[name] for name in ("x", "target", "reference"))
    aucg = metrics["population"]["aucg"]["value"]
    area = f"area between: AUCG {signed(aucg)}"
    axis.fill_between(x, target, reference, step="pre", color=SHADE, alpha=0.5, linewidth=0, label=area)
    axis.plot(x, target, drawstyle="steps-pre", color=TARGET, label="target")
    axis.plot(x, reference, drawstyle="steps-pre", color=REFERENCE, linestyle="--", label="reference")
    axis.set(xlabel="recall x", ylabel="share of records with recall ≥ x", xlim=(0, 1), ylim=(0, 1.02))
    axis.legend(loc="best")
    text = f"The signed area between the curves of target and reference on A is AUCG = {signed(aucg)}."
    return Plot("recall", "Share of records with at least a given recall", text, rows, figure)


def sample(metrics: Metrics) -> Plot:
    """The sample-level gaps over L for each ranking, a line for each k and top-m."""
    lines = metrics["curves"]["sample"]
    rows = [
        {"k": line["k"], "top_m": line["top_m"], "ranking": by, "top": top}
        | {gap: line[by][gap][place] for gap in GAPS}
        for line in lines
        for by in RANKED
        for place, top in enumerate(line[by]["top"])
    ]
    figure, axes = panels(3, 3, height=2.0, sharex=True, sharey=True)
    for across, by in zip(axes, RANKED, strict=True):
        for axis, gap in zip(across, GAPS, strict=True):
            zero(axis)
            for number, line in enumerate(lines):
                label = f"k = {line['k']}" + (f", top {line['top_m']} objects" if line["top_m"] else "")
                dash = "--" if line["top_m"] else "-"
                axis.plot(line[by]["top"], line[by][gap], dash, color=SERIES[number % len(SERIES)], label=label)
            logarithmic(axis)
            if by == "distance":
                axis.set_title(GAPS[gap])
        across[0].set_ylabel(RANKED[by].replace(" (", "\n("))
    for axis in axes[-1]:
        axis.set_xlabel("L most memorized records")
    legend_above(figure, axes[0][0])
    found = next(r for r in metrics["sample"]["distance"])
    text = (
        f"On the {found['top']} records of smallest distance the recall gap is {signed(found['recall_gap'])}, "
        f"on all records {signed(metrics['sample']['distance'][-1]['recall_gap'])}."
    )
    return Plot("sample", "Gaps on the L most memorized records", text, rows, figure)


def by_k(metrics: Metrics) -> Plot | None:
    """The gaps over k."""
    values = [(int(k), blocks) for k, blocks in metrics["by_k"].items()]
    return _over("by-k", "Gaps by number of neighbors", "k", values) if len(values) > 1 else None


def sensitivity(metrics: Metrics, name: str) -> Plot | None:
    """The gaps over the annotator's threshold, or over top-m."""
    found = [row for row in metrics["sensitivity"][name] if row.get("population")]
    values = [(row[name], row) for row in found]
    main = metrics["settings"].get(name)
    if main is not None and main not in [v for v, _ in values]:
        values.append((main, metrics))
    titles = {"threshold": "Gaps by the annotator's score threshold", "top_m": "Gaps by number of predicted objects"}
    axis = {"threshold": "score threshold", "top_m": "m most frequent objects"}
    ordered = sorted(values, key=lambda v: v[0])
    return _over(f"by-{name.replace('_', '-')}", titles[name], axis[name], ordered) if len(values) > 1 else None


def _over(name: str, title: str, label: str, values: Sequence[tuple[float, Mapping[str, Any]]]) -> Plot:
    names = [b for b in ("symmetric", "population", "null") if all(blocks.get(b) for _, blocks in values)]
    rows: list[dict[str, Any]] = [
        {"x": x, "block": b, "figure": f} | figure_row(blocks[b][f])
        for b in names
        for f in FIGURES
        for x, blocks in values
    ]
    figure, axes = panels(3)
    colours = {"symmetric": TARGET, "population": REFERENCE, "null": MUTED}
    for axis, (figure_name, short) in zip(axes[0], FIGURES.items(), strict=True):
        zero(axis)
        for b, marker in zip(names, MARKERS, strict=False):
            line = [r for r in rows if r["block"] == b and r["figure"] == figure_name]
            axis.errorbar(
                [r["x"] for r in line], [r["value"] for r in line], yerr=errors(line), color=colours[b], marker=marker,
                capsize=2, label=b,
            )  # fmt: skip
        axis.set_title(short)
        axis.set_xlabel(label)
        axis.set_xticks([x for x, _ in values])
    legend_above(figure, axes[0][0])
    first = [r for r in rows if r["block"] == names[0] and r["figure"] == "ppg"]
    text = f"{names[0]} PPG: " + ", ".join(f"{signed(r['value'])} at {label} {r['x']:g}" for r in first) + "."
    return Plot(name, title, text[0].upper() + text[1:], rows, figure)


def epochs(metrics: Metrics) -> Plot | None:
    """The gaps while the target trained, with what they stand beside: the null, and accuracy on the validation set."""
    rows = metrics.get("epochs") or []
    if len(rows) < 2:
        return None
    names = [*FIGURES, *(["val_accuracy"] if all("val_accuracy" in row for row in rows) else [])]
    figure, axes = panels(len(names), width=7.8 / len(names))
    xs = [row["epoch"] for row in rows]
    for axis, name in zip(axes[0], names, strict=True):
        line = [row[name] for row in rows]
        if name == "val_accuracy":
            axis.plot(xs, line, color=GOOD, marker="^", label="target, validation")
            axis.set_title("accuracy within a batch")
        else:
            zero(axis)
            axis.plot(xs, line, color=TARGET, marker="o", label="A: target − reference")
            axis.set_title(FIGURES[name])
        if name == "ppg":
            low, high = ([row[f"ppg_{end}"] for row in rows] for end in ("low", "high"))
            axis.fill_between(xs, low, high, color=SHADE, alpha=0.5, linewidth=0, label="95 % interval")
            axis.plot(xs, [row["null_ppg"] for row in rows], "--", color=MUTED, marker="s", label="H: null control")
        axis.set_xlabel("epochs of training")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend_above(figure, axes[0][0])
    first, last = rows[0], rows[-1]
    text = (
        f"On a sample, PPG is {signed(first['ppg'])} after epoch {first['epoch']:g} and {signed(last['ppg'])} after epoch "
        f"{last['epoch']:g}, on the holdout {signed(last['null_ppg'])}. One direction only, measured while training."
    )
    return Plot("epochs", "Gaps over the epochs of training", text, rows, figure)


def planted(metrics: Metrics) -> Plot | None:
    """The gaps at each level of exposure: the calibration by planted memory."""
    found = metrics.get("planted")
    if not found:
        return None
    rows = [
        {"exposure": level["exposure"], "records": level["records"], "figure": f} | figure_row(level[f])
        for f in FIGURES
        for level in found["levels"]
    ]
    figure, axes = panels(3)
    for axis, (name, short) in zip(axes[0], FIGURES.items(), strict=True):
        line = [r for r in rows if r["figure"] == name]
        zero(axis)
        xs = [r["exposure"] for r in line]
        axis.errorbar(xs, [r["value"] for r in line], yerr=errors(line), color=TARGET, marker="o", capsize=3)
        axis.set_title(short)
        axis.set_xlabel("times seen in training")
        if min(xs) > 0:
            logarithmic(axis, xs)
    rho = found["spearman"]["recall"]["rho"]
    words = "" if rho is None else f" Spearman's rank correlation of exposure and recall gap: {signed(rho)}."
    levels = ", ".join(
        f"{signed(r['value'])} when seen {r['exposure']:.0f} times" for r in rows if r["figure"] == "prg"
    )
    return Plot("planted", "Planted memory: gaps by exposure", f"PRG is {levels}.{words}", rows, figure)


def subgroups(column: str, found: Mapping[str, Any]) -> Plot | None:
    """PPG of each group of one column with its 95 % interval, the largest groups only."""
    groups = found["groups"]
    if not groups:
        return None
    rows = [
        {"group": g["group"], "records": g["records"], "figure": f} | figure_row(g[f]) for g in groups for f in FIGURES
    ]
    kept = sorted(groups, key=lambda g: -g["records"])[:GROUPS]
    drawn = [g for g in groups if g in kept]  # in the order of the table
    if all(re.match(r"[≤>\d]", g["group"]) for g in drawn):  # ranges and counts have an order of their own
        drawn.sort(key=lambda g: (float(re.findall(r"[\d.]+", g["group"])[-1]), g["group"].startswith(">")))
    elif len(groups) > GROUPS:
        drawn.sort(key=lambda g: -g["ppg"]["value"])
    figure, axes = panels(3, width=2.5, height=0.21 * len(drawn) + 1.0, sharey=True)
    for axis, (name, short) in zip(axes[0], FIGURES.items(), strict=True):
        line = [figure_row(g[name]) for g in drawn]
        zero(axis, horizontal=False)
        axis.errorbar(
            [r["value"] for r in line],
            range(len(line)),
            xerr=errors(line),
            fmt="o",
            color=TARGET,
            markersize=4,
            capsize=2,
        )
        axis.set_title(short)
        axis.set_yticks(range(len(line)), [f"{shorten(g['group'])}  ({g['records']:,})" for g in drawn])
        axis.set_ylim(len(line) - 0.4, -0.6)
    figure.supxlabel(f"{found['basis']} gap with 95 % interval", fontsize=9)
    best, worst = (f(drawn, key=lambda g: g["ppg"]["value"]) for f in (max, min))
    text = (
        f"Symmetric PPG is largest for {best['group']} ({signed(best['ppg']['value'])}) and smallest for "
        f"{worst['group']} ({signed(worst['ppg']['value'])})."
    ).replace("Symmetric", str(found["basis"]).capitalize())
    if len(groups) > GROUPS:
        text += f" The {GROUPS} largest of {len(groups)} groups are drawn; the CSV holds all."
    name = re.sub(r"[^a-z0-9]+", "-", column.lower()).strip("-") or "column"
    return Plot(f"subgroups-{name}", f"Gaps by subgroup: {column.replace('_', ' ')}", text, rows, figure)
