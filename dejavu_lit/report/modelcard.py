"""Blocks for a model card or a paper: the gaps with their uncertainty, controls, utility and settings, as Markdown or LaTeX."""

from collections.abc import Mapping
from typing import Any

from dejavu_lit.report.words import BLOCKS, FIGURES, UTILITY, seen, signed

Metrics = Mapping[str, Any]


def markdown(metrics: Metrics) -> str:
    """A Markdown section with a table of the gaps."""
    lines = ["## Déjà vu memorization", "", _text(metrics["found"]["words"]), ""]
    lines += ["| gap, value [95 % interval] | " + " | ".join(FIGURES.values()) + " |", "|---" * 4 + "|"]
    for name, label in _blocks(metrics).items():
        cells = [_cell(metrics[name][f]) for f in FIGURES]
        bold = "**" if name == "symmetric" else ""
        lines.append(f"| {bold}{label}{bold} | " + " | ".join(f"{bold}{c}{bold}" for c in cells) + " |")
    if rows := _utility(metrics):
        lines += ["", "| utility | target | reference |", "|---|---|---|"]
        lines += [f"| {label} | {target} | {reference} |" for label, target, reference in rows]
    return "\n".join([*lines, "", _text(_settings(metrics)), "", _text(seen(metrics)), ""])


def latex(metrics: Metrics) -> str:
    """A LaTeX table (needs booktabs)."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(metrics['found']['words'] + ' ' + _settings(metrics))}}}",
    ]
    lines += [r"\begin{tabular}{lccc}", r"\toprule", " & ".join(["gap", *FIGURES.values()]) + r" \\", r"\midrule"]
    for name, label in _blocks(metrics).items():
        lines.append(" & ".join([_tex(label), *(_tex(_cell(metrics[name][f])) for f in FIGURES)]) + r" \\")
    if rows := _utility(metrics):
        lines += [r"\midrule", r"utility & target & reference & \\", r"\midrule"]
        lines += [" & ".join(_tex(cell) for cell in row) + r" & \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def study_markdown(study: Metrics) -> str:
    """A Markdown section with one line a setting, size and seed."""
    lines = ["## Déjà vu memorization against utility", "", _text(_recommendation(study)), ""]
    lines += ["| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
    lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in _rows(study)]
    return "\n".join([*lines, ""])


def study_latex(study: Metrics) -> str:
    """The same as a LaTeX table (needs booktabs)."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_tex(_recommendation(study))}}}"]
    lines += [r"\begin{tabular}{l" + "c" * (len(HEADS) - 1) + "}", r"\toprule", " & ".join(HEADS) + r" \\", r"\midrule"]
    lines += [" & ".join(_tex(cell) for cell in row) + r" \\" for row in _rows(study)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


HEADS = ("setting", "pairs", "seed", *FIGURES.values(), "zero-shot top-1")


def _recommendation(study: Metrics) -> str:
    name = study.get("recommended")
    text = f"Recommended setting: {name}." if name else "No setting is recommended."
    return f"{text} Rule: {study['rule']}. Symmetric gaps with 95 % intervals." if study.get("rule") else text


def _rows(study: Metrics) -> list[list[str]]:
    made = []
    for row in study["settings"]:
        block = row.get("symmetric")
        value = ((row.get("utility") or {}).get("target") or {}).get("zeroshot_top1")
        made.append(
            [
                row["name"],
                f"{row['train_size']:,}",
                str(row["seed"]),
                *(_cell(block[f]) if block else "–" for f in FIGURES),
                "–" if value is None else f"{100 * value:.1f} %",
            ]
        )
    return made


def _blocks(metrics: Metrics) -> dict[str, str]:
    return {name: label for name, label in BLOCKS.items() if metrics.get(name)}


def _cell(figure: Mapping[str, Any]) -> str:
    low, high = figure["ci95"]
    return f"{signed(figure['value'])} [{signed(low)}, {signed(high)}]"


def _utility(metrics: Metrics) -> list[tuple[str, str, str]]:
    found = metrics.get("utility") or {}
    sides = [found.get(side) or {} for side in ("target", "reference")]
    rows = []
    for name, label in UTILITY.items():
        if any(isinstance(s.get(name), int | float) for s in sides):
            cells = [f"{100 * s[name]:.1f} %" if isinstance(s.get(name), int | float) else "–" for s in sides]
            rows.append((label, cells[0], cells[1]))
    return rows


def _settings(metrics: Metrics) -> str:
    settings, counts = metrics["settings"], metrics["counts"]
    text = (
        f"Measured with dejavu-lit {metrics.get('provenance', {}).get('dejavu_lit', '')} on {counts['records']:,} pairs "
        f"with objects, {counts['public']:,} public images, k = {metrics['k']}, annotator threshold {settings['threshold']}."
    )
    return text.replace("  ", " ")


MARKDOWN = {c: f"\\{c}" for c in "\\`*_[]<>|#"}
TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$",
    "→": r"$\rightarrow$", "–": "--", "<": r"$<$", ">": r"$>$", "≤": r"$\leq$", "≥": r"$\geq$",
}  # fmt: skip


def _text(text: str) -> str:
    return "".join(MARKDOWN.get(c, c) for c in text)


def _tex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in text)
