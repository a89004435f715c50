"""How pairs are read while training."""

from dataclasses import dataclass

from dejavu_lit.utils.errors import UserError


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
        if self.workers < 0 or self.cache_mb < 0 or self.prefetch < 1 or not 0 <= self.bad_share <= 1:
            raise UserError(
                f"trainer.loader: workers={self.workers} and cache_mb={self.cache_mb} must be at least 0, "
                f"prefetch={self.prefetch} at least 1, bad_share={self.bad_share} between 0 and 1"
            )
