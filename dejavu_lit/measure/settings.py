"""The settings of the measurement: neighbors, thresholds, resampling and subgroups."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dejavu_lit.utils.errors import UserError

BUILT_IN_COLUMNS = ("object", "caption_words", "object_count")  # subgroups that need no entry of the pairs' JSON


@dataclass(frozen=True)
class Resampling:
    """How the spread of a figure is estimated."""

    draws: int = 100
    """Subsamples, drawn with replacement, for the paper's mean ± std."""
    share: float = 0.1
    """Share of the records in each subsample."""
    bootstrap: int = 2000
    """Resamples of all records for the 95 % interval."""
    seed: int = 0
    """Seed of all resampling."""

    def __post_init__(self) -> None:
        for name, minimum in (("draws", 2), ("bootstrap", 100), ("seed", 0)):
            if getattr(self, name) < minimum:
                raise UserError(f"{name}={getattr(self, name)} must be at least {minimum}")
        if not 0 < self.share <= 1:
            raise UserError(f"share={self.share} must be above 0 and at most 1 (0.1 draws 10 % of the records)")

    def sample_size(self, n: int) -> int:
        """The number of records in one subsample of n: max(1, round(share · n))."""
        return max(1, round(self.share * n))


@dataclass(frozen=True)
class Settings:
    """The settings of the measurement. Tuples may be given as lists."""

    k: int = 10
    """Number of neighbors of the main figures."""
    ks: Sequence[int] = (1, 5, 10)
    """Every k that is reported; increasing, with k among them."""
    threshold: float = 0.5
    """Lowest annotator score that counts; applied to G and Ô alike when the objects are read."""
    thresholds: Sequence[float] = ()
    """Further thresholds for the sensitivity table."""
    top_m: int | None = None
    """Predict only the m objects found in most neighbors; None predicts all of them."""
    top_ms: Sequence[int] = ()
    """Further top-m for the sensitivity table."""
    draws: int = 100
    """Number of draws for the paper's mean ± std."""
    share: float = 0.1
    """Share of the records in each draw, sampled with replacement."""
    bootstrap: int = 2000
    """Resamples for the 95 % intervals."""
    seed: int = 0
    """Seed of all resampling."""
    tops: Sequence[int | float] = (10, 100, 0.001, 0.01, 0.1, 1.0)
    """Sample level: the numbers L of most memorized records, absolute (int) or as a share (float)."""
    subgroups: Sequence[str] = BUILT_IN_COLUMNS
    """Columns to group by: built-in ones, and entries of the pairs' JSON, ``meta.NAME`` or just NAME."""
    smallest_group: int = 20
    """Smallest number of records for a subgroup to be shown."""

    def __post_init__(self) -> None:
        for name in ("ks", "thresholds", "top_ms", "tops", "subgroups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        ks = list(self.ks)
        if not ks or ks != sorted(set(ks)) or ks[0] < 1:
            raise UserError(f"ks={ks} must be increasing numbers of at least 1, each once")
        if self.k not in ks:
            raise UserError(f"k={self.k} is not among ks={ks}; add it to ks= or choose one of them as k=")
        for name, values in (("threshold", [self.threshold]), ("thresholds", self.thresholds)):
            if any(not 0 <= t <= 1 for t in values):
                raise UserError(f"{name}={getattr(self, name)} must lie between 0 and 1")
        for name, numbers in (("top_m", [self.top_m] if self.top_m is not None else []), ("top_ms", self.top_ms)):
            if any(m < 1 for m in numbers):
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if any((isinstance(t, int) and t < 1) or (isinstance(t, float) and not 0 < t <= 1) for t in self.tops):
            raise UserError(f"tops={list(self.tops)} must be integers of at least 1 or shares above 0 and at most 1.0")
        if self.smallest_group < 2:
            raise UserError(f"smallest_group={self.smallest_group} must be at least 2")
        self.resampling()

    def resampling(self) -> Resampling:
        """The settings of the resampling."""
        return Resampling(self.draws, self.share, self.bootstrap, self.seed)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
