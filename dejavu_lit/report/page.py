"""The page of one evaluation, section by section, from metrics.json alone: verdict, controls, numbers, utility, figures, pairs.

Every text goes through ``markup.tag``, which escapes it. Figures and cards are files beside the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dejavu_lit.report.markup import Html, join, row, table, tag
from dejavu_lit.report.parts import Shown, figures
from dejavu_lit.report.words import (
    BLOCKS,
    FIGURES,
    MEANINGS,
    UTILITY,
    VERDICTS,
    controls,
    in_words,
    interval,
    seen,
    signed,
    state,
)

SIGNS = {"yes": ("✓", "holds"), "no": ("✗", "does not hold"), "unknown": ("?", "not known")}
Metrics = Mapping[str, Any]


def evaluation(metrics: Metrics, plots: Sequence[Shown], pairs: Html, foot: Html, back: Html | None = None) -> Html:
    """The body of an evaluation's page.

    Args:
        plots: the figures that were drawn; pairs: of ``pairs_section``; foot: of ``provenance``; back: a link above all.
    """
    settings = metrics["settings"]
    names = f"{settings.get('target', 'target')} against {settings.get('reference', 'reference')}"
    return join(
        [
            back,
            tag("h1", "Déjà vu memorization report"),
            tag("p", names, class_="note"),
            verdict(metrics["found"], in_words(metrics)),
            tag("h2", "Do the controls hold?"),
            control_list(metrics),
            tag("h2", "The gaps"),
            gaps(metrics),
            annotators(metrics),
            tag("h2", "How good the models are"),
            utility(metrics),
            tag("p", seen(metrics)),
            blind(metrics),
            figures(plots),
            pairs,
            foot,
        ]
    )


def verdict(found: Mapping[str, Any], words: str) -> Html:
    """The answer in a box, with the sentence that carries its uncertainty."""
    answer = state(found["found"])
    rest = found["words"].removeprefix(VERDICTS[answer]).lstrip(":, ")
    return tag(
        "section",
        tag("strong", VERDICTS[answer]),
        tag("p", rest[:1].upper() + rest[1:]),
        tag("p", words),
        class_=f"verdict {answer}",
        aria_label="Verdict",
    )


def control_list(metrics: Metrics) -> Html:
    """The controls, each with a sign and a word, not with a colour alone."""
    items = []
    for control in controls(metrics):
        sign, word = SIGNS[control.state]
        items.append(
            tag(
                "li",
                tag("span", sign, class_="sign", aria_hidden="true"),
                tag("strong", f"{control.name} "),
                tag("span", f"({word}) "),
                control.words,
                class_=control.state,
            )
        )
    return tag("ul", items, class_="controls")


def gaps(metrics: Metrics) -> Html:
    """The five blocks with intervals, and below each the mean ± std that the paper quotes."""
    rows = []
    for name, label in BLOCKS.items():
        block = metrics.get(name)
        cells: list[Any] = []
        for figure in FIGURES:
            if block is None:
                cells.append("–")
                continue
            f = block[figure]
            small = tag("small", f"{interval(f['ci95'])}", tag("br"), f"{signed(f['mean'])} ± {f['std']:.3f}")
            cells.append([signed(f["value"]), small])
        rows.append(row(label, cells, class_="headline" if name == "symmetric" else None))
    heads = ["", *(tag("abbr", short, title=MEANINGS[name]) for name, short in FIGURES.items())]
    reasons = metrics.get("reasons", {})
    missing = [tag("p", f"{BLOCKS[n]} is missing: {reasons[n]}.", class_="note") for n in BLOCKS if n in reasons]
    counts = metrics["counts"]
    settings = metrics["settings"]
    kept = f"k = {metrics['k']}, score threshold {settings['threshold']}, {counts['records']:,} records"
    if settings.get("top_m"):
        kept += f", the {settings['top_m']} objects found most often are predicted"
    if counts["without_objects"]:
        kept += f"; {counts['without_objects']:,} more have no object and are left out"
    text = f"{kept}. Under each value: 95 % interval; mean ± std of 100 draws of 10 % of the records."
    made = table(heads, rows, text)
    return join([made, missing, tag("p", [[s, ": ", MEANINGS[n], ". "] for n, s in FIGURES.items()], class_="note")])


def annotators(metrics: Metrics) -> Html | None:
    """The headline gaps again under each further annotator of ``by_objects=``."""
    found = metrics.get("by_objects")
    if not found:
        return None
    rows = []
    for name, one in found.items():
        basis = "symmetric" if one["symmetric"] else "population"
        block = one[basis]
        cells = [
            [signed(block[f]["value"]), tag("small", interval(block[f]["ci95"]))] if block else "–" for f in FIGURES
        ]
        rows.append(row(name, [BLOCKS[basis] if block else one["reason"], f"{one['counts']['records']:,}", *cells]))
    text = "The same neighbors judged by the objects of other annotators. Under each value: 95 % interval."
    return table(["", "gap", "records", *FIGURES.values()], rows, text)


def utility(metrics: Metrics) -> Html:
    """Zero-shot, retrieval and probe of both models; a gap without utility says nothing."""
    found = metrics.get("utility") or {}
    sides = [found.get(side) or {} for side in ("target", "reference")]
    names = [n for n in UTILITY if any(isinstance(s.get(n), int | float) for s in sides)]
    if not names:
        return tag("p", "Utility was not measured, so these gaps say nothing about what forgetting would cost.")
    rows = [
        row(UTILITY[n], [f"{100 * s[n]:.1f} %" if isinstance(s.get(n), int | float) else "–" for s in sides])
        for n in names
    ]
    return table(["", "target", "reference"], rows, "Utility of both models")


def blind(metrics: Metrics) -> Html | None:
    """The blind baseline beside both models."""
    found = metrics.get("blind")
    if not found:
        return None
    rows = [
        row(label, [f"{found[name][rate]:.3f}" for rate in ("precision", "recall", "f1")])
        for name, label in (("target", "target"), ("reference", "reference"), ("blind", "blind baseline"))
    ]
    text = (
        f"Mean over the records. The blind baseline names the {found['objects']} most frequent public objects, "
        "whatever the caption says."
    )
    return table(["", "precision", "recall", "F1"], rows, text)
