"""HTML by construction: ``tag("p", text, class_="note")`` escapes every text and attribute; nothing else makes markup."""

from collections.abc import Iterable
from html import escape


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


Child = str | int | None | Iterable["Child"]
VOID = {"img", "input", "meta", "link", "br", "source"}  # elements without an end tag


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """One element. Children are texts, numbers, ``Html``, None (skipped), or lists of these.

    Attribute names: a trailing underscore is dropped, other underscores become hyphens. True writes an attribute without
    a value; None and False write nothing.
    """
    pieces = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        pieces.append(f" {key}" if value is True else f' {key}="{escape(str(value))}"')
    start = f"<{name}{''.join(pieces)}>"
    return Html(start if name in VOID else f"{start}{join(children)}</{name}>")


def join(child: Child) -> Html:
    """Children as one piece of markup, texts escaped."""
    if child is None:
        return Html("")
    if isinstance(child, Html):
        return child
    if isinstance(child, str | int):
        return Html(escape(str(child)))
    return Html("".join(join(c) for c in child))


def table(headers: Iterable[Child], rows: Iterable[Html], text: str, **attributes: str | bool) -> Html:
    """A table below its explanation, in a box that scrolls sideways on narrow screens. ``rows`` are made by ``row``."""
    head = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in headers]))
    element = tag("table", head, tag("tbody", list(rows)), **attributes)
    box = tag("div", element, class_="scroll", tabindex=0, role="region", aria_label=text)
    return join([tag("p", text, class_="note"), box])


def row(name: Child, cells: Iterable[Child], **attributes: str | bool | None) -> Html:
    """A table row with its name as header; cells that already are ``td`` elements are not wrapped again."""
    elements = [c if isinstance(c, Html) and c.startswith("<td") else tag("td", c) for c in cells]
    return tag("tr", tag("th", name, scope="row"), elements, **attributes)
