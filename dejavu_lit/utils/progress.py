"""Progress with count, rate and time left, on rank 0: a bar on a terminal, else a line of the log every minute."""

import logging
import sys
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from dejavu_lit.utils.distributed import current_ranks

log = logging.getLogger(__name__)

LINES = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left"
WITHOUT_TOTAL = "{desc}: {n_fmt}, {rate_fmt}"
SECONDS_BETWEEN_LINES = 60
LARGE = 50 << 20  # bytes of a file, which take a second or more to parse

T = TypeVar("T")


class _Log:
    """A file for tqdm whose lines go to the log."""

    def write(self, text: str) -> None:
        if text.strip():
            log.info(text.strip())

    def flush(self) -> None: ...


def progress(
    items: Iterable[T] | None, what: str, total: int | None = None, unit: str = "it", done: int = 0
) -> "tqdm[T]":
    """A tqdm bar over ``items`` (or, with None, one to ``update(n)`` by hand) that appears after two seconds.

    ``done`` of the total were done by an earlier call, and do not count in the rate.
    """
    common = {"desc": what, "total": total, "unit": f" {unit}", "initial": done, "disable": current_ranks().rank > 0}
    if sys.stderr.isatty():
        return tqdm(items, delay=2, dynamic_ncols=True, **common)
    pace = dict.fromkeys(("delay", "mininterval", "maxinterval"), SECONDS_BETWEEN_LINES)
    lines = WITHOUT_TOTAL if total is None and not isinstance(items, Sized) else LINES
    return tqdm(items, file=_Log(), bar_format=lines, leave=False, **pace, **common)


def announce(file: Path) -> None:
    """Log that a large file is read at once, which no bar can show."""
    if (size := file.stat().st_size) > LARGE and current_ranks().rank == 0:
        log.info("reading %s, %d MB", file, size >> 20)
