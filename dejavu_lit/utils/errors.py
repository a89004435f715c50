"""The one exception for a user's mistake: a sentence that says what, where and what to do; and such ones for the system's."""

import errno
import os
from collections.abc import Iterable
from difflib import get_close_matches

REMEDIES = {
    errno.ENOSPC: "make room there, and the same command goes on",
    errno.EDQUOT: "make room there, and the same command goes on",
    errno.EROFS: "choose a place that can be written, or mount this one for writing",
    errno.EACCES: "choose another place, or mend its rights",
    errno.EPERM: "choose another place, or mend its rights",
    errno.EIO: "look at the disk, and start the same command again",
    errno.ESTALE: "the network's file system lost it; start the same command again",
    errno.EMFILE: "raise the limit of open files (ulimit -n), and start the same command again",
    errno.ENOLCK: "this file system gives no locks; choose a place on another one",
}
LONGEST = 240  # characters of what another library says


class UserError(Exception):
    """Shown as one sentence without a traceback; commands then exit with code 1."""


def suggest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word nearest to ``word``, or an empty string."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def spoken(error: OSError) -> str:
    """An error of the system (a full disk, a read-only folder, a file where a folder should be) as a sentence."""
    if error.errno is None:
        return str(error).strip().splitlines()[-1]
    remedy = REMEDIES.get(error.errno)
    return f"{error.filename or 'a file'}: {os.strerror(error.errno).lower()}{f'; {remedy}' if remedy else ''}"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, or its name where it says nothing: libraries like to say more.

    Where that line ends in a colon the next belongs to it. At most ``LONGEST`` characters.
    """
    first, second = [*(line.strip() for line in str(error).splitlines() if line.strip()), "", ""][:2]
    text = f"{first} {second}".strip() if first.endswith(":") else first
    return (text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…") or type(error).__name__
