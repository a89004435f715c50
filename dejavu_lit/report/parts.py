"""What the pages of evaluations and studies share: the document around them, figures, the frame of the cards, provenance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from dejavu_lit.report.markup import Html, join, tag
from dejavu_lit.report.words import RANKINGS

WIDE = 500  # pixels


@dataclass(frozen=True)
class Shown:
    """A figure as the page shows it: file stem below figures/, title, what it says in words, width and height in px."""

    name: str
    title: str
    text: str
    width: int
    height: int


@cache
def static(name: str) -> str:
    """A file of the templates that travel with the package."""
    return (files("dejavu_lit.report") / "static" / name).read_text(encoding="utf-8")


def document(title: str, body: Html, scripts: Sequence[str], root: str = "") -> str:
    """The whole page; ``root`` leads from it to the report's folder (empty, or ending in a slash)."""
    tags = join([tag("script", src=f"{root}static/{name}", defer=True) for name in scripts])
    return Template(static("page.html")).substitute(title=tag("x", title)[3:-4], body=body, scripts=tags, root=root)


def figures(plots: Sequence[Shown]) -> Html | None:
    """The figures, each with its words and its files."""
    if not plots:
        return tag("p", "Figures need the extra: pip install 'dejavu-lit[report]'.", class_="note")
    return join([tag("h2", "Figures"), tag("div", [_figure(plot) for plot in plots], class_="figures")])


def _figure(plot: Shown) -> Html:
    path = f"figures/{plot.name}"
    dark = tag("source", srcset=f"{path}-dark.svg", media="screen and (prefers-color-scheme: dark)")
    size: dict[str, Any] = {"width": plot.width, "height": plot.height, "loading": "lazy", "decoding": "async"}
    wide = "wide" if plot.width > WIDE else None  # on a phone it scrolls sideways instead of shrinking beyond reading
    image = tag("img", src=f"{path}.svg", alt=f"{plot.title}. {plot.text}", class_=wide, **size)
    links = [tag("a", kind.upper(), href=f"{path}.{kind}") for kind in ("svg", "png", "pdf", "csv")]
    return tag(
        "figure",
        tag("h3", plot.title),
        tag("div", tag("picture", dark, image), class_="scroll", tabindex=0, role="region", aria_label=plot.title),
        tag("figcaption", plot.text, " ", tag("span", links, class_="files")),
    )


def pairs_section(count: int, total: int, redacted: bool, root: str = "") -> Html:
    """The frame of the cards, filled by cards.js."""
    if not count:
        return tag("p", "No pair has objects, so there is none to show.")
    options = [tag("option", label, value=name) for name, label in RANKINGS.items()]
    sizes = [tag("option", n, value=n) for n in (10, 25, 50)]
    tools = [
        tag("label", "Sort by", tag("select", options, name="sort")),
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
        tag("label", "Pairs a page", tag("select", sizes, name="size")),
        None if redacted else tag("label", "Boxes", tag("input", type="checkbox", name="boxes", checked=True)),
        tag("button", "Show all", type="button", name="reset"),
    ]
    pager = [
        tag("button", "‹ Back", type="button", name="back"),
        tag("label", "Page ", tag("input", name="page", type="number", min=1, value=1)),
        tag("span", class_="pages"),
        tag("button", "Next ›", type="button", name="next"),
        tag("span", "Loading …", class_="status", role="status", aria_live="polite"),
    ]
    said = (
        ""
        if count == total
        else f" These are {count:,} of {total:,} records, taken in turn from the top of each ranking."
    )
    legend = [
        tag("span", label, class_=f"chip {kind}")
        for kind, label in (
            ("right", "right: in the training image"),
            ("told", "right, but named in the caption: proves nothing"),
            ("wrong", "wrong: not in the training image"),
            ("missed", "in the image, missed"),
        )
    ]
    drawn = " Boxes have the same colours and lines; those in the training image say what the target model found of it."
    words = "Sorting by gap selects on the outcome and so looks stronger than it is; sorting by distance does not."
    hidden = "Redacted: captions, images and objects are left out." if redacted else None
    return join(
        [
            tag("h2", "The most memorized pairs", id="pairs"),
            tag("p", words, said, class_="note"),
            tag("p", hidden, class_="note") if hidden else tag("div", "Objects: ", legend, drawn, class_="legend"),
            tag(
                "div",
                tag("div", tools, class_="tools", role="search"),
                tag("div", pager, class_="pager"),
                tag("div", class_="cards"),
                tag("noscript", "The pairs are shown by a script; everything above needs none."),
                class_="pairs",
                data_folder="data",
                data_root=root,
            ),
        ]
    )


def provenance(value: Mapping[str, Any], hashes: Mapping[str, str]) -> Html:
    """Commit, versions, the command that reproduces it, the configuration, and the artifacts' SHA-256."""
    found = value.get("provenance", {})
    facts = {name: found[name] for name in ("dejavu_lit", "commit", "python", "machine", "time") if found.get(name)}
    facts |= {"versions": ", ".join(f"{k} {v}" for k, v in found.get("versions", {}).items())}
    search = value.get("search")
    if search:
        facts["search"] = f"index {search['index']}, recall {search['recall']:g}"
    rows = [[tag("dt", name), tag("dd", str(text))] for name, text in facts.items() if text]
    rows += [[tag("dt", f"SHA-256 of {name}"), tag("dd", tag("code", digest))] for name, digest in hashes.items()]
    more = {"settings": value.get("settings"), "config": found.get("config")}
    settings = json.dumps({k: v for k, v in more.items() if v}, indent=2, ensure_ascii=False)
    return join(
        [
            tag("h2", "Provenance"),
            tag("p", "The command that reproduces it:"),
            tag("pre", f"python {found.get('command', '(not recorded)')}"),
            tag("dl", rows),
            tag("details", tag("summary", "Settings"), tag("pre", settings)) if len(settings) > 2 else None,
        ]
    )
