"""HTML by construction: ``tag("p", text, class_="note")`` escapes every text and attribute; nothing else makes markup."""

from collections.abc import Iterable
from html import escape


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]
VOID = {"img", "input", "meta", "link", "br", "source"}


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """One element. Children may be texts, numbers, ``Html``, None (left out) or lists of them.

    Attributes: a trailing underscore is dropped, others become hyphens; True gives a bare one, None and False none at all.
    """
    found = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        found.append(f" {key}" if value is True else f' {key}="{escape(str(value))}"')
    head = f"<{name}{''.join(found)}>"
    return Html(head if name in VOID else f"{head}{join(children)}</{name}>")


def join(child: Child) -> Html:
    """Children as one piece of markup, texts escaped."""
    if child is None:
        return Html("")
    if isinstance(child, Html):
        return child
    if isinstance(child, str | int):
        return Html(escape(str(child)))
    return Html("".join(join(c) for c in child))


def table(heads: Iterable[Child], rows: Iterable[Html], text: str, **attributes: str | bool) -> Html:
    """A table below its explanation, in a box that scrolls sideways where the screen is narrow. Rows are of ``row``."""
    head = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in heads]))
    made = tag("table", head, tag("tbody", list(rows)), **attributes)
    box = tag("div", made, class_="scroll", tabindex=0, role="region", aria_label=text)
    return join([tag("p", text, class_="note"), box])


def row(name: Child, cells: Iterable[Child], **attributes: str | bool | None) -> Html:
    """A row of a table; its name heads it. Cells that are ``td`` elements already stay as they are."""
    made = [c if isinstance(c, Html) and c.startswith("<td") else tag("td", c) for c in cells]
    return tag("tr", tag("th", name, scope="row"), made, **attributes)
