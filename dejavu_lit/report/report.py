"""Write the report of an evaluation or a study: a self-contained folder, made from artifacts alone, complete or absent.

    write_report("outputs/eval")                      -> outputs/eval/report/index.html
    write_report("outputs/study", redact=True)        -> without captions, images and objects

The folder is built under a temporary name and then renamed; thumbnails of an earlier report are reused.
"""

import logging
import os
import shutil
from pathlib import Path

from dejavu_lit import __version__
from dejavu_lit.evaluation.settings import ReportSettings
from dejavu_lit.report import sections
from dejavu_lit.report.evaluation import Evaluation, write_evaluation_report
from dejavu_lit.report.study import write_study_report
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked, name_file_in_errors, write_json, write_text

MARKER = "report.json"  # identifies a folder as a report, which may be replaced
LIMIT = 2000  # pairs that get a card
STATIC_FILES = ("report.css", "report.js", "cards.js", "study.js")
log = logging.getLogger(__name__)


def show_report(settings: ReportSettings, out: Path) -> Path | None:
    """Write and announce the report of the evaluation or study in ``out`` if ``report.write`` is set; return its page."""
    if not settings.write:
        return None
    page = write_report(out, redact=settings.redact)
    print(f"report: {page}")
    return page


def write_report(
    path: Path | str,
    redact: bool = False,
    out: Path | str | None = None,
    data: Path | str | None = None,
    limit: int = LIMIT,
) -> Path:
    """Write the report of the evaluation or study in ``path`` and return its index.html.

    Args:
        redact: exclude captions, images and objects; statistics and keys stay.
        out: the report's folder; report/ below ``path`` by default.
        data: the prepared data folder, if it was moved since the evaluation.
        limit: the largest number of pairs that get a card.

    Raises:
        UserError: ``path`` is neither an evaluation nor a study, its artifacts have another schema, or ``out`` holds other
            files.
    """
    path, data = Path(path), Path(data) if data else None
    target = Path(out) if out else path / "report"
    if limit < 1:
        raise UserError(f"limit={limit} must be at least 1")
    if target.exists() and not target.is_dir():
        raise UserError(f"out={target} is a file; choose a folder")
    if out and Path.cwd().is_relative_to(target.resolve()):
        raise UserError(
            f"out={out} is the current folder or one of its parents, which cannot be replaced; choose another folder"
        )
    if target.exists() and any(target.iterdir()) and not (target / MARKER).is_file():
        raise UserError(f"out={target} contains files but is not a report; choose another folder")
    with locked(target.parent / f".{target.name}.lock", wait=False), name_file_in_errors(target):
        _build(path, target, redact, data, limit)
    return target / "index.html"


def _build(path: Path, target: Path, redact: bool, data: Path | None, limit: int) -> None:
    part, old = (target.parent / f".{target.name}.{kind}" for kind in ("part", "old"))
    for folder in (part, old):  # left by a killed call
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        earlier = target / "thumbs" if (target / "thumbs").is_dir() else None
        if (path / "study.json").is_file():
            write_study_report(part, path, redact, data, limit, earlier)
        elif (path / "metrics.json").is_file():
            write_evaluation_report(part, Evaluation.open(path, data), redact, limit, earlier)
        else:
            raise UserError(
                f"{path} contains neither metrics.json nor study.json; "
                "give the out= folder of dejavu evaluate or dejavu mitigate"
            )
        for name in STATIC_FILES:
            write_text(part / "static" / name, sections.static_file(name))
        write_json(part / MARKER, {"dejavu_lit": __version__, "redacted": redact, "source": path.name})
        if target.exists():
            os.replace(target, old)
        os.replace(part, target)
    finally:
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        if old.exists():
            log.warning("%s, the earlier report, could not be removed; delete it, as it may show private data", old)
