"""What the page of one evaluation shows, from metrics.json: values for templates/evaluation.html.j2 and its sections.

A further section is a line in ``SECTIONS``, a template of that name in templates/sections/, and its values here.
Templates may also call ``narrative`` and ``membership``.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dejavu_lit.measure.figures import BLOCKS, DISPLAY_ORDER, FIGURES, MEMBERSHIP, headline, signed
from dejavu_lit.report import membership, narrative
from dejavu_lit.report.figure_files import FigureInfo
from dejavu_lit.utils.printable import argument

SECTIONS = {  # id and template: heading
    "controls": "Do the controls pass?",
    "gaps": "Memorization gaps",
    "membership": "Membership: which pairs were trained on?",
    "utility": "Utility of both models",
    "figures": "Figures",
    "pairs": "The largest gaps",
    "provenance": "Provenance",
}
SIGNS = {"yes": ("✓", "passes"), "no": ("✗", "fails"), "caution": ("!", "caution"), "unknown": ("?", "unknown")}
MEMBERSHIP_FIGURES = ("roc", "clipmem")  # shown in the section on membership
BAR_LEFT, BAR_WIDTH = 12, 296  # of the interval bars, in units of their drawing
Metrics = Mapping[str, Any]


@cache
def templates() -> Environment:
    """The templates: every value is escaped, and a misspelled one refused."""
    environment = Environment(
        loader=PackageLoader("dejavu_lit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "number": "{:,}".format, "headline": headline}
    environment.filters |= {"interval": narrative.interval, "percent": narrative.percent}
    environment.globals |= {"signs": SIGNS, "blocks": BLOCKS, "block_order": DISPLAY_ORDER, "figures_table": FIGURES}
    environment.globals |= {"narrative": narrative, "membership": membership}
    environment.globals |= {"scores_table": MEMBERSHIP, "argument": argument}
    return environment


def evaluation_page(
    metrics: Metrics,
    figures: Sequence[FigureInfo],
    pairs: Mapping[str, Any],
    hashes: Mapping[str, str],
    redacted: bool,
    source: str,
    root: str = "",
) -> str:
    """The page of an evaluation.

    Args:
        pairs: {shown: how many have a card, total: of how many records, counterfactual: whether halves rank them}.
        hashes: {artifact: SHA-256}; source: the evaluation's folder, as a command would name it.
        root: the path from a page of a study to the report's folder, ending in a slash; empty for a report's own page.
    """
    state = narrative.to_state(metrics["found"]["found"])
    main_name = headline(metrics)
    sentence = metrics["found"]["words"].removeprefix(narrative.VERDICTS[state]).lstrip(":, ")
    sections = SECTIONS | ({"pairs": "The most memorized pairs"} if state == "yes" else {})
    template = templates().get_template("evaluation.html.j2")
    return template.render(
        sections=sections,
        root=root,
        source=source,
        metrics=metrics,
        state=state,
        verdict=narrative.VERDICTS[state],
        sentence=narrative.capitalized(sentence),
        main_name=main_name,
        bars=interval_bars(metrics, main_name),
        membership_figures=[figure for figure in figures if figure.name in MEMBERSHIP_FIGURES],
        figures=[figure for figure in figures if figure.name not in MEMBERSHIP_FIGURES],
        pairs=pairs,
        redacted=redacted,
        provenance=provenance(metrics, hashes),
    )


def interval_bars(metrics: Metrics, main_name: str) -> dict[str, Any]:
    """PPG of the main block and of the null control on one axis, in the coordinates of their drawing."""
    shown = {main_name: f"{main_name} PPG", "null": "null control, on pairs that neither model saw"}
    ppgs = {block: metrics[block]["ppg"] for block in shown if metrics[block]}
    ends = [end for ppg in ppgs.values() for end in (*ppg["ci95"], ppg["value"])]
    low, high = min(-0.1, *ends), max(0.1, *ends)

    def place(value: float) -> float:
        return round(float(BAR_LEFT + BAR_WIDTH * (value - low) / (high - low)), 1)

    rows = []
    for block, ppg in ppgs.items():
        left, right = map(place, ppg["ci95"])
        text = f"{shown[block]}: {signed(ppg['value'])}"
        rows.append({"name": block, "label": text, "low": left, "high": right, "place": place(ppg["value"])})
    step = next(s for s in (0.1, 0.2, 0.5, 1.0) if (high - low) / s <= 8)
    ticks = [(place(i * step), signed(i * step, 1)) for i in range(-10, 11) if low <= i * step <= high]
    return {"rows": rows, "zero": place(0), "ticks": ticks, "text": "; ".join(str(row["label"]) for row in rows)}


def provenance(contents: Mapping[str, Any], hashes: Mapping[str, str]) -> dict[str, Any]:
    """What metrics.json or study.json says of versions, command and settings, and {artifact: SHA-256}."""
    source = contents.get("provenance", {})
    facts = {name: source[name] for name in ("dejavu_lit", "commit", "python", "machine", "time") if source.get(name)}
    if source.get("versions"):
        facts["versions"] = ", ".join(f"{package} {version}" for package, version in source["versions"].items())
    if search := contents.get("search"):
        facts["search"] = f"index {search['index']}, recall {search['recall']:g}"
        if search.get("copies"):
            facts["search"] += (
                f"; {search['copies']} public images are exact copies of others, so gaps are underestimated"
            )
    settings = {"settings": contents.get("settings"), "config": source.get("config")}
    # Those of a study are its rows, all of study.json.
    settings = {name: value for name, value in settings.items() if value and isinstance(value, Mapping)}
    return {
        "command": source.get("command", "(not recorded)"),
        "facts": facts,
        "hashes": hashes,
        "settings": json.dumps(settings, indent=2, ensure_ascii=False) if settings else "",
    }
