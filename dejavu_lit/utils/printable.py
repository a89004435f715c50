"""What the terminal shows: text without control characters, by which names and captions could rewrite what was printed."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category

HIDDEN = ("Cc", "Cf", "Zl", "Zp")  # Unicode's control and format characters, and separators of lines
KEPT = "\n\t\u00ad\u200c\u200d\u200e\u200f"  # soft hyphens, joiners of letters and emoji, marks of a direction


def printable(text: str) -> str:
    """``text`` with U+FFFD for every control and format character, as those that turn the direction of writing, but ``KEPT``."""
    return "".join("\ufffd" if category(c) in HIDDEN and c not in KEPT else c for c in text)


class PrintableFormatter(logging.Formatter):
    """The format of log messages on the terminal; conf/hydra/dejavu.yaml names it."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def argument(name: str, value: object) -> str:
    """``NAME=VALUE`` as one types it in a shell."""
    return shlex.quote(f"{name}={value}")


def print_next(*steps: str) -> None:
    """Print the commands to run next, one per line; ``…`` in them stands for the options as before."""
    print("next:", *steps, sep="\n  ")


def log_warnings() -> None:
    """Let warnings be printed on stderr by commands that Hydra does not configure."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)


@contextmanager
def silenced() -> Iterator[None]:
    """Log nothing during the block, whose failure is reported once, by its error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
