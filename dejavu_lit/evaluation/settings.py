"""The settings of an evaluation."""

from dataclasses import dataclass

from dejavu_lit.utils.errors import UserError


@dataclass(frozen=True)
class Comparison:
    """Which neighbors are searched: the settings that cannot change without a new search."""

    target: str
    """RUN, RUN@EPOCH, ARCH@TAG, ARCH@FILE, hf-hub:…, local-dir:…, a model folder, or embeddings:DIR."""
    reference: str
    """The same, or text:MODEL for the one-model test."""
    index: str = "flat"
    """How faiss searches: flat is exact; gpu too, and needs faiss-gpu; ivf is approximate, its recall is measured."""
    public_modality: str = "image"
    """What the target's captions are compared with: the images of P, or its captions (text)."""
    swapped: bool | None = None
    """Whether to measure B with the roles exchanged; None: if the reference is known to have trained on B."""
    allow_overlap: bool = False
    """Whether both models may have trained on the same pairs."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    workers: int = 2
    """Threads that read and decode."""
    embeddings: str | None = None
    """The folder for all embeddings; None: a run's own embeddings/ if it can be written, else embeddings/ below out."""

    def __post_init__(self) -> None:
        if self.public_modality not in ("image", "text"):
            raise UserError(f"public_modality={self.public_modality} must be image or text")
