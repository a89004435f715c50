"""The figures of one evaluation, from metrics.json: recall curves, sample level, epochs, membership, and those of gap_plots.

A ``Plot`` has exactly the rows that it draws, and is None if the evaluation has no data for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dejavu_lit.measure.figures import BLOCKS, FIGURES, MEMBERSHIP, SAMPLE_GAPS, decimal, signed
from dejavu_lit.report import figures
from dejavu_lit.report.gap_plots import GAP_TITLES, GAP_UNIT, gaps, planted, sensitivity, subgroups

RANKING_LABELS = {"distance": "ranked by\ndistance", "hits": "ranked by\nhits", "gap": "ranked by gap\n(optimistic)"}
MOST_POINTS = 1000  # in the scatter of single pairs; its CSV contains all of them
Metrics = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def evaluation_plots(metrics: Metrics) -> list[figures.Plot]:
    """Every figure that this evaluation has data for."""
    plots = [gaps(metrics), recall(metrics), *samples(metrics), sensitivity(metrics, "k")]
    if board := metrics.get("membership"):
        plots += [roc(board), clipmem_against_hits(board, metrics.get("pairs") or [])]
    plots += [sensitivity(metrics, "threshold"), sensitivity(metrics, "top_m"), epochs(metrics), planted(metrics)]
    plots += [subgroups(column, result) for column, result in (metrics.get("subgroups") or {}).items()]
    return _with_unique_names([plot for plot in plots if plot is not None])


def _with_unique_names(plots: Sequence[figures.Plot]) -> list[figures.Plot]:
    """The plots, with a number in the name of those whose file another plot has: columns' names may differ by signs alone."""
    names = [plot.name for plot in plots]
    before = [names[:i].count(name) for i, name in enumerate(names)]
    return [replace(plot, name=f"{plot.name}-{n + 1}") if n else plot for plot, n in zip(plots, before, strict=True)]


def recall(metrics: Metrics) -> figures.Plot:
    """P(recall ≥ x) of both models; the area between the curves is AUCG."""
    columns = (metrics["curves"]["recall"][name] for name in ("x", "target", "reference"))
    rows = [{"recall": x, "target": t, "reference": r} for x, t, r in zip(*columns, strict=True)]
    aucg = signed(metrics["population"]["aucg"]["value"])
    text = f"The signed area between the target's and the reference's curve on A is AUCG = {aucg}."
    title = "Share of records with at least a given recall"
    return figures.Plot("recall", title, text, rows, partial(_draw_recall, rows, aucg))


def _draw_recall(rows: Rows, aucg: str) -> Figure:
    labels = ("target", "reference", f"area between: AUCG {aucg}")
    figure, axes = figures.panels(1, height=2.3, left=0.75, titles=0, legend=labels)
    axis = axes[0][0]
    x, target, reference = ([row[name] for row in rows] for name in ("recall", "target", "reference"))
    axis.plot(x, target, drawstyle="steps-pre", color=figures.TARGET, label=labels[0])
    axis.plot(x, reference, drawstyle="steps-pre", color=figures.REFERENCE, linestyle="--", label=labels[1])
    axis.fill_between(x, target, reference, step="pre", color=figures.SHADE, alpha=0.5, linewidth=0, label=labels[2])
    x_label = "recall x (share of the image's objects that were found)"
    axis.set(xlabel=figures.wrapped(x_label), ylabel="share of records with recall ≥ x")
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
    return figure


def samples(metrics: Metrics) -> list[figures.Plot]:
    """The sample-level gaps over L for each ranking: one figure with a line for each k, one with a line for each top-m."""
    curves, main_m = metrics["curves"]["sample"], metrics["settings"].get("top_m")
    by_k = [(f"k = {curve['k']}", curve) for curve in curves if curve["top_m"] == main_m]
    by_m = [(f"top {curve['top_m']} objects" if curve["top_m"] else "all objects", curve) for curve in curves
            if curve["k"] == metrics["k"]]  # fmt: skip
    records, title = metrics["counts"]["records"], "Gaps on the L most memorized records, by"
    # Of the largest k, whichever is the main one: with another the figure is not drawn again.
    figure = _sample("sample", f"{title} neighbors k", _sample_text(*by_k[-1], records), by_k)
    if len(by_m) < 2:
        return [figure]
    return [figure, _sample("sample-top-m", f"{title} objects predicted", _sample_text(*by_m[0], records), by_m)]


def _sample(name: str, title: str, text: str, curves: Sequence[tuple[str, Metrics]]) -> figures.Plot:
    rows = [
        {"line": label, "k": curve["k"], "top_m": curve["top_m"], "ranking": ranking, "top": top}
        | {gap: curve[ranking][gap][i] for gap in SAMPLE_GAPS}
        for label, curve in curves
        for ranking in RANKING_LABELS
        for i, top in enumerate(curve[ranking]["top"])
    ]
    return figures.Plot(name, title, text, rows, partial(_draw_sample, rows))


def _sample_text(label: str, curve: Metrics, records: int) -> str:
    """The recall gap on about 1 % of the records, at least 10, and at the largest L; empty without any L."""
    by_distance = curve["distance"]
    gaps = dict(zip(by_distance["top"], map(signed, by_distance["recall_gap"]), strict=True))
    if not gaps:
        return ""
    few, largest = min(gaps, key=lambda top: abs(top - max(10, records / 100))), max(gaps)
    text = f"With {label}, on the {few} records with the smallest distance the recall gap is {gaps[few]}"
    if largest == few:
        return f"{text}."
    which = "all" if largest == records else f"the {largest}"
    return f"{text}, on {which} records {gaps[largest]}."


def _draw_sample(rows: Rows) -> Figure:
    labels = list(dict.fromkeys(row["line"] for row in rows))
    figure, axes = figures.panels(
        3, 3, height=0.95, left=0.88, titles=1, legend=labels, x_label="L most memorized records", y_label=GAP_UNIT,
        sharex=True, sharey=True,
    )  # fmt: skip
    for axis_row, (ranking, ranked_by) in zip(axes, RANKING_LABELS.items(), strict=True):
        for axis, gap in zip(axis_row, SAMPLE_GAPS, strict=True):
            figures.zero_line(axis)
            for number, label in enumerate(labels):
                line = [row for row in rows if row["line"] == label and row["ranking"] == ranking]
                x, y = [row["top"] for row in line], [row[gap] for row in line]
                axis.plot(x, y, color=figures.SERIES[number % len(figures.SERIES)], label=label)
            if axis is axes[0, 0] or figures.is_narrow():  # the others share it
                figures.log_x_axis(axis)
            if axis in axes[0] or figures.is_narrow():
                axis.set_title(SAMPLE_GAPS[gap].label)
            if axis is axis_row[0] or figures.is_narrow():
                axis.set_ylabel(ranked_by)
    figures.few_ticks(axes[0, 0].yaxis, 3)  # shared by all
    return figure


def epochs(metrics: Metrics) -> figures.Plot | None:
    """The gaps during the target's training, beside the null control and the accuracy on the validation set."""
    rows = metrics.get("epochs") or []
    if len(rows) < 2:
        return None
    first, last = rows[0], rows[-1]
    text = (
        f"On a sample, PPG is {signed(first['ppg'])} after epoch {first['epoch']:g} and {signed(last['ppg'])} after epoch "
        f"{last['epoch']:g}; on the holdout set, it is {signed(last['null_ppg'])}. Measured during training, in one "
        "direction only."
    )
    return figures.Plot("epochs", "Gaps over the epochs of training", text, rows, partial(_draw_epochs, rows))


def _draw_epochs(rows: Rows) -> Figure:
    names = [*FIGURES, *(["val_accuracy"] if all("val_accuracy" in row for row in rows) else [])]
    labels = [BLOCKS["population"].label, BLOCKS["null"].label, "95 % interval", "target on the validation set"]
    labels = labels[: len(names)]
    figure, axes = figures.panels(
        2, 2, height=1.2, left=0.75, titles=1, legend=labels, count=len(names), y_label=GAP_UNIT
    )
    x = [row["epoch"] for row in rows]
    for axis, name in zip(axes, names, strict=True):
        values = [row[name] for row in rows]
        if name == "val_accuracy":
            axis.plot(x, values, color=figures.GOOD, marker="^", label=labels[3])
            axis.set_title("accuracy within a batch (V)")
        else:
            figures.zero_line(axis)
            axis.plot(x, values, color=figures.TARGET, marker="o", label=labels[0])
            axis.set_title(GAP_TITLES[name].replace("\n", " "))
        if name == "ppg":
            axis.plot(x, [row["null_ppg"] for row in rows], "--", color=figures.MUTED, marker="s", label=labels[1])
            low, high = ([row[f"ppg_{end}"] for row in rows] for end in ("low", "high"))
            axis.fill_between(x, low, high, color=figures.SHADE, alpha=0.5, linewidth=0, label=labels[2])
        axis.set_xlabel("epochs of training")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        figures.few_ticks(axis.yaxis, 4)
    return figure


def roc(board: Metrics) -> figures.Plot | None:
    """TPR over FPR of every score, members A against non-members H, both axes logarithmic."""
    rows = [
        {"score": name, "fpr": fpr, "tpr": tpr}
        for name in MEMBERSHIP
        if board[name] and board[name]["roc"]
        for fpr, tpr in zip(board[name]["roc"]["fpr"], board[name]["roc"]["tpr"], strict=True)
    ]
    if not rows:
        return None
    shown = dict.fromkeys(row["score"] for row in rows)
    aucs = [f"{MEMBERSHIP[name].label} {board[name]['auc']['value']:.3f}" for name in shown]
    text = f"Areas under the curves (AUC): {', '.join(aucs)}. The dotted line is guessing."
    return figures.Plot("roc", "ROC curves of the membership scores", text, rows, partial(_draw_roc, rows))


def _draw_roc(rows: Rows) -> Figure:
    shown = list(dict.fromkeys(row["score"] for row in rows))
    figure, axes = figures.panels(1, height=2.6, left=0.75, titles=0, legend=[MEMBERSHIP[name].label for name in shown])
    axis = axes[0, 0]
    for number, name in enumerate(shown):
        line = [row for row in rows if row["score"] == name and row["fpr"] > 0 and row["tpr"] > 0]
        x, y = [row["fpr"] for row in line], [row["tpr"] for row in line]
        axis.plot(x, y, **figures.series(number), markersize=3, label=MEMBERSHIP[name].label)
    axis.set(xscale="log", yscale="log")
    ends = (min(row["fpr"] for row in rows if row["fpr"] > 0), 1.0)
    axis.plot(ends, ends, color=figures.MUTED, linestyle=":", linewidth=1, label="_guessing")
    figures.log_ticks(axis.xaxis)
    figures.log_ticks(axis.yaxis)
    x_label = "false positive rate (share of H taken for members)"
    axis.set(xlabel=figures.wrapped(x_label), ylabel="true positive rate (share of A)")
    return figure


def clipmem_against_hits(board: Metrics, pairs: Rows) -> figures.Plot | None:
    """CLIPMem of single pairs over their gap in hits; ``pairs``: {gap_in_hits, clipmem} of the scored pairs of A."""
    if not pairs or not board["clipmem"]:
        return None
    rank = board["clipmem"]["spearman"]
    text = "Each mark is a pair of A; the line joins the means at each gap."
    if rank is not None:
        low, high = rank["ci95"]
        text = f"Spearman's rank correlation is {decimal(rank['value'])} ({decimal(low)} to {decimal(high)}). {text}"
    if len(pairs) > MOST_POINTS:
        text += f" {MOST_POINTS:,} of {len(pairs):,} pairs are shown; the CSV contains all of them."
    return figures.Plot("clipmem", "CLIPMem against the gap in hits", text, pairs, partial(_draw_clipmem, pairs))


def _draw_clipmem(pairs: Rows) -> Figure:
    figure, axes = figures.panels(1, height=2.3, left=0.75, titles=0, legend=("pairs of A", "mean"))
    axis = axes[0, 0]
    gaps, scores = (np.array([pair[name] for pair in pairs]) for name in ("gap_in_hits", "clipmem"))
    shown = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_POINTS)).astype(int)
    axis.plot(gaps[shown], scores[shown], "o", markersize=3, color=figures.TARGET, alpha=0.35, label="pairs of A")
    at = np.unique(gaps)
    axis.plot(at, [scores[gaps == gap].mean() for gap in at], color=figures.INK, marker="D", label="mean")
    figures.zero_line(axis)
    figures.few_ticks(axis.xaxis, 6)
    figures.few_ticks(axis.yaxis, 5)
    x_label = "gap in hits, target − reference (objects)"
    axis.set(xlabel=figures.wrapped(x_label), ylabel="CLIPMem (difference of cosines)")
    return figure
