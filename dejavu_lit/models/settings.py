"""What is trained: the architecture and its initial weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dejavu_lit.utils.errors import UserError


@dataclass(frozen=True)
class ModelSpec:
    """The architecture, and where its weights come from."""

    name: str
    """An open_clip architecture, or any other name if ``config`` is given."""
    config: Any = None
    """open_clip's own model config, for a custom architecture."""
    init: str | None = None
    """Weights to start from: ARCH@TAG, ARCH@FILE, hf-hub:…, local-dir:FOLDER, RUN or RUN@EPOCH; null: from scratch,
    but a text tower of transformers from its own weights, unless text_cfg.hf_model_pretrained is false."""

    def __post_init__(self) -> None:
        if self.init == "":  # a variable of the shell that is not set would mean to train from scratch
            raise UserError("model.init= is empty; give a model, or null to train from scratch")
        if not isinstance(self.config, Mapping | None):
            raise UserError(
                f"model.config={self.config} must be a mapping, or null for the architecture that name names"
            )
        for part in ("vision_cfg", "text_cfg"):
            if not isinstance(tower := (self.config or {}).get(part, {}), Mapping):
                raise UserError(
                    f"model.config.{part}={tower} must be a mapping with the options of a tower of open_clip"
                )
