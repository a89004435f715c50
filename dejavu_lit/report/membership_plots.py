"""The figures of the membership scores, for one evaluation and for a study, beside the gaps that they complete."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import linregress, t

from dejavu_lit.measure.figures import FIGURES, MEMBERSHIP
from dejavu_lit.report.figures import (
    INK,
    MARKERS,
    MUTED,
    SERIES,
    TARGET,
    Plot,
    error_arms,
    few_ticks,
    forest,
    legend_above,
    log_ticks,
    log_x_axis,
    panels,
    shorten,
    x_label_below,
    zero_line,
)
from dejavu_lit.report.study_points import Point, at_largest_size, flat, points

MOST_POINTS = 1000  # in the scatter of single pairs; its CSV contains all of them
FEWEST_SIZES = 3  # points behind a fitted slope and its interval
Board = Mapping[str, Any]


def roc(board: Board) -> Plot | None:
    """TPR over FPR of every score, members A against non-members H, both axes logarithmic."""
    rows = [
        {"score": name, "fpr": fpr, "tpr": tpr}
        for name in MEMBERSHIP
        if board[name] and board[name]["roc"]
        for fpr, tpr in zip(board[name]["roc"]["fpr"], board[name]["roc"]["tpr"], strict=True)
    ]
    if not rows:
        return None
    aucs = ", ".join(
        f"{MEMBERSHIP[n].label} {board[n]['auc']['value']:.3f}" for n in dict.fromkeys(r["score"] for r in rows)
    )
    text = f"Areas under the curves (AUC): {aucs}. The dotted line is guessing."
    return Plot("roc", "Members told from non-members", text, rows, partial(_draw_roc, rows))


def _draw_roc(rows: Sequence[Mapping[str, Any]]) -> Figure:
    shown = list(dict.fromkeys(row["score"] for row in rows))
    figure, axes = panels(1, height=2.6, left=0.75, titles=0, legend=[MEMBERSHIP[name].label for name in shown])
    axis = axes[0, 0]
    for number, name in enumerate(shown):
        line = [row for row in rows if row["score"] == name and row["fpr"] > 0 and row["tpr"] > 0]
        x, y = [row["fpr"] for row in line], [row["tpr"] for row in line]
        axis.plot(x, y, color=SERIES[number], marker=MARKERS[number], markersize=3, label=MEMBERSHIP[name].label)
    axis.set(xscale="log", yscale="log")
    ends = (min(row["fpr"] for row in rows if row["fpr"] > 0), 1.0)
    axis.plot(ends, ends, color=MUTED, linestyle=":", linewidth=1, label="_guessing")
    log_ticks(axis.xaxis)
    log_ticks(axis.yaxis)
    axis.set(xlabel="false positive rate (share of H taken for members)", ylabel="true positive rate (share of A)")
    legend_above(figure, [axis])
    return figure


def clipmem_against_hits(board: Board, pairs: Sequence[Mapping[str, float]]) -> Plot | None:
    """CLIPMem of single pairs over their gap in hits; ``pairs``: {gap_in_hits, clipmem} of the scored pairs of A."""
    if not pairs or not board["clipmem"]:
        return None
    rank = board["clipmem"]["spearman"]
    text = "Each mark is a pair of A; the line joins the means at each gap."
    if rank is not None:
        low, high = rank["ci95"]
        text = f"Spearman's rank correlation is {rank['value']:.3f} ({low:.3f} to {high:.3f}). {text}"
    if len(pairs) > MOST_POINTS:
        text += f" {MOST_POINTS:,} of {len(pairs):,} pairs are shown; the CSV contains all of them."
    return Plot("clipmem", "CLIPMem against the gap in hits", text, pairs, partial(_draw_clipmem, pairs))


def _draw_clipmem(pairs: Sequence[Mapping[str, float]]) -> Figure:
    figure, axes = panels(1, height=2.3, left=0.75, titles=0, legend=("pairs of A", "mean"))
    axis = axes[0, 0]
    gaps, scores = (np.array([pair[name] for pair in pairs]) for name in ("gap_in_hits", "clipmem"))
    shown = np.linspace(0, len(pairs) - 1, min(len(pairs), MOST_POINTS)).astype(int)
    axis.plot(
        gaps[shown], scores[shown], linestyle="", marker="o", markersize=3, color=TARGET, alpha=0.35, label="pairs of A"
    )
    at = np.unique(gaps)
    axis.plot(at, [scores[gaps == gap].mean() for gap in at], color=INK, marker="D", label="mean")
    zero_line(axis)
    few_ticks(axis.xaxis, 6)
    few_ticks(axis.yaxis, 5)
    axis.set(xlabel="gap in hits, target − reference (objects)", ylabel="CLIPMem (difference of cosines)")
    legend_above(figure, [axis])
    return figure


def scores_of_settings(study: Mapping[str, Any]) -> Plot | None:
    """Every setting under every score: PPG at the left, the AUC of each membership score at the right."""
    group = max(at_largest_size(points(study)), key=len)
    names = [name for name in MEMBERSHIP if all(name in point for point in group)]
    if len(group) < 2 or not names:
        return None
    default, others = group[0], group[1:]
    lower = [point for point in others if point["ppg"]["value"] < default["ppg"]["value"]]
    counts = ", ".join(
        f"{sum(point[name]['value'] < default[name]['value'] for point in lower)} by {MEMBERSHIP[name].label}"
        for name in names
    )
    also = f"; of these, the AUC is lower too for {counts}" if lower else ""
    text = (
        f"{len(lower)} of {len(others)} other settings have a PPG below that of {default['setting']}{also}. "
        "An AUC of 0.5 is guessing."
    )
    rows = [flat(point, ("ppg", *names)) for point in group]
    return Plot("scores", "Every setting under every score", text, rows, partial(_draw_scores, group, names))


def _draw_scores(group: Sequence[Point], names: Sequence[str]) -> Figure:
    labels, legend = [shorten(point["setting"], 24) for point in group], [MEMBERSHIP[name].label for name in names]
    figure, axes = forest(
        labels,
        (f"{group[0]['block']} PPG", "AUC of membership"),
        "gap: difference of shares; AUC: 0.5 is guessing",
        height=0.45,
        legend=legend,
    )
    zero_line(axes[0], horizontal=False)
    axes[1].axvline(0.5, color=MUTED, linewidth=1, zorder=1, label="_guessing")
    for row, point in enumerate(group):
        axes[0].errorbar([point["ppg"]["value"]], [row], xerr=error_arms([point["ppg"]]), fmt="o", color=INK)
        for number, name in enumerate(names):
            y = row + 0.13 * (number - (len(names) - 1) / 2)
            axes[1].errorbar(
                [point[name]["value"]], [y], xerr=error_arms([point[name]]), fmt=MARKERS[number], color=SERIES[number],
                markersize=4, linewidth=1, label=MEMBERSHIP[name].label,
            )  # fmt: skip
    few_ticks(axes[1].xaxis, 3)
    legend_above(figure, axes[1:])
    return figure


def law(study: Mapping[str, Any]) -> Plot | None:
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
    slopes = [
        f"{_label(name)} ({setting}) {_slope_text(row)}"
        for (name, setting), row in fitted.items()
        if name in ("ppg", "cosine")
    ]
    text = (
        "T/N: pairs seen in training over training pairs. Slopes of the fitted lines with their 95 % intervals, where 1 is "
        f"proportional to T/N: {', '.join(slopes)}; the others are in the panels and the CSV. Values of 0 or less are left out."
    )
    return Plot("law", "Memorization and membership against T/N", text, rows, partial(_draw_law, rows))


def _slope(seen: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    """The slope of log value over log T/N by least squares, with its t interval; None below three points or one T/N."""
    if len(seen) < FEWEST_SIZES or len({x for x, _ in seen}) < 2:
        return {"slope": None, "slope_low": None, "slope_high": None, "intercept": None}
    fit = linregress(*np.log10(np.array(seen)).T)
    half = float(t.ppf(0.975, len(seen) - 2) * fit.stderr)
    slope, intercept = float(fit.slope), float(fit.intercept)
    return {"slope": slope, "slope_low": slope - half, "slope_high": slope + half, "intercept": intercept}


def _slope_text(row: Mapping[str, Any]) -> str:
    slope, low, high = (f"{row[name]:.2f}".replace("-", "−") for name in ("slope", "slope_low", "slope_high"))
    return f"{slope} ({low} to {high})"


def _label(name: str) -> str:
    return FIGURES[name].label if name in FIGURES else f"AUC − 0.5 of {MEMBERSHIP[name].label}"


def _draw_law(rows: Sequence[Mapping[str, Any]]) -> Figure:
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    names = list(dict.fromkeys(row["measure"] for row in rows))
    legend = [shorten(setting, 40) for setting in settings]
    figure, axes = panels(2, -(-len(names) // 2), height=1.05, left=0.6, titles=1, legend=legend)
    for axis, name in zip(axes.flat, names, strict=False):
        slopes = []
        for number, setting in enumerate(settings):
            line = [row for row in rows if (row["setting"], row["measure"]) == (setting, name)]
            color, x = SERIES[number % len(SERIES)], np.array([row["exposure"] for row in line])
            axis.plot(x, [row["value"] for row in line], color=color, linestyle="", marker=MARKERS[number % len(MARKERS)],
                      label=shorten(setting, 40))  # fmt: skip
            if line and line[0]["slope"] is not None:
                x = np.array([x.min(), x.max()])
                axis.plot(x, 10 ** line[0]["intercept"] * x ** line[0]["slope"], color=color, linewidth=1, label="_fit")
                slopes.append((f"slope {_slope_text(line[0])}", color))
        axis.set_title(_label(name))
        log_x_axis(axis, sorted({row["exposure"] for row in rows}))
        axis.set_yscale("log")
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** (0.25 * len(slopes)))  # room for the slopes
        log_ticks(axis.yaxis)
        for number, (label, color) in enumerate(slopes):
            axis.text(0.03, 0.97 - 0.16 * number, label, color=color, transform=axis.transAxes, va="top")
    for axis in axes.flat[len(names) :]:
        axis.remove()
    x_label_below(figure, "T/N: times each pair was seen")
    legend_above(figure, axes.flat)
    return figure
