"""What is trained: the architecture and its initial weights."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelSpec:
    """The architecture, and where its weights come from."""

    name: str
    """An open_clip architecture, or any name if ``config`` is given."""
    config: dict[str, Any] | None = None
    """open_clip's own model config, for a custom architecture."""
    init: str | None = None
    """Weights to start from: ARCH@TAG, ARCH@FILE, hf-hub:…, local-dir:FOLDER, RUN or RUN@EPOCH; None: from scratch."""
