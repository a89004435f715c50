"""What the terminal shows: text without control characters, by which names and captions could rewrite what was printed."""

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from unicodedata import category

HIDDEN = ("Cc", "Cf", "Zl", "Zp")  # of Unicode: controls, signs without a width or that turn the direction, separators
KEPT = "\n\t\u200c\u200d"  # the last two join letters, and the parts of an emoji


def printable(text: str) -> str:
    """``text`` with U+FFFD for every character that shows nothing but may change how others are shown."""
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
