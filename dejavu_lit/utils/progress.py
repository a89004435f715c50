"""Progress bars with count, rate and time left; only on a terminal, and only on rank 0."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from dejavu_lit.utils.distributed import current_ranks

T = TypeVar("T")


def progress(items: Iterable[T] | None, what: str, total: int | None = None, unit: str = "it") -> "tqdm[T]":
    """A tqdm bar over ``items`` (or, with None, one to ``update(n)`` by hand) that appears after two seconds."""
    silent = True if current_ranks().rank else None
    return tqdm(items, desc=what, total=total, unit=f" {unit}", delay=2, disable=silent, dynamic_ncols=True)
