"""The pages' templates (templates/*.html.j2): jinja2 escapes every value that they show, and refuses a misspelled one."""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dejavu_lit.report.narrative import interval, percent, signed


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("dejavu_lit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "interval": interval,
        "number": lambda value: f"{value:,}",
        "percent": percent,
    }
    return environment


def render(name: str, **values: Any) -> str:
    """The page that the template makes of the values."""
    return _environment().get_template(name).render(**values)
