"""The style of the figures and their files: ``save(plot, folder)`` writes NAME.svg, NAME-dark.svg, NAME.png, NAME.pdf, NAME.csv.

A ``Plot`` is a drawn figure with the rows behind it. Figures are drawn without pyplot, so they share no state. The dark
variant is the same drawing with the colors of ``DARK``.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import NullLocator
from matplotlib.transforms import Bbox

from dejavu_lit.measure.per_pair import write_csv
from dejavu_lit.report.sections import FigureInfo
from dejavu_lit.utils.io import atomic, write_text

INK, MUTED, GRID = "#1b1f24", "#5f6771", "#dde0e5"
TARGET, REFERENCE, GOOD, VIOLET, SHADE = "#0b62a8", "#c2560a", "#14803c", "#7a3e9d", "#8fb8de"
SERIES = (TARGET, REFERENCE, GOOD, VIOLET, "#8a6d00", "#b0306a")
MARKERS = "osD^vPX"  # one more than the colors, so that 42 series differ
DARK = {
    INK: "#e7e9ec", MUTED: "#a9b1ba", GRID: "#343b43", TARGET: "#6cb2f0", REFERENCE: "#f5a26b", GOOD: "#6fd49a",
    VIOLET: "#cf9fe8", SHADE: "#31506e", "#8a6d00": "#d9bd4a", "#b0306a": "#f08ab8", "#ffffff": "#14171b",
}  # fmt: skip
STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "figure.facecolor": "#ffffff",
    "axes.facecolor": "#ffffff",
    "text.parse_math": False,  # names of settings and objects may contain dollar signs
    "svg.fonttype": "path",  # looks the same with any installed fonts
    "svg.hashsalt": "dejavu-lit",
}
PNG_DPI = 160
CSS_DPI = 96  # pixels per inch on the page
LABEL_DISTANCES = (9, 20, 32, 46, 60)  # points between a mark and its name
FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


@dataclass(frozen=True)
class Plot:
    """A figure with its description in words (the alternative text) and the rows that it draws."""

    name: str
    title: str
    text: str
    rows: Sequence[Mapping[str, Any]]
    figure: Figure


def style() -> Any:
    """The matplotlib context in which figures are drawn and saved."""
    options: Any = STYLE
    return matplotlib.rc_context(options)


def panels(columns: int, rows: int = 1, width: float = 2.6, height: float = 2.3, **options: Any) -> tuple[Figure, Any]:
    """A figure of panels with a light grid: (figure, array of Axes [rows, columns]). Sizes are per panel, in inches."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(True, linewidth=0.6)
        axis.tick_params(length=0)
    return figure, axes


def log_x_axis(axis: Axes, ticks: Sequence[float] | None = None) -> None:
    """Make the x axis logarithmic with plain numbers, at ``ticks`` that are far enough apart, or at the powers of ten."""
    axis.set_xscale("log")
    if ticks is not None:
        axis.set_xticks(spaced_ticks(ticks))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())


def spaced_ticks(values: Sequence[float], ratio: float = 1.3) -> list[float]:
    """The values in ascending order, without those closer than ``ratio`` to a larger one, so that their labels fit."""
    ticks: list[float] = []
    for value in sorted(values, reverse=True):
        if not ticks or value * ratio <= ticks[-1]:
            ticks.append(value)
    return ticks[::-1]


def shorten(text: str, length: int = 32) -> str:
    """``text`` cut to ``length`` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def zero_line(axis: Axes, horizontal: bool = True) -> None:
    """Draw the line at a gap of 0."""
    line = axis.axhline if horizontal else axis.axvline
    line(0, color=MUTED, linewidth=1, zorder=1, label="_zero")


def legend_above(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """Draw one legend for all panels, above them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, max(1, len(labels))))


def error_arms(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths of the interval's two arms for errorbar; clipped at 0, since rounding may leave a value outside its interval."""
    return [[max(0.0, r["value"] - r["low"]) for r in rows], [max(0.0, r["high"] - r["value"]) for r in rows]]


def label_points(axis: Axes, points: Sequence[tuple[float, float, float, float, str]]) -> None:
    """Write each point's name beside it, clear of other names, points and error bars, with a thin line if it is far away.

    Args:
        points: (x, y, low, high, name); low and high are the ends of the error bar.

    Call it last, because it lays out the figure.
    """
    figure = cast(Figure, axis.figure)
    figure.draw_without_rendering()
    occupied = []
    for x, y, low, high, _ in points:
        (across, up), (_, bottom), (_, top) = axis.transData.transform([(x, y), (x, low), (x, high)])
        occupied.append(Bbox.from_extents(across - 6, up - 6, across + 6, up + 6))
        occupied.append(Bbox.from_extents(across - 3, bottom, across + 3, top))
    for x, y, *_, name in points:
        occupied.append(_place_label(axis, (x, y), name, occupied))


def _place_label(axis: Axes, point: tuple[float, float], name: str, occupied: Sequence[Bbox]) -> Bbox:
    """Write ``name`` at the nearest free position around ``point``, or the least crowded one, and return its box."""
    frame = axis.get_window_extent()
    best: tuple[int, Annotation] | None = None
    for distance in LABEL_DISTANCES:
        for right, above in ((1, 0.8), (1, -0.8), (-1, 0.8), (-1, -0.8), (0, 1), (0, -1)):
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5} if distance > LABEL_DISTANCES[0] else None
            text = axis.annotate(
                name, point, xytext=(distance * right * 0.9, distance * above), textcoords="offset points", fontsize=8,
                color=INK, ha={1: "left", -1: "right", 0: "center"}[right], va="bottom" if above > 0 else "top",
                arrowprops=line,
            )  # fmt: skip
            text.set_in_layout(False)
            text.get_window_extent()  # moves the text to its position
            box = Text.get_window_extent(text)  # without the line, which may cross other things
            cost = sum(box.overlaps(other) for other in occupied)
            cost += 3 * (not frame.x0 <= box.x0 <= box.x1 <= frame.x1)
            cost += 3 * (not frame.y0 <= box.y0 <= box.y1 <= frame.y1)
            if best is not None and cost >= best[0]:
                text.remove()
                continue
            if best is not None:
                best[1].remove()
            best = (cost, text)
        if best is not None and best[0] == 0:
            break
    assert best is not None
    return Text.get_window_extent(best[1])


def save(plot: Plot, folder: Path) -> FigureInfo:
    """Write a plot's files, the same bytes for the same numbers, and return what the page needs to show it."""
    with style():
        plot.figure.draw_without_rendering()
        plot.figure.set_layout_engine("none")  # laid out once, so that all files agree
        for kind, metadata in FORMATS.items():
            out = io.BytesIO()
            plot.figure.savefig(out, format=kind, dpi=PNG_DPI, metadata=metadata)
            with atomic(folder / f"{plot.name}.{kind}") as part:
                part.write_bytes(out.getvalue())
            if kind == "svg":
                svg = out.getvalue().decode()
                for light, dark in DARK.items():
                    svg = svg.replace(light, dark)
                write_text(folder / f"{plot.name}-dark.svg", svg)
    write_csv(folder / f"{plot.name}.csv", [dict(row) for row in plot.rows])
    width, height = plot.figure.get_size_inches() * CSS_DPI
    return FigureInfo(plot.name, plot.title, plot.text, round(width), round(height))
