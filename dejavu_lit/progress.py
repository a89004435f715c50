"""Progress bars with count, rate and time left; silent where the output is no terminal."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T] | None, what: str, total: int | None = None, unit: str = "it") -> "tqdm[T]":
    """A tqdm bar over ``items`` (or, with None, one to ``update(n)`` by hand) that appears after two seconds."""
    return tqdm(items, desc=what, total=total, unit=f" {unit}", delay=2, disable=None, dynamic_ncols=True)
