"""Blocks for a model card or a paper, in Markdown or LaTeX: the gaps with their uncertainty, utility, and settings.

The Markdown begins with the ``model-index`` of Hugging Face's model cards (YAML between two lines of ``---``): task, dataset,
and each metric's name, value and 95 % interval.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dejavu_lit.measure.figures import BLOCKS, FIGURES, UTILITY, headline, signed
from dejavu_lit.report import narrative
from dejavu_lit.report.membership import MEMBERSHIP_HEADERS, epsilon_sentence, membership_rows
from dejavu_lit.report.study_points import membership_auc
from dejavu_lit.study.ranking import utility

AUDIT = {"type": "feature-extraction", "name": "déjà vu memorization, target against reference"}
UTILITY_TASKS = {"zeroshot": "zero-shot-image-classification", "linear": "image-classification"}  # others: retrieval
GAP_LABELS = [figure.label for figure in FIGURES.values()]
GAP_HEADERS = ("gap, value [95 % interval]", *GAP_LABELS)
STUDY_HEADERS = ("setting", "pairs", "seed", *GAP_LABELS, "AUC, cosine", "zero-shot top-1")
BLANK = dict.fromkeys(map(chr, (*range(0x20), *range(0x7F, 0xA0))), " ")  # lines and controls
MARKDOWN = str.maketrans(BLANK | {c: f"\\{c}" for c in "\\`*_[]<>|#"})
TEX = str.maketrans(BLANK | {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$",
    "→": r"$\rightarrow$", "–": "--", "<": r"$<$", ">": r"$>$", "≤": r"$\leq$", "≥": r"$\geq$",
})  # fmt: skip
Metrics = Mapping[str, Any]


def markdown(metrics: Metrics) -> str:
    """A model card: its ``model-index``, and a Markdown section with a table of the gaps."""
    name = Path(str(metrics["settings"].get("target") or "target")).name
    head = _model_index([(name, str(metrics["settings"].get("data") or "unknown"), metrics)])
    main = BLOCKS[headline(metrics)].label
    rows = [[f"**{cell}**" if row[0] == main else cell for cell in row] for row in _gap_rows(metrics)]
    tables = [_markdown_table(GAP_HEADERS, rows)]
    if measured := _utility_rows(metrics):
        tables.append(_markdown_table(("utility", "target", "reference"), measured))
    if board := metrics.get("membership"):
        tables.append(_markdown_table(("membership score", *MEMBERSHIP_HEADERS), membership_rows(board)))
        tables += filter(None, [epsilon_sentence(board)])
    verdict, *texts = (
        text.translate(MARKDOWN)
        for text in (
            " ".join([metrics["found"]["words"], *narrative.cautions(metrics)]),
            _settings(metrics),
            narrative.exposure_summary(metrics),
        )
    )
    return "\n\n".join([head, "## Déjà vu memorization", verdict, *tables, *texts]) + "\n"


def latex(metrics: Metrics) -> str:
    """A LaTeX table (requires booktabs)."""
    caption = f"{metrics['found']['words']} {_settings(metrics)}"
    parts = [(("gap", *GAP_LABELS), _gap_rows(metrics))]
    if measured := _utility_rows(metrics):
        parts.append((("utility", "target", "reference", ""), [[*row, ""] for row in measured]))
    return _latex_table(caption, parts)


def study_markdown(study: Metrics) -> str:
    """A model card with one entry in ``model-index`` and one row per setting, size and seed."""
    models = [
        (f"{s['name']}-n{s['train_size']}-s{s['seed']}", str(s.get("data") or "unknown"), s) for s in study["settings"]
    ]
    rows = [[cell.translate(MARKDOWN) for cell in row] for row in _study_rows(study)]
    sentences = filter(None, [_recommendation(study), narrative.study_caution(study)])
    parts = ["## Déjà vu memorization against utility", *(sentence.translate(MARKDOWN) for sentence in sentences)]
    verdicts = (
        f"{p['name']}, {p['train_size']:,} pairs: {narrative.pooled_sentence(p)}" for p in study.get("pooled", [])
    )
    parts += [_markdown_table(STUDY_HEADERS, rows), "\n".join(f"- {words.translate(MARKDOWN)}" for words in verdicts)]
    return "\n\n".join([_model_index(models), *parts]) + "\n"


def study_latex(study: Metrics) -> str:
    """The same rows as a LaTeX table (requires booktabs)."""
    return _latex_table(_recommendation(study), [(STUDY_HEADERS, _study_rows(study))])


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are escaped already."""
    lines = [" | ".join(cells) for cells in (headers, *rows)]
    return "\n".join([f"| {lines[0]} |", "|---" * len(headers) + "|", *(f"| {line} |" for line in lines[1:])])


def _latex_table(caption: str, parts: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> str:
    """One table of parts that have their own headers, with its caption; everything is escaped here."""
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{caption.translate(TEX)}}}"]
    lines += [r"\begin{tabular}{l" + "c" * (len(parts[0][0]) - 1) + "}", r"\toprule"]
    for number, (headers, rows) in enumerate(parts):
        lines += [r"\midrule"] * bool(number)
        lines += [" & ".join(cell.translate(TEX) for cell in headers) + r" \\", r"\midrule"]
        lines += [" & ".join(cell.translate(TEX) for cell in row) + r" \\" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _model_index(models: Sequence[tuple[str, str, Metrics]]) -> str:
    """The YAML head of a model card: (name, data folder, blocks and utility) of each model."""
    index = []
    for name, data, values in models:
        dataset = {"type": Path(data).name or "unknown", "name": Path(data).name or "unknown"}
        results = [{"task": dict(AUDIT), "dataset": dict(dataset), "metrics": _gap_metrics(values)}]
        for measure, value in ((values.get("utility") or {}).get("target") or {}).items():
            if measure in UTILITY and isinstance(value, int | float):
                task = next(
                    (t for start, t in UTILITY_TASKS.items() if measure.startswith(start)), "image-text-retrieval"
                )
                metric = {"type": measure, "name": UTILITY[measure].label, "value": round(value, 6)}
                results.append({"task": {"type": task}, "dataset": dict(dataset), "metrics": [metric]})
        index.append({"name": name, "results": results})
    text = yaml.safe_dump({"model-index": index}, allow_unicode=True, sort_keys=False)
    return f"---\n{text}---"


def _gap_metrics(blocks: Metrics) -> list[dict[str, Any]]:
    return [
        {
            "type": f"{block}_{name}",
            "name": f"{BLOCKS[block].label}: {figure.label}",
            "value": round(blocks[block][name]["value"], 6),
            "args": {"ci95": [round(end, 6) for end in blocks[block][name]["ci95"]]},
        }
        for block in narrative.measured_blocks(blocks)
        for name, figure in FIGURES.items()
    ]


def _gap_rows(metrics: Metrics) -> list[list[str]]:
    return [
        [BLOCKS[block].label, *(_gap(metrics[block][figure]) for figure in FIGURES)]
        for block in narrative.measured_blocks(metrics)
    ]


def _gap(figure: Mapping[str, Any]) -> str:
    return f"{signed(figure['value'])} {narrative.bracketed(figure['ci95'])}"


def _utility_rows(metrics: Metrics) -> list[tuple[str, str, str]]:
    return [
        (label, narrative.percent(target), narrative.percent(reference))
        for label, target, reference in narrative.utility_rows(metrics)
    ]


def _settings(metrics: Metrics) -> str:
    settings, counts = metrics["settings"], metrics["counts"]
    text = (
        f"Measured with dejavu-lit {metrics.get('provenance', {}).get('dejavu_lit', '')} on {counts['records']:,} pairs "
        f"with objects, {narrative.searched(metrics)}, k = {metrics['k']}, annotator threshold {settings['threshold']}."
    )
    return text.replace("  ", " ")  # if the version is unknown


def _recommendation(study: Metrics) -> str:
    name = study.get("recommended")
    if not name:
        return f"{narrative.capitalized(narrative.no_recommendation(study))}."
    text = f"Recommended setting: {name}."
    return f"{text} Rule: {study['rule']}. Symmetric gaps with 95 % intervals." if study.get("rule") else text


def _study_rows(study: Metrics) -> list[list[str]]:
    rows = []
    for setting in study["settings"]:
        block, auc = setting.get("symmetric"), membership_auc(setting, "cosine")
        rows.append(
            [
                setting["name"],
                f"{setting['train_size']:,}",
                str(setting["seed"]),
                *(_gap(block[figure]) if block else "–" for figure in FIGURES),
                f"{auc['value']:.3f}" if auc else "–",
                narrative.percent(utility(setting, "zeroshot_top1")),
            ]
        )
    return rows
