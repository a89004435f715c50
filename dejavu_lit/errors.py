"""The one exception for a user's mistake: a sentence that says what, where and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Shown as one sentence without a traceback; commands then exit with code 1."""


def suggest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word nearest to ``word``, or an empty string."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""
