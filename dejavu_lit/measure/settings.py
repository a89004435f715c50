"""The settings of the measurement: neighbors, thresholds, resampling and subgroups."""

from dataclasses import asdict, dataclass
from typing import Any

from dejavu_lit.utils.errors import UserError, check_at_least, check_range

BUILT_IN_COLUMNS = ("object", "caption_words", "object_count")  # subgroups that need no entry of the pairs' JSON


@dataclass(frozen=True)
class Resampling:
    """How the spread of a figure is estimated."""

    draws: int = 100
    """The paper's mean ± std: number of draws, each of share of the records."""
    share: float = 0.1
    """Share of the records per draw, with replacement."""
    bootstrap: int = 2000
    """Resamples behind the 95 % intervals."""
    seed: int = 0
    """Seed of all resampling."""

    def __post_init__(self) -> None:
        check_at_least(self, "", draws=2, bootstrap=100, seed=0)
        check_range(self, "", "(0, 1]", "share")


@dataclass(frozen=True)
class Statistics(Resampling):
    """What is computed from the records beside the main figures, and how their spread is estimated."""

    thresholds: tuple[float, ...] = ()
    """More annotator scores, for the sensitivity table."""
    top_ms: tuple[int, ...] = (5, 10, 20)
    """More top-m, for the sensitivity table."""
    tops: tuple[int | float, ...] = (10, 100, 0.001, 0.01, 0.1, 1.0)
    """Sample level: the most memorized L records, a number or a share."""
    subgroups: tuple[str, ...] = BUILT_IN_COLUMNS
    """Columns to group by: built-in ones, and entries of the pairs' JSON, as meta.NAME or just NAME."""
    smallest_group: int = 20
    """Fewest records of a subgroup that is shown."""


@dataclass(frozen=True)
class MembershipSettings:
    """Which pairs get membership scores."""

    pairs: int | None = 10_000
    """Pairs of each of A, B and H that are scored, drawn by hash; null: all."""

    def __post_init__(self) -> None:
        check_at_least(self, "membership.", pairs=1)


@dataclass(frozen=True)
class MainSettings:
    """What the main figures are about."""

    k: int = 10
    """Neighbors of the main figures."""
    ks: tuple[int, ...] = (1, 5, 10)
    """Every k to report, increasing; one search at the largest serves all."""
    threshold: float = 0.5
    """Lowest annotator score that counts, for the target's objects and the predicted ones alike."""
    top_m: int | None = None
    """Predict only the m objects found in most neighbors; null: all of them."""


@dataclass(frozen=True)
class Settings(MainSettings, Statistics):
    """The settings of the measurement. Tuples may be given as lists."""

    def __post_init__(self) -> None:
        for name in ("ks", "thresholds", "top_ms", "tops", "subgroups"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        ks = list(self.ks)
        if not ks or ks != sorted(set(ks)) or ks[0] < 1:
            raise UserError(f"ks={ks} must be increasing numbers of at least 1, each once")
        if self.k not in ks:
            raise UserError(f"k={self.k} is not among ks={ks}; add it to ks= or choose one of them as k=")
        check_range(self, "", "[0, 1]", "threshold")
        if any(not 0 <= t <= 1 for t in self.thresholds):
            raise UserError(f"thresholds={list(self.thresholds)} must lie between 0 and 1")
        if any(m < 1 for m in self.top_ms):
            raise UserError(f"top_ms={list(self.top_ms)} must be at least 1")
        if any((isinstance(t, int) and t < 1) or (isinstance(t, float) and not 0 < t <= 1) for t in self.tops):
            raise UserError(f"tops={list(self.tops)} must be integers of at least 1 or shares above 0 and at most 1.0")
        check_at_least(self, "", top_m=1, smallest_group=2)
        super().__post_init__()

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
