"""Write the report of an evaluation or a study: a self-contained folder, made from artifacts alone, complete or absent.

The folder is built under a temporary name and then renamed.
"""

import logging
import os
import shutil
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from dejavu_lit import __version__
from dejavu_lit.evaluation.settings import ReportSettings
from dejavu_lit.measure.recompute import read_metrics
from dejavu_lit.report.evaluation import Evaluation, ReportOptions, write_pages
from dejavu_lit.report.figure_files import ALL_FORMATS, code_digest
from dejavu_lit.report.study import labelled_rows, open_study, write_study_report
from dejavu_lit.study.halves import MEMORIZATION
from dejavu_lit.study.table import read_study
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, locked, name_file_in_errors, read_json_object, write_json

MARKER = "report.json"  # identifies a folder as a report, which may be replaced
log = logging.getLogger(__name__)


def show_report(settings: ReportSettings, out: Path) -> Path | None:
    """Write and announce the report of the evaluation or study in ``out`` if ``report.write`` is set; return its page.

    A report that was made of the same files is left as it is, and a redacted one stays redacted.
    """
    if not settings.write:
        return None
    page, marker = out / "report" / "index.html", _marker(out / "report")
    options = ReportOptions(redact=is_redacted(settings, out))
    moved = marker.get("data")  # the data folder that was given for it
    data = Path(moved) if isinstance(moved, str) and moved and os.path.isdir(moved) else None
    drawn = marker.get("formats")  # of its figures
    is_drawn = page.is_file() and isinstance(drawn, list) and all(kind in drawn for kind in options.formats)
    if not is_drawn or marker.get("made_of") != _fingerprint(out, options, data):
        page = write_report(out, redact=options.redact, data=data, formats=options.formats)
    print(f"report: {page}")
    return page


def is_redacted(settings: ReportSettings, out: Path) -> bool:
    """Whether single pairs are left out: if the settings say so, or if the report in ``out`` was written without them."""
    return settings.redact or bool(_marker(out / "report").get("redacted"))


def write_report(
    path: Path | str,
    redact: bool = False,
    out: Path | str | None = None,
    data: Path | str | None = None,
    limit: int = ReportOptions.limit,
    formats: tuple[str, ...] = ALL_FORMATS,
) -> Path:
    """Write the report of the evaluation or study in ``path`` and return its index.html.

    Args:
        redact, limit, formats: see ``ReportOptions``.
        out: the report's folder; report/ below ``path`` by default.
        data: the prepared data folder, if it was moved since the evaluation.

    Raises UserError if ``path`` has no artifacts of a known schema, or ``out`` is a file, has other files, or is the current
    folder.
    """
    path, data = Path(path), Path(data) if data else None
    target = Path(out) if out else path / "report"
    if limit < 1:
        raise UserError(f"limit={limit} must be at least 1")
    if not any((path / name).is_file() for name in ("study.json", "metrics.json")):
        problem = "is a file" if path.exists() else "does not exist"
        if path.is_dir():
            problem = "contains neither metrics.json nor study.json"
        raise UserError(f"{path} {problem}; give the out= folder of dejavu evaluate or dejavu mitigate")
    if target.exists() and not target.is_dir():
        raise UserError(f"out={target} is a file; choose a folder")
    if out and Path.cwd().is_relative_to(target.resolve()):
        raise UserError(
            f"out={out} is the current folder or one of its parents, which cannot be replaced; choose another folder"
        )
    if target.exists() and any(target.iterdir()) and not (target / MARKER).is_file():
        raise UserError(f"out={target} contains files but is not a report; choose another folder")
    with locked(target.parent / f".{target.name}.lock", wait=False), name_file_in_errors(target):
        earlier = target if (target / MARKER).is_file() else None
        _build(path, target, ReportOptions(redact, limit, formats, earlier), data)
    return target / "index.html"


def read_evaluations(path: Path) -> dict[str, dict[str, Any]]:
    """{label: metrics.json} of every setting of a study, or {"": metrics.json} of an evaluation.

    Raises UserError if one is missing or damaged, also if a setting of the study has no result.
    """
    if not (path / "study.json").is_file():
        return {"": read_metrics(path)}
    study = read_study(path / "study.json")
    if failed := study.get("failed"):
        raise UserError(f"{path}: {', '.join(failed)} has no result, so fail_if cannot be judged; run the study again")
    return {label: read_metrics((path / row["metrics"]).parent) for label, row in labelled_rows(study).items()}


def _build(path: Path, target: Path, options: ReportOptions, data: Path | None) -> None:
    part, old = (target.parent / f".{target.name}.{kind}" for kind in ("part", "old"))
    for folder in (part, old):  # left by a killed call
        _remove(folder)
    part.mkdir(parents=True)
    try:
        if (path / "study.json").is_file():
            write_study_report(part, path, options, data)
        else:
            write_pages(part, {"": path}, options, data)
        (part / "static").mkdir()
        for file in (files("dejavu_lit.report") / "static").iterdir():
            (part / "static" / file.name).write_bytes(file.read_bytes())
        moved = data.resolve() if data and not options.redact else None
        marker = {
            "dejavu_lit": __version__,
            "redacted": options.redact,
            "source": path.name,
            "data": str(moved) if moved else None,
            "formats": options.formats,
            "made_of": _fingerprint(path, options, moved),
        }
        write_json(part / MARKER, marker)
        if target.exists():
            os.replace(target, old)
        os.replace(part, target)
    finally:
        for folder in (part, old):
            _remove(folder)
        if old.exists():
            log.warning("%s, the earlier report, could not be removed; delete it, as it may show private data", old)


def _remove(folder: Path) -> None:
    """Remove a folder as far as possible; of a link only the link, as of an earlier report that lies elsewhere."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _marker(target: Path) -> dict[str, Any]:
    """What the report in ``target`` says of itself; {} if there is none."""
    return read_json_object(target / MARKER) if (target / MARKER).is_file() else {}


def _fingerprint(path: Path, options: ReportOptions, data: Path | None) -> str:
    """A hash of everything that the report of ``path`` shows: options, artifacts, whether there are data, and the code."""
    if (path / "study.json").is_file():
        folders = list(open_study(path)[1].values())
        artifacts = [path / "study.json", *path.glob(MEMORIZATION)]
    else:
        folders, artifacts = [path], []
    parts = [__version__, repr((options.redact, options.limit)), code_digest()]
    for folder in folders:
        evaluation = Evaluation.open(folder, data)
        artifacts += evaluation.artifacts()
        places = [evaluation.data, evaluation.objects_folder()]
        parts += [f"{place} {place is not None and place.is_dir()}" for place in places]
        parts.append(repr(evaluation.epochs()))
    return sha256("\n".join([*parts, *map(file_sha256, artifacts)]).encode()).hexdigest()
