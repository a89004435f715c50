"""Blocks for a model card or a paper, in Markdown or LaTeX: the gaps with their uncertainty, utility, and settings."""

from collections.abc import Mapping
from typing import Any

from dejavu_lit.measure.figures import BLOCKS, DISPLAY_ORDER, FIGURES, UTILITY
from dejavu_lit.report.membership import MEMBERSHIP_HEADERS, epsilon_sentence, membership_rows
from dejavu_lit.report.narrative import exposure_summary, signed

GAP_LABELS = [figure.label for figure in FIGURES.values()]
STUDY_HEADERS = ("setting", "pairs", "seed", *GAP_LABELS, "zero-shot top-1")
MARKDOWN = {c: f"\\{c}" for c in "\\`*_[]<>|#"}
TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$",
    "→": r"$\rightarrow$", "–": "--", "<": r"$<$", ">": r"$>$", "≤": r"$\leq$", "≥": r"$\geq$",
}  # fmt: skip
Metrics = Mapping[str, Any]


def markdown(metrics: Metrics) -> str:
    """A Markdown section with a table of the gaps."""
    lines = ["## Déjà vu memorization", "", _escape_markdown(metrics["found"]["words"]), ""]
    lines += ["| gap, value [95 % interval] | " + " | ".join(GAP_LABELS) + " |", "|---" * 4 + "|"]
    for name in _measured_blocks(metrics):
        bold = "**" if name == "symmetric" else ""
        cells = [BLOCKS[name].label, *(_gap(metrics[name][figure]) for figure in FIGURES)]
        lines.append("| " + " | ".join(f"{bold}{cell}{bold}" for cell in cells) + " |")
    if rows := _utility_rows(metrics):
        lines += ["", "| utility | target | reference |", "|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    if board := metrics.get("membership"):
        lines += ["", "| membership score | " + " | ".join(MEMBERSHIP_HEADERS) + " |"]
        lines += ["|---" * (1 + len(MEMBERSHIP_HEADERS)) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in membership_rows(board)]
        if sentence := epsilon_sentence(board):
            lines += ["", sentence]
    settings, exposure = _escape_markdown(_settings_text(metrics)), _escape_markdown(exposure_summary(metrics))
    return "\n".join([*lines, "", settings, "", exposure, ""])


def latex(metrics: Metrics) -> str:
    """A LaTeX table (requires booktabs)."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape_tex(metrics['found']['words'] + ' ' + _settings_text(metrics))}}}",
    ]
    lines += [r"\begin{tabular}{lccc}", r"\toprule", " & ".join(["gap", *GAP_LABELS]) + r" \\", r"\midrule"]
    for name in _measured_blocks(metrics):
        cells = [BLOCKS[name].label, *(_gap(metrics[name][figure]) for figure in FIGURES)]
        lines.append(" & ".join(_escape_tex(cell) for cell in cells) + r" \\")
    if rows := _utility_rows(metrics):
        lines += [r"\midrule", r"utility & target & reference & \\", r"\midrule"]
        lines += [" & ".join(_escape_tex(cell) for cell in row) + r" & \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def study_markdown(study: Metrics) -> str:
    """A Markdown section with one row per setting, size and seed."""
    lines = ["## Déjà vu memorization against utility", "", _escape_markdown(_recommendation(study)), ""]
    lines += ["| " + " | ".join(STUDY_HEADERS) + " |", "|---" * len(STUDY_HEADERS) + "|"]
    lines += ["| " + " | ".join(_escape_markdown(cell) for cell in row) + " |" for row in _study_rows(study)]
    return "\n".join([*lines, ""])


def study_latex(study: Metrics) -> str:
    """The same rows as a LaTeX table (requires booktabs)."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escape_tex(_recommendation(study))}}}"]
    lines += [r"\begin{tabular}{l" + "c" * (len(STUDY_HEADERS) - 1) + "}", r"\toprule"]
    lines += [" & ".join(STUDY_HEADERS) + r" \\", r"\midrule"]
    lines += [" & ".join(_escape_tex(cell) for cell in row) + r" \\" for row in _study_rows(study)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _measured_blocks(metrics: Metrics) -> list[str]:
    return [name for name in DISPLAY_ORDER if metrics.get(name)]


def _gap(figure: Mapping[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{signed(figure['value'])} [{signed(low)}, {signed(high)}]"


def _utility_rows(metrics: Metrics) -> list[tuple[str, str, str]]:
    utility = metrics.get("utility") or {}
    sides = [utility.get(side) or {} for side in ("target", "reference")]
    rows = []
    for name, figure in UTILITY.items():
        if any(isinstance(side.get(name), int | float) for side in sides):
            target, reference = (
                f"{100 * side[name]:.1f} %" if isinstance(side.get(name), int | float) else "–" for side in sides
            )
            rows.append((figure.label, target, reference))
    return rows


def _settings_text(metrics: Metrics) -> str:
    settings, counts = metrics["settings"], metrics["counts"]
    text = (
        f"Measured with dejavu-lit {metrics.get('provenance', {}).get('dejavu_lit', '')} on {counts['records']:,} pairs "
        f"with objects, {counts['public']:,} public images, k = {metrics['k']}, annotator threshold {settings['threshold']}."
    )
    return text.replace("  ", " ")  # if the version is unknown


def _recommendation(study: Metrics) -> str:
    name = study.get("recommended")
    text = f"Recommended setting: {name}." if name else "No setting is recommended."
    return f"{text} Rule: {study['rule']}. Symmetric gaps with 95 % intervals." if study.get("rule") else text


def _study_rows(study: Metrics) -> list[list[str]]:
    rows = []
    for setting in study["settings"]:
        block = setting.get("symmetric")
        accuracy = ((setting.get("utility") or {}).get("target") or {}).get("zeroshot_top1")
        rows.append(
            [
                setting["name"],
                f"{setting['train_size']:,}",
                str(setting["seed"]),
                *(_gap(block[figure]) if block else "–" for figure in FIGURES),
                "–" if accuracy is None else f"{100 * accuracy:.1f} %",
            ]
        )
    return rows


def _escape_markdown(text: str) -> str:
    return "".join(MARKDOWN.get(c, c) for c in text)


def _escape_tex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in text)
