"""The page of one evaluation, section by section, from metrics.json alone: verdict, controls, gaps, utility, figures, pairs.

Every text goes through ``markup.tag``, which escapes it. Figures and cards are files beside the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dejavu_lit.measure.figures import BLOCKS, DISPLAY_ORDER, FIGURES, UTILITY
from dejavu_lit.report.markup import Html, join, row, table, tag
from dejavu_lit.report.narrative import (
    VERDICTS,
    comparison_summary,
    control_checks,
    exposure_summary,
    interval,
    signed,
    to_state,
)
from dejavu_lit.report.sections import FigureInfo, figure_section

SIGNS = {"yes": ("✓", "passes"), "no": ("✗", "fails"), "caution": ("!", "caution"), "unknown": ("?", "unknown")}
Metrics = Mapping[str, Any]


def evaluation_body(
    metrics: Metrics, figures: Sequence[FigureInfo], pairs: Html, provenance: Html, back: Html | None = None
) -> Html:
    """The body of an evaluation's page.

    Args:
        figures: the figures that were drawn.
        pairs, provenance: the sections of these names.
        back: a link above everything else.
    """
    settings = metrics["settings"]
    names = f"{settings.get('target', 'target')} against {settings.get('reference', 'reference')}"
    return join(
        [
            back,
            tag("h1", "Déjà vu memorization report"),
            tag("p", names, class_="note"),
            verdict(metrics["found"], comparison_summary(metrics)),
            tag("h2", "Do the controls pass?"),
            controls(metrics),
            tag("h2", "Memorization gaps"),
            gaps(metrics),
            gaps_by_annotator(metrics),
            tag("h2", "Utility of both models"),
            utility(metrics),
            tag("p", exposure_summary(metrics)),
            blind_baseline(metrics),
            figure_section(figures),
            pairs,
            provenance,
        ]
    )


def verdict(found: Mapping[str, Any], summary: str) -> Html:
    """The verdict in a box, with the sentence that states its uncertainty."""
    state = to_state(found["found"])
    sentence = found["words"].removeprefix(VERDICTS[state]).lstrip(":, ")
    return tag(
        "section",
        tag("strong", VERDICTS[state]),
        tag("p", sentence[:1].upper() + sentence[1:]),
        tag("p", summary),
        class_=f"verdict {state}",
        aria_label="Verdict",
    )


def controls(metrics: Metrics) -> Html:
    """The controls, each marked by a sign and a word, not by color alone."""
    items = []
    for check in control_checks(metrics):
        sign, word = SIGNS[check.state]
        items.append(
            tag(
                "li",
                tag("span", sign, class_="sign", aria_hidden="true"),
                tag("strong", f"{check.name} "),
                tag("span", f"({word}) "),
                check.sentence,
                class_=check.state,
            )
        )
    return tag("ul", items, class_="controls")


def gaps(metrics: Metrics) -> Html:
    """The five blocks with intervals, and below each the mean ± std that the paper quotes."""
    rows = []
    for name in DISPLAY_ORDER:
        block = metrics.get(name)
        cells = [_gap(block[figure]) if block else "–" for figure in FIGURES]
        rows.append(row(BLOCKS[name].label, cells, class_="headline" if name == "symmetric" else None))
    if base := metrics.get("base"):
        for name in ("population", "corrected"):
            if base[name]:
                cells = [_gap(base[name][figure]) for figure in FIGURES]
                rows.append(row(f"{BLOCKS[name].label}, against the base {base['model']}", cells))
    headers = ["", *(tag("abbr", figure.label, title=figure.meaning) for figure in FIGURES.values())]
    reasons = metrics.get("reasons", {})
    missing = [
        tag("p", f"{BLOCKS[name].label} is missing: {reasons[name]}.", class_="note")
        for name in DISPLAY_ORDER
        if name in reasons
    ]
    meanings = [f"{figure.label}: {figure.meaning}. " for figure in FIGURES.values()]
    return join([table(headers, rows, _gaps_note(metrics)), missing, tag("p", meanings, class_="note")])


def _gap(figure: Mapping[str, Any]) -> list[Any]:
    spread = f"{signed(figure['mean'])} ± {figure['std']:.3f}"
    return [signed(figure["value"]), tag("small", interval(figure["ci95"]), tag("br"), spread)]


def _gaps_note(metrics: Metrics) -> str:
    counts, settings = metrics["counts"], metrics["settings"]
    text = f"k = {metrics['k']}, score threshold {settings['threshold']}, {counts['records']:,} records"
    if settings.get("top_m"):
        text += f", predictions limited to the {settings['top_m']} most frequent objects"
    if counts["without_objects"]:
        text += f"; excluded without objects: {counts['without_objects']:,}"
    return f"{text}. Below each value: 95 % interval; mean ± std of 100 draws of 10 % of the records."


def gaps_by_annotator(metrics: Metrics) -> Html | None:
    """The headline gaps under each additional annotator of ``by_objects=``."""
    by_objects = metrics.get("by_objects")
    if not by_objects:
        return None
    rows = []
    for name, result in by_objects.items():
        basis = "symmetric" if result["symmetric"] else "population"
        block = result[basis]
        cells = [
            [signed(block[f]["value"]), tag("small", interval(block[f]["ci95"]))] if block else "–" for f in FIGURES
        ]
        label = BLOCKS[basis].label if block else result["reason"]
        rows.append(row(name, [label, f"{result['counts']['records']:,}", *cells]))
    text = "The same neighbors, evaluated with the objects of other annotators. Below each value: 95 % interval."
    return table(["", "gap", "records", *(figure.label for figure in FIGURES.values())], rows, text)


def utility(metrics: Metrics) -> Html:
    """Zero-shot, retrieval, and probe of both models; a gap without utility says nothing."""
    utilities = metrics.get("utility") or {}
    sides = [utilities.get(side) or {} for side in ("target", "reference")]
    measured = [name for name in UTILITY if any(isinstance(side.get(name), int | float) for side in sides)]
    if not measured:
        return tag("p", "Utility was not measured, so these gaps do not show what reducing memorization would cost.")
    rows = [
        row(
            UTILITY[name].label,
            [f"{100 * side[name]:.1f} %" if isinstance(side.get(name), int | float) else "–" for side in sides],
        )
        for name in measured
    ]
    return table(["", "target", "reference"], rows, "Zero-shot accuracy, retrieval, and linear probe")


def blind_baseline(metrics: Metrics) -> Html | None:
    """The blind baseline beside both models."""
    baseline = metrics.get("blind")
    if not baseline:
        return None
    rows = [
        row(label, [f"{baseline[name][rate]:.3f}" for rate in ("precision", "recall", "f1")])
        for name, label in (("target", "target"), ("reference", "reference"), ("blind", "blind baseline"))
    ]
    text = (
        f"Mean over the records. The blind baseline always predicts the {baseline['objects']} objects that are most "
        "frequent in the public set and ignores the caption."
    )
    return table(["", "precision", "recall", "F1"], rows, text)
