"""The style of the figures: two widths, of half a wide screen and of a phone, and margins from the labels' sizes.

Figures are drawn without pyplot, so they share no state, and without an automatic layout, which would draw each one twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font_names
from matplotlib.textpath import text_to_path
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dejavu_lit.utils.printable import printable

WIDTH = 4.7  # inches of a figure
NARROW = 3.45  # of its drawing for phones, whose panels are stacked
SIZE = 8.5  # points of the text
LINE = 0.17  # inches of a line of text
LABELS = 2.25  # largest width of the rows' names beside panels, in inches
INK, MUTED, GRID = "#1b1f24", "#5f6771", "#dde0e5"
TARGET, REFERENCE, GOOD, SHADE = "#6a3d9a", "#946c00", "#14803c", "#cdbce2"  # not those of right and wrong objects
SERIES = (TARGET, REFERENCE, GOOD, "#0b62a8", "#b0306a", "#5a6b00")
MARKERS = "osD^vPX"  # one more than the colors, so that 42 series differ
DARK = {
    INK: "#e7e9ec", MUTED: "#a9b1ba", GRID: "#343b43", TARGET: "#c3a5ec", REFERENCE: "#e3bd55", GOOD: "#6fd49a",
    SHADE: "#453663", "#0b62a8": "#6cb2f0", "#b0306a": "#f08ab8", "#5a6b00": "#c4d15e", "#ffffff": "#14171b",
}  # fmt: skip
# Families, by how their names begin, with the Chinese, Japanese and Korean characters that DejaVu Sans lacks.
CJK = (
    *("Noto Sans CJK", "Noto Sans SC", "Noto Sans TC", "Noto Sans JP", "Noto Sans KR", "Source Han Sans", "WenQuanYi"),
    *("Droid Sans Fallback", "Microsoft YaHei", "SimHei", "PingFang", "Hiragino Sans", "Yu Gothic", "Arial Unicode MS"),
)
STYLE: dict[str, Any] = {
    "font.size": SIZE,
    "axes.titlesize": SIZE,
    "axes.titley": 1.0,  # a title that looks for its place draws all ticks once more
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


@dataclass(frozen=True)
class Plot:
    """A figure with its description in words (the alternative text) and the rows that it draws.

    ``draw`` is called when the figure is needed: one whose words and rows are those of an earlier report is not drawn again.
    It is pickled for another process, so it is a function of a module, or a ``partial`` of one.
    """

    name: str
    title: str
    text: str
    rows: Sequence[Mapping[str, Any]]
    draw: Callable[[], Figure]

    def drawn(self, width: float = WIDTH) -> Figure:
        """The figure with its legend, at a width in inches."""
        with style(width):
            figure = self.draw()
            _add_legend(figure)
            return figure


def style(width: float = WIDTH) -> Any:
    """The matplotlib context in which figures of a width in inches are drawn and saved."""
    options: Any = STYLE | {"font.family": families(), "figure.figsize": (width, width)}
    return matplotlib.rc_context(options)


def is_narrow() -> bool:
    """Whether the figure is being drawn for phones."""
    return _width() < WIDTH


def _width() -> float:
    return float(matplotlib.rcParams["figure.figsize"][0])


@cache
def families() -> list[str]:
    """DejaVu Sans, which matplotlib has, and the installed families of CJK: each character takes the first that has it."""
    return ["DejaVu Sans", *sorted(name for name in get_font_names() if name.startswith(CJK))]


def text_width(text: str, bold: bool = False) -> float:
    """The width in inches of the longest line of ``text``."""
    font = FontProperties(family=families(), size=SIZE, weight="bold" if bold else "normal")
    return max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in text.split("\n")) / 72


def panels(
    columns: int, rows: int = 1, height: float = 1.5, left: float = 0.5, titles: int = 2, legend: Sequence[str] = (),
    below: float = 0.0, count: int | None = None, x_label: str = "", y_label: str = "", **options: Any,
) -> tuple[Figure, Any]:  # fmt: skip
    """A figure of panels with a light grid: (figure, array of Axes [rows, columns], or [count]); for phones they are stacked.

    Args:
        height: of one panel, in inches.
        left: the margin for tick labels, in inches; ``y_label`` or a panel's own needs 0.2 more.
        titles: lines of the panels' titles.
        legend: the labels of the legend above the panels.
        below: free space below the panels, in inches.
        count: how many panels there are, if the last ones of the grid are not needed.
        x_label, y_label: of all panels; without ``x_label`` there is space for one below each.
    """
    shape = (rows, columns) if count is None else (count,)
    if is_narrow():
        rows, columns = count or rows * columns, 1
        options = {name: value for name, value in options.items() if name != "sharex"}  # each is read alone
    top = LINE * titles + 0.1 + (0.19 * -(-len(legend) // _legend_columns(legend)) + 0.05 if legend else 0)
    bottom = (3 if is_narrow() else 2) * LINE + 0.14  # where a label may have two lines
    between = 0.15 if options.get("sharex") else (LINE + 0.14 if x_label else bottom) + LINE * titles
    gap = 0.12 if options.get("sharey") else 0.48
    total = top + rows * height + (rows - 1) * between + bottom + below
    whole = _width()
    width = (whole - left - 0.15 - (columns - 1) * gap) / columns
    grid = {"left": left / whole, "right": 1 - 0.15 / whole, "top": 1 - top / total, "bottom": (bottom + below) / total}
    grid |= {"wspace": gap / width, "hspace": between / height}
    figure = Figure(figsize=(whole, total))
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=grid, **options).flatten()
    for axis in axes[count:] if count else ():
        axis.remove()
    for axis in axes[:count]:
        axis.grid(True, linewidth=0.6)
        axis.tick_params(length=0)
    if x_label:
        figure.supxlabel(wrapped(x_label), fontsize=SIZE, y=0.06 / total, va="bottom")
    if y_label:
        figure.supylabel(y_label, fontsize=SIZE, x=0.04 / whole, ha="left")
    return figure, axes[:count].reshape(shape)


def _legend_columns(labels: Sequence[str]) -> int:
    """The largest number of columns that fits; a legend fills them one after the other."""
    widths = [text_width(label) + 0.5 for label in labels]
    for columns in range(len(labels), 1, -1):
        if sum(max(column) for column in np.array_split(widths, columns)) <= _width() - 0.1:  # as matplotlib fills them
            return columns
    return 1


def _add_legend(figure: Figure) -> None:
    """Draw one legend of all labels above the panels, in the space that ``panels(legend=…)`` left; none without labels."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(str(label), handle)
    if handles:
        figure.legend(
            handles.values(), handles, loc="upper center", bbox_to_anchor=(0.5, 1), ncols=_legend_columns([*handles]),
            borderaxespad=0.2, handlelength=1.8, columnspacing=1.2, labelspacing=0.3,
        )  # fmt: skip


def forest(
    labels: Sequence[str], columns: Sequence[str], x_label: str, headings: Sequence[int] = (), height: float = 0.21,
    legend: Sequence[str] = (),
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """Panels that share their rows, one for each title in ``columns``; every row's name is read horizontally at the left.

    Args:
        labels: one per row, from top to bottom; cut if they are wider than ``LABELS``.
        headings: the rows that name a group of the rows below them.
        height: of one row, in inches; legend: as for ``panels``.
    """
    labels = [fitted(label, LABELS, bold=i in headings) for i, label in enumerate(labels)]
    left = max(text_width(label, bold=i in headings) for i, label in enumerate(labels)) + 0.14
    lines = max(title.count("\n") for title in columns) + 1
    inside = height * len(labels) + 0.1
    figure, axes = panels(
        len(columns), height=inside, left=left, titles=lines, legend=legend, x_label=x_label, sharey=True
    )
    for axis, title in zip(axes[0], columns, strict=True):
        axis.set_title(title)
        axis.grid(False, axis="y")
        axis.spines.left.set_visible(False)
        axis.margins(x=0.12)
        few_ticks(axis.xaxis)
    axes[0, 0].set_yticks(range(len(labels)), labels)
    for axis in axes[0] if is_narrow() else axes[0, :1]:
        for number in headings:
            axis.get_yticklabels()[number].set_fontweight("bold")
    axes[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    return figure, list(axes[0])


def wrapped(label: str) -> str:
    """A label below a panel, in two lines if it is wider than the figure."""
    return fill(label, 2 * len(label) // 3) if text_width(label) > _width() - 0.9 and is_narrow() else label


def few_ticks(axis: Any, bins: int = 2) -> None:
    """Round ticks, so few that their labels fit a narrow panel, with a true minus sign."""
    # No steps of 2.5: "−0.25" and "0.25" would touch the 0 between them.
    axis.set_major_locator(MaxNLocator(bins, steps=[1, 2, 3, 4, 5, 10]))
    axis.set_major_formatter(lambda value, _: f"{round(value, 10):g}".replace("-", "−"))


def log_x_axis(axis: Axes, ticks: Sequence[float] | None = None) -> None:
    """Make the x axis logarithmic with plain numbers, at ``ticks`` that are far enough apart, or at the powers of ten."""
    axis.set_xscale("log")
    if ticks is not None:
        axis.set_xticks(spaced_ticks(ticks, lambda small, large: 1.8 * small <= large))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())


def log_ticks(side: Any) -> None:
    """A few plain numbers on a logarithmic axis (``axis.xaxis`` or ``axis.yaxis``) whose limits are set."""
    low, high = side.get_view_interval()
    digits = (1, 2, 5) if high / low < 50 else (1,)
    few = MaxNLocator(3, steps=[1, 2, 5, 10])
    side.set_major_locator(few if high / low < 10 else LogLocator(10, subs=digits, numticks=6))
    side.set_major_formatter(lambda value, _: f"{value:g}")
    side.set_minor_locator(NullLocator())


def spaced_ticks(values: Iterable[float], apart: Callable[[float, float], bool]) -> list[float]:
    """The values in ascending order, without those that are not ``apart`` from the next larger one, so that their labels fit."""
    ticks: list[float] = []
    for value in sorted(set(values), reverse=True):
        if not ticks or apart(value, ticks[-1]):
            ticks.append(value)
    return ticks[::-1]


def shorten(text: str, length: int = 32) -> str:
    """``text`` cut to ``length`` characters, and without control characters, with which no SVG is valid."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def fitted(text: str, width: float, bold: bool = False) -> str:
    """``text`` cut to at most ``width`` inches."""
    lengths = range(len(text), 1, -1)
    return shorten(text, next((n for n in lengths if text_width(shorten(text, n), bold) <= width), 1))


def series(number: int) -> dict[str, Any]:
    return {"color": SERIES[number % len(SERIES)], "marker": MARKERS[number % len(MARKERS)]}


def zero_line(axis: Axes, horizontal: bool = True) -> None:
    line = axis.axhline if horizontal else axis.axvline
    line(0, color=MUTED, linewidth=1, zorder=1, label="_zero")


def interval_bars(axis: Axes, bars: Mapping[float, Mapping[str, Any]], **style: Any) -> None:
    """Draw {row of a forest: value and interval (low, high)}; once for many is several times as fast as one by one."""
    values = list(bars.values())
    axis.errorbar([v["value"] for v in values], [*bars], xerr=error_arms(values), **{"fmt": "o"} | style)


def error_arms(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths of the interval's two arms for errorbar; clipped at 0, since rounding may leave a value outside its interval."""
    return [[max(0.0, r["value"] - r["low"]) for r in rows], [max(0.0, r["high"] - r["value"]) for r in rows]]
