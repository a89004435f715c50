"""What is read while training, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dejavu_lit.utils.errors import UserError, check_at_least, check_range

DISTANCES = "[0, 12]"  # of near-duplicates, in bits; above, unrelated images are joined


@dataclass(frozen=True)
class Repeat:
    """Planted memorization: a share of the pairs, the first ones of the set, occurs several times per epoch."""

    share: Any = 0
    """Share of the pairs, from the first on; a list makes several consecutive groups."""
    times: Any = 1
    """How often these pairs occur in an epoch; a list has one number per group."""

    def __post_init__(self) -> None:
        shares, times = _as_list(self.share), _as_list(self.times)
        is_valid = all(type(number) in (int, float) for number in (*shares, *times)) and 0 < len(shares) == len(times)
        if not is_valid or min(shares) < 0 or sum(shares) > 1 or min(times) < 1 or any(number % 1 for number in times):
            raise UserError(
                f"data.repeat.share={self.share} and data.repeat.times={self.times} must be numbers, or lists of numbers of the "
                "same length; make the shares add up to at most 1 and the times whole numbers from 1"
            )

    def times_of(self, positions: np.ndarray, total: int) -> np.ndarray:
        """How often the pairs at ``positions`` (0 … total − 1) come in one epoch, int64 like ``positions``."""
        edges = np.floor(np.cumsum(_as_list(self.share)) * total + 1e-9).astype(np.int64)
        return np.array([*_as_list(self.times), 1], dtype=np.int64)[np.searchsorted(edges, positions, side="right")]


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else [value]


@dataclass(frozen=True)
class LoaderSettings:
    """How pairs are read. The order of the pairs depends on ``workers``; nothing else here changes what is trained."""

    workers: int = 0
    """Loader processes per rank; 0 reads in the training process."""
    cache_mb: int = 1024
    """Decoded images and tokens stay in memory if the training set fits into this many MiB."""
    prefetch: int = 4
    """Batches that each worker prepares ahead."""
    pin_memory: bool = False
    """Put batches in memory that the GPU reads directly."""
    bad_share: float = 0.01
    """Training stops if more than this share of an epoch's pairs cannot be read."""

    def __post_init__(self) -> None:
        check_at_least(self, "trainer.loader.", workers=0, cache_mb=0, prefetch=1)
        check_range(self, "trainer.loader.", "[0, 1]", "bad_share")
