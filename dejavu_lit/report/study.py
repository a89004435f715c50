"""The report of a study: a sentence to quote, the frontier, examples, the settings in a table, and settings compared by pair.

report/index.html                      the study
report/settings/LABEL/index.html       one setting; all settings show the same pairs, so that they can be compared
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dejavu_lit.measure.figures import FIGURES, signed
from dejavu_lit.measure.recompute import RECORD_FILES
from dejavu_lit.measure.records import records_file_errors
from dejavu_lit.report import narrative
from dejavu_lit.report.evaluation import ReportOptions, write_pages
from dejavu_lit.report.figure_files import FigureInfo, draw_figures
from dejavu_lit.report.modelcard import study_latex, study_markdown
from dejavu_lit.report.page import provenance, templates
from dejavu_lit.report.study_points import membership_auc
from dejavu_lit.study import ranking
from dejavu_lit.study.cells import folder_name
from dejavu_lit.study.halves import MEMORIZATION
from dejavu_lit.study.table import read_study
from dejavu_lit.utils.io import file_sha256

SECTIONS = {  # id and template: heading
    "settings": "The settings",
    "figures": "Figures",
    "compare": "Two settings, pair by pair",
    "provenance": "Provenance",
}
HEADERS = (
    "setting", "pairs", "seed", *(figure.label for figure in FIGURES.values()), "PPG decrease", "null PPG",
    "corrected PPG", "AUC, cosine", "zero-shot top-1", "text→image R@1",
)  # fmt: skip
Row = Mapping[str, Any]
log = logging.getLogger(__name__)


def open_study(path: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """study.json, and {label: folder of the evaluation} of the settings whose figures and records are there.

    Raises UserError as ``read_study`` does.
    """
    study = read_study(path / "study.json")
    folders = {label: (path / setting["metrics"]).parent for label, setting in labelled_rows(study).items()}
    return study, {
        label: folder
        for label, folder in folders.items()
        if all((folder / name).is_file() for name in ("metrics.json", RECORD_FILES["population"]))
    }


def write_study_report(folder: Path, path: Path, options: ReportOptions, data: Path | None) -> None:
    """Write the report of the study in ``path`` into ``folder``; ``data``: where the prepared data were moved."""
    study, evaluations = open_study(path)
    rows, memorization = labelled_rows(study), read_memorization(path / MEMORIZATION)
    if missing := [label for label in rows if label not in evaluations]:
        log.warning("no page for %s: metrics.json or records.parquet is missing", ", ".join(missing))
    of_pages = {
        f"settings/{label}": memorization.get((rows[label]["name"], rows[label]["train_size"])) for label in evaluations
    }
    places = {f"settings/{label}": evaluation for label, evaluation in evaluations.items()}
    write_pages(folder, places, options, data, of_pages)
    earlier = options.earlier / "figures" if options.earlier else None
    figures = draw_figures("study", study, folder / "figures", options.formats, earlier)
    (folder / "modelcard.md").write_text(study_markdown(study), encoding="utf-8")
    (folder / "modelcard.tex").write_text(study_latex(study), encoding="utf-8")
    hashes = {"study.json": file_sha256(path / "study.json")}
    page = study_page(study, figures, list(evaluations), hashes, str(path))
    (folder / "index.html").write_text(page, encoding="utf-8")


def read_memorization(path: Path) -> dict[tuple[str, int], dict[str, Row]]:
    """{(setting, size): {key: counterfactual memorization in hits and alignment}}; {} without memorization.parquet."""
    found: dict[tuple[str, int], dict[str, Row]] = {}
    if path.is_file():
        scores = ["hits", "hits_se", "alignment", "alignment_se"]
        names = ["setting", "train_size", "key", *scores, "hits_halves"]
        with records_file_errors(path):
            rows = pq.read_table(path, columns=names).to_pylist()
        for row in rows:
            values = {name: row[name] for name in scores} | {"halves": row["hits_halves"]}
            found.setdefault((row["setting"], row["train_size"]), {})[row["key"]] = values
    return found


def labelled_rows(study: Row) -> dict[str, Row]:
    """{unique folder name: row} of study.json's settings; the name has setting, size, seed and half."""
    rows: dict[str, Row] = {}
    for row in study["settings"]:
        name = folder_name(row["name"], row["train_size"], row["seed"], row.get("half", 0))
        rows[name if name not in rows else f"{name}-{len(rows)}"] = row
    return rows


def study_page(
    study: Row, figures: Sequence[FigureInfo], labels: Sequence[str], hashes: Mapping[str, str], source: str
) -> str:
    """The page of a study; ``labels``: of the settings with a page; ``hashes`` and ``source`` as for ``evaluation_page``."""
    rows = labelled_rows(study)
    comparable = {label: row for label, row in rows.items() if label in labels}
    first = first_setting(study, comparable)
    sentence = narrative.study_sentence(study)
    others = [figure for figure in figures if figure.name != "frontier"]
    needed = {"compare": len(comparable) > 1, "figures": others or not figures}
    template = templates().get_template("study.html.j2")
    return template.render(
        sections={name: text for name, text in SECTIONS.items() if needed.get(name, True)},
        root="",
        source=source,
        sentence=sentence if study.get("recommended") else narrative.capitalized(sentence),
        study=study,
        frontier=next((figure for figure in figures if figure.name == "frontier"), None),
        figures=others,
        example=first and _example(study, first, comparable[first]),
        headers=HEADERS,
        rows=[_table_row(study, label, row, label in labels) for label, row in rows.items()],
        comparable=list(comparable),
        compared=(first, second_setting(comparable, first)) if first and len(comparable) > 1 else None,
        provenance=provenance(study, hashes),
    )


def _example(study: Row, label: str, row: Row) -> dict[str, str]:
    pooled = ranking.pooled_setting(study.get("pooled", []), row["name"], row["train_size"])
    what = "What the target remembers" if pooled and pooled["found"]["found"] else "The largest gaps"
    return {"label": label, "heading": f"{what}: three training pairs under {row['name']}"}


def _table_row(study: Row, label: str, setting: Row, linked: bool) -> dict[str, Any]:
    """One (setting, size, seed) of the sortable table."""
    recommended = ranking.is_recommended(study, setting)
    mark = "★ recommended" if recommended else "on the frontier" if ranking.is_on_frontier(study, setting) else ""
    cells = [_cell(setting["train_size"], f"{setting['train_size']:,}"), _cell(setting["seed"], str(setting["seed"]))]
    cells += [_gap_cell(setting.get("symmetric"), figure) for figure in FIGURES]
    blocks = (ranking.difference_to_default(study, setting), setting.get("null"), setting.get("corrected"))
    cells += [_gap_cell(block, "ppg") for block in blocks]
    auc = membership_auc(setting, "cosine")
    note = "{:.2f} to {:.2f}".format(*auc["ci95"]) if auc and auc["ci95"] else ""
    cells.append(_cell(auc["value"], f"{auc['value']:.3f}", note) if auc else _cell(None, "–"))
    cells += [
        _cell(value, narrative.percent(value))
        for value in (ranking.utility(setting, n) for n in ("zeroshot_top1", "t2i_r1"))
    ]
    return {
        "name": setting["name"],
        "link": f"settings/{label}/index.html" if linked else "",
        "overrides": " ".join(setting["overrides"]),
        "mark": mark,
        "cells": cells,
        "recommended": recommended,
    }


def _cell(value: float | None, text: str, ends: str = "", remark: str = "") -> dict[str, str]:
    """A cell that is sorted by ``value``; no line break divides ``ends``, so that a narrow column has an interval on one line."""
    shown = "" if value is None else f"{value:.10g}"
    return {"value": shown, "text": text, "note": ends.replace(" ", "\u00a0") + remark}


def _gap_cell(block: Mapping[str, Any] | None, figure: str) -> dict[str, str]:
    if block is None:
        return _cell(None, "–")
    gap = block[figure]
    remark = f", {ranking.NOT_DISTINGUISHABLE}" if gap.get("distinguishable") is False else ""
    return _cell(gap["value"], signed(gap["value"]), narrative.interval(gap["ci95"], 2), remark)


def first_setting(study: Row, rows: Mapping[str, Row]) -> str | None:
    """The row that the others are compared with: the default, if possible of the size for which a setting is recommended."""
    headline = ranking.headline_ranking(study) or {}
    wanted = {"name": headline.get("default"), "train_size": headline.get("train_size")}
    return max(rows, key=lambda label: [rows[label][name] == value for name, value in wanted.items()], default=None)


def second_setting(rows: Mapping[str, Row], first: str) -> str:
    """The row to compare with ``first``: another setting, if possible of the same size and seed."""
    wanted = {"name": False, "train_size": True, "seed": True}  # whether it is the same as in ``first``
    others = (label for label in rows if label != first)
    return max(others, key=lambda label: [(rows[label][n] == rows[first][n]) is same for n, same in wanted.items()])
