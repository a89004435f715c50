"""The report of a study: its settings in a sortable table, figures, one page per setting, and a comparison pair by pair.

report/index.html                      the study
report/settings/LABEL/index.html       one setting; all settings show the same pairs, so that they can be compared
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dejavu_lit.measure.figures import FIGURES
from dejavu_lit.report import sections
from dejavu_lit.report.cards import CardImages, choose_keys, read_ranks, read_rows
from dejavu_lit.report.evaluation import Evaluation, draw_figures, write_card_images, write_evaluation_page
from dejavu_lit.report.markup import Child, Html, join, row, table, tag
from dejavu_lit.report.modelcard import study_latex, study_markdown
from dejavu_lit.report.narrative import VERDICTS, interval, signed, to_state
from dejavu_lit.study.ranking import NOT_DISTINGUISHABLE
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, read_json_object, write_text

SCRIPTS = ("report.js", "cards.js", "study.js")
SCHEMA = 1
VERDICT_SIGNS = {"yes": "●", "no": "○", "unknown": "?"}
Row = Mapping[str, Any]


def write_study_report(
    folder: Path, path: Path, redact: bool, data: Path | None, limit: int, earlier: Path | None
) -> None:
    """Write the report of the study in ``path`` into ``folder``: its page, and one page per setting that has an evaluation.

    Args: as for ``write_report``; ``earlier`` is the thumbnails folder of an earlier report.

    Raises:
        UserError: study.json has another schema or no settings.
    """
    study = read_json_object(path / "study.json", SCHEMA)
    if not study.get("settings"):
        raise UserError(f"{path}/study.json has no settings; run dejavu mitigate again")
    rows = dict(zip(setting_labels(study["settings"]), study["settings"], strict=True))
    evaluations = {
        label: Evaluation.open((path / setting["metrics"]).parent, data)
        for label, setting in rows.items()
        if (path / setting["metrics"]).is_file()
    }
    _write_settings(folder, evaluations, redact, limit, earlier)
    figures = draw_figures("study", study, folder / "figures")
    write_text(folder / "modelcard.md", study_markdown(study))
    write_text(folder / "modelcard.tex", study_latex(study))
    body = join(
        [
            tag("h1", "Memorization against utility"),
            conclusion(study),
            tag("h2", "The settings"),
            settings_table(study, list(evaluations)),
            sections.figure_section(figures),
            comparison({label: setting for label, setting in rows.items() if label in evaluations}),
            sections.provenance_section(study, {"study.json": file_sha256(path / "study.json")}),
        ]
    )
    write_text(folder / "index.html", sections.document("Memorization against utility", body, SCRIPTS))


def _write_settings(
    folder: Path, evaluations: Mapping[str, Evaluation], redact: bool, limit: int, earlier: Path | None
) -> None:
    ranks = {label: read_ranks(evaluation.records) for label, evaluation in evaluations.items()}
    chosen = choose_keys(list(ranks.values()), limit)
    back = tag("p", tag("a", "← back to the study", href="../../index.html"))
    for label, evaluation in evaluations.items():
        pairs = read_rows(evaluation.records, ranks[label], chosen, evaluation.metrics["k"])
        images = CardImages() if redact else write_card_images(evaluation, pairs, folder / "thumbs", earlier)
        page = folder / "settings" / label
        write_evaluation_page(page, evaluation, ranks[label], pairs, images, redact, "../../", back)


def setting_labels(rows: Sequence[Row]) -> list[str]:
    """A unique folder name for each row: setting, size and seed, in characters that are safe in paths and URLs."""
    labels: list[str] = []
    for setting in rows:
        name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", setting["name"]).strip(".-")[:60] or "setting"
        label = f"{name}-n{setting['train_size']}-s{setting['seed']}"
        labels.append(label if label not in labels else f"{label}-{len(labels)}")
    return labels


def conclusion(study: Mapping[str, Any]) -> Html:
    """The recommendation with its rule, the verdict on each setting, and the settings without a result."""
    recommended = study.get("recommended")
    box = tag(
        "section",
        tag("strong", f"Recommended: {recommended}" if recommended else "No setting is recommended"),
        tag("p", f"Rule: {study['rule']}.") if study.get("rule") else None,
        class_="verdict",
        aria_label="Conclusion",
    )
    items = [_setting_verdict(pooled) for pooled in study.get("pooled", [])]
    for label, reason in (study.get("failed") or {}).items():
        sign = tag("span", "!", class_="sign", aria_hidden="true")
        items.append(tag("li", sign, tag("strong", f"{label}: "), f"no result, {reason}"))
    return join([box, tag("ul", items, class_="controls") if items else None])


def _setting_verdict(pooled: Mapping[str, Any]) -> Html:
    state = to_state(pooled["found"]["found"])
    sentence = pooled["found"]["words"]
    difference = pooled.get("difference")
    if difference:
        sentence += f" {difference['words'][0].upper()}{difference['words'][1:]}."
    sign = tag("span", VERDICT_SIGNS[state], class_="sign", title=VERDICTS[state], aria_hidden="true")
    return tag("li", sign, tag("strong", f"{pooled['name']}, {pooled['train_size']:,} pairs: "), sentence)


def settings_table(study: Mapping[str, Any], linked: Sequence[str]) -> Html:
    """The sortable table: one row per (setting, size, seed); the labels in ``linked`` have a page."""
    headers = ["setting", "pairs", "seed", *(figure.label for figure in FIGURES.values())]
    headers += ["PPG reduction against the first setting", "null PPG", "corrected PPG"]
    headers += ["zero-shot top-1", "text→image R@1", "frontier"]
    rows = []
    for label, setting in zip(setting_labels(study["settings"]), study["settings"], strict=True):
        link = f"settings/{label}/index.html"
        name: Child = tag("a", setting["name"], href=link) if label in linked else setting["name"]
        rows.append(row([name, tag("small", " ".join(setting["overrides"]))], _setting_cells(study, setting)))
    text = (
        "Symmetric gaps with 95 % intervals (over the records, not over training runs). Click a column header to sort."
    )
    return table(headers, rows, text, class_="sortable settings")


def _setting_cells(study: Mapping[str, Any], setting: Row) -> list[Html]:
    cells = [
        _number(setting["train_size"], f"{setting['train_size']:,}"),
        _number(setting["seed"], str(setting["seed"])),
    ]
    cells += [_gap(setting.get("symmetric"), figure) for figure in FIGURES]
    identity = ("name", "train_size", "seed")
    same = (d for d in study.get("differences", []) if all(d[name] == setting[name] for name in identity))
    cells += [_gap(block, "ppg") for block in (next(same, None), setting.get("null"), setting.get("corrected"))]
    utility = (setting.get("utility") or {}).get("target") or {}
    for measure in ("zeroshot_top1", "t2i_r1"):
        value = utility.get(measure)
        cells.append(_number(None, "–") if value is None else _number(value, f"{100 * value:.1f} %"))
    on_frontier = setting["name"] in study.get("frontier", [])
    recommended = setting["name"] == study.get("recommended")
    mark = "★ recommended" if recommended else "on the frontier" if on_frontier else ""
    return [*cells, _number(on_frontier + recommended, mark)]


def _number(value: float | None, text: str) -> Html:
    return tag("td", text, data_value="" if value is None else f"{value:.10g}")


def _gap(block: Mapping[str, Any] | None, figure: str) -> Html:
    if block is None:
        return _number(None, "–")
    gap = block[figure]
    note = interval(gap["ci95"])
    if gap.get("distinguishable") is False:
        note += f", {NOT_DISTINGUISHABLE}"
    return tag("td", signed(gap["value"]), tag("small", note), data_value=f"{gap['value']:.10g}")


def comparison(rows: Mapping[str, Row]) -> Html | None:
    """The frame of the comparison of two settings, filled by study.js; None with fewer than two settings.

    Args:
        rows: {label: row of study.json} of the settings that have a page.
    """
    if len(rows) < 2:
        return None
    orders = [
        tag("option", "forgotten: most hits lost from first to second", value="lost"),
        tag("option", "newly memorized: most hits gained", value="gained"),
    ]
    tools = [
        tag("label", "First setting", _setting_select("first", rows, 0)),
        tag("label", "Second setting", _setting_select("second", rows, _second_setting(rows))),
        tag("label", "Show first", tag("select", orders, name="order")),
        tag("button", "Compare", type="button", name="compare"),
    ]
    pager = [
        tag("button", "‹ Back", type="button", name="back", disabled=True),
        tag("button", "Next ›", type="button", name="next", disabled=True),
        tag("span", "Press Compare to load the pairs.", class_="status", role="status", aria_live="polite"),
    ]
    note = (
        "The same pairs under two settings, sorted by the change of their gap (hits of the target − hits of the "
        "reference). This compares single pairs; the intervals in the table show whether the settings differ overall."
    )
    frame = tag(
        "div",
        tag("div", tools, class_="tools", role="search"),
        tag("div", pager, class_="pager"),
        tag("div", class_="cards"),
        class_="compare",
    )
    return join([tag("h2", "Two settings, pair by pair", id="compare"), tag("p", note, class_="note"), frame])


def _setting_select(name: str, labels: Iterable[str], selected: int) -> Html:
    options = [tag("option", label, value=label, selected=i == selected) for i, label in enumerate(labels)]
    return tag("select", options, name=name)


def _second_setting(rows: Mapping[str, Row]) -> int:
    """The position of the row to compare with the first: another setting, if possible of the same size and seed."""
    first, *others = rows.values()

    def similarity(i: int) -> tuple[bool, int, int]:
        different = others[i]["name"] != first["name"]
        shared = sum(others[i][name] == first[name] for name in ("train_size", "seed")) if different else 0
        return different, shared, -i

    return 1 + max(range(len(others)), key=similarity)
