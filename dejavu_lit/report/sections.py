"""Sections that the pages of evaluations and studies share: the document, figures, the frame of the cards, provenance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from dejavu_lit.report.markup import Html, join, tag

WIDE = 500  # pixels; a wider figure scrolls sideways on a phone instead of shrinking until it is unreadable
PAGE_SIZES = (10, 25, 50)  # cards per page
RANKINGS = {
    "gap": "gap: hits of the target − hits of the reference",
    "hits": "hits of the target",
    "distance": "distance between caption and nearest image under the target",
}
LEGEND = {  # CSS class of a chip: its meaning
    "right": "correct: in the training image",
    "named": "correct, but named in the caption: not evidence of memorization",
    "wrong": "wrong: not in the training image",
    "missed": "missed: in the training image, but not predicted",
}


@dataclass(frozen=True)
class FigureInfo:
    """A figure as the page shows it.

    ``name`` is the file stem below figures/, ``text`` describes the figure, ``width`` and ``height`` are in pixels.
    """

    name: str
    title: str
    text: str
    width: int
    height: int


@cache
def static_file(name: str) -> str:
    """The text of a file in the package's static/ folder."""
    return (files("dejavu_lit.report") / "static" / name).read_text(encoding="utf-8")


def document(title: str, body: Html, scripts: Sequence[str], root: str = "") -> str:
    """The complete page; ``root`` leads from it to the report's folder (empty, or ending in a slash)."""
    tags = join([tag("script", src=f"{root}static/{name}", defer=True) for name in scripts])
    return Template(static_file("page.html")).substitute(
        title=tag("x", title)[3:-4], body=body, scripts=tags, root=root
    )


def figure_section(figures: Sequence[FigureInfo]) -> Html:
    """The figures, each with its description and its files."""
    if not figures:
        return tag("p", "Figures require matplotlib: pip install 'dejavu-lit[report]'.", class_="note")
    return join([tag("h2", "Figures"), tag("div", [_figure(figure) for figure in figures], class_="figures")])


def _figure(figure: FigureInfo) -> Html:
    path = f"figures/{figure.name}"
    dark = tag("source", srcset=f"{path}-dark.svg", media="screen and (prefers-color-scheme: dark)")
    size: dict[str, Any] = {"width": figure.width, "height": figure.height, "loading": "lazy", "decoding": "async"}
    wide = "wide" if figure.width > WIDE else None
    image = tag("img", src=f"{path}.svg", alt=f"{figure.title}. {figure.text}", class_=wide, **size)
    links = [tag("a", kind.upper(), href=f"{path}.{kind}") for kind in ("svg", "png", "pdf", "csv")]
    return tag(
        "figure",
        tag("h3", figure.title),
        tag("div", tag("picture", dark, image), class_="scroll", tabindex=0, role="region", aria_label=figure.title),
        tag("figcaption", figure.text, " ", tag("span", links, class_="files")),
    )


def pairs_section(count: int, total: int, redacted: bool, root: str = "") -> Html:
    """The frame of the cards, filled by cards.js: ``count`` pairs have a card, chosen from ``total`` records."""
    if not count:
        return tag("p", "No pair has annotated objects, so there are no pairs to show.")
    note = "Sorting by gap selects on the outcome, so it overstates memorization; sorting by distance does not."
    if count < total:
        note += f" Shown are {count:,} of {total:,} records, taken in turn from the top of each ranking."
    redaction = tag("p", "Redacted: captions, images, and objects are not included.", class_="note")
    cards = tag(
        "div",
        tag("div", _card_tools(redacted), class_="tools", role="search"),
        tag("div", _card_pager(), class_="pager"),
        tag("div", class_="cards"),
        tag("noscript", "The pairs require JavaScript; everything above works without it."),
        class_="pairs",
        data_folder="data",
        data_root=root,
    )
    return join(
        [
            tag("h2", "The most memorized pairs", id="pairs"),
            tag("p", note, class_="note"),
            redaction if redacted else _legend(),
            cards,
        ]
    )


def _card_tools(redacted: bool) -> list[Html | None]:
    rankings = [tag("option", label, value=name) for name, label in RANKINGS.items()]
    sizes = [tag("option", size, value=size) for size in PAGE_SIZES]
    return [
        tag("label", "Sort by", tag("select", rankings, name="sort")),
        tag(
            "label",
            "Object in the image",
            tag("input", name="object", list="objects", autocomplete="off"),
            tag("datalist", id="objects"),
            hidden=redacted,
        ),
        tag(
            "label",
            "Key" if redacted else "Text in caption or key",
            tag("input", name="text", type="search", dir="auto"),
        ),
        tag("label", "Pairs per page", tag("select", sizes, name="size")),
        None if redacted else tag("label", "Boxes", tag("input", type="checkbox", name="boxes", checked=True)),
        tag("button", "Reset", type="button", name="reset"),
    ]


def _card_pager() -> list[Html]:
    return [
        tag("button", "‹ Back", type="button", name="back"),
        tag("label", "Page ", tag("input", name="page", type="number", min=1, value=1)),
        tag("span", class_="pages"),
        tag("button", "Next ›", type="button", name="next"),
        tag("span", "Loading …", class_="status", role="status", aria_live="polite"),
    ]


def _legend() -> Html:
    chips = [tag("span", label, class_=f"chip {kind}") for kind, label in LEGEND.items()]
    boxes = (
        " Boxes use the same colors and line styles. "
        "In the training image, they show which objects the target model predicted."
    )
    return tag("div", "Objects: ", chips, boxes, class_="legend")


def provenance_section(contents: Mapping[str, Any], hashes: Mapping[str, str]) -> Html:
    """Commit, versions, the command that reproduces the results, the settings, and the SHA-256 of each artifact.

    Args:
        contents: of metrics.json or study.json.
        hashes: {artifact: SHA-256}.
    """
    provenance = contents.get("provenance", {})
    facts = {
        name: provenance[name] for name in ("dejavu_lit", "commit", "python", "machine", "time") if provenance.get(name)
    }
    facts["versions"] = ", ".join(f"{package} {version}" for package, version in provenance.get("versions", {}).items())
    search = contents.get("search")
    if search:
        facts["search"] = f"index {search['index']}, recall {search['recall']:g}"
        if search.get("copies"):
            facts["search"] += (
                f"; {search['copies']} public images are exact copies of others, so the gaps come out smaller"
            )
    rows = [[tag("dt", name), tag("dd", str(text))] for name, text in facts.items() if text]
    rows += [[tag("dt", f"SHA-256 of {name}"), tag("dd", tag("code", digest))] for name, digest in hashes.items()]
    settings = {"settings": contents.get("settings"), "config": provenance.get("config")}
    settings = {name: value for name, value in settings.items() if value}
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    return join(
        [
            tag("h2", "Provenance"),
            tag("p", "Command that reproduces these results:"),
            tag("pre", f"python {provenance.get('command', '(not recorded)')}"),
            tag("dl", rows),
            tag("details", tag("summary", "Settings"), tag("pre", text)) if settings else None,
        ]
    )
