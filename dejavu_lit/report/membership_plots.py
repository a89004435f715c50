"""The figures of the membership scores: ROC curves and single pairs of an evaluation, every setting of a study."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dejavu_lit.measure.figures import MEMBERSHIP, decimal
from dejavu_lit.report import figures
from dejavu_lit.report.study_points import Point, at_largest_size, flat, is_default, points

MOST_POINTS = 1000  # in the scatter of single pairs; its CSV contains all of them
Board = Mapping[str, Any]


def roc(board: Board) -> figures.Plot | None:
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


def _draw_roc(rows: Sequence[Mapping[str, Any]]) -> Figure:
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
    figures.legend_above(figure, [axis])
    return figure


def clipmem_against_hits(board: Board, pairs: Sequence[Mapping[str, float]]) -> figures.Plot | None:
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


def _draw_clipmem(pairs: Sequence[Mapping[str, float]]) -> Figure:
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
    figures.legend_above(figure, [axis])
    return figure


def scores_of_settings(study: Mapping[str, Any]) -> figures.Plot | None:
    """Every setting under every score: PPG at the left, the AUC of each membership score at the right."""
    group = max(at_largest_size(points(study)), key=len)
    names = [name for name in MEMBERSHIP if all(name in point for point in group)]
    if len(group) < 2 or not names or not is_default(study, group[0]):
        return None
    default, others = group[0], group[1:]
    lower = [point for point in others if point["ppg"]["value"] < default["ppg"]["value"]]
    counts = ", ".join(
        f"{sum(point[name]['value'] < default[name]['value'] for point in lower)} by {MEMBERSHIP[name].label}"
        for name in names
    )
    also = f"; of these, the AUC is also lower for {counts}" if lower else ""
    text = (
        f"{len(lower)} of {len(others)} other settings have a PPG below that of {default['setting']}{also}. "
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
    figures.legend_above(figure, axes[1:])
    return figure
