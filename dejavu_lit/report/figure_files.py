"""The files of the figures, and which of them an earlier report already has.

NAME.svg, NAME-narrow.svg for phones, both with -dark (the same drawing in the colors of ``DARK``), NAME.csv and, if asked for,
NAME.png and NAME.pdf. A figure whose words, rows and code are those of the earlier folder is taken from there instead of being
drawn; the others are drawn by as many processes as there are cores.
"""

import io
import json
import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import is_plain_file, link_or_copy, read_json_object, write_csv, write_json
from dejavu_lit.utils.parallel import map_unordered, thread_count
from dejavu_lit.utils.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dejavu_lit.report.figures import Plot

INDEX = "figures.json"  # in the folder of the figures: what each file shows
ALL_FORMATS = ("svg", "png", "pdf")
PNG_DPI = 160
CSS_DPI = 96  # pixels per inch on the page
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FigureInfo:
    """A figure as the page shows it: sizes are [width, height] in pixels, the narrow one [0, 0] without an SVG."""

    name: str
    title: str
    text: str
    size: list[int]
    narrow_size: list[int]
    formats: list[str]
    digest: str


def draw_figures(
    kind: str, contents: Mapping[str, Any], folder: Path, formats: Sequence[str] = ("svg",), earlier: Path | None = None
) -> list[FigureInfo]:
    """Draw the figures of an ``evaluation`` (its ``figure_data``) or a ``study`` (its study.json) into ``folder``.

    Returns [] if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        log.warning("the report has no figures: they require matplotlib (pip install 'dejavu-lit[report]')")
        return []
    from dejavu_lit.report.plots import evaluation_plots
    from dejavu_lit.report.study_plots import study_plots

    plots = study_plots(contents) if kind == "study" else evaluation_plots(contents)
    shown: dict[str, FigureInfo] = {}
    known = _read_index(earlier) if earlier else {}
    for plot in plots:
        info = known.get(plot.name)
        if earlier and info and info.digest == _digest(plot) and set(formats) <= set(info.formats):
            for name in _files(info):
                link_or_copy(earlier / name, folder / name)
            shown[plot.name] = info
    new = [plot for plot in plots if plot.name not in shown]
    drawn = map_unordered(save, (folder, formats), new, min(thread_count(), len(new)))
    shown |= {info.name: info for info in progress(drawn, "figures", len(new), "figure")}
    if shown:
        write_json(folder / INDEX, {plot.name: asdict(shown[plot.name]) for plot in plots})
    return [shown[plot.name] for plot in plots]


def _read_index(folder: Path) -> dict[str, FigureInfo]:
    """The figures of an earlier report whose files all exist; none if another version wrote it, or if it is damaged."""
    figures = {}
    with suppress(UserError, TypeError, AttributeError):
        for name, entry in read_json_object(folder / INDEX).items():
            info = FigureInfo(**entry)
            is_ours = re.fullmatch(r"[\w-]+", info.name) and set(info.formats) <= set(ALL_FORMATS)
            if is_ours and all(is_plain_file(folder / file) for file in _files(info)):
                figures[name] = info
    return figures


def _files(info: FigureInfo) -> list[str]:
    drawings = ["-dark.svg", "-narrow.svg", "-narrow-dark.svg"] if "svg" in info.formats else []
    ends = [f".{kind}" for kind in info.formats] + drawings
    return [f"{info.name}{end}" for end in [*ends, ".csv"]]


def _digest(plot: "Plot") -> str:
    """A hash of everything that the figure shows, and of the code that draws it."""
    from dejavu_lit.report.figures import families

    content = json.dumps([families(), plot.name, plot.title, plot.text, plot.rows], default=str)
    return sha256(f"{code_digest()} {version('matplotlib')} {content}".encode()).hexdigest()[:20]


@cache
def code_digest() -> str:
    """A hash of the files that reports are made by."""
    folders = [files("dejavu_lit.report") / name for name in ("", "templates", "templates/sections", "static")]
    texts = sorted((f.name, f.read_bytes()) for folder in folders for f in folder.iterdir() if f.is_file())
    return sha256(b"".join(name.encode() + content for name, content in texts)).hexdigest()


def save(place: tuple[Path, Sequence[str]], plot: "Plot") -> FigureInfo:
    """Write a plot's files in the formats (folder, formats), and return what the page needs to show it.

    The same numbers give the same bytes.
    """
    folder, formats = place
    folder.mkdir(parents=True, exist_ok=True)
    for kind in formats:
        _write(plot.figure, kind, folder / f"{plot.name}.{kind}")
    if "svg" in formats:
        _write(plot.narrow_figure, "svg", folder / f"{plot.name}-narrow.svg")
    write_csv(folder / f"{plot.name}.csv", plot.rows)
    narrow_size = _pixels(plot.narrow_figure) if "svg" in formats else [0, 0]
    return FigureInfo(plot.name, plot.title, plot.text, _pixels(plot.figure), narrow_size, [*formats], _digest(plot))


def _write(figure: "Figure", kind: str, path: Path) -> None:
    """Write a figure, as SVG also in dark colors."""
    from dejavu_lit.report.figures import DARK, style

    out = io.BytesIO()
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of each character that no installed font has
        figure.savefig(out, format=kind, dpi=PNG_DPI, metadata=METADATA[kind])
    path.write_bytes(out.getvalue())
    if kind == "svg":
        svg = out.getvalue().decode()
        for light, dark in DARK.items():
            svg = svg.replace(light, dark)
        path.with_name(f"{path.stem}-dark.svg").write_text(svg, encoding="utf-8")


def _pixels(figure: "Figure") -> list[int]:
    return [round(side) for side in figure.get_size_inches() * CSS_DPI]
