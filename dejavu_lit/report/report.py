"""Write the report of an evaluation or a study: a self-contained folder, whole or absent, from artifacts alone.

    write_report("outputs/eval")                      -> outputs/eval/report/index.html
    write_report("outputs/study", redact=True)        -> without captions, images and objects

The folder is built beside its place and then renamed; thumbnails of an earlier report are taken over.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from dejavu_lit import __version__
from dejavu_lit.report import parts
from dejavu_lit.report.evaluation import Evaluation, write_single
from dejavu_lit.report.study import write_study_pages
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import locked, naming, write_json, write_text

MARK = "report.json"  # by which a folder is known as a report, and may be replaced
LIMIT = 2000  # pairs that get a card
log = logging.getLogger(__name__)


def write_report(
    path: Path | str,
    redact: bool = False,
    out: Path | str | None = None,
    data: Path | str | None = None,
    limit: int = LIMIT,
) -> Path:
    """Write the report of the evaluation or study in ``path`` and return its index.html.

    Args:
        redact: leave out captions, images and objects; statistics and keys stay.
        out: its folder; by default report/ below ``path``.
        data: the prepared data folder, where it is no longer where the evaluation had it.
        limit: how many pairs get a card.

    Raises:
        UserError: neither an evaluation nor a study, artifacts of another schema, or an ``out`` that holds other files.
    """
    path, data = Path(path), Path(data) if data else None
    target = Path(out) if out else path / "report"
    if limit < 1:
        raise UserError(f"limit={limit} must be at least 1")
    if target.exists() and not target.is_dir():
        raise UserError(f"out={target} is a file; choose another place")
    if out and Path.cwd().is_relative_to(target.resolve()):
        raise UserError(
            f"out={out} is the current folder or one above it, which cannot be replaced; name a folder in it"
        )
    if target.exists() and any(target.iterdir()) and not (target / MARK).is_file():
        raise UserError(f"out={target} holds files that are no report; choose another folder")
    with locked(target.parent / f".{target.name}.lock", wait=False), naming(target):
        _build(path, target, redact, data, limit)
    return target / "index.html"


def _build(path: Path, target: Path, redact: bool, data: Path | None, limit: int) -> None:
    part, old = (target.parent / f".{target.name}.{kind}" for kind in ("part", "old"))
    for folder in (part, old):  # of a call that was killed
        shutil.rmtree(folder, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        earlier = target / "thumbs" if (target / "thumbs").is_dir() else None
        if (path / "study.json").is_file():
            write_study_pages(part, path, redact, data, limit, earlier)
        elif (path / "metrics.json").is_file():
            write_single(part, Evaluation.open(path, data), redact, limit, earlier)
        else:
            raise UserError(
                f"{path} holds neither metrics.json nor study.json; give the out= of dejavu evaluate or dejavu mitigate"
            )
        for name in ("report.css", "report.js", "cards.js", "study.js"):
            write_text(part / "static" / name, parts.static(name))
        write_json(part / MARK, {"dejavu_lit": __version__, "redacted": redact, "source": path.name})
        if target.exists():
            os.replace(target, old)
        os.replace(part, target)
    finally:
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)
        if old.exists():
            log.warning("%s, the earlier report with all it shows, could not be removed; remove it by hand", old)


def show_report(config: dict[str, Any], out: Path) -> Path | None:
    """The page of an evaluation or a study, as ``report`` asks for it."""
    if not config["report"]["write"]:
        return None

    page = write_report(out, redact=config["report"]["redact"])
    print(f"report: {page}")
    return page
