"""Errors that a user can fix: one sentence that says what is wrong, where, and what to do."""

import errno
import math
import os
import re
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

REMEDIES = {
    errno.ENOSPC: "free some space there, then run the same command again",
    errno.EDQUOT: "free some space there, then run the same command again",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f), then run the same command again",
    errno.EROFS: "choose a writable folder, or remount this one",
    errno.EACCES: "choose another folder, or fix its permissions",
    errno.EPERM: "choose another folder, or fix its permissions",
    errno.EIO: "check the disk, then run the same command again",
    errno.ESTALE: "the network file system lost it; run the same command again",
    errno.ENOTCONN: "the network file system lost it; run the same command again",
    errno.ETIMEDOUT: "the network file system lost it; run the same command again",
    errno.EREMOTEIO: "the network file system lost it; run the same command again",
    errno.EHOSTDOWN: "the network file system lost it; run the same command again",
    errno.EMFILE: "raise the limit of open files (ulimit -n), then run the same command again",
    errno.EAGAIN: "raise the limit of processes (ulimit -u, or the container's), or choose fewer workers",
    errno.ELOOP: "it is a link, which is not followed here; remove it",
    errno.ENOMEM: "give the command more memory, or choose a smaller batch or fewer workers",
    errno.EADDRINUSE: "set MASTER_PORT to a port that is free on the node of rank 0",
    errno.ENOLCK: "this file system has no locks; choose a folder on another one",
    errno.ENOSYS: "this file system has no locks; choose a folder on another one",
}
# What a RuntimeError of torch or Python says of a limit, in words alone.
IN_WORDS = {
    "Too many open files": errno.EMFILE,
    "can't start new thread": errno.EAGAIN,
    "address already in use": errno.EADDRINUSE,
}
LONGEST = 240  # characters of another library's message
MOST_SHOWN = 40  # names in a message


class UserError(Exception):
    """Shown as one sentence without a traceback; commands then exit with code 1."""


@contextmanager
def explained(
    problem: str, remedy: str, extra: str | None = None, errors: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Turn the errors of a block that calls another library into a UserError; most libraries raise too many types to list.

    Args:
        problem, remedy: the sentence; the first line of the error's message goes between them.
        extra: the extra of this package that installs what the block imports, if it imports a package that may be missing.
        errors: the types to turn. Errors with a remedy of their own, such as a full disk, stay as they are; too little memory
            does not if MemoryError is one of the types, because a damaged length may ask for more memory than there is.
    """
    try:
        yield
    except errors as error:
        is_damage = isinstance(error, MemoryError) and MemoryError in errors
        if isinstance(error, UserError) or (has_remedy(error) and not is_damage):
            raise
        if isinstance(error, ImportError) and extra is not None:
            missing = isinstance(error, ModuleNotFoundError) and error.name
            needed = missing or f"a package that is missing or too old: {first_line(error)}"
            raise UserError(f"{problem}: it needs {needed} (pip install 'dejavu-lit[{extra}]')") from None
        raise UserError(f"{problem} ({first_line(error)}); {remedy}") from None


def has_remedy(error: Exception) -> bool:
    """Whether ``error_sentence`` says what to do about an error that is not ours: no memory, a full disk and the like."""
    return lacks_memory(error) or (isinstance(error, OSError) and error.errno in REMEDIES)


def suggest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known word nearest to ``word``, or an empty string."""
    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def counted(number: int, noun: str) -> str:
    """A number with its noun: 1 epoch, 2 epochs."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shown(names: Sequence[str]) -> str:
    """The names as one text; only the first ones of many, because a file that is not a table may seem to have any number."""
    return ", ".join(names[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise UserError if an option has a value that is not among its choices."""
    if value not in (known := list(choices)):
        raise UserError(f"{name}={value} is unknown{suggest(str(value), known)}; choose one of {', '.join(known)}")


def check_at_least(settings: object, prefix: str, **minima: int) -> None:
    """Raise UserError if a setting is below its minimum; one that is None has no value to check."""
    for name, minimum in minima.items():
        if (value := getattr(settings, name)) is not None and value < minimum:
            raise UserError(f"{prefix}{name}={value} must be at least {minimum}")


def check_range(settings: object, prefix: str, interval: str, *names: str) -> None:
    """Raise UserError if a setting is not in ``interval``, e.g. ``[0, 1)`` or ``(0, inf)``; None has no value to check."""
    low, high = map(float, interval[1:-1].split(","))
    for name in names:
        if (value := getattr(settings, name)) is None:
            continue
        above = low <= value if interval[0] == "[" else low < value
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            start = f"{'at least' if interval[0] == '[' else 'above'} {low:g}"
            end = "finite" if high == math.inf else f"{'at most' if interval[-1] == ']' else 'below'} {high:g}"
            raise UserError(f"{prefix}{name}={value} must be {start} and {end}")


def error_sentence(error: BaseException) -> str | None:
    """The sentence for an error that a user can fix: a UserError, of the operating system, or too little memory; else None."""
    if isinstance(error, UserError):
        return str(error)
    if lacks_memory(error):
        return f"not enough memory ({first_line(error)}); {REMEDIES[errno.ENOMEM]}"
    for words, number in IN_WORDS.items():
        if isinstance(error, RuntimeError) and words in str(error):
            return f"{words}; {REMEDIES[number]}"
    return os_error_sentence(error) if isinstance(error, OSError) else None


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch says so of a GPU by OutOfMemoryError, else by RuntimeError, neither a MemoryError.

    A limit of address space (``ulimit -v``) already keeps torch from being imported.
    """
    message = str(error)
    torch_error = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in message
    unloadable = isinstance(error, ImportError) and message.endswith("failed to map segment from shared object")
    return isinstance(error, MemoryError) or unloadable or (isinstance(error, RuntimeError) and torch_error)


def device_failed(error: BaseException) -> bool:
    """Whether the GPU failed: after most of these errors it refuses all further work of the process."""
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")


def killed_by(number: int) -> str:
    """How a process ended that could not say so: the signal, and why it mostly comes."""
    memory = ", often because memory ran out" if number == signal.SIGKILL else ""
    names = {known.value: known.name for known in signal.Signals}  # not of most real-time signals
    return f"killed by {names.get(number, f'signal {number}')}{memory}"


def os_error_sentence(error: OSError) -> str:
    """One sentence for an error of the operating system, such as a full disk or a read-only folder."""
    if error.errno is None:
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        if found := re.search(r"\[Errno (\d+)\][^']*(?:'(.*)')?$", last):  # of another process, in words alone
            return os_error_sentence(OSError(int(found[1]), "", found[2]))
        return last
    remedy = REMEDIES.get(error.errno)
    return f"{error.filename or 'a file'}: {os.strerror(error.errno).lower()}{f'; {remedy}' if remedy else ''}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, with the next one after a colon; without a message the name of its class.

    At most ``LONGEST`` characters.
    """
    message = str(error)
    if isinstance(error, KeyError) and " " not in message:  # only the key, not a sentence
        message = f"no entry {message}"
    first, second = [*(line.strip() for line in message.splitlines() if line.strip()), "", ""][:2]
    text = f"{first} {second}".strip() if first.endswith(":") else first
    return (text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…") or type(error).__name__
