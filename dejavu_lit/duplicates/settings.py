"""What counts as a duplicate; nothing heavy is imported."""

from dataclasses import dataclass

from dejavu_lit.data.settings import DISTANCES
from dejavu_lit.utils.errors import check_range


@dataclass(frozen=True)
class DuplicateCriteria:
    """What counts as a duplicate, apart from the same bytes, and how it is found."""

    distance: int | None = None
    """Most of 64 bits in which perceptual hashes of duplicates differ; null: exact copies only."""
    encoder: str | None = None
    """The model whose image embeddings are compared: a run, ARCH@TAG, ARCH@FILE, a folder, …; null: none."""
    similarity: float = 0.95
    """Smallest cosine of duplicates; the right value depends on the model: look at examples.png."""
    workers: int = 2
    """Processes that hash."""
    device: str = "cpu"
    """Device of the encoder; or cuda."""

    def __post_init__(self) -> None:
        check_range(self, "", "(0, 1)", "similarity")
        check_range(self, "", DISTANCES, "distance")
