"""The look of the figures and their files: ``save(plot, folder)`` writes NAME.svg, NAME-dark.svg, NAME.png, NAME.pdf, NAME.csv.

A ``Plot`` is a drawn figure with the rows behind it. Figures are drawn without pyplot, so nothing is kept between them, and
the dark variant is the same drawing with the colours of ``DARK``.
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
from dejavu_lit.report.parts import Shown
from dejavu_lit.utils.io import atomic, write_text

INK, MUTED, GRID = "#1b1f24", "#5f6771", "#dde0e5"
TARGET, REFERENCE, GOOD, VIOLET, SHADE = "#0b62a8", "#c2560a", "#14803c", "#7a3e9d", "#8fb8de"
SERIES = (TARGET, REFERENCE, GOOD, VIOLET, "#8a6d00", "#b0306a")
MARKERS = "osD^vPX"  # one more than the colours, so that 42 series differ
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
    "text.parse_math": False,  # other people's names may hold dollar signs
    "svg.fonttype": "path",  # looks the same everywhere, whatever fonts there are
    "svg.hashsalt": "dejavu-lit",
}
PNG_DPI = 160
FORMATS: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}


@dataclass(frozen=True)
class Plot:
    """A figure with what it says in words (its alternative text) and the rows that it draws."""

    name: str
    title: str
    text: str
    rows: Sequence[Mapping[str, Any]]
    figure: Figure


def style() -> Any:
    """The context in which figures are drawn and saved."""
    options: Any = STYLE
    return matplotlib.rc_context(options)


def panels(columns: int, rows: int = 1, width: float = 2.6, height: float = 2.3, **options: Any) -> tuple[Figure, Any]:
    """A figure of panels with a light grid: (figure, array of Axes [rows, columns]); sizes are a panel's, in inches."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for axis in axes.flat:
        axis.grid(True, linewidth=0.6)
        axis.tick_params(length=0)
    return figure, axes


def logarithmic(axis: Axes, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic x axis with plain numbers: at ``ticks``, those that lie apart, or at the powers of ten."""
    axis.set_xscale("log")
    if ticks is not None:
        axis.set_xticks(apart(ticks))
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}" if x >= 10 else f"{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())


def apart(values: Sequence[float], ratio: float = 1.3) -> list[float]:
    """The values, from the largest down, that are at most 1 / ``ratio`` of the one kept before: room for their labels."""
    kept: list[float] = []
    for value in sorted(values, reverse=True):
        if not kept or value * ratio <= kept[-1]:
            kept.append(value)
    return kept[::-1]


def shorten(text: str, length: int = 32) -> str:
    """``text`` cut to ``length`` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def zero(axis: Axes, horizontal: bool = True) -> None:
    """The line at no gap."""
    line = axis.axhline if horizontal else axis.axvline
    line(0, color=MUTED, linewidth=1, zorder=1, label="_zero")


def legend_above(figure: Figure, axis: Axes, columns: int = 4) -> None:
    """One legend for all panels, above them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(columns, max(1, len(labels))))


def name_points(axis: Axes, points: Sequence[tuple[float, float, float, float, str]]) -> None:
    """Write each point's name beside it, off other names, points and error bars, with a thin line if far.

    points: (x, y, low, high, name), low and high being the ends of the error bar. Call it last: it lays the figure out.
    """
    figure = cast(Figure, axis.figure)
    figure.draw_without_rendering()
    taken = []
    for x, y, low, high, _ in points:
        (across, up), (_, bottom), (_, top) = axis.transData.transform([(x, y), (x, low), (x, high)])
        taken.append(Bbox.from_extents(across - 6, up - 6, across + 6, up + 6))
        taken.append(Bbox.from_extents(across - 3, bottom, across + 3, top))
    frame = axis.get_window_extent()
    for x, y, *_, name in points:
        best: tuple[float, Annotation] | None = None
        for far in (9, 20, 32, 46, 60):
            for right, above in ((1, 0.8), (1, -0.8), (-1, 0.8), (-1, -0.8), (0, 1), (0, -1)):
                side = {1: "left", -1: "right", 0: "center"}[right]
                line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.5} if far > 9 else None
                text = axis.annotate(
                    name, (x, y), xytext=(far * right * 0.9, far * above), textcoords="offset points", fontsize=8,
                    color=INK, ha=side, va="bottom" if above > 0 else "top", arrowprops=line,
                )  # fmt: skip
                text.set_in_layout(False)
                text.get_window_extent()  # moves the text to its place; the line is not part of what must stay clear
                box = Text.get_window_extent(text)
                cost = sum(box.overlaps(other) for other in taken) + 3 * (not frame.x0 <= box.x0 <= box.x1 <= frame.x1)
                cost += 3 * (not frame.y0 <= box.y0 <= box.y1 <= frame.y1)
                if best is None or cost < best[0]:
                    if best is not None:
                        best[1].remove()
                    best = (cost, text)
                else:
                    text.remove()
            if best is not None and best[0] == 0:
                break
        if best is not None:
            taken.append(Text.get_window_extent(best[1]))


def save(plot: Plot, folder: Path) -> Shown:
    """Write a plot's five files, the same bytes for the same numbers, and return what the page shows of it."""
    with style():
        plot.figure.draw_without_rendering()
        plot.figure.set_layout_engine("none")  # laid out once, the same in every file
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
    width, height = plot.figure.get_size_inches() * 96
    return Shown(plot.name, plot.title, plot.text, round(width), round(height))


def errors(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths of the interval's two arms, for errorbar, which refuses those below 0: rounding may leave a value outside."""
    return [[max(0.0, r["value"] - r["low"]) for r in rows], [max(0.0, r["high"] - r["value"]) for r in rows]]
