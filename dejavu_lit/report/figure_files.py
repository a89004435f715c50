"""The files of the figures, and which of them an earlier report already has.

NAME.svg, NAME-narrow.svg for phones, both with -dark (the same drawing in the colors of ``DARK``), NAME.csv and, if asked for,
NAME.png and NAME.pdf. A figure whose words, rows and code are those of the earlier folder is taken from there instead of being
drawn; the others are drawn by as many processes as there are cores.
"""

import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import is_plain_file, link_or_copy, read_json_object, write_csv, write_json
from dejavu_lit.utils.parallel import map_unordered, thread_count
from dejavu_lit.utils.progress import progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dejavu_lit.report.figures import Plot

INDEX = "figures.json"  # in the folder of the figures: {name: hash of what it shows}
ALL_FORMATS = ("svg", "png", "pdf")
FURTHER_DRAWINGS = ("-dark.svg", "-narrow.svg", "-narrow-dark.svg")  # beside an SVG
PNG_DPI = 160
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FigureInfo:
    """A figure as the page shows it."""

    name: str
    title: str
    text: str
    formats: Sequence[str]


def draw_figures(
    kind: str, contents: Mapping[str, Any], folder: Path, formats: Sequence[str] = ("svg",), earlier: Path | None = None
) -> list[FigureInfo]:
    """Draw the figures of an ``evaluation`` (its ``figure_data``) or a ``study`` (its study.json) into ``folder``.

    Returns [] if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401

        from dejavu_lit.report.plots import evaluation_plots
        from dejavu_lit.report.study_plots import study_plots
    except ImportError:
        log.warning("the report has no figures: they require matplotlib (pip install 'dejavu-lit[report]')")
        return []
    plots = study_plots(contents) if kind == "study" else evaluation_plots(contents)
    digests = {plot.name: _digest(plot) for plot in plots}
    known: dict[str, Any] = {}
    if earlier:
        with suppress(UserError):  # missing or damaged
            known = read_json_object(earlier / INDEX)
    ends = [*(f".{kind}" for kind in formats), *(FURTHER_DRAWINGS if "svg" in formats else ()), ".csv"]
    new = []
    for plot in plots:
        names = [f"{plot.name}{end}" for end in ends]
        if earlier and known.get(plot.name) == digests[plot.name] and all(is_plain_file(earlier / n) for n in names):
            for name in names:
                link_or_copy(earlier / name, folder / name)
        else:
            new.append(plot)
    drawn = map_unordered(save, (folder, formats), new, min(thread_count(), len(new)))
    for _ in progress(drawn, "figures", len(new), "figure"):
        pass
    if plots:
        write_json(folder / INDEX, digests)
    return [FigureInfo(plot.name, plot.title, plot.text, formats) for plot in plots]


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


def save(place: tuple[Path, Sequence[str]], plot: "Plot") -> None:
    """Write a plot's files; ``place``: their folder and formats. The same numbers give the same bytes."""
    from dejavu_lit.report.figures import NARROW

    folder, formats = place
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # of each character that no installed font has
        figure = plot.drawn()
        for kind in formats:
            _write(figure, kind, folder / f"{plot.name}.{kind}")
        if "svg" in formats:
            _write(plot.drawn(NARROW), "svg", folder / f"{plot.name}-narrow.svg")
    columns = dict.fromkeys(name for row in plot.rows for name in row)
    write_csv(folder / f"{plot.name}.csv", [{name: row.get(name) for name in columns} for row in plot.rows])


def _write(figure: "Figure", kind: str, path: Path) -> None:
    """Write a figure, as SVG also in dark colors."""
    from dejavu_lit.report.figures import DARK, style

    out = io.BytesIO()
    with style():
        figure.savefig(out, format=kind, dpi=PNG_DPI, metadata=METADATA[kind])
    path.write_bytes(out.getvalue())
    if kind == "svg":
        svg = out.getvalue().decode()
        for light, dark in DARK.items():
            svg = svg.replace(light, dark)
        path.with_name(f"{path.stem}-dark.svg").write_text(svg, encoding="utf-8")
