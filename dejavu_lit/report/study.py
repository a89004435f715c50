"""The page of a study: its settings in a sortable table, figures, one page a setting, and two settings compared pair by pair.

report/index.html                      the study
report/settings/LABEL/index.html       each setting, with the same pairs on its cards, so that they can be compared
"""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dejavu_lit.report import parts
from dejavu_lit.report.cards import Images, choose, read_ranks, read_rows
from dejavu_lit.report.evaluation import Evaluation, draw, images, write_evaluation
from dejavu_lit.report.markup import Child, Html, join, table, tag
from dejavu_lit.report.markup import row as line
from dejavu_lit.report.modelcard import study_latex, study_markdown
from dejavu_lit.report.words import FIGURES, VERDICTS, interval, signed, state
from dejavu_lit.study.ranking import SAME
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import file_sha256, read_object, write_text

SCRIPTS = ("report.js", "cards.js", "study.js")
SCHEMA = 1
Row = Mapping[str, Any]
log = logging.getLogger(__name__)


def write_study_pages(
    folder: Path, path: Path, redact: bool, data: Path | None, limit: int, earlier: Path | None
) -> None:
    """Write the study's page and one below it for each setting whose evaluation is there.

    Args: as for ``write_report``; earlier: a folder of thumbnails made before.

    Raises:
        UserError: a study of another schema, or without settings.
    """
    study = read_object(path / "study.json", SCHEMA)
    if not study.get("settings"):
        raise UserError(f"{path}/study.json holds no settings; run dejavu mitigate again")
    rows = dict(zip(labels(study["settings"]), study["settings"], strict=True))
    found = {
        label: Evaluation.open((path / row["metrics"]).parent, data)
        for label, row in rows.items()
        if (path / row["metrics"]).is_file()
    }
    ranks = {label: read_ranks(evaluation.records) for label, evaluation in found.items()}
    chosen = choose(list(ranks.values()), limit)
    back = tag("p", tag("a", "← the study", href="../../index.html"))
    for label, evaluation in found.items():
        pairs = read_rows(evaluation.records, ranks[label], chosen, evaluation.metrics["k"])
        names = Images() if redact else images(evaluation, pairs, folder / "thumbs", earlier)
        write_evaluation(folder / "settings" / label, evaluation, ranks[label], pairs, names, redact, "../../", back)
    plots = draw("study", study, folder / "figures")
    write_text(folder / "modelcard.md", study_markdown(study))
    write_text(folder / "modelcard.tex", study_latex(study))
    hashes = {"study.json": file_sha256(path / "study.json")}
    body = join(
        [
            tag("h1", "Memorization against utility"),
            conclusion(study),
            tag("h2", "The settings"),
            settings(study, list(found)),
            parts.figures(plots),
            comparison({label: row for label, row in rows.items() if label in found}),
            parts.provenance(study, hashes),
        ]
    )
    write_text(folder / "index.html", parts.document("Memorization against utility", body, SCRIPTS))


def labels(rows: Sequence[Row]) -> list[str]:
    """A folder name for each row: setting, size and seed, in letters that are safe in paths and addresses, all different."""
    made: list[str] = []
    for row in rows:
        name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", row["name"]).strip(".-")[:60] or "setting"
        label = f"{name}-n{row['train_size']}-s{row['seed']}"
        made.append(label if label not in made else f"{label}-{len(made)}")
    return made


def conclusion(study: Mapping[str, Any]) -> Html:
    """The recommendation with its rule, what each setting showed, and what has no result."""
    recommended = study.get("recommended")
    head = f"Recommended: {recommended}" if recommended else "No setting is recommended"
    items = []
    for pooled in study.get("pooled", []):
        words = pooled["found"]["words"]
        answer = state(pooled["found"]["found"])
        sign = {"yes": "●", "no": "○", "unknown": "?"}[answer]
        name = f"{pooled['name']}, {pooled['train_size']:,} pairs: "
        mark = tag("span", sign, class_="sign", title=VERDICTS[answer], aria_hidden="true")
        difference = pooled.get("difference")
        change = f" {difference['words'][0].upper()}{difference['words'][1:]}." if difference else ""
        items.append(tag("li", mark, tag("strong", name), words + change))
    for label, why in (study.get("failed") or {}).items():
        items.append(
            tag(
                "li",
                tag("span", "!", class_="sign", aria_hidden="true"),
                tag("strong", f"{label}: "),
                f"no result, {why}",
            )
        )
    box = tag(
        "section",
        tag("strong", head),
        tag("p", f"The rule: {study['rule']}.") if study.get("rule") else None,
        class_="verdict",
        aria_label="Conclusion",
    )
    return join([box, tag("ul", items, class_="controls") if items else None])


def settings(study: Mapping[str, Any], linked: Sequence[str]) -> Html:
    """The sortable table: one row a (setting, size, seed)."""
    heads = ["setting", "pairs", "seed", *FIGURES.values(), "PPG less than first", "null PPG", "corrected PPG"]
    heads += ["zero-shot top-1", "text→image R@1", "frontier"]
    body = []
    for label, row in zip(labels(study["settings"]), study["settings"], strict=True):
        link = f"settings/{label}/index.html"
        name: Child = tag("a", row["name"], href=link) if label in linked else row["name"]
        symmetric, null, corrected = (row.get(b) for b in ("symmetric", "null", "corrected"))
        cells = [_number(row["train_size"], f"{row['train_size']:,}"), _number(row["seed"], str(row["seed"]))]
        cells += [_gap(symmetric, f) for f in FIGURES]
        same = ("name", "train_size", "seed")
        change = next((d for d in study.get("differences", []) if all(d[n] == row[n] for n in same)), None)
        cells += [_gap(change, "ppg"), _gap(null, "ppg"), _gap(corrected, "ppg")]
        target = (row.get("utility") or {}).get("target") or {}
        for measure in ("zeroshot_top1", "t2i_r1"):
            value = target.get(measure)
            cells.append(_number(None, "–") if value is None else _number(value, f"{100 * value:.1f} %"))
        on = row["name"] in study.get("frontier", [])
        best = row["name"] == study.get("recommended")
        cells.append(_number(on + best, "★ recommended" if best else "on it" if on else ""))
        body.append(line([name, tag("small", " ".join(row["overrides"]))], cells))
    caption = "Symmetric gaps with 95 % intervals (of the records, not of training). Click a head to sort."
    return table(heads, body, caption, class_="sortable settings")


def _number(value: float | None, text: str) -> Html:
    return tag("td", text, data_value="" if value is None else f"{value:.10g}")


def _gap(block: Mapping[str, Any] | None, figure: str) -> Html:
    if block is None:
        return _number(None, "–")
    found = block[figure]
    small = interval(found["ci95"])
    if found.get("distinguishable") is False:
        small += f", {SAME}"
    return tag("td", signed(found["value"]), tag("small", small), data_value=f"{found['value']:.10g}")


def comparison(found: Mapping[str, Row]) -> Html | None:
    """The frame of the comparison of two settings, filled by study.js; it begins with the first and another like it.

    found: {label: row of the study}, those that have a page.
    """
    if len(found) < 2:
        return None
    first, *others = found.values()
    alike = [[r[n] == first[n] for n in ("train_size", "seed")] if r["name"] != first["name"] else [] for r in others]
    second = 1 + max(range(len(others)), key=lambda i: (bool(alike[i]), sum(alike[i]), -i))

    def select(name: str, chosen: int) -> Html:
        options = [tag("option", label, value=label, selected=i == chosen) for i, label in enumerate(found)]
        return tag("select", options, name=name)

    order = [
        tag("option", "forgotten: hits lost from first to second", value="lost"),
        tag("option", "newly remembered: hits gained", value="gained"),
    ]
    tools = [
        tag("label", "First setting", select("first", 0)),
        tag("label", "Second setting", select("second", second)),
        tag("label", "Show first", tag("select", order, name="order")),
        tag("button", "Compare", type="button", name="compare"),
    ]
    pager = [
        tag("button", "‹ Back", type="button", name="back", disabled=True),
        tag("button", "Next ›", type="button", name="next", disabled=True),
        tag("span", "Nothing is loaded until you press Compare.", class_="status", role="status", aria_live="polite"),
    ]
    words = (
        "The same pairs under two settings, by the change of their gap (hits of the target − hits of the reference). "
        "It looks at single pairs; whether the settings differ as a whole is what the intervals in the table say."
    )
    return join(
        [
            tag("h2", "Two settings, pair by pair", id="compare"),
            tag("p", words, class_="note"),
            tag(
                "div",
                tag("div", tools, class_="tools", role="search"),
                tag("div", pager, class_="pager"),
                tag("div", class_="cards"),
                class_="compare",
            ),
        ]
    )
