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


def table(heads: Iterable[Child], rows: Iterable[Iterable[Child]], caption: str, **attributes: str | bool) -> Html:
    """A table whose first column names the rows, in a box that scrolls sideways where the screen is narrow."""
    body = [
        tag("tr", [tag("th", cell, scope="row") if i == 0 else tag("td", cell) for i, cell in enumerate(row)])
        for row in rows
    ]
    made = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", [tag("th", head, scope="col") for head in heads])),
        tag("tbody", body),
        **attributes,
    )
    return tag("div", made, class_="scroll", tabindex=0, role="region", aria_label=caption)
